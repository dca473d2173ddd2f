# SPDX-License-Identifier: Apache-2.0
"""What is measured of contrasts with prompts: kept, gone on with, and reported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.accuracy.prompts import report, run, store
from benchmarks.accuracy.prompts.engine import Answers
from benchmarks.accuracy.prompts.methods import CONTRASTS, GREEDY, METHODS, Method
from benchmarks.accuracy.prompts.problem import Cell, Problem
from benchmarks.accuracy.prompts.run import CELLS
from vllm_cold.tools.tune.stats import compare

pytestmark = pytest.mark.unit

CELL = CELLS["false"]
PROBLEMS = CELL.make("gemma", "dev", 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "ANSWERS", tmp_path / "answers")
    return tmp_path


def kept(folder: Path, mark: str | None = None) -> store.Store:
    return store.Store("gemma", "false", "dev", mark, folder)


def add(to: store.Store, method: str, right: str) -> None:
    texts = [
        problem.judged.right[0] if bit == "1" else "no"
        for bit, problem in zip(right, PROBLEMS, strict=True)
    ]
    to.add(method, CELL, PROBLEMS, Answers(texts, [[1, 2]] * len(texts), 1.0))


def test_outcomes_and_answers_are_kept(folder: Path) -> None:
    mark = store.mark_of("gemma", CELL, PROBLEMS)
    add(kept(folder, mark), "greedy", "11110000")
    found = kept(folder, mark).outcomes["greedy"]
    assert found == store.Outcome({"right": "11110000", "named": "11110000"}, 16, 1.0)
    answers = store.answers("gemma", "false", "dev", "greedy")
    assert answers is not None
    assert answers.texts[7] == "no"
    assert store.answers("gemma", "false", "dev", "other") is None


def test_outcomes_of_other_problems_are_not_mixed(folder: Path) -> None:
    add(kept(folder, store.mark_of("gemma", CELL, PROBLEMS)), "greedy", "11110000")
    with pytest.raises(ValueError, match="has outcomes of other problems"):
        kept(folder, store.mark_of("gemma", CELL, PROBLEMS[1:]))


def test_the_page_says_how_much_and_whether_it_is_significant(folder: Path) -> None:
    found = kept(folder)
    add(found, GREEDY.key, "00000000")
    add(found, CONTRASTS[0].key, "11111111")
    add(found, CONTRASTS[1].key, "10000000")
    (row,) = report.measured("dev", folder)
    assert (row.greedy, row.problems) == (0.0, 8)
    assert report.points(row.against[CONTRASTS[0].key]).startswith("**+100.0** (")
    assert report.points(row.against[CONTRASTS[1].key]).startswith("+12.5 (")
    page = report.render(folder)
    assert "| problems | 8 |\n| greedy, % | 0.0 |\n| cad | **+100.0** (" in page
    assert "These are dev problems" in page


def test_the_page_is_that_of_what_is_measured() -> None:
    page = (report.DOCS / "prompts.md").read_text(encoding="utf-8")
    assert page == report.render()


def test_intervals_of_the_page_are_those_of_the_test() -> None:
    for row in report.measured("dev"):
        for key, found in row.against.items():
            outcomes = store.Store(row.model, row.cell.name, "dev").outcomes
            mine, greedy = (report._bits(outcomes[name]) for name in (key, GREEDY.key))
            assert found == compare(mine, greedy, 0.95, seed=0)
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


class FakeEngine:
    """Stands in for an engine."""

    made: list[str] = []

    def __init__(self, model: str) -> None:
        pass

    def run(self, method: Method, cell: Cell, problems: list[Problem]) -> Answers:
        self.made.append(method.key)
        return Answers(["no"] * len(problems), [[1]] * len(problems), 0.1)


def test_a_run_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("benchmarks.accuracy.prompts.engine")
    module.Engine, module.Answers = FakeEngine, Answers
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(store.Store.__init__, "__defaults__", (None, folder))
    monkeypatch.setattr(FakeEngine, "made", [])
    options = ["run", "--models", "gemma", "--cells", "false", "--splits", "dev"]
    monkeypatch.setattr(sys, "argv", [*options, "--problems", "8"])
    add(kept(folder, store.mark_of("gemma", CELL, PROBLEMS)), GREEDY.key, "11110000")
    run.main()
    assert FakeEngine.made == [method.key for method in METHODS if method != GREEDY]
    run.main()
    assert len(FakeEngine.made) == len(METHODS) - 1
    assert kept(folder).outcomes[GREEDY.key].measures["right"] == "11110000"
