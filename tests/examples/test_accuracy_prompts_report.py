# SPDX-License-Identifier: Apache-2.0
"""What is measured of contrasts with prompts: kept, gone on with, and reported."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import report as accuracy
from benchmarks.accuracy.lines import Line, table
from benchmarks.accuracy.prompts import report, run, store
from benchmarks.accuracy.prompts.engine import Answers
from benchmarks.accuracy.prompts.methods import (
    ADAPTED,
    CONTRASTS,
    GREEDY,
    METHODS,
    SAMPLED,
    UNASKED,
    Method,
    preset,
)  # fmt: skip
from benchmarks.accuracy.prompts.problem import Cell, Problem
from benchmarks.accuracy.prompts.run import CELLS

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


def test_the_tables_say_how_much_and_whether_it_is_significant(folder: Path) -> None:
    found = kept(folder)
    add(found, GREEDY.key, "00000000")
    add(found, CONTRASTS[0].key, "11111111")
    add(found, CONTRASTS[1].key, "10000000")
    tables = report.render(folder)
    assert "| problems | 8 |\n| greedy, % | 0.0 |\n| cad | **+100.0** (" in tables
    assert "| alpha 0.1, beta 0.5 | +12.5 (" in tables
    assert "## Test" not in tables


def with_right(**right: int) -> Line:
    """A line of 100 problems: how many of the first ones each method has right."""
    return Line("g", "a", "M", {m: (np.arange(100) < n).astype(float) for m, n in right.items()})


def test_a_row_says_helps_nothing_or_harms() -> None:
    line = with_right(greedy=50, gains=70, loses=30, none=52, hardly=57)
    columns = {name: (name, "greedy") for name in ("gains", "loses", "none", "hardly", "absent")}
    headings, ((_, entries),) = table([line], columns)
    assert headings == ["gains", "loses", "none", "hardly"]
    assert entries[0] == "**helps +20.0**<br>+13.3 to +28.9<br>p < .001"
    assert entries[1].startswith("**harms -20.0**<br>")
    assert entries[2].startswith("nothing +2.0<br>")
    # p is .016, corrected .031.
    assert entries[3].startswith("**helps +7.0**<br>")
    # With more in the table it is no longer enough.
    _, rows = table([line, with_right(greedy=50, gains=50, loses=50, none=50)], columns)
    assert rows[0][1][3].startswith("helps? +7.0<br>")
    assert rows[0][1][0].startswith("**helps +20.0**<br>")
    assert table([with_right(greedy=50)], columns) == ([], [])


def test_a_method_stands_in_the_column_of_its_rule() -> None:
    columns = [report.column(method) for method in METHODS]
    assert {"`cold`", "`cad`, `cfg`", "`adacad`", "*adaptive*"} <= set(columns)
    assert report.column(preset("cfg")) == report.column(preset("cad"))
    for kind in {method.amateur for method in METHODS}:
        names = [report.column(m) for m in METHODS if m.amateur == kind]
        assert len(set(names)) == len(names), "one would hide the other"
    own = (*UNASKED[:2], *SAMPLED)
    assert [report.column(m) for m in own] == [m.key for m in own]
    assert report.column(UNASKED[2]) == "`grounded`"


def test_the_page_takes_test_problems_where_there_are_any(folder: Path) -> None:
    root = folder / "prompts"
    for split, cad in (("dev", "11111111"), ("test", "00000000")):
        found = store.Store("gemma", "false", split, None, root)
        add(found, GREEDY.key, "00000000")
        add(found, "cad", cad)
        drawn = [m for m in SAMPLED if m.contrasts]
        for method, right in [*((m, "11111111") for m in drawn), (SAMPLED[0], "00000000")]:
            add(found, method.key, right)
        fluent = {"perplexity": 3.21, "distinct": 0.98, "fluent": None}
        store.write_json(root / f"fluency-gemma-{split}.json", {"false": {"cad": fluent}})
        page = accuracy.render(folder)
        row = f"| {CELL.about}: *Gemma* | 8 | 0.0 |"
        assert (f"{row} **helps +100.0**" in page.split("## ")[0]) == (split == "dev")
        assert (f"{row} nothing 0.0" in page.split("## ")[0]) == (split == "test")
        assert ("are dev problems" in page) == (split == "dev")
        row = f"| {CELL.about}: *Gemma* | 8 | 100.0 |"
        assert f"{row} **helps +100.0**" in page.split("## When answers are drawn")[1]
        assert f"| {CELL.about}: *Gemma* | 3.2<br>0.98<br>- |" in page


def test_kinds_of_amateurs_have_a_line_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("some.adapted")
    module.CELLS = (replace(CELL, name="qa", adapter="qa"),)
    monkeypatch.setattr(report, "MODULES", (module,))
    found = store.Store("smollm2", "qa", "dev", None, folder)
    for key in (GREEDY.key, "better prompt", "alpha 0.1, beta 0.5", *(m.key for m in ADAPTED)):
        add(found, key, "00000000")
    lines = list(report.lines("dev", folder))
    assert len(lines) == 3
    assert ["better prompt" in line.right for line in lines] == [True, False, False]
    assert all("`cold`" in line.right for line in lines)
    assert len({line.about for line in lines}) == 3


def test_cells_that_may_gain_are_counted_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("some.instructions")
    control = replace(CELL, name="plain", nature="control")
    module.CELLS = (replace(CELL, name="tone"), replace(CELL, name="length"), control)
    monkeypatch.setattr(report, "MODULES", (module,))
    for name, right in (("tone", "11110000"), ("length", "11000000"), ("plain", "00000000")):
        found = store.Store("smollm2", name, "dev", None, folder)
        add(found, GREEDY.key, right)
        add(found, "cad", "11111111")
        if name == "tone":
            add(found, "careful", "11111111")
    *_, together = report.lines("dev", folder)
    assert together.about == report.TOGETHER["instructions"]
    assert (together.problems, together.percent()) == (16, 37.5)
    assert together.percent("`cad`, `cfg`") == 100.0
    assert "careful" not in together.right, "not measured on all of them"


class FakeEngine:
    """Stands in for an engine."""

    made: list[str] = []

    def __init__(self, model: str, *, adapters: bool) -> None:
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
    left = [m.key for m in METHODS if m != GREEDY and m.is_for(CELL, PROBLEMS[0])]
    assert FakeEngine.made == left
    run.main()
    assert FakeEngine.made == left
    assert kept(folder).outcomes[GREEDY.key].measures["right"] == "11110000"


def test_kept_answers_are_judged_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.Store.__init__, "__defaults__", (None, folder))
    mark = store.mark_of("gemma", CELL, PROBLEMS)
    add(kept(folder, mark), GREEDY.key, "11110000")
    strict = replace(CELL, score=lambda text, problem: {"right": False})
    monkeypatch.setitem(CELLS, "false", strict)
    options = ["--models", "gemma", "--cells", "false", "--splits", "dev", "test"]
    monkeypatch.setattr(sys, "argv", ["run", *options, "--judge-again"])
    run.main()
    assert kept(folder).outcomes[GREEDY.key] == store.Outcome({"right": "00000000"}, 16, 1.0)
    (folder / "answers" / "gemma-false-dev" / "greedy.json.gz").unlink()
    with pytest.raises(FileNotFoundError, match="gemma, false, dev: no answers of 'greedy'"):
        run.main()
