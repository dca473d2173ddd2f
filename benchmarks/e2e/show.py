# SPDX-License-Identifier: Apache-2.0
"""Show what was measured: tables, and the same for a file."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.e2e import groups
from benchmarks.e2e.jobs import (
    DOUBLED,
    GROWING,
    REFERENCE,
    SYSTEMS,
    Findings,
    Job,
    Jobs,
    Table,
)
from benchmarks.rounds import cpu_model, ratios, spread_text

NOTE = (
    "Stock LoRA base and stock adapter are one engine, as are the plugin's three with LoRA; "
    f"{DOUBLED}: at twice the batch."
)
PAPER = (
    "; the paper (arXiv 2505.14620) reports 0.72 for CoLD / adapter greedy, with its kernels on an "
    "Ascend NPU, where 0.5 is aimed at here"
)


@dataclass(frozen=True)
class Target:
    """A ratio that is aimed at.

    Attributes:
        text: What is divided by what.
        values: The ratio in each round.
        limit: What its median has to keep to; None if nothing is aimed at.
        at_least: Whether the limit is the smallest allowed value and not the largest.
    """

    text: str
    values: list[float]
    limit: float | None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Whether the median, to two decimals as printed, keeps to the limit."""
        if self.limit is None:
            return "no target"
        median = round(statistics.median(self.values), 2)
        return (
            "met"
            if (median >= self.limit if self.at_least else median <= self.limit)
            else ("missed")
        )


def targets(batch: int, jobs: Jobs) -> list[Target]:
    """What is aimed at for one dtype and batch size, as far as it was measured."""
    found: list[Target] = []

    def add(
        over: str, under: str, limit: float | None, text: str = "", at_least: bool = False
    ) -> None:
        a, b = jobs.get(over), jobs.get(under)
        if a is not None and b is not None:
            values = ratios(a.seconds, b.seconds)
            found.append(Target(text or f"{over} / {under}, seconds", values, limit, at_least))

    base, adapter, cold = (SYSTEMS[key].label for key in ("base", "adapter", "cold"))
    add(cold, REFERENCE, 0.5)
    add(cold, DOUBLED, 1.2, f"{cold} / stock base at batch {2 * batch}, seconds")
    add(adapter, base, 1.15)
    add(base, SYSTEMS["stock-lora-base"].label, 1.0)
    add(SYSTEMS["base-engine"].label, SYSTEMS["stock-base"].label, 1.0)
    add(adapter, REFERENCE, 1.0)
    # Equal numbers of tokens: the quotient of the rates is the inverse quotient of the times.
    naive = SYSTEMS["naive"].label
    limits = {1: 5.0, 8: 4.0}
    add(naive, cold, limits.get(batch), f"{cold} / {naive}, tokens per second", at_least=True)
    for system in groups.THREE:
        add(system.label, groups.TRIPLED, 1.1)
    return found + own_prompts(jobs)


def own_prompts(jobs: Jobs) -> list[Target]:
    """An amateur with a prompt of its own over one with its expert's, plus the prefill of the one
    prompt, less that of the other.
    """
    found: list[Target] = []
    equal = SYSTEMS["cold"].label
    for share in groups.SHARES:
        names = groups.own_prompt(share), equal, groups.prefill(share), groups.prefill()
        if all(name in jobs for name in names):
            own, *parts = (jobs[name].seconds for name in names)
            expected = [a + b - c for a, b, c in zip(*parts, strict=True)]
            text = f"{names[0]} / {equal} and prefill"
            found.append(Target(text, ratios(own, expected), groups.OWN_PROMPT))
    return found


def short(value: float) -> str:
    """Three digits or all before the point; two from 0.1 to 1, which keeps columns narrow."""
    steps = ((99.95, 0), (9.995, 1), (0.0995, 2))
    return f"{value:.{next((digits for least, digits in steps if value >= least), 3)}f}"


def make_table(*columns: str, left: int = 1) -> Any:
    """A table that is narrow and readable when piped; the first columns are texts."""
    from rich.box import SIMPLE
    from rich.table import Table as RichTable

    table = RichTable(box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    return table


def reference_of(table: Table) -> str:
    """The label of the system that times are divided by."""
    labels = {label for jobs in table.values() for label in jobs}
    order = (REFERENCE, *(SYSTEMS[key].label for key in ("adapter", "cold")))
    return next((label for label in order if label in labels), REFERENCE)


def show_speeds(console: Any, table: Table, note: str = NOTE) -> None:
    """The one table: all systems, batches and dtypes; with what their names mean."""
    shown = make_table("system", "seconds", "TTFT, ms", "TPOT, ms", "tok/s", "time ratio")
    for (dtype, batch), jobs in table.items():
        shown.add_row(f"{dtype} batch {batch}", style="bold")
        reference = jobs.get(reference_of(table))
        for job in jobs.values():
            rate = len(job.prompts) * job.tokens / statistics.median(job.seconds)
            shown.add_row(
                job.label,
                spread_text(job.seconds, short),
                spread_text(job.ttft, short, 1e3),
                spread_text(job.tpot, short, 1e3),
                short(rate),
                spread_text(ratios(job.seconds, reference.seconds) if reference else []),
            )
        shown.add_section()
    console.print(shown)
    console.print(
        "median (20th-80th percentile) over the rounds; seconds and generated tokens per second of "
        f"the whole batch; the time ratio is to {reference_of(table)} of the same round. {note}",
        style="dim",
        highlight=False,
    )


def show_targets(console: Any, table: Table, note: str = PAPER) -> None:
    """Each target with its measured ratio, and met or missed; with what to compare them with."""
    shown = make_table("dtype", "batch", "ratio", "measured", "target", "", left=3)
    for (dtype, batch), jobs in table.items():
        for target in targets(batch, jobs):
            sign = ">=" if target.at_least else "<="
            limit = "" if target.limit is None else f"{sign} {target.limit:g}"
            style = {"met": "green", "missed": "bold red"}.get(target.verdict, "dim")
            shown.add_row(
                dtype, str(batch), target.text, spread_text(target.values), limit,
                f"[{style}]{target.verdict}[/{style}]",
            )  # fmt: skip
        shown.add_section()
    if shown.row_count:
        console.print("\nTargets", style="bold")
        console.print(shown)
        console.print(f"the median decides, rounded as printed{note}", style="dim", highlight=False)


def show_memory(console: Any, findings: Findings) -> None:
    """Peak memory of the workers, and KV blocks of a request."""
    peaks, table = findings.peaks, findings.table
    console.print("\nMemory", style="bold")
    shown = make_table("worker", *(f"{dtype}, GiB" for dtype in peaks))
    for family in dict.fromkeys(name for each in peaks.values() for name in each):
        cells = [peaks[dtype].get(family) for dtype in peaks]
        shown.add_row(family, *("-" if not n else f"{n / 2**30:.2f}" for n in cells))
    console.print(shown)
    reserved = ", ".join(f"{n} GiB in {dtype}" for dtype, n in findings.gib.items())
    console.print(
        "the most memory a process had resident (VmHWM): libraries, model (naive: two copies) and "
        f"KV cache, as far as it was touched; an engine's KV cache is {reserved}",
        style="dim",
        highlight=False,
    )
    shown = make_table("batch", *(SYSTEMS[key].label for key in GROWING))
    dtype = next(iter(table))[0]  # the same in all
    for (name, batch), jobs in table.items():
        if name == dtype:
            chosen = [jobs.get(SYSTEMS[key].label) for key in GROWING]
            shown.add_row(str(batch), *map(blocks_text, chosen))
    console.print("\nKV blocks per request", style="bold")
    console.print(shown)


def blocks_text(job: Job | None) -> str:
    """KV blocks per request at a job's fullest moment."""
    if job is None or job.blocks is None:
        return "-"
    return f"{job.blocks / len(job.prompts):.2f}"


def show_growth(console: Any, dtype: str, findings: Findings) -> None:
    """How times grow with the number of adapters, and with the prompt."""
    labels = [SYSTEMS[key].label for key in GROWING]
    for title, unit, rows, pick in (
        ("adapters in the batch", "seconds", findings.by_adapters, lambda job: job.seconds),
        (
            "prompt tokens",
            "TTFT in ms",
            findings.by_length,
            lambda job: [1e3 * x for x in job.ttft],
        ),
    ):
        if not rows:
            continue
        some = next(iter(next(iter(rows.values())).values()))
        console.print(f"\nGrowth with {title}: {unit}", style="bold")
        shown = make_table(title.split()[0], *labels, "plugin / stock", "CoLD / stock")
        for number, jobs in rows.items():
            times = [pick(jobs[label]) if label in jobs else [] for label in labels]
            shown.add_row(
                str(number),
                *(spread_text(each, short) for each in times),
                *(spread_text(ratios(each, times[0])) for each in times[1:]),
            )
        console.print(shown)
        console.print(
            f"{dtype}, {len(some.prompts)} requests, {some.tokens} tokens each, "
            f"{some.rounds} round{'s' * (some.rounds > 1)}",
            style="dim",
            highlight=False,
        )
    if findings.by_length:
        console.print("\nKV blocks per request", style="bold")
        shown = make_table("prompt tokens", *labels)
        for number, jobs in findings.by_length.items():
            shown.add_row(str(number), *(blocks_text(jobs.get(label)) for label in labels))
        console.print(shown)


def as_json(job: Job) -> dict[str, Any]:
    """A job's measurements for a file: times in seconds, one entry for each round."""
    return {
        "system": job.label,
        "requests": len(job.prompts),
        "prompt_tokens": [len(prompt) for prompt in job.prompts],
        "tokens": job.tokens,
        "adapters": job.adapters,
        "amateur_prompt_tokens": [[len(prompt) for prompt in each] for each in job.own],
        "seconds": job.seconds,
        "ttft": job.ttft,
        "tpot": job.tpot,
        "blocks": job.blocks,
    }


def content(findings: Findings) -> dict[str, Any]:
    """Everything for a file; only the problems if results are wrong."""
    if findings.wrong:
        return {"problems": findings.wrong}
    return {
        "machine": machine().splitlines(),
        "load average after": os.getloadavg(),
        "workers": findings.facts,
        "checks": findings.notes,
        "idle share of a core": findings.busy,
        "runs": [
            {"dtype": dtype, "batch": batch, **as_json(job)}
            for (dtype, batch), jobs in findings.table.items()
            for job in jobs.values()
        ],
        "targets": [
            {
                "dtype": dtype,
                "batch": batch,
                "ratio": target.text,
                "rounds": target.values,
                "limit": target.limit,
                "verdict": target.verdict,
            }
            for (dtype, batch), jobs in findings.table.items()
            for target in targets(batch, jobs)
        ],
        "peak bytes": findings.peaks,
        "growth with adapters": [
            as_json(job) for jobs in findings.by_adapters.values() for job in jobs.values()
        ],
        "growth with prompts": [
            as_json(job) for jobs in findings.by_length.values() for job in jobs.values()
        ],
    }


def machine() -> str:
    """Versions and processor."""
    names = ("vllm-cold", "torch", "transformers", "peft")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    from vllm_cold.vllm.versions import vllm_version

    return (
        f"vllm {vllm_version()}, {versions}, Python {platform.python_version()}\n"
        f"CPU: {cpu_model()}, {os.cpu_count()} logical"
    )


def load() -> str:
    """The machine's load average."""
    return f"load average (1, 5, 15 minutes): {', '.join(f'{x:.1f}' for x in os.getloadavg())}"
