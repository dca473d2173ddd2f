# SPDX-License-Identifier: Apache-2.0
"""Show what was measured, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import machine
from benchmarks.e2e import speculation
from benchmarks.e2e.jobs import DOUBLED, SYSTEMS, Findings, Job, Jobs
from benchmarks.rounds import ratios, short, spread_text, table

REFERENCES = tuple(SYSTEMS[key].label for key in ("stock-adapter", "adapter", "cold"))
NOTE = (
    "Median (20th-80th percentile) over the rounds. Seconds and tokens/s: of the batch; blocks: "
    "of the KV cache, a request at the fullest moment; time ratio: to {} of the same round. "
    "Memory's limit: what a token would take if reading the weights once a step (the naive loop: "
    "once a stream) at the fastest reading above were all. "
    "Stock LoRA base and stock adapter are one engine, as are the plugin's three with LoRA; "
    f"{DOUBLED}: at twice the batch."
)
# What is divided by what, in seconds.
RATIOS = (
    (SYSTEMS["cold"].label, SYSTEMS["stock-adapter"].label),
    (SYSTEMS["cold"].label, DOUBLED),
    (SYSTEMS["cold"].label, SYSTEMS["adapter"].label),
    (SYSTEMS["adapter"].label, SYSTEMS["base"].label),
    (SYSTEMS["adapter"].label, SYSTEMS["stock-adapter"].label),
    (SYSTEMS["base"].label, SYSTEMS["stock-lora-base"].label),
    (SYSTEMS["base-engine"].label, SYSTEMS["stock-base"].label),
    (SYSTEMS["naive"].label, SYSTEMS["cold"].label),
    (SYSTEMS["naive-adapter"].label, SYSTEMS["adapter"].label),
)


def reference_of(jobs: Jobs) -> Job | None:
    """The job that the others of a cell are divided by."""
    return next((jobs[label] for label in REFERENCES if label in jobs), None)


def job_cells(job: Job, reference: Job | None, facts: machine.Facts) -> list[str]:
    """A row of the table."""
    rate = sum(map(len, job.output)) / statistics.median(job.seconds)
    limit = machine.limit(facts, job.step_bytes / job.tokens_a_step)
    return [
        job.label,
        spread_text(job.seconds, short),
        spread_text(job.ttft, short, 1e3),
        spread_text(job.tpot, short, 1e3),
        short(1e3 * limit) if limit else "-",
        short(rate),
        "-" if job.blocks is None else f"{job.blocks / len(job.prompts):.2f}",
        spread_text(ratios(job.seconds, reference.seconds) if reference else []),
    ]


def cell_ratios(jobs: Jobs) -> Iterator[tuple[str, list[float]]]:
    """What is divided by what, and the quotients of all rounds."""
    for over, under in RATIOS:
        if over in jobs and under in jobs:
            yield f"{over} / {under}", ratios(jobs[over].seconds, jobs[under].seconds)
    for over, under in speculation.RATIOS:
        if over in jobs and under in jobs:
            yield f"{over} / {under}, TPOT", ratios(jobs[over].tpot, jobs[under].tpot)
    # What drafts do, after the first tokens of requests.
    for job in jobs.values():
        if drafted := job.counts.get("drafted"):
            steps = job.counts["steps"]
            yield f"{job.label}, tokens a step", [job.tokens_a_step]
            yield f"{job.label}, drafts a step", [drafted / steps]
            yield f"{job.label}, accepted", [job.counts["accepted"] / drafted]


def pages(findings: Findings) -> str:
    """The machine, all tables, and what their columns mean."""
    columns = [
        "seconds", "TTFT, ms", "TPOT, ms", "memory's limit, ms", "tokens/s", "blocks", "time ratio",
    ]  # fmt: skip
    facts = findings.machine
    cells = [(cell.title, cell.timed) for cell in findings.cells]
    rows = [
        [title, *job_cells(job, reference_of(jobs), facts)]
        for title, jobs in cells
        for job in jobs.values()
    ]
    divided = [[t, *pair] for t, jobs in cells for pair in cell_ratios(jobs)]
    labels = {label for _, jobs in cells for label in jobs}
    reference = next((label for label in REFERENCES if label in labels), "none")
    parts = [
        *([machine.text(facts)] if facts else []),
        table(["cell", "system", *columns], rows, 2),
        NOTE.format(reference),
        table(["cell", "compared", "ratio"], [[t, n, spread_text(v)] for t, n, v in divided], 2),
    ]
    return "\n\n".join(parts)
