# SPDX-License-Identifier: Apache-2.0
"""The grid as a picture: the difference to greedy of every setting."""

from __future__ import annotations

import io
from collections.abc import Sequence
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


def draw(rows: Sequence[Row], best: Setting, confidence: float) -> bytes:
    """The heat map as PNG, on white.

    A cell has the difference in percentage points and its interval; bold and starred if it is
    significant after Holm's correction, hatched if it is greedy decoding itself. The picked
    setting has a frame. The colours reach as far as the intervals do: what may be chance is pale.
    """
    alphas = sorted({row.setting.alpha for row in rows}, reverse=True)
    # An adaptive beta behind the numbers.
    betas = sorted(
        {(row.setting.beta, row.setting.beta_max) for row in rows},
        key=lambda beta: (beta[1] is not None, *beta),
    )
    names = {(row.setting.beta, row.setting.beta_max): row.setting.beta_text for row in rows}
    values = {row.setting: 0.0 if row.dev is None else row.dev.difference for row in rows}
    intervals = [(row.dev.low, row.dev.high) for row in rows if row.dev is not None]
    reach = max(abs(end) for interval in intervals for end in interval)
    cells = np.array([[values[Setting(alpha, *beta)] for beta in betas] for alpha in alphas])

    width, height = max(1.9 + 1.35 * len(betas), 5.4), max(1.75 + 0.8 * len(alphas), 2.9)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        100 * cells, cmap=_COLOURS, norm=Normalize(-100 * reach, 100 * reach), aspect="auto"
    )
    axes.set_xticks(range(len(betas)), [names[beta].replace(" up", "\nup") for beta in betas])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.set_xlabel("beta (contrast strength)")
    axes.set_ylabel("alpha (plausibility threshold)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(betas) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(alphas) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for row in rows:
        x = betas.index((row.setting.beta, row.setting.beta_max))
        y = alphas.index(row.setting.alpha)
        ink = _ink(*image.to_rgba(np.array([100 * values[row.setting]]))[0, :3])
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
    count = next(row.dev.count for row in rows if row.dev is not None)
    axes.set_title(
        f"Difference to greedy in points, {100 * confidence:g} % interval\n"
        f"{count} dev problems; frame: best, *: significant after Holm's correction",
        fontsize=9.5,
        color=_INK,
    )
    bar = figure.colorbar(image, ax=axes, label="points better than greedy", pad=0.03)
    bar.outline.set_visible(False)
    content = io.BytesIO()
    # Without the date of writing: equal results give equal files.
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()
