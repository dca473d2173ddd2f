# SPDX-License-Identifier: Apache-2.0
"""Picks the settings that are reported: on dev, before test is looked at."""

from __future__ import annotations

from pathlib import Path

from benchmarks.accuracy.methods import (
    ADAPTIVE,
    GRID,
    GUIDANCE,
    QUARTER,
    QUARTER_ADAPTIVE,
    Method,
    fixed,
)  # fmt: skip
from benchmarks.accuracy.store import MEASURED, Cell, Store

# What each is picked from. The first setting listed wins a tie.
FAMILIES: dict[str, list[Method]] = {
    "cold": GRID,
    "adaptive": ADAPTIVE,
    "cfg": GUIDANCE,
    "quarter-cold": QUARTER,
    "quarter-adaptive": QUARTER_ADAPTIVE,
}
# On other cells than the main ones.
FEWER: dict[str, list[Method]] = {
    "cold": [fixed(0.1, beta) for beta in (0.25, 0.5, 1.0)],
    "adaptive": ADAPTIVE[:1],
}


def _groups(cell: Cell) -> dict[str, list[Method]]:
    return FAMILIES if cell.is_main else FEWER


def families(cell: Cell) -> list[Method]:
    """All settings that are tried on dev."""
    return [method for group in _groups(cell).values() for method in group]


def pick(family: str, cell: Cell, root: Path = MEASURED) -> Method:
    """The setting of ``family`` that is right most often on the cell's dev problems.

    Raises:
        KeyError: a setting has not been measured on dev.
    """
    outcomes = Store(cell, "dev", root=root).outcomes
    return max(_groups(cell)[family], key=lambda method: outcomes[method.key].right.count("1"))


def chosen(cell: Cell, root: Path = MEASURED) -> list[Method]:
    """The setting picked of each family that was tried on the cell."""
    return [pick(family, cell, root) for family in _groups(cell)]
