# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.cost_model``: what to expect on a GPU, by a model. Nothing is run.

Without options, tables in Markdown: time per token of adapter greedy decoding and of CoLD on three
accelerators, where the second stream stops being nearly free, CoLD with drafts, room for caches,
the constants and where they come from, and what the formulas were held against.
``--model-config PATH`` (a Hugging Face config.json, or its folder) shows a model of yours instead,
with ``--dtype``, ``--tp``, ``--adapters`` and ``--rank``. ``--device``, ``--context``, ``--batch``
and ``--shared-prefix`` choose what is shown of either; ``--json`` prints numbers. It takes seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cost_model import tables
from benchmarks.cost_model.machines import MACHINES
from benchmarks.cost_model.model import BYTES, Shape
from benchmarks.rounds import positive

MODEL = "A model: nothing of this was measured on a GPU."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model-config", type=Path, metavar="PATH")
    parser.add_argument("--device", choices=MACHINES, nargs="+", default=list(MACHINES))
    parser.add_argument("--dtype", choices=[d for d in BYTES if BYTES[d] == 2], default="bfloat16")
    parser.add_argument("--tp", type=int, choices=(1, 2, 4, 8), default=1)
    parser.add_argument("--context", type=positive, nargs="+", default=list(tables.CONTEXTS))
    parser.add_argument("--batch", type=positive, nargs="+", default=list(tables.BATCHES))
    parser.add_argument("--adapters", type=positive, default=1, help="different ones in a batch")
    parser.add_argument("--rank", type=positive, default=16)
    parser.add_argument("--shared-prefix", type=int, default=0, metavar="TOKENS")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--page", action="store_true", help="the tables of README.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; the exit status is 1 if a model cannot be shown."""
    options = parse(arguments)
    if options.page:
        print("\n".join(map(str, tables.page())))
        return 0
    if options.model_config is None:
        shown = [s for s in tables.setups() if s.machine in [MACHINES[d] for d in options.device]]
    else:
        try:
            shape = Shape.read(options.model_config)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
        sizes = (shape, options.tp, options.dtype, options.adapters, options.rank)
        shown = [tables.Setup(MACHINES[name], *sizes) for name in options.device]
    found = tables.expected(shown, options.context, options.batch, options.shared_prefix)
    if options.model_config is None:
        found += tables.reasons()
    if options.json:
        print(json.dumps(tables.content(found, shown, options.context, options.batch), indent=1))
        return 0
    print(f"## What to expect on a GPU\n{MODEL}\n")
    print("\n".join(map(str, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
