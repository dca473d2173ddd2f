# SPDX-License-Identifier: Apache-2.0
"""Show what was measured, in Markdown."""

from __future__ import annotations

import statistics

from benchmarks.e2e.jobs import Job, Jobs
from benchmarks.peers.run import GGUF, MEMORY, NO_COLD, PROGRAMS, Found, label, shares
from benchmarks.rounds import ratios, short, spread_text, table

NOTE = """\
Median (20th-80th percentile) over the rounds. Seconds and tokens/s: of the whole batch; ms/token: \
between a request's tokens, after the first; equal: the share of tokens in common with the \
transformers loop, all after a first difference counted as they are; time ratio: to this package \
in the same round, decoding alike. {peers}"""
FLOOR = """
x floor: ms/token over that of a process that only reads as many bytes as the model's and the \
adapter's weights have in this format, in the same round. It reads 2 streams' weights once: \
llama.cpp's CoLD and the loop's read them twice."""


def floors(job: Job, dtype: str, jobs: Jobs, found: Found) -> list[float]:
    """A job's time per token over that of reading its weights, of each round."""
    memory = jobs.get(MEMORY.label)
    if memory is None:
        return []
    kind = GGUF.get((job.system.family, dtype), dtype)
    scale = found.size[kind] / found.size[dtype]
    return ratios(job.tpot, [scale * each for each in memory.tpot])


def rows(title: str, found: Found) -> list[list[str]]:
    """Of the table of one dtype and batch size."""
    jobs, equal = found.table[title], shares(found.table[title])
    dtype = title.partition(",")[0]
    shown = []
    for job in (job for job in jobs.values() if job.seconds):
        cells = [job.label]
        if job.system is MEMORY:
            rate = found.size[dtype] / statistics.median(job.tpot) / 1e9
            once = spread_text(job.tpot, short, 1e3)
            shown.append([f"{job.label}, {rate:.0f} GB/s", *[""] * 3, once, "", "", "1"])
            continue
        own = jobs.get(label("plugin", job.system.mode))
        rate = len(job.prompts) * job.tokens / statistics.median(job.seconds)
        cells += [
            f"{equal[job.label]:.0%}" if job.label in equal else "",
            spread_text(job.seconds, short),
            spread_text(job.ttft, short, 1e3),
            spread_text(job.tpot, short, 1e3),
            short(rate),
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
    for title, jobs in found.table.items():
        floor = ["x floor"] if MEMORY.label in jobs else []
        parts += [f"### {title}", table([*columns, *floor], rows(title, found))]
    reasons = [f"No CoLD in {PROGRAMS[key][1]}: {why}." for key, why in NO_COLD.items()]
    note = NOTE.format(peers=" ".join(reasons))
    if any(MEMORY.label in jobs for jobs in found.table.values()):
        note += FLOOR
    return "\n\n".join([*parts, note])
