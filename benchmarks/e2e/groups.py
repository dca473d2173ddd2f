# SPDX-License-Identifier: Apache-2.0
"""Groups of streams: amateurs with prompts of their own, and two amateurs for each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.e2e.jobs import SYSTEMS, TIE, Cell, Job, Jobs, System

STREAMS = 3  # of the largest group here
SHARES = {"0.25x": 0.25, "2x": 2.0}  # an amateur's own prompt, in its expert's
LONGEST = max(SHARES.values())
LENGTH = 256  # tokens of an expert's prompt
CHECKED = 8  # requests of a batch that the naive loop decodes, too
TRIPLED = "3 x plugin base"  # as many requests as a batch of groups of three has streams
THREE = (
    System("three", "CoLD, 3 streams", "plugin", "three"),
    System("three-base", "base, 3 streams", "plugin", "three-base"),
)
# Rules that give an amateur up, or use it seldom. No naive loop here knows them: tests do.
RULES = tuple(System(name, f"CoLD by {name}, own 0.25x", "plugin", name) for name in ("grd", "mti"))

NOTE = (
    "All are one engine. Own 0.25x, 2x: an amateur's own prompt, that long beside its expert's; "
    "3 streams: two amateurs, with own prompts as long; prefill: base requests for one token; "
    f"{TRIPLED}: the prompts of all streams, as requests."
)


def own_prompt(share: str) -> str:
    """The label of CoLD whose amateur has a prompt of its own."""
    return f"CoLD, own {share}"


def prefill(share: str = "1x") -> str:
    """The label of base requests that read such prompts and generate one token."""
    return f"prefill, {share}"


def group_jobs(prompts: Sequence[list[int]], batch: int, options: Any) -> Jobs:
    """All that is timed at one batch size.

    Args:
        prompts: Three for each request, of twice ``LENGTH`` tokens; of each the beginning is used,
            so that equal numbers of tokens are equal work.
        batch: Groups.
        options: Of the command line.
    """
    jobs: Jobs = {}

    def add(
        label: str,
        system: System,
        texts: list[list[int]],
        tokens: int = options.tokens,
        **more: Any,
    ) -> None:
        jobs[label] = Job(system, label, texts, tokens, options.rounds, **more)

    def cut(share: float, first: int = 0, count: int = batch) -> list[list[int]]:
        return [ids[: int(share * LENGTH)] for ids in prompts[first : first + count]]

    cold, base = SYSTEMS["cold"], SYSTEMS["base"]
    add(cold.label, cold, cut(1))
    add(prefill(), base, cut(1), 1)
    for name, share in SHARES.items():
        add(own_prompt(name), cold, cut(1), own=[[ids] for ids in cut(share)])
        add(prefill(name), base, cut(share), 1)
    for system in RULES:
        add(system.label, system, cut(1), own=[[ids] for ids in cut(0.25)])
    add(SYSTEMS["adapter"].label, SYSTEMS["adapter"], cut(1))
    amateurs = [list(pair) for pair in zip(cut(1, batch), cut(1, 2 * batch), strict=True)]
    for system in THREE:
        add(system.label, system, cut(1), own=amateurs)
    add(TRIPLED, base, cut(1, count=STREAMS * batch))
    return jobs


def cells(dtype: str, options: Any, prompts: Sequence[list[int]]) -> list[Cell]:
    """Each batch size, with jobs of the naive loop, which run once on the first requests. All jobs
    but those of a single token and of rules must give their tokens.
    """
    found = []
    for batch in options.batch:
        jobs, pairs = group_jobs(prompts, batch, options), []
        for job in list(jobs.values()):
            if job.tokens > 1 and job.system not in RULES:
                name = f"naive {job.label.removeprefix('plugin ')}"
                naive = System(f"naive-{job.system.key}", name, "naive", job.system.mode)
                first, own = job.prompts[:CHECKED], job.own[:CHECKED]
                jobs[name] = Job(naive, name, first, job.tokens, 0, own=own)
                pairs.append((name, job.label, TIE))
        found.append(Cell(f"{dtype}, batch {batch}", jobs, dtype == "float32", pairs))
    return found
