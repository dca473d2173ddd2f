# SPDX-License-Identifier: Apache-2.0
"""The report's pictures, as SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.accuracy.compare import Compared, Row, bits
from benchmarks.accuracy.methods import ALPHAS, BETAS, GREEDY, Method, fixed
from benchmarks.accuracy.store import MEASURED, Cell, Store

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "vllm-cold",
    "figure.facecolor": "white",
}
# Of the whole colour-blind safe palette of Okabe and Ito.
SERIES = {
    "default": ("alpha 0.1, beta 0.5", "#d55e00", "o"),
    "best_fixed": ("fixed, picked on dev", "#e69f00", "s"),
    "adaptive": ("adaptive", "#0072b2", "D"),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def forest(cells: list[Compared], path: Path) -> None:
    """Differences to greedy with their intervals, one line a cell."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.36 * len(cells)))
        for index, (attribute, (label, colour, marker)) in enumerate(SERIES.items()):
            rows: list[Row] = [getattr(cell, attribute) for cell in cells]
            heights = [-place + 0.24 * (1 - index) for place in range(len(cells))]
            axes.errorbar(
                [row.difference for row in rows],
                heights,
                xerr=[
                    [row.difference - row.low for row in rows],
                    [row.high - row.difference for row in rows],
                ],
                fmt=marker, ms=4, color=colour, elinewidth=1, label=label,
            )  # fmt: skip
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_yticks([-place for place in range(len(cells))], [c.cell.label for c in cells])
        axes.set_ylim(-len(cells) + 0.4, 0.6)
        axes.set_xlabel("points against greedy with the same adapter, 95 % bootstrap interval")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False)
        _save(figure, path)


def doses(cells: list[Cell], adaptive: Method, path: Path, root: Path = MEASURED) -> None:
    """On dev: points against greedy over beta, and where the adaptive beta stands."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(ALPHAS), figsize=(7.5, 3.2), sharey=True)
        for axes, alpha in zip(panels, ALPHAS, strict=True):
            for place, (cell, colour) in enumerate(zip(cells, COLOURS, strict=False)):
                outcomes = Store(cell, "dev", root=root).outcomes
                points = {
                    key: 100 * (bits(outcome.right) - bits(outcomes[GREEDY.key].right)).mean()
                    for key, outcome in outcomes.items()
                }
                axes.plot(
                    [0.0, *BETAS],
                    [0.0, *(points[fixed(alpha, beta).key] for beta in BETAS)],
                    "o-", ms=3, linewidth=1.2, color=colour, label=cell.adapter.task,
                )  # fmt: skip
                if adaptive.alpha == alpha:
                    side = 2.35 + 0.04 * (place - len(cells) / 2)  # none hides another
                    axes.plot(side, points[adaptive.key], "D", ms=4, color=colour)
            axes.axhline(0, color="#888888", linewidth=0.8)
            axes.set_xticks(
                [0, *BETAS, *([2.35] if adaptive.alpha == alpha else [])],
                ["0", *(f"{beta:g}" for beta in BETAS)]
                + (["adaptive"] if adaptive.alpha == alpha else []),
                rotation=45, ha="right",
            )  # fmt: skip
            axes.set_xlabel("beta")
            axes.set_title(f"alpha {alpha:g}", fontsize=9)
        panels[0].set_ylabel("points against greedy, on dev")
        panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        _save(figure, path)
