# SPDX-License-Identifier: Apache-2.0
"""The charts of what was measured, from the files that keep it; ``pictures`` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.accuracy.report import Outcomes, compare, read_outcomes
from benchmarks.beside import pages as beside_pages
from docs.tables import BESIDE, peers

ROOT = Path(__file__).parents[1]
ACCURACY = ROOT / "benchmarks" / "accuracy" / "measured"
MODELS = {
    "smollm2": "SmolLM2-135M",
    "gemma": "Gemma 3 270M (base)",
    "qwen-0.5b": "Qwen2.5-Coder 0.5B",
    "qwen-1.5b": "Qwen2.5-Coder 1.5B",
}
# Of the palette of Okabe and Ito, which everybody can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#000000",
)  # fmt: skip
GREY = "#90a4ae"


@cache
def outcomes(name: str) -> Outcomes:
    """What was measured on test problems."""
    return read_outcomes(ACCURACY / name)


# Method, label, colour, and where its number stands, in points from the dot.
SETTINGS = (
    ("greedy", "greedy", BLACK, (6, -6)),
    ("part repeated", "repeated", BLUE, (5, 1)),
    ("cad", "cfg", ORANGE, (-15, -9)),
    ("part repeated + cad", "repeated + cfg", PURPLE, (-4, 7)),
)


def _label(panels: Any, x: str, y: str) -> None:
    """Below the lowest panels, and left of the first of each row."""
    for axis in panels[-1]:
        axis.set_xlabel(x)
    for axis in panels[:, 0]:
        axis.set_ylabel(y)


def followed() -> Any:
    """Followed against right, a dot a setting, a panel a model; its number is both at once."""
    found = outcomes("outcomes-joint.jsonl")
    there = [name for name in MODELS if "told-facts" in found.get((name, "test"), {})]
    figure, panels = plt.subplots(
        2, 2, figsize=(5.4, 5.2), layout="constrained", sharex=True, sharey=True
    )
    for axis, name in zip(panels.flat, there, strict=True):
        told = found[name, "test"]["told-facts"]
        for method, label, colour, beside in SETTINGS:
            at = [100 * told[method].measures[measure].mean() for measure in ("right", "followed")]
            axis.scatter(*at, s=36, color=colour, label=label, zorder=3)
            both = 100 * told[method].measures["both"].mean()
            axis.annotate(
                f"{both:.0f}", at, xytext=beside, textcoords="offset points", fontsize=8,
                color=colour, zorder=4,
            )  # fmt: skip
        axis.set_title(MODELS[name])
        axis.set_xlim(0, 100)
        axis.set_ylim(0, 90)
        axis.grid(color="#eceff1")
        axis.set_axisbelow(True)
    _label(panels, "right, %", "instruction followed, %")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, loc="outside lower center", ncols=2,
        title="number at a dot: followed and right, %",
    )  # fmt: skip
    return figure


def _points(axis: Any, rows: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """Differences with intervals: a group of rows a label, a dot a model."""
    for place, by_model in enumerate(rows.values()):
        for shift, (name, difference) in enumerate(by_model.items()):
            y = place + (shift - 1.5) * 0.17
            axis.plot((difference.low, difference.high), (y, y), color=colours[name], linewidth=1.2)
            axis.plot(difference.points, y, "o", markersize=4, color=colours[name])
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.grid(axis="x", color="#eceff1")
    axis.set_axisbelow(True)


# What is compared with greedy decoding: label, file, cell, method, measure.
_JOINT, _TEST = "outcomes-joint.jsonl", "outcomes-test.jsonl"
SYSTEM = (
    ("followed and right:\nrepeated", _JOINT, "told-facts", "part repeated", "both"),
    ("followed and right:\ncfg", _JOINT, "told-facts", "cad", "both"),
    ("followed and right:\nrepeated + cfg", _JOINT, "told-facts", "part repeated + cad", "both"),
    ("right alone:\nrepeated", _JOINT, "told-facts", "part repeated", "right"),
    ("right alone:\ncfg", _JOINT, "told-facts", "cad", "right"),
    ("right alone:\nrepeated + cfg", _JOINT, "told-facts", "part repeated + cad", "right"),
)
CONTEXT = (
    ("conflicting sentence:\nstronger prompt", _TEST, "false", "better prompt", "right"),
    ("conflicting sentence:\ncad", _TEST, "false", "cad", "right"),
    ("supporting sentence and\ndistractors: cad", _TEST, "true-among", "cad", "right"),
    ("irrelevant context:\nleft out", _TEST, "nothing", "without the part", "right"),
    ("irrelevant context:\ncad", _TEST, "nothing", "cad", "right"),
)


# Of what a search found, and of two questions in one: likewise.
RETRIEVED = tuple(
    (label, _JOINT, "retrieved", method, "right")
    for method, label in (
        ("without the part", "no passage"),
        ("better prompt", "all five,\nstronger prompt"),
        ("best passage", "the best passage alone"),
        ("best passage or none", "the best passage,\nor none"),
        ("best passage or none + cad", "the same, with cad"),
        ("cad", "all five, cad"),
        ("grounded", "all five, grounded"),
    )
)
HALF = tuple(
    (f"{about}:\n{label}", _JOINT, "half-answered", method, measure)
    for measure, about in (("both", "both right"), ("rest", "the other one right"))
    for method, label in (
        ("better prompt", "stronger prompt"),
        ("cad", "cad"),
        ("adacad", "adacad"),
        ("grounded", "grounded"),
    )
)


def gains() -> Any:
    """Gains and harms against greedy decoding, with intervals, of four models."""
    return _differences(("system prompt", SYSTEM), ("context", CONTEXT))


def retrieved() -> Any:
    """Passages that a search found, against all five of them."""
    return _differences(("five passages of a search", RETRIEVED))


def half() -> Any:
    """Two questions in one, of which the text answers the first."""
    return _differences(("two questions, of which the text answers one", HALF))


def _differences(*titled: tuple[str, tuple[tuple[str, str, str, str, str], ...]]) -> Any:
    """Panels of differences against greedy decoding, with intervals."""
    colours = dict(zip(MODELS, (ORANGE, GREEN, SKY, BLUE), strict=True))
    heights = [len(rows) for _, rows in titled]
    figure, panels = plt.subplots(
        len(titled), 1, figsize=(5.4, 1.0 + 0.6 * sum(heights)), layout="constrained", sharex=True,
        height_ratios=heights, squeeze=False,
    )  # fmt: skip
    for axis, (title, rows) in zip(panels.flat, titled, strict=True):
        found: dict[str, dict[str, Any]] = {}
        for label, file, cell, method, measure in rows:
            for name in MODELS:
                told = outcomes(file).get((name, "test"), {}).get(cell, {})
                if method in told:
                    mine, greedy = (told[m].measures[measure] for m in (method, "greedy"))
                    found.setdefault(label, {})[name] = compare(mine, greedy)
        _points(axis, found, colours)
        axis.set_title(title)
    panels[-1, 0].set_xlabel("points of accuracy against greedy decoding")
    handles = [
        plt.Line2D([], [], marker="o", markersize=4, color=colours[name], label=title)
        for name, title in MODELS.items()
        if any(
            cell in outcomes(file).get((name, "test"), {})
            for _, rows in titled
            for _, file, cell, *_ in rows
        )
    ]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=2)
    return figure


# With a contrast, and in grey without: what each is called, and how it is drawn.
METHODS = {
    "cad": ("cad", "o", ORANGE),
    "cocoa": ("cocoa", "s", ORANGE),
    "mti": ("mti", "^", ORANGE),
    "adacad": ("adacad", "o", BLUE),
    "grounded": ("grounded", "s", BLUE),
    "m3id": ("m3id", "^", BLUE),
    "acd": ("acd", "o", GREEN),
    "arr": ("arr", "s", GREEN),
    "grd": ("grd", "^", GREEN),
    "better prompt": ("stronger prompt, no contrast", "D", GREY),
    "without the part": ("context left out, no contrast", "X", GREY),
}


def no_rule() -> Any:
    """Each method by what it gains where the text is right, and where it does not answer."""
    found = outcomes(_TEST)
    figure, panels = plt.subplots(
        2, 2, figsize=(5.4, 6.4), layout="constrained", sharex=True, sharey=True
    )
    for axis, (name, title) in zip(panels.flat, MODELS.items(), strict=True):
        conflict, irrelevant = (found[name, "test"][cell] for cell in ("false", "nothing"))
        axis.fill_between((0, 60), 0, 60, color="#e8f5e9", zorder=0)
        axis.axhline(0, color=BLACK, linewidth=0.8)
        axis.axvline(0, color=BLACK, linewidth=0.8)
        for method, (label, marker, colour) in METHODS.items():
            x, y = (
                100 * (cell[method].right.mean() - cell["greedy"].right.mean())
                for cell in (conflict, irrelevant)
            )
            axis.plot(
                x, y, marker, markersize=6, color=colour, label=label, markeredgecolor="white",
                markeredgewidth=0.5, linestyle="", clip_on=False, zorder=3,
            )  # fmt: skip
        axis.set_title(title)
        axis.set_xlim(-100, 60)
        axis.set_ylim(-40, 60)
    _label(panels, "conflicting context", "irrelevant context")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize=8,
        title="points of accuracy against greedy decoding; green: better in both",
    )  # fmt: skip
    return figure


SYSTEMS = (
    ("stock vLLM, adapter", "stock vLLM, greedy", BLACK),
    ("this package, adapter", "vllm-cold, greedy", BLUE),
    ("this package, CoLD", "vllm-cold, contrastive", ORANGE),
)


def speed() -> Any:
    """Seconds for a batch of 1 and of 8, medians with their ranges, a row a machine."""
    figure, panels = plt.subplots(
        len(peers()), 2, figsize=(5.4, 2.0 * len(peers())), layout="constrained", sharey=True
    )
    cells = [(name, dtype) for name in peers() for dtype in ("float32", "bfloat16")]
    for axis, (name, dtype) in zip(panels.flat, cells, strict=True):
        for place, (system, label, colour) in enumerate(SYSTEMS):
            for column, batch in enumerate((1, 8)):
                seconds = peers()[name][dtype, batch, system]["seconds"]
                x = column + (place - 1) * 0.27
                middle = median(seconds)
                axis.bar(x, middle, 0.25, color=colour, label=label if not column else None)
                axis.errorbar(
                    x, middle, [[middle - min(seconds)], [max(seconds) - middle]],
                    color=GREY, capsize=2, linewidth=1,
                )  # fmt: skip
                axis.annotate(
                    f"{middle:.2g}", (x, max(seconds)), xytext=(0, 2), ha="center",
                    textcoords="offset points", fontsize=7,
                )  # fmt: skip
        axis.set_xticks((0, 1), ("batch 1", "batch 8"))
        axis.set_title(f"{name}, {dtype}")
        if dtype == "float32":
            axis.set_ylabel("seconds for 48 tokens")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3)
    return figure


def step() -> Any:
    """Milliseconds of a decoding step on a CPU by its parts, one bar a system and batch size."""
    measured = json.loads((ROOT / "benchmarks" / "measured" / "step.json").read_text())
    figure, panels = plt.subplots(2, 1, figsize=(5.4, 4.6), layout="constrained", sharex=True)
    colours = (BLUE, SKY, ORANGE, "#f0a070", GREEN, GREY, PURPLE, BLACK, "#f0e442")
    for axis, run in zip(panels, measured, strict=True):
        labels = [f"{r['system']}, {r['batch']}" for r in run["runs"]]
        left = [0.0] * len(labels)
        for part, colour in zip(run["runs"][0]["parts, ms"], colours, strict=True):
            widths = [r["parts, ms"][part] for r in run["runs"]]
            axis.barh(labels, widths, 0.7, left, color=colour, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.invert_yaxis()
        axis.set_title("eager" if run["eager"] else "compiled")
    panels[-1].set_xlabel("milliseconds a step")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    return figure


MACHINES = {
    "H100 SXM 80 GB": BLUE, "8 x H100 SXM 80 GB": SKY, "A100 SXM 80 GB": ORANGE,
    "Ascend 910B 64 GB": GREEN,
}  # fmt: skip


def gpu() -> Any:
    """The model's ratio of contrastive to greedy decoding, over the batch. Nothing was measured."""
    text = (ROOT / "benchmarks" / "measured" / "gpu-model.md").read_text()
    table = text.split("## Time per token")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    header, _, *rows = (row for row in rows if row)
    batches = [int(batch) for batch in header[3:]]
    figure, axis = plt.subplots(figsize=(5.6, 2.9), layout="constrained")
    for machine, model, _, *cells in rows:
        if machine in MACHINES:
            ratios = [float(cell.split("(")[1].rstrip(")")) for cell in cells]
            axis.plot(
                batches, ratios, "--", marker="o", markersize=3, color=MACHINES[machine],
                label=f"{model}, {machine}",
            )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.set_xlabel("batch, requests with 2048 tokens of context")
    axis.set_ylabel("time per token,\ncontrastive / greedy")
    axis.set_ylim(bottom=1)
    axis.set_title("a model, not measured", color=ORANGE)
    axis.grid(color="#eceff1")
    axis.legend(frameon=False)
    return figure


def beside() -> Any:
    """Regular requests' percentiles over those of equal work, a panel a metric, a dot a traffic."""
    content = json.loads(BESIDE.read_text(encoding="utf-8"))
    found = {p: of for p, of in beside_pages.points(content).items() if p.load == 80}
    labels = [f"{p.workload}, {p.kind}" for p in found]
    figure, panels = plt.subplots(
        1, 2, figsize=(5.4, 1.0 + 0.3 * len(found)), layout="constrained", sharey=True
    )
    for axis, (metric, title) in zip(panels, beside_pages.METRICS.items(), strict=True):
        for shift, percentile, colour in ((-0.15, 50, BLUE), (0.15, 99, ORANGE)):
            for place, each in enumerate(found.values()):
                ratio = each.quotient(metric, percentile)
                label = f"p{percentile}" if not place else None
                axis.plot((ratio.low, ratio.high), 2 * (place + shift,), color=colour)
                axis.plot(ratio.value, place + shift, "o", ms=4, color=colour, label=label)
            if metric == "first":
                axis.axvline(
                    beside_pages.AIMS[percentile], color=colour, linewidth=0.8, linestyle=":"
                )
        axis.axvline(1, color=BLACK, linewidth=0.8)
        axis.set_title(title)
        axis.grid(axis="x", color="#eceff1")
        axis.set_axisbelow(True)
    panels[0].set_yticks(range(len(found)), labels)
    panels[0].invert_yaxis()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, frameon=False, loc="outside upper right", ncols=2, title="dotted: aims"
    )
    figure.supxlabel(
        "regular requests, at 80 % load: over equal work without a contrast", fontsize=9
    )
    return figure


CHARTS = {
    "followed": followed,
    "gains": gains,
    "half": half,
    "retrieved": retrieved,
    "no-rule": no_rule,
    "speed": speed,
    "step": step,
    "gpu": gpu,
    **({"beside": beside} if BESIDE.exists() else {}),
}
