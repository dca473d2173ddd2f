# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune``: what helps on these problems, a prompt that costs nothing more or a contrast,
and with which alpha and beta?

Greedy decoding and the baselines come first, then a grid of settings. Dev problems pick a setting,
held-out ones judge it. ``task`` checks the options, ``answers`` asks a server, ``tune_command``
puts all in order.
"""

import argparse
import json
from typing import Any

from vllm_cold.settings.table import CONTRAST, LIMITS, SETTINGS
from vllm_cold.tools.command_error import named_libraries
from vllm_cold.tools.contrast_args import add_rule_option, option_of
from vllm_cold.tools.options import add_contrast, add_models
from vllm_cold.tools.tune.baselines import BETTER
from vllm_cold.tools.tune.grid import AXES


def add_parser(subparsers: Any) -> None:
    """Describe the options of ``vllm-cold tune``."""
    parser = subparsers.add_parser(
        "tune",
        help="say on your own problems whether a better prompt or a contrast beats greedy decoding",
        description="Decodes problems with reference answers greedily, with baseline prompts, and "
        "with contrastive decoding over a grid of alpha and beta. One part of the problems picks a "
        "setting. The held-out part judges it against greedy decoding of the same expert and "
        "against the baselines. With --baselines, or a server without vllm-cold, one of the "
        "baselines is picked and judged. Ends with status 0 if what was picked is to be used, 1 if "
        "it is not, 2 for a mistake, 3 for a fault of this program's.",
    )
    what = parser.add_argument_group("what to decode")
    what.add_argument(
        "data",
        metavar="PROBLEMS.jsonl",
        help='one problem a line: {"prompt": "...", "answer": "..."}; "messages" (a list of chat '
        'messages) may replace "prompt"; a list of answers, "id" and what the amateur reads, as in '
        'a request (cold_without and others), may be given; "passages", texts in the prompt with '
        'the scores of a search: [{"text": "...", "score": 0.7}]; and "answers": false where the '
        "text that the amateur does not read has no answer",
    )
    what.add_argument(
        "--match",
        default="exact",
        metavar="HOW",
        help="exact (default), number, contains, regex, or a callable as module:function "
        "that takes the output and the answer and returns a bool or a float from 0 to 1",
    )
    what.add_argument(
        "--chat", action="store_true", help='put each "prompt" into the model\'s chat template'
    )
    what.add_argument("--max-tokens", type=int, default=256, help="per output (default: 256)")
    what.add_argument(
        "--stop", action="append", metavar="TEXT", help="a stop string; may be repeated"
    )
    what.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="requests at a time (default: 32 with --url, else 256)",
    )
    what.add_argument(
        "--requests-per-minute",
        type=int,
        metavar="N",
        help="begin no more, besides those that the server has put off (default: no limit)",
    )
    add_models(parser)
    add_contrast(parser)
    search = parser.add_argument_group("what to try, and how to judge")
    search.add_argument(
        "--baselines",
        action="store_true",
        help="try them alone, and no contrast: on any OpenAI-compatible server",
    )
    search.add_argument(
        "--better",
        metavar="TEXT",
        help="what a stronger prompt has before the question (default: "
        f"{' or '.join(map(json.dumps, BETTER.values()))})",
    )
    several = " Here several, with commas between them"
    for name, setting in SETTINGS.items():
        if name == "rule":
            add_rule_option(search, f"{several}; the grid has them after the values of --beta.")
            continue
        search.add_argument(
            option_of(name),
            metavar="X,X" if name in (*AXES, *LIMITS) else "X",
            help=setting.about
            + (f"{several}: {AXES[name]} if left out." if name in AXES else "")
            + (f"{several}." if name in LIMITS else ""),
        )
    search.add_argument(
        "--preset",
        metavar="NAME,NAME",
        help=f"{CONTRAST['preset'].about} Several with commas between them; in addition to "
        "the grid if there is --alpha, --beta or --rule, else in place of it.",
    )
    search.add_argument(
        "--test-fraction",
        type=float,
        default=0.5,
        help="share of problems held out to judge the setting (default: 0.5)",
    )
    search.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")

    parser.add_argument_group("files").add_argument(
        "--output",
        default="cold-tune",
        metavar="DIR",
        help="answers and report; the same command goes on there after a crash "
        "(default: cold-tune)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the sub-command; return 0 if what was picked beats greedy significantly, else 1.

    Raises:
        ToolError: a mistake in the options, the files or the scoring callable.
    """
    with named_libraries():  # before anything is decoded
        from vllm_cold.tools.tune import tune_command
    return tune_command.run(options)
