# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: rounds in alternation, spread, and no speed beside a wrong result."""

from __future__ import annotations

import random

import pytest

from benchmarks import rounds

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_each_round_has_all_systems_in_an_order_of_its_own() -> None:
    ran = list(rounds.in_rounds("abcd", 6, random.Random(0)))
    assert [number for number, _ in ran] == [n for n in range(6) for _ in "abcd"]
    orders = ["".join(name for n, name in ran if n == number) for number in range(6)]
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(set(orders)) > 3
    assert ran == list(rounds.in_rounds("abcd", 6, random.Random(0)))


def test_spread() -> None:
    assert rounds.spread([5.0]) == (5.0, 5.0, 5.0)
    assert rounds.spread([6.0, 1.0, 3.0, 2.0, 4.0, 5.0]) == (3.5, 2.0, 5.0)
    assert rounds.spread_text([]) == "-" and rounds.spread_text([1, 2]) == "1.50 (1.20-1.80)"
    assert rounds.spread_text([0.5], "{:.0f}".format, 1e3) == "500 (500-500)"


def test_ratios_are_taken_within_rounds() -> None:
    assert rounds.ratios([2.0, 9.0, 5.0], [1.0, 3.0]) == [2.0, 3.0]


def test_what_is_wrong_stands_in_place_of_speeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert rounds.show_if_right([], lambda: print("7 us")) == 0
    assert capsys.readouterr().out == "7 us\n"
    assert rounds.show_if_right(iter(["a", "b", "a"]), lambda: print("7 us")) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("No speeds are shown") and others == ["  a", "  b"]
