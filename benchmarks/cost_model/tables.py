# SPDX-License-Identifier: Apache-2.0
"""The tables of the model, in Markdown, and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cost_model import measured
from benchmarks.cost_model.machines import MACHINES, SHAPES
from benchmarks.cost_model.model import Load, Machine, Shape, requests, seconds

BATCHES = (1, 8, 32, 64, 128, 256)
CONTEXTS = (512, 2048, 8192, 32768)
BORDERS = (1.1, 1.25, 1.5)
LARGEST = 1024  # batch that is looked at for a border
DRAFTS = 4
# Tokens a step with four n-gram drafts, as measured: benchmarks/measured.
WORKLOADS = {"questions about texts": 2.00, "editing": 3.84}


@dataclass(frozen=True)
class Setup:
    """A model on a machine: ``tp`` devices of it."""

    machine: Machine
    shape: Shape
    tp: int = 1
    dtype: str = "bfloat16"
    adapters: int = 1
    rank: int = 16

    @property
    def names(self) -> list[str]:
        devices = f"{self.tp} x " if self.tp > 1 else ""
        return [devices + self.machine.name, self.shape.name]

    def load(self, batch: int, context: float, streams: int = 1, drafts: int = 0) -> Load:
        return Load(batch, context, streams, min(batch, self.adapters), drafts, self.rank)

    def milliseconds(self, load: Load) -> float:
        return 1e3 * seconds(self.shape, self.machine, load, self.dtype, self.tp)

    def ratio(self, batch: int, context: float) -> float:
        """CoLD's step over adapter greedy's."""
        cold, greedy = (self.load(batch, context, streams) for streams in (2, 1))
        return self.milliseconds(cold) / self.milliseconds(greedy)

    def room(self, context: float, streams: int, prefix: int = 0) -> int:
        """Requests with room for their caches."""
        load = self.load(self.adapters, context, streams)
        return requests(self.shape, self.machine, load, self.dtype, self.tp, prefix)


def setups() -> list[Setup]:
    """What is shown without options: 7B on one device, 70B on as many as have room for it."""
    found = []
    for machine in MACHINES.values():
        found += [Setup(machine, SHAPES[name]) for name in ("Llama-2-7B", "Qwen2.5-7B")]
        found += [Setup(machine, SHAPES["Llama-3-70B"], tp) for tp in (2, 4, 8)]
    return [setup for setup in found if setup.room(512, 2)]


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        """Head and rows; columns of numbers stand to the right."""
        columns = zip(*self.rows, strict=True)
        under = ["---" if any(c[:1].isalpha() for c in column) else "--:" for column in columns]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.head, under, *self.rows))

    def __str__(self) -> str:
        return f"### {self.title}\n{self.note}\n\n{self.markdown}\n"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def points(
    shown: Iterable[Setup], contexts: Sequence[int], batches: Sequence[int]
) -> list[dict[str, Any]]:
    """Milliseconds per token of adapter greedy and CoLD; ``null`` where the caches have no room."""
    found = []
    for setup in shown:
        for context in contexts:
            room = {streams: setup.room(context, streams) for streams in (1, 2)}
            for batch in batches:
                one, two = (
                    setup.milliseconds(setup.load(batch, context, streams))
                    if batch <= room[streams]
                    else None
                    for streams in (1, 2)
                )
                machine, model = setup.names
                found.append(
                    {
                        "machine": machine,
                        "model": model,
                        "context": context,
                        "batch": batch,
                        "adapter greedy": one,
                        "CoLD": two,
                    }
                )
    return found


def times(shown: Iterable[Setup], contexts: Sequence[int], batches: Sequence[int]) -> Table:
    rows: dict[tuple[str, str, int], list[str]] = {}
    for point in points(shown, contexts, batches):
        one, two = point["adapter greedy"], point["CoLD"]
        if one is None:
            cell = "-"
        elif two is None:
            cell = f"{number(one)} / -"
        else:
            cell = f"{number(one)} / {number(two)} ({two / one:.2f})"
        rows.setdefault((point["machine"], point["model"], point["context"]), []).append(cell)
    return Table(
        "Time per token (a model)",
        "Milliseconds per token of a request: greedy decoding with the adapter / CoLD (ratio), by "
        "batch. A dash: the caches have no room.",
        ["machine", "model", "context", *map(str, batches)],
        [
            [machine, model, str(context), *cells]
            for (machine, model, context), cells in rows.items()
        ],
    )


def border(setup: Setup, context: float, ratio: float) -> int | None:
    """The smallest batch at which CoLD's step takes more than ``ratio`` of adapter greedy's."""
    batches = range(1, LARGEST + 1)
    return next((batch for batch in batches if setup.ratio(batch, context) > ratio), None)


def borders(shown: Iterable[Setup], contexts: Sequence[int]) -> Table:
    rows = []
    for setup in shown:
        for context in contexts:
            found = [border(setup, context, ratio) for ratio in BORDERS]
            cells = [str(batch or f"> {LARGEST}") for batch in found]
            rows.append([*setup.names, str(context), *cells, str(setup.room(context, 2))])
    return Table(
        "Where the second stream stops being nearly free (a model)",
        "The smallest batch at which CoLD's time per token is more than 1.1, 1.25 and 1.5 times "
        "adapter greedy's; last, how many CoLD requests have room.",
        ["machine", "model", "context", *(f"> {ratio:g}" for ratio in BORDERS), "room"],
        rows,
    )


def drafts(shown: Iterable[Setup], context: int, batches: Sequence[int]) -> Table:
    rows = []
    for setup in shown:
        if not setup.machine.drafts:
            continue
        for workload, tokens in WORKLOADS.items():
            cells = []
            for batch in batches:
                cold = setup.milliseconds(setup.load(batch, context, 2, DRAFTS)) / tokens
                greedy = setup.milliseconds(setup.load(batch, context))
                fits = batch <= setup.room(context, 2)
                cells.append(f"{cold / greedy:.2f}" if fits else "-")
            rows.append([*setup.names, workload, f"{tokens:.2f}", *cells])
    return Table(
        "CoLD with drafts (a model)",
        f"CoLD's time per token with {DRAFTS} n-gram drafts over adapter greedy's without, by "
        f"batch; context {context}. Tokens per step are those measured on a CPU "
        "(docs/speculation.md). Finding drafts and rejecting them is not in it.",
        ["machine", "model", "workload", "tokens/step", *map(str, batches)],
        rows,
    )


def memory(shown: Iterable[Setup], contexts: Sequence[int], prefix: int = 0) -> Table:
    rows = [
        [
            *setup.names,
            *(
                " / ".join(str(setup.room(c, s, prefix if c > prefix else 0)) for s in (1, 2))
                for c in contexts
            ),
        ]
        for setup in shown
    ]
    return Table(
        "Room for caches (a model)",
        "Requests whose caches have room, by context: adapter greedy / CoLD, which has two caches "
        "a request. From the second number on CoLD halves the batch."
        + (f" {prefix} tokens of each prompt are shared." if prefix else ""),
        ["machine", "model", *map(str, contexts)],
        rows,
    )


def constants(machines: Iterable[Machine]) -> Table:
    rows = [
        [
            machine.name,
            machine.sources,
            f"{machine.bandwidth / 1e12:.2f}",
            f"{max(machine.rates.values()) / 1e12:.0f}",
            f"{1e6 * machine.layer:.0f}",
            f"{1e6 * machine.lora:.0f}",
        ]
        for machine in machines
    ]
    return Table(
        "Constants",
        "What a device is taken to reach. Attention is taken to read caches at the same speed as "
        "matrices are read.",
        ["machine", "from", "TB/s", "TFLOP/s", "us a layer", "us a layer's LoRA"],
        rows,
    )


def validation() -> Table:
    rows = []
    for run in measured.runs():
        machine = measured.fit(run)
        for cell in run.cells:
            got = measured.predicted(run, cell, machine)
            rows.append(
                [
                    run.name,
                    cell.name + (f" ({cell.tokens:.2f} a step)" if cell.tokens > 1 else ""),
                    cell.dtype,
                    str(cell.load.batch),
                    str(cell.load.rows),
                    number(cell.milliseconds),
                    number(got),
                    f"{got / cell.milliseconds - 1:+.0%}",
                    "fitted" if cell.fitted else "",
                ]
            )
    return Table(
        "The same formulas on the CPU that was measured",
        "Milliseconds per token. Bandwidth and rates are fitted for each run to the cells marked; "
        "the others are predicted. Steps of 64 rows had prompts of later "
        "requests in them, which the model has not. With drafts, requests verified fewer than four "
        "in some steps; the model takes them for four.",
        ["run", "cell", "dtype", "batch", "rows", "measured", "model", "error", ""],
        rows,
    )


def summary() -> Table:
    rows = []
    for run in measured.runs():
        machine = measured.fit(run)
        errors = measured.off(run, machine)
        rows.append(
            [
                run.name,
                ", ".join(
                    [
                        f"{machine.bandwidth / 1e9:.0f} GB/s",
                        *(f"{r / 1e9:.0f} GFLOP/s {d}" for d, r in machine.rates.items()),
                    ]
                ),
                f"{len(run.cells) - len(errors)} / {len(errors)}",
                f"{measured.median_off(errors):.0%}",
                f"{min(errors):+.0%} to {max(errors):+.0%}",
            ]
        )
    return Table(
        "Validation in short",
        "",
        ["run", "fitted", "cells fitted / predicted", "median error", "errors"],
        rows,
    )


def published() -> Table:
    rows = []
    for figure in measured.PUBLISHED:
        devices = f"{figure.tp} x " if figure.tp > 1 else ""
        rows.append(
            [
                figure.source,
                f"{figure.shape}, {devices}{figure.machine.name}"
                + (", LoRA" if figure.load.adapters else ""),
                str(figure.load.batch),
                number(figure.milliseconds),
                number(figure.predicted),
                f"{figure.predicted / figure.milliseconds - 1:+.0%}",
                "fitted" if figure.fitted else "",
            ]
        )
    return Table(
        "Against what others have published",
        "Milliseconds per token; none of it with CoLD, none of it checked by us. The H100 is "
        "inferred from the times, as no A100 reads that fast, and so is vllm-ascend's 910B in its "
        "issue 4656.",
        ["source", "model and machine", "batch", "published", "model", "error", ""],
        rows,
    )


def expected(
    shown: Sequence[Setup], contexts: Sequence[int], batches: Sequence[int], prefix: int = 0
) -> list[Table]:
    """What the model says of these."""
    found = [
        times(shown, contexts, batches),
        borders(shown, contexts),
        drafts(shown, min(contexts, key=lambda context: abs(context - 2048)), batches),
        memory(shown, contexts, prefix),
    ]
    return [table for table in found if table.rows]


def reasons() -> list[Table]:
    """Why to believe it, and how far."""
    return [constants(MACHINES.values()), validation(), summary(), published()]


def page() -> list[Table]:
    """What README.md shows; docs/expect-on-gpus.md has the first."""
    shown = [s for s in setups() if s.shape.name == "Qwen2.5-7B" or s.tp == 8]
    return [
        times(shown, (2048,), (1, 8, 32, 128)),
        borders(shown, (512, 8192)),
        drafts(shown, 2048, (1, 8, 32, 128)),
        memory(shown, CONTEXTS),
        summary(),
        published(),
    ]


def content(
    found: Iterable[Table], shown: Sequence[Setup], contexts: Sequence[int], batches: Sequence[int]
) -> dict[str, Any]:
    """For JSON."""
    return {
        "measured on a GPU": False,
        "points": points(shown, contexts, batches),
        "tables": [asdict(table) for table in found],
    }
