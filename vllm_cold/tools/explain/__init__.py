# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain``: the greedy and the CoLD answer, token by token, as a page and as text."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from vllm_cold.method.settings import CONTRAST, KNOBS, read
from vllm_cold.tools.address import add_options
from vllm_cold.tools.contrast import option_of
from vllm_cold.tools.errors import named_libraries

DESCRIPTION = """\
Decode prompts with an adapter, or with what an amateur does not read, greedily and with CoLD. Show
for each token how far expert and amateur disagree, which candidates there were and which won.
Writes one HTML page that needs no network, and prints the same in the terminal."""

EPILOG = """\
examples:
  in this process:     vllm-cold explain --model MODEL --adapter sql=/path/to/sql \\
                           --prompt "List all users."
  a running server:    vllm-cold explain --url http://localhost:8000 --adapter sql \\
                           --prompts prompts.jsonl --chat
  what a prompt did:   vllm-cold explain --model MODEL --prompts chats.jsonl \\
                           --without system --preset cfg
  side by side:        vllm-cold explain --model MODEL --prompts chats.jsonl --without system \\
                           --method greedy --method cfg --method cold:alpha=0.02,beta=1
  while it decodes:    vllm-cold explain --serve --url http://localhost:8000 --adapter sql"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to the ``vllm-cold`` command line."""
    parser = subparsers.add_parser(
        "explain",
        help="show an answer token by token: candidates, scores, disagreement",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)

    prompts = parser.add_argument_group("prompts")
    one = prompts.add_mutually_exclusive_group(required=True)
    one.add_argument("--prompt", metavar="TEXT", help="one prompt")
    one.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='one prompt a line; in a .jsonl file, objects with "prompt" or "messages", and with '
        "cold_without, cold_part, cold_amateur_prompt or cold_amateur_messages of their own",
    )
    one.add_argument(
        "--serve",
        action="store_true",
        help="with --url: a page at a port of its own, which takes prompts and shows their answers "
        "while they are decoded; the other options are what it starts with",
    )
    prompts.add_argument(
        "--chat", action="store_true", help="put each prompt into the model's chat template"
    )
    prompts.add_argument(
        "--max-tokens", metavar="N", type=int, default=64, help="length of answers (%(default)s)"
    )

    models = parser.add_argument_group("model and adapters")
    models.add_argument(
        "--adapter",
        metavar="PATH",
        help="the expert's folder, or NAME=PATH to call it something else; with --url, the name of "
        "an adapter that the server has loaded; left out: the base model, guided by its prompt",
    )
    models.add_argument(
        "--amateur",
        metavar="PATH",
        action="append",
        help="another adapter to contrast with, PATH as for --adapter, or --model's own text for "
        "the base model; repeat it for several amateurs",
    )
    models.add_argument(
        "--model",
        metavar="MODEL",
        help="the base model: a folder with config.json, or a hub name; with --url, its name on "
        "the server (default: the adapter's)",
    )
    add_options(models)

    cold = parser.add_argument_group("Contrastive LoRA Decoding")
    cold.add_argument(
        "--method",
        metavar="NAME",
        action="append",
        help="put this beside others: greedy, or a preset, with values of its own as in "
        "cold:alpha=0.02,beta=1; up to three times",
    )
    for name, knob in KNOBS.items():
        cold.add_argument(option_of(name), type=partial(read, name), help=knob.about)
    reads = parser.add_argument_group(
        "what amateurs read, and how much they count",
        "As a request's cold_* keys, for all prompts. Repeated, an option has a value for each\n"
        "amateur, '' for none but in --weights.",
    )
    for name, knob in CONTRAST.items():
        if name == "preset":
            reads.add_argument(option_of(name), help=knob.about)
        elif name != "amateur":
            reads.add_argument(
                option_of(name),
                metavar=name.rpartition("_")[2].upper(),
                action="append",
                help=knob.about,
            )

    engine = parser.add_argument_group("engine in this process (without --url)")
    engine.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="as vLLM's (auto)",
    )
    engine.add_argument("--max-model-len", metavar="N", type=int, help="as vLLM's")
    engine.add_argument(
        "--gpu-memory-utilization", metavar="X", type=float, help="as vLLM's (its default)"
    )
    engine.add_argument(
        "--enforce-eager",
        action=argparse.BooleanOptionalAction,
        help="do not compile the model, which takes longer than a few prompts (default: on)",
    )

    page = parser.add_argument_group("the page of --serve")
    page.add_argument(
        "--host", default="127.0.0.1", help="the address that it is at (%(default)s, this machine)"
    )
    page.add_argument("--port", type=int, default=8090, help="its port, 0 for any (%(default)s)")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        default=Path("cold-explain.html"),
        help="where to write the page (%(default)s)",
    )
    output.add_argument(
        "--full",
        action="store_true",
        help="print the candidates of every token, not only where CoLD and greedy differ; the "
        "page has them all",
    )
    output.add_argument(
        "--candidates",
        metavar="N",
        type=int,
        default=8,
        help="list at least the N most probable tokens of each stream (%(default)s)",
    )


def _run(options: argparse.Namespace) -> int:
    with named_libraries():
        if options.serve:
            from vllm_cold.tools.explain.serve import run
        else:
            from vllm_cold.tools.explain.command import run
    return run(options)
