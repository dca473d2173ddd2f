# SPDX-License-Identifier: Apache-2.0
"""Show what was measured: tables in Markdown, and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.load.client import SLO
from benchmarks.load.workload import SYSTEMS
from benchmarks.rounds import short, table

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "vllm-cold",
    "figure.facecolor": "white",
}
# Of the whole colour-blind safe palette of Okabe and Ito.
COLOURS = {
    "stock-adapter": "#000000",
    "adapter": "#0072b2",
    "cold": "#d55e00",
    "context": "#56b4e9",
    "cad": "#cc79a7",
}
# In the picture, for whoever has not read what a system is.
LABELS = {key: system.label for key, system in SYSTEMS.items()} | {
    "stock-adapter": "stock vLLM, LoRA",
    "adapter": "vllm-cold, LoRA",
    "cold": "vllm-cold, CoLD",
    "cad": "vllm-cold, CAD, base model",
}
Row = Mapping[str, Any]


def latencies(row: Row) -> list[str]:
    """TTFT and TPOT, the median and the 99th percentile of each."""
    return [
        f"{short(row[f'{metric}_p50'])} / {short(row[f'{metric}_p99'])}"
        for metric in ("ttft", "tpot")
    ]


def share(part: float, whole: float) -> str:
    """In percent; a dash of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


_LATENCIES = ("TTFT p50 / p99, ms", "TPOT p50 / p99, ms")
_GOOD = ("goodput, requests/s", "within", "prefix hits")


def _good(row: Row) -> list[str]:
    hits = share(row["hits"], row["looked_up"])
    return [short(row["goodput"]), f"{100 * row['good']:.0f} %", hits]


def capacities(capacity: Mapping[str, float], tokens: int) -> str:
    """Each system's capacity."""
    rows = [
        [system.label, short(capacity[key]), short(capacity[key] * tokens)]
        for key, system in SYSTEMS.items()
        if key in capacity
    ]
    return table(("system", "capacity, requests/s", "tokens/s"), rows)


def loads(runs: Iterable[Row]) -> str:
    """Each system under load, systems and adapters in order."""
    order = list(SYSTEMS)
    chosen = sorted(
        (row for row in runs if not row.get("knob")),
        key=lambda row: (order.index(row["system"]), row["adapters"], row["load"]),
    )
    rows = [
        [
            SYSTEMS[row["system"]].label,
            str(row["adapters"]) if SYSTEMS[row["system"]].workload == "mixed" else "-",
            f"{row['load']} %",
            short(row["rate"]),
            str(row["requests"]),
            *latencies(row),
            *_good(row),
        ]
        for row in chosen
    ]
    return table(
        ("system", "adapters", "load", "requests/s", "requests", *_LATENCIES, *_GOOD), rows
    )


def text(content: Mapping[str, Any]) -> str:
    """The machine and all tables of a file's content."""
    plan = content["plan"]
    limits = ", ".join(f"{name.upper()} <= {limit} ms" for name, limit in SLO.items())
    parts = [
        machine.text(content["machine"]),
        f"Goodput: requests with {limits}. {plan['tokens']} tokens each.",
        capacities(content["capacity"], plan["tokens"]),
        loads(content["runs"]),
    ]
    return "\n\n".join(parts)


def curves(runs: Iterable[Row]) -> dict[str, list[Row]]:
    """The runs with one adapter of each system, by load."""
    found: dict[str, list[Row]] = {}
    for row in sorted(runs, key=lambda row: float(row["load"])):
        if row["adapters"] == 1 and not row.get("knob"):
            found.setdefault(row["system"], []).append(row)
    return {key: found[key] for key in SYSTEMS if key in found}


def picture(runs: Iterable[Row], path: Path) -> None:
    """TTFT and TPOT over the load, for each system: the median, and the 99th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, ScalarFormatter

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
        for axes, metric in zip(panels, ("ttft", "tpot"), strict=True):
            for key, rows in curves(runs).items():
                if len(rows) == 1:
                    continue  # no curve
                for percentile, line in ((50, "o-"), (99, "^--")):
                    axes.plot(
                        [row["rate"] for row in rows],
                        [row[f"{metric}_p{percentile}"] for row in rows],
                        line, ms=4, linewidth=1.2, color=COLOURS[key],
                        label=LABELS[key] if percentile == 50 else None,
                    )  # fmt: skip
            axes.axhline(SLO[metric], color="#888888", linewidth=0.8, linestyle=":")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
            axes.yaxis.set_minor_formatter(ScalarFormatter())
            axes.set_xlabel("requests per second")
            axes.set_title(f"{metric.upper()}, ms: median, and dashed p99", fontsize=9)
        panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        plt.close(figure)
