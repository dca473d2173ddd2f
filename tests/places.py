# SPDX-License-Identifier: Apache-2.0
"""The tables of vLLM's places, changed for a test."""

import importlib
from types import ModuleType

import pytest

from vllm_cold.compat import places
from vllm_cold.compat.patching import Hook, Relies, Time, Wraps

TABLES = (*places.TABLES, places.CPU_TABLE)
NOWHERE = Time(places.TABLES[0], "at a time of a test")


def hooks() -> list[Hook]:
    """All rows, of every platform."""
    return [hook for name in TABLES for hook in places.table(name)]


def wrapped(name: str) -> Wraps:
    """The one place whose path ends like this."""
    (place,) = {p.where: p for h in hooks() for p in h.wraps if p.here.endswith(name)}.values()
    return place


def row(when: Time, *wanted: Wraps | Relies, lost: str = "", since: str = "0.23") -> Hook:
    """A row without a file, for makers that are functions."""
    return Hook(ModuleType("vllm_cold."), when, "", "", *wanted, lost=lost, since=since)


def add(
    patch: pytest.MonkeyPatch,
    when: Time,
    *wanted: Wraps | Relies,
    lost: str = "",
    since: str = "0.23",
) -> None:
    """Give a table one more row."""
    table = importlib.import_module(when.table)
    patch.setattr(table, "TABLE", (*table.TABLE, row(when, *wanted, lost=lost, since=since)))
