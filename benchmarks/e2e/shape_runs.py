# SPDX-License-Identifier: Apache-2.0
"""What ``benchmarks.bench_shapes`` runs: the engines, what each decodes, and the checks."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.e2e import shapes
from benchmarks.e2e.jobs import Say, System
from benchmarks.e2e.pool import Workers
from benchmarks.e2e.run import DTYPES, kv_gib
from benchmarks.e2e.speculation import Run, counting_up, measure

FAMILY, DTYPE = "plugin", "bfloat16"
SHAPES = {
    "llama-1b": shapes.LLAMA_1B,
    "qwen3-0.6b": shapes.QWEN3_0_6B,
    "layer-7b": shapes.LAYER_7B,
    "tiny": shapes.TINY,
    "tiny-qwen3": replace(shapes.TINY, qk_norm=True),
}
GROWING = "qwen3-0.6b"
RANK, PROMPT = 16, 32  # where they do not grow
BATCHES = (1, 8)
WARM_UP = 4  # tokens


class Engine(NamedTuple):
    """What needs an engine of its own."""

    shape: str
    rank: int
    slots: int  # adapters that it can hold


class Cell(NamedTuple):
    """Requests that are decoded in several modes (see ``jobs.MODES``)."""

    part: str
    batch: int
    prompt: int = PROMPT
    adapters: int = 1
    modes: tuple[str, ...] = ("base", "adapter", "cold")


class Timed(Run):
    """A run without drafts, with several adapters."""

    def ask(self, workers: Workers, tokens: int) -> dict[str, Any]:
        """Let the worker run it."""
        return workers.get(FAMILY).ask(
            "run", mode=self.system.mode, prompts=self.prompts, tokens=tokens,
            adapters=self.adapters,
        )  # fmt: skip


Runs = dict[str, Timed]  # by mode


@dataclass
class Found:
    """What was measured.

    Attributes:
        cells: The runs of each engine's cells.
        wrong: What is wrong with tokens.
        facts: What the workers are.
        peaks: The most memory of each, bytes.
        busy: Cores that it used while it waited.
    """

    cells: dict[tuple[Engine, Cell], Runs] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    facts: dict[Engine, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[Engine, int | None] = field(default_factory=dict)
    busy: dict[Engine, float] = field(default_factory=dict)

    def of(self, part: str) -> list[tuple[Engine, Cell, Runs]]:
        """What belongs to a part."""
        return [(engine, cell, runs) for (engine, cell), runs in self.cells.items()
                if cell.part == part]  # fmt: skip


def plan(options: argparse.Namespace) -> dict[Engine, list[Cell]]:
    """The engines, those of a shape side by side, and what they run."""
    growing = GROWING if GROWING in options.shapes else options.shapes[0]
    both = ("adapter", "cold")
    cells: list[tuple[Engine, Cell]] = []
    for name in options.shapes:
        cells += [(Engine(name, RANK, 1), Cell("main", batch)) for batch in BATCHES]
    for rank in options.ranks:
        cells += [(Engine(growing, rank, 1), Cell("ranks", batch)) for batch in BATCHES]
    most = max(options.adapters)
    for count in options.adapters:
        cell = Cell("adapters", most, adapters=count, modes=both)
        cells.append((Engine(growing, RANK, most), cell))
    for length in options.lengths:
        cells.append((Engine(growing, RANK, 1), Cell("prompts", 1, length, modes=both)))
    found: dict[Engine, list[Cell]] = {}
    for engine, cell in sorted(cells, key=lambda each: options.shapes.index(each[0].shape)):
        if cell.part in options.parts:
            found.setdefault(engine, []).append(cell)
    return found


def settings(engine: Engine, cells: Sequence[Cell], options: Any, folder: Path) -> dict[str, Any]:
    """What the worker of an engine is told; the model and the adapter are in ``folder``."""
    return {
        "model": str(folder / "model"),
        "adapter": str(folder / f"adapter-{engine.rank}"),
        "dtype": DTYPE,
        "rank": engine.rank,
        "max_loras": engine.slots,
        "max_model_len": max(512, max(cell.prompt for cell in cells) + options.tokens + 1),
        "max_num_seqs": 2 * max(cell.batch for cell in cells),
        "options": {"skip_tokenizer_init": True, "enforce_eager": options.quick},
    }


def make_runs(cell: Cell, vocab: int, options: Any, rng: random.Random) -> Runs:
    """The runs of a cell, with prompts of random tokens."""
    prompts = [[rng.randrange(vocab) for _ in range(cell.prompt)] for _ in range(cell.batch)]
    made = {}
    for mode in cell.modes:
        label = f"{mode}, {cell.batch} of {cell.prompt} tokens, {cell.adapters} adapters"
        made[mode] = Timed(
            System(mode, label, FAMILY, mode), label, prompts, options.tokens, options.rounds,
            min(WARM_UP, options.tokens), cell.adapters,
        )  # fmt: skip
    return made


def run_engine(
    engine: Engine, cells: Sequence[Cell], options: Any, folder: Path, say: Say, found: Found
) -> None:
    """Time and check all of an engine."""
    shape, rng = SHAPES[engine.shape], random.Random(0)
    given = settings(engine, cells, options, folder)
    loads = [(2 * cell.batch, cell.prompt + options.tokens + 1) for cell in cells]
    loads.append((1, given["max_model_len"]))
    gib = kv_gib(shapes.configuration(shape), DTYPES[DTYPE], loads)
    known = counting_up(shape.vocab)
    with Workers(given, gib, folder, say) as workers:
        workers.get(FAMILY)
        say(f"{engine.shape}, rank {engine.rank}: started")
        for part in dict.fromkeys(cell.part for cell in cells):
            title = f"{engine.shape}, rank {engine.rank}, {part}"
            runs: list[Timed] = []
            for cell in (cell for cell in cells if cell.part == part):
                made = make_runs(cell, shape.vocab, options, rng)
                found.cells[engine, cell] = made
                runs += made.values()
            found.wrong += measure(runs, workers, rng, options.seconds, title, say)
            for run in runs:
                if run.output != [known(ids, options.tokens) for ids in run.prompts]:
                    text = "did not give the tokens that follow"
                    found.wrong.append(f"{title}: {run.label} {text}")
        worker = workers.get(FAMILY)
        found.facts[engine], found.peaks[engine] = worker.facts, worker.peak
        found.busy[engine] = worker.idle[1] / max(worker.idle[0], 1e-9)


def collect(options: argparse.Namespace, say: Say) -> Found:
    """Measure everything; stops where tokens are wrong."""
    found, engines = Found(), plan(options)
    for name in dict.fromkeys(engine.shape for engine in engines):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            say(f"{name}: writing {2 * shapes.parameters(SHAPES[name]) / 1e9:.2f} GB")
            shapes.write_model(SHAPES[name], folder / "model")
            for engine in (engine for engine in engines if engine.shape == name):
                adapter = folder / f"adapter-{engine.rank}"
                if not adapter.exists():
                    shapes.write_adapter(SHAPES[name], adapter, engine.rank)
                run_engine(engine, engines[engine], options, folder, say, found)
                if found.wrong:
                    return found
    return found
