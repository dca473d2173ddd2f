# SPDX-License-Identifier: Apache-2.0
"""Show what was measured: tables in Markdown, and the same for a file."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.e2e import show
from benchmarks.e2e.jobs import Job, Jobs
from benchmarks.peers.run import GGUF, MEMORY, MODES, NO_COLD, PROGRAMS, Found, label, shares
from benchmarks.rounds import ratios, spread_text

NOTE = """\
Median (20th-80th percentile) over the rounds. Seconds and tokens/s: of the whole batch; ms/token: \
between a request's tokens, after the first; equal: the share of tokens in common with the \
transformers loop, all after a first difference counted as they are; time ratio: to this package \
in the same round, decoding alike. {peers}"""
FLOOR = """
x floor: ms/token over that of a process that only reads as many bytes as the model's and the \
adapter's weights have in this format, in the same round. It reads 2 streams' weights once: \
llama.cpp's CoLD and the loop's read them twice."""


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def floors(job: Job, dtype: str, jobs: Jobs, found: Found) -> list[float]:
    """A job's time per token over that of reading its weights, of each round."""
    memory = jobs.get(MEMORY.label)
    if memory is None:
        return []
    kind = GGUF.get((job.system.family, dtype), dtype)
    scale = found.size[kind] / found.size[dtype]
    return ratios(job.tpot, [scale * each for each in memory.tpot])


def rows(dtype: str, batch: int, found: Found) -> list[list[str]]:
    """Of the table of one dtype and batch size."""
    jobs, equal = found.table[dtype, batch], shares(found.table[dtype, batch])
    shown = []
    for job in (job for job in jobs.values() if job.seconds):
        cells = [job.label]
        if job.system is MEMORY:
            rate = found.size[dtype] / statistics.median(job.tpot) / 1e9
            once = spread_text(job.tpot, show.short, 1e3)
            shown.append([f"{job.label}, {rate:.0f} GB/s", *[""] * 3, once, "", "", "1"])
            continue
        own = jobs.get(label("plugin", job.system.mode))
        rate = len(job.prompts) * job.tokens / statistics.median(job.seconds)
        cells += [
            f"{equal[job.label]:.0%}" if job.label in equal else "",
            spread_text(job.seconds, show.short),
            spread_text(job.ttft, show.short, 1e3),
            spread_text(job.tpot, show.short, 1e3),
            show.short(rate),
            spread_text(ratios(job.seconds, own.seconds) if own else []),
        ]
        if MEMORY.label in jobs:
            cells.append(spread_text(floors(job, dtype, jobs, found)))
        shown.append(cells)
    return shown


def pages(found: Found) -> str:
    """All tables, and what their columns mean."""
    columns = ["system", "equal", "seconds", "TTFT, ms", "ms/token", "tokens/s", "time ratio"]
    parts = []
    for dtype, batch in found.table:
        floor = ["x floor"] if MEMORY.label in found.table[dtype, batch] else []
        parts += [
            f"### {dtype}, batch {batch}",
            markdown([*columns, *floor], rows(dtype, batch, found)),
        ]
    reasons = [f"No CoLD in {PROGRAMS[key][1]}: {why}." for key, why in NO_COLD.items()]
    note = NOTE.format(peers=" ".join(reasons))
    if any(MEMORY.label in jobs for jobs in found.table.values()):
        note += FLOOR
    return "\n\n".join([*parts, note])


def content(found: Found) -> dict[str, Any]:
    """Everything for a file; only the problems if results are wrong."""
    if found.wrong:
        return {"problems": found.wrong}
    return {
        "machine": show.machine().splitlines(),
        "load average after": os.getloadavg(),
        "workers": found.facts,
        "not run": found.missing,
        "checks": found.notes,
        "idle share of a core": found.busy,
        "bytes of the weights": found.size,
        "peak bytes": found.peaks,
        "runs": [
            {
                "dtype": dtype,
                "batch": batch,
                "mode": MODES[job.system.mode],
                "equal": shares(jobs).get(job.label),
                "x floor": floors(job, dtype, jobs, found),
                **show.as_json(job),
            }
            for (dtype, batch), jobs in found.table.items()
            for job in jobs.values()
            if job.seconds
        ],
    }
