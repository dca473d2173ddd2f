# SPDX-License-Identifier: Apache-2.0
"""LoRA and CoLD on a CPU at the shapes of real models, in bfloat16, with random weights.

``python -m benchmarks.bench_shapes [--parts main ranks adapters prompts] [--shapes llama-1b
qwen3-0.6b layer-7b] [--tokens 24] [--rounds 3] [--seconds 8] [--json FILE]``; ``--quick`` tries
everything on tiny shapes, in minutes, and says nothing about speed.

Weights are random and of full size, and the text is known beforehand (``benchmarks.e2e.shapes``):
all tokens must be the known ones before a speed is printed. The shapes are Llama 3.2 1B, Qwen3 0.6B
(both with a head that is not tied) and one decoder layer of Llama 2 7B with a small vocabulary. The
adapter is on all linear layers.

- ``main``: base, adapter (rank 16) and CoLD, 1 and 8 requests, for each of ``--shapes``;
- ``ranks``: the same at ranks 8, 32 and 128;
- ``adapters``: 16 requests with 1, 4 and 16 different adapters;
- ``prompts``: one request with a prompt of 128, 1024 and 4096 tokens.

The last three are of Qwen3 0.6B, or of the first of ``--shapes`` if it is not among these. Base,
adapter and CoLD are one engine with this package, in a process of its own; there is one engine for
each shape, rank and number of adapters that it can hold, one after the other. What an engine runs
for a part is timed in rounds of shuffled order. Milliseconds per token are those between a
request's first and last token; medians with the 20th and 80th percentile, ratios within rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.e2e import shapes, show
from benchmarks.e2e.run import BLOCK, DTYPES
from benchmarks.e2e.shape_runs import DTYPE, RANK, SHAPES, Found, Runs, Timed, collect
from benchmarks.e2e.speculation import table
from benchmarks.rounds import positive, ratios, show_if_right, spread, spread_text
from examples.demo import quiet

PARTS = ("main", "ranks", "adapters", "prompts")
# At batch 1, of the part main: over, under, at most.
TARGETS = (("adapter", "base", 1.08), ("cold", "adapter", 1.1))
FULL: dict[str, Any] = {
    "shapes": ["llama-1b", "qwen3-0.6b", "layer-7b"], "tokens": 24, "rounds": 3, "seconds": 8.0,
    "ranks": (8, 32, 128), "adapters": (1, 4, 16), "lengths": (128, 1024, 4096),
}  # fmt: skip
QUICK: dict[str, Any] = {
    "shapes": ["tiny-qwen3", "tiny"], "tokens": 6, "rounds": 1, "ranks": (8,), "adapters": (1, 2),
    "lengths": (128, 300),
}  # fmt: skip


def ms(runs: Runs) -> list[str]:
    """Milliseconds per token of each mode."""
    return [spread_text(run.ms, show.short) for run in runs.values()]


def over(a: Timed, b: Timed) -> str:
    """The ratio of two runs."""
    return spread_text(ratios(a.ms, b.ms))


def three(runs: Runs) -> list[str]:
    """The cells of base, adapter and CoLD."""
    base, adapter, cold = runs["base"], runs["adapter"], runs["cold"]
    return [*ms(runs), over(adapter, base), over(cold, adapter)]


def targets(found: Found) -> list[tuple[str, show.Target]]:
    """The shapes, and what is aimed at with them."""
    return [
        (engine.shape, show.Target(f"{a} / {b}", ratios(runs[a].ms, runs[b].ms), limit))
        for engine, cell, runs in found.of("main")
        if cell.batch == 1
        for a, b, limit in TARGETS
    ]


def kv_mib(shape: shapes.Shape, blocks: float, block: int) -> float:
    """MiB of the keys and values of so many blocks of ``block`` tokens."""
    values = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return blocks * block * values * DTYPES[DTYPE] / 2**20


def weights_rate(name: str, run: Timed) -> str:
    """GB of weights per second that a pass for each token reads, but for the embeddings."""
    shape = SHAPES[name]
    read = DTYPES[DTYPE] * (shapes.parameters(shape) - shape.vocab * shape.hidden)
    return f"{read / spread(run.ms)[0] / 1e6:.1f}"


def pages(found: Found) -> str:
    """All tables, in Markdown."""
    parts: list[str] = []

    def add(title: str, columns: str, rows: Iterable[Sequence[str]], left: int = 1) -> None:
        listed = list(rows)
        if listed:
            parts.extend([f"### {title}", table(columns.split(" | "), listed, left)])

    times = "base, ms/token | adapter | CoLD | adapter / base | CoLD / adapter"
    add(f"Main: rank {RANK}", f"shape | batch | {times} | base, GB/s of weights", (
        [engine.shape, str(cell.batch), *three(runs), weights_rate(engine.shape, runs["base"])]
        for engine, cell, runs in found.of("main")
    ))  # fmt: skip
    add("Targets at batch 1", "shape | ratio | measured | aimed at | ", (
        [name, each.text, spread_text(each.values), f"<= {each.limit:g}", each.verdict]
        for name, each in targets(found)
    ), 2)  # fmt: skip
    rows = found.of("ranks")
    growing = {engine.shape for engine, _, _ in rows}
    rows += [each for each in found.of("main") if each[0].shape in growing]
    add(f"Growth with the rank: {', '.join(growing)}", f"batch | rank | {times}", (
        [str(cell.batch), str(engine.rank), *three(runs)]
        for engine, cell, runs in sorted(rows, key=lambda each: (each[1].batch, each[0].rank))
    ), 0)  # fmt: skip
    rows = found.of("adapters")
    both = "adapter, ms/token | CoLD | CoLD / adapter"
    for engine, cell, first in rows[:1]:
        add(
            f"Growth with the adapters: {engine.shape}, {cell.batch} requests",
            f"adapters | {both} | adapter / {cell.adapters} | CoLD / {cell.adapters}",
            ([str(cell.adapters), *ms(runs), over(runs["cold"], runs["adapter"]),
              *(over(runs[mode], first[mode]) for mode in runs)] for _, cell, runs in rows),
            0,
        )  # fmt: skip
    rows = found.of("prompts")
    add(
        f"Growth with the prompt: {rows[0][0].shape if rows else ''}, one request",
        f"prompt | adapter, TTFT s | CoLD | CoLD / adapter | {both}",
        ([str(cell.prompt), *(spread_text(run.ttft, show.short) for run in runs.values()),
          spread_text(ratios(runs["cold"].ttft, runs["adapter"].ttft)), *ms(runs),
          over(runs["cold"], runs["adapter"])] for _, cell, runs in rows),
        0,
    )  # fmt: skip
    add("KV cache of a request", "shape | batch | tokens | adapter, blocks | CoLD | adapter, MiB "
        "| CoLD", (
        [engine.shape, str(cell.batch), str(cell.prompt + runs["cold"].tokens),
         *(f"{count:.2f}" for count in counts),
         *(f"{kv_mib(SHAPES[engine.shape], count, block):.1f}" for count in counts)]
        for part in ("main", "prompts")
        for engine, cell, runs in found.of(part)
        for block in [found.facts[engine].get("block size", BLOCK)]
        for counts in [[(runs[m].blocks or 0) / cell.batch for m in ("adapter", "cold")]]
    ))  # fmt: skip
    add("Memory: the most that a process had resident, perhaps while it loaded the model",
        "shape | rank | adapters | GiB | model, GiB", (
        [engine.shape, str(engine.rank), str(engine.slots), f"{peak / 2**30:.2f}",
         f"{DTYPES[DTYPE] * shapes.parameters(SHAPES[engine.shape]) / 2**30:.2f}"]
        for engine, peak in found.peaks.items() if peak is not None
    ))  # fmt: skip
    return "\n\n".join(parts)


def content(found: Found) -> dict[str, Any]:
    """Everything for a file; only the problems if tokens are wrong."""
    if found.wrong:
        return {"problems": found.wrong}
    return {
        "machine": show.machine().splitlines(),
        "engines": [
            {**engine._asdict(), "facts": facts, "peak bytes": found.peaks[engine],
             "idle share of a core": found.busy[engine]}
            for engine, facts in found.facts.items()
        ],
        "runs": [
            {**engine._asdict(), "part": cell.part, "batch": cell.batch, "mode": mode,
             **show.as_json(run), "ms": run.ms}
            for (engine, cell), runs in found.cells.items()
            for mode, run in runs.items()
        ],
        "targets": [
            {"shape": name, "ratio": each.text, "rounds": each.values, "limit": each.limit,
             "verdict": each.verdict}
            for name, each in targets(found)
        ],
    }  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with the defaults of ``--quick`` where it is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--shapes", choices=SHAPES, nargs="+")
    parser.add_argument("--tokens", type=positive, help="of each request, 2 or more")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--seconds", type=float, help="of each run's rounds, about, at most")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a trial, no times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all measurements")
    options = parser.parse_args(arguments)
    for name, value in (FULL | (QUICK if options.quick else {})).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    if options.tokens < 2:
        parser.error(f"--tokens {options.tokens}: must be 2 or more, or there is no time between")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: must be a file in a folder that exists")
    options.shapes = list(dict.fromkeys(options.shapes))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a check failed."""
    options = parse(arguments)
    quiet()
    began = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", file=sys.stderr, flush=True)

    print(f"{show.machine()}\n{show.load()} before", flush=True)
    found = collect(options, say)
    if options.json is not None:
        options.json.write_text(json.dumps(content(found), indent=1) + "\n")

    def speeds() -> None:
        print(f"{show.load()} after\nchecked: all tokens are the known ones")
        for engine, facts in found.facts.items():
            listed = ", ".join(f"{name} {value}" for name, value in facts.items())
            idle = f"{found.busy[engine]:.1%} of a core while it waited"
            print(f"{engine.shape}, rank {engine.rank}, {engine.slots} adapters: {listed}; {idle}")
        print(f"\n{pages(found)}")

    return show_if_right(found.wrong, speeds)


if __name__ == "__main__":
    sys.exit(main())
