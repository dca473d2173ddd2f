# SPDX-License-Identifier: Apache-2.0
"""The grid as a picture: the difference to greedy of every setting."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.report import Row, points

DPI = 160
_COLOURS = "RdBu"  # red is worse, blue better: told apart with any kind of colour vision
_INK = "#1f2328"


def _ink(red: float, green: float, blue: float) -> str:
    """Dark or white text, whichever reads better on a colour (relative luminance, WCAG)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _INK if luminance > 0.25 else "white"


@dataclass(frozen=True)
class _Panel:
    """Cells of one kind of settings.

    Attributes:
        rows: Labels, from above.
        columns: Labels.
        cells: What stands there, by row and column.
    """

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[int, int], Row]

    @property
    def height(self) -> float:
        """In inches, without the labels."""
        return 0.8 * len(self.rows)


def _grid(rows: Sequence[Row]) -> _Panel:
    """Alpha by beta, an adaptive beta behind the numbers."""
    alphas = sorted({row.setting.alpha for row in rows}, reverse=True)
    found = {(row.setting.adaptive, row.setting.beta): row.setting.beta_text for row in rows}
    betas = sorted(found)
    return _Panel(
        [f"{alpha:g}" for alpha in alphas],
        [found[beta].replace(" up", "\nup") for beta in betas],
        {
            (
                alphas.index(row.setting.alpha),
                betas.index((row.setting.adaptive, row.setting.beta)),
            ): row
            for row in rows
        },
    )


def _presets(rows: Sequence[Row]) -> _Panel:
    names = [str(row.setting.preset) for row in rows]
    return _Panel([""], names, {(0, column): row for column, row in enumerate(rows)})


def draw(rows: Sequence[Row], best: Setting, confidence: float) -> bytes:
    """The heat map as PNG, on white; presets stand in a line below the grid.

    A cell has the difference in percentage points and its interval; bold and starred if it is
    significant after Holm's correction, hatched if it is greedy decoding itself. The picked
    setting has a frame. The colours reach as far as the intervals do: what may be chance is pale.
    """
    points_of_grid = [row for row in rows if row.setting.preset is None]
    presets = [row for row in rows if row.setting.preset is not None]
    panels = [
        *([_grid(points_of_grid)] if points_of_grid else []),
        *([_presets(presets)] if presets else []),
    ]
    intervals = [(row.dev.low, row.dev.high) for row in rows if row.dev is not None]
    reach = 100 * max(abs(end) for interval in intervals for end in interval)

    columns = max(len(panel.columns) for panel in panels)
    heights = [panel.height for panel in panels]
    size = max(1.9 + 1.35 * columns, 5.4), max(1.1 + sum(heights) + 0.65 * len(panels), 2.9)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    every = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        image = _draw_cells(axes, panel, Normalize(-reach, reach), best)
    if points_of_grid:
        weights = points_of_grid[0].setting.weights_text
        every[0].set_xlabel(f"weights {weights}" if weights else "beta (contrast strength)")
        every[0].set_ylabel("alpha (plausibility threshold)")
    if presets:
        every[-1].set_xlabel("presets")
    count = next(row.dev.count for row in rows if row.dev is not None)
    figure.suptitle(
        f"Difference to greedy in points, {100 * confidence:g} % interval\n"
        f"{count} dev problems; frame: picked, *: significant after Holm's correction",
        fontsize=9.5,
        color=_INK,
    )
    bar = figure.colorbar(image, ax=list(every), label="points better than greedy", pad=0.03)
    bar.outline.set_visible(False)
    content = io.BytesIO()
    # Without the date of writing: equal results give equal files.
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def _difference(row: Row) -> float:
    return 0.0 if row.dev is None else 100 * row.dev.difference


def _draw_cells(axes: Any, panel: _Panel, norm: Normalize, best: Setting) -> Any:
    """Draw a panel's cells; returns the image, which has the colours."""
    values = np.full((len(panel.rows), len(panel.columns)), np.nan)
    for place, row in panel.cells.items():
        values[place] = _difference(row)
    image = axes.imshow(values, cmap=_COLOURS, norm=norm, aspect="auto")
    axes.set_xticks(range(len(panel.columns)), panel.columns)
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(panel.columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(panel.rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for (y, x), row in panel.cells.items():
        ink = _ink(*image.to_rgba(np.array([_difference(row)]))[0, :3])
        if row.dev is None:
            axes.add_patch(
                Rectangle(
                    (x - 0.5, y - 0.5), 1, 1, fill=False, hatch="///", edgecolor="#c5cad1", lw=0
                )
            )
            axes.text(
                x, y, "greedy", ha="center", va="center", color=ink, fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 2.0},
            )  # fmt: skip
            continue
        centre: dict[str, Any] = {
            "xy": (x, y),
            "textcoords": "offset points",
            "ha": "center",
            "color": ink,
        }
        axes.annotate(
            points(row.dev.difference) + (" *" if row.significant else ""),
            xytext=(0, 2),
            va="bottom",
            fontsize=11,
            fontweight="bold" if row.significant else "normal",
            **centre,
        )
        axes.annotate(
            f"{points(row.dev.low)} to {points(row.dev.high)}",
            xytext=(0, -3),
            va="top",
            fontsize=7.5,
            **centre,
        )
        if row.setting == best:
            frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=_INK, linewidth=2.5)
            frame.set(zorder=5, clip_on=False)  # over the lines between the cells
            axes.add_patch(frame)
    return image
