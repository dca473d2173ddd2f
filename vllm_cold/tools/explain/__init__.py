# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain``: the greedy and the contrastive answer, token by token, as a page and as
text.
"""

import argparse
from functools import partial
from pathlib import Path

from vllm_cold.settings.table import CONTRAST, LIMITS, SETTINGS, read
from vllm_cold.tools.command_error import named_libraries
from vllm_cold.tools.contrast_args import add_rule_option, option_of
from vllm_cold.tools.options import add_contrast, add_models

DESCRIPTION = """\
Decode prompts with an adapter, or with what an amateur does not read, greedily and with
contrastive decoding. Show for each token how far expert and amateur disagree, which
candidates there were and which was chosen. Write one HTML page that needs no network, and print the
same in the terminal.
"""

EPILOG = """\
examples:
  with a model:        vllm-cold explain --model MODEL --adapter sql=/path/to/sql \\
                           --prompt "List all users."
  a running server:    vllm-cold explain --url http://localhost:8000 --adapter sql \\
                           --prompts prompts.jsonl --chat
  what a prompt did:   vllm-cold explain --model MODEL --prompts chats.jsonl \\
                           --without system --preset cfg
  what a text may add: vllm-cold explain --model MODEL --prompts chats.jsonl \\
                           --without-text "The code is 4711." --preset bound --bits 8
  what an image did:   vllm-cold explain --model MODEL --image photo.jpg \\
                           --prompt "Is there a dog?" --preset vcd"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command to the ``vllm-cold`` command line."""
    parser = subparsers.add_parser(
        "explain",
        help="show an answer token by token: candidates, scores, disagreement",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)

    group = parser.add_argument_group("prompts")
    prompts = group.add_argument
    exclusive = group.add_mutually_exclusive_group(required=True).add_argument
    exclusive("--prompt", metavar="TEXT", help="one prompt")
    exclusive(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='one prompt a line; in a .jsonl file, objects with "prompt" or "messages", with '
        '"image" or "images" (files), with cold_without, cold_without_text, '
        "cold_images, cold_part, cold_amateur_prompt or cold_amateur_messages, and with cold_bits "
        "and cold_bits_per_token of their own",
    )
    prompts(
        "--image",
        metavar="FILE",
        type=Path,
        action="append",
        help="a picture before the text of the first user's message, for each prompt without "
        "pictures of its own; repeat it for several; the prompt is then a chat",
    )
    prompts("--chat", action="store_true", help="put each prompt into the model's chat template")
    prompts("--max-tokens", metavar="N", type=int, default=64, help="length of answers (64)")

    add_models(parser).description = (
        "The model is compiled only with --no-enforce-eager: compiling takes longer than a few\n"
        "prompts."
    )
    add_contrast(parser)
    settings = parser.add_argument_group("contrastive decoding")
    for name, setting in SETTINGS.items():
        if name == "rule":
            add_rule_option(settings)
            continue
        about, action = setting.about, "store"
        if name in LIMITS:
            about, action = f"{about} Repeated, of each amateur.", "append"
        settings.add_argument(option_of(name), type=partial(read, name), action=action, help=about)
    settings.add_argument("--preset", help=CONTRAST["preset"].about)

    parser.add_argument_group("output").add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        default=Path("cold-explain.html"),
        help="where to write the page (cold-explain.html)",
    )


def _run(options: argparse.Namespace) -> int:
    with named_libraries():
        from vllm_cold.tools.explain.explain_command import run
    return run(options)
