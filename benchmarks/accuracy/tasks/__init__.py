# SPDX-License-Identifier: Apache-2.0
"""The cells: problems of several kinds, a module each."""

from __future__ import annotations

from benchmarks.accuracy.problem import Cell
from benchmarks.accuracy.tasks import (
    adapters,
    code,
    documents,
    instructions,
    joint,
    memory,
    poisoned,
    questions,
    retrieved,
    secrets,
)

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        memory,
        retrieved,
        instructions,
        joint,
        questions,
        code,
        adapters,
        secrets,
        documents,
        poisoned,
    )
}
CELLS: dict[str, Cell] = {cell.name: cell for each in MODULES.values() for cell in each.CELLS}


def chosen(names: list[str]) -> list[Cell]:
    """The cells with these names or of these modules, in the order of all.

    Raises:
        ValueError: there is no such cell or module.
    """
    unknown = [name for name in names if name not in CELLS and name not in MODULES]
    if unknown:
        raise ValueError(
            f"unknown cells: {', '.join(unknown)}; python -m benchmarks.accuracy list says which "
            "there are"
        )
    return [
        cell
        for module, each in MODULES.items()
        for cell in each.CELLS
        if not names or module in names or cell.name in names
    ]
