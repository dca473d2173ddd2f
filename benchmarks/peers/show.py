# SPDX-License-Identifier: Apache-2.0
"""Show what was measured, in Markdown."""

from __future__ import annotations

import statistics

from benchmarks.peers.run import NO_COLD, PROGRAMS, Found, label, shares
from benchmarks.rounds import ratios, short, spread_text, table

NOTE = """\
Median (20th-80th percentile) over the rounds. Seconds and tokens/s: of the whole batch; ms/token: \
between a request's tokens, after the first; equal: the share of tokens in common with the \
transformers loop, all after a first difference counted as they are; time ratio: to this package \
in the same round, decoding alike. {peers}"""


def rows(title: str, found: Found) -> list[list[str]]:
    """Of the table of one dtype and batch size."""
    jobs, equal = found.table[title], shares(found.table[title])
    shown = []
    for job in (job for job in jobs.values() if job.seconds):
        cells = [job.label]
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
        shown.append(cells)
    return shown


def pages(found: Found) -> str:
    """All tables, and what their columns mean."""
    columns = ["system", "equal", "seconds", "TTFT, ms", "ms/token", "tokens/s", "time ratio"]
    parts = []
    for title in found.table:
        parts += [f"### {title}", table(columns, rows(title, found))]
    reasons = [f"No CoLD in {PROGRAMS[key][1]}: {why}." for key, why in NO_COLD.items()]
    return "\n\n".join([*parts, NOTE.format(peers=" ".join(reasons))])
