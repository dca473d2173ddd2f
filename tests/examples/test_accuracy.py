# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark around its engine: no figure stands next to a wrong result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import models
from benchmarks.accuracy.answers import Folder, judge_of, judged
from benchmarks.accuracy.engine import Engine
from benchmarks.accuracy.methods import CHOICE, METHODS, Request
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Split
from benchmarks.accuracy.report import (
    Difference,
    compare,
    correct,
    differences,
    outcomes,
    read_outcomes,
    render,
)
from benchmarks.accuracy.tasks import CELLS
from vllm_cold import ColdParams
from vllm_cold.tools.tune import verdict

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "chat", "nowhere")
BASE = replace(CHAT, kind="base")
CELL = CELLS["false"]
MEASURED = Path(command.__file__).with_name("measured")


@dataclass
class FakeEngine:
    """Answers as it is told, with two tokens."""

    says: Callable[[Request], str]
    versions: str = "fake 1"

    def run(self, requests: Sequence[Request]) -> list[tuple[str, int]]:
        return [(self.says(each), 2) for each in requests]


def decode(
    folder: Folder,
    says: Callable[[Request], str],
    methods: Sequence[str] = ("greedy", "cad"),
    cell: Cell = CELL,
    split: Split = "test",
    count: int = 12,
) -> None:
    runner = command.Runner(CHAT, folder, adapters=False)
    runner._engine = FakeEngine(says)
    runner.run(cell, split, [METHODS[key] for key in methods], count)


def contrast_is_right(request: Request) -> str:
    known = {repr(p.prompt): p.judged.right[0] for p in CELL.make(CHAT, "test", 12)}
    return known[repr(request.expert.prompt)] if request.amateurs else "no"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# Requests

PROBLEM = CELL.make(CHAT, "dev", 1)[0]
ADAPTED = replace(CELL, adapter="t-r4-100")


def request(key: str, cell: Cell = CELL, model: Model = CHAT) -> Request:
    return METHODS[key].request(model, cell, PROBLEM, Path("/adapters"))


def test_who_reads_what() -> None:
    worn, without = "/adapters/t-r4-100", PROBLEM.without
    better = (PROBLEM.plain["better"], worn)
    for key, streams in {
        "greedy": [(PROBLEM.prompt, worn)],
        "base model": [(PROBLEM.prompt, None)],
        "without the part": [(without, worn)],
        "better prompt": [better],
        "better prompt + cad": [better, (without, worn)],
        "cad": [(PROBLEM.prompt, worn), (without, worn)],
        "grounded": [(PROBLEM.prompt, worn), (without, worn), (PROBLEM.unasked, worn)],
        "cold": [(PROBLEM.prompt, worn), (PROBLEM.prompt, None)],
        "cold, amateur: quarter": [(PROBLEM.prompt, worn), (PROBLEM.prompt, "/adapters/t-r4-25")],
    }.items():
        asked = request(key, ADAPTED)
        assert [(e.prompt, e.adapter) for e in (asked.expert, *asked.amateurs)] == streams, key


def test_a_prompt_without_the_part_is_not_contrasted_with_itself() -> None:
    problem = replace(PROBLEM, plain={"enough": PROBLEM.without})
    asked = METHODS["best passage or none + cad"].request(CHAT, CELL, problem, Path("/adapters"))
    assert asked == request("without the part")


def test_the_mark_says_all_that_an_answer_depends_on() -> None:
    there = [each for each in METHODS.values() if each.is_for(CELL, PROBLEM) and not each.chooses]
    asked = request("cad")
    models = ({"dtype": "float32"}, {"source": "elsewhere"}, {"template": {"thinks": False}},
              {"system": False})  # fmt: skip
    found = [
        *(request(each.key) for each in there),
        replace(asked, expert=replace(asked.expert, prompt="Another?")),
        replace(asked, sampling={**asked.sampling, "stop": ("!",)}),
        replace(asked, scored="Lima"),
        *(request("cad", model=replace(CHAT, **other)) for other in models),  # type: ignore[arg-type]
    ]
    assert len({each.mark for each in found}) == len(found)


@pytest.mark.parametrize("key", METHODS)
def test_the_engine_is_told_all_of_it(key: str) -> None:
    engine = Engine.__new__(Engine)  # without a model
    engine._adapters, engine._model = {}, CHAT
    searched = CELLS["retrieved"].make(CHAT, "dev", 1)[0].plain
    problem = replace(PROBLEM, plain={**PROBLEM.plain, **searched})
    asked = METHODS[key].request(CHAT, ADAPTED, problem, Path("/adapters"))
    params = engine._params(asked)
    for name, value in {"min_p": 0.0, "seed": None, **asked.sampling, **asked.settings}.items():
        assert getattr(params, name) == value
    assert isinstance(params, ColdParams) == bool(asked.amateurs)
    for stream, amateur in zip(asked.amateurs, getattr(params, "amateurs", ()), strict=True):
        reads = amateur.prompt and [dict(message) for message in stream.prompt]
        assert amateur.prompt == reads, "None is the expert's"
        assert (amateur.prompt is None) == (stream.prompt == asked.expert.prompt)
        worn = amateur.lora_request and amateur.lora_request.lora_path
        assert (worn, amateur.weight) == (stream.adapter, stream.weight)


# Answers


def test_answers_to_something_else_are_never_counted(folder: Folder) -> None:
    decode(folder, contrast_is_right)
    found = judged(folder, CHAT, CELL, "test", list(METHODS.values()), 12)
    assert set(found) == {"greedy", "cad"}
    assert found["cad"].right.tolist() == [1.0] * 12
    assert found["greedy"].right.tolist() == [0.0] * 12
    assert (found["cad"].tokens, found["cad"].by) == (24, {"fake 1"})
    assert not found["cad"].measures["cut off"].any()
    two = replace(CELL, max_tokens=2)  # as many as FakeEngine counts
    decode(folder, contrast_is_right, ["greedy"], two)
    found = judged(folder, CHAT, two, "test", [METHODS["greedy"]], 12)
    assert found["greedy"].measures["cut off"].all()
    other = replace(CELL, max_tokens=99)
    assert judged(folder, CHAT, other, "test", list(METHODS.values()), 12) == {}


def test_a_method_without_all_answers_is_left_out(folder: Folder) -> None:
    decode(folder, contrast_is_right, ["greedy"], count=12)
    decode(folder, contrast_is_right, ["cad"], count=11)
    assert set(judged(folder, CHAT, CELL, "test", list(METHODS.values()), 12)) == {"greedy"}
    assert len(judged(folder, CHAT, CELL, "test", [METHODS["cad"]], 11)["cad"].right) == 11


# Statistics


def test_differences() -> None:
    """In points, by the statistics of ``vllm-cold tune``; Holm's correction marks them."""
    mine = np.repeat([1.0, 0.0, 0.0], (20, 5, 475))
    other = np.repeat([0.0, 1.0, 0.0], (20, 5, 475))
    found, of_tune = compare(mine, other), verdict.compare(mine, other)
    assert found.points == pytest.approx(3.0)
    assert found.p == pytest.approx(0.00408, abs=1e-5)  # binomial, 20 of 25
    assert (found.low, found.high) == (100 * of_tune.low, 100 * of_tune.high)
    several = [Difference(1, 0, 2, p, declared=True) for p in (0.01, 0.04, 0.02, 0.9)]
    several.append(Difference(1, 0, 2, 0.5))  # nobody asked for it
    correct(several)
    assert [each.corrected for each in several[:4]] == pytest.approx([0.04, 0.08, 0.06, 0.9])
    marked = ["**+1.0**", "+1.0?", "+1.0?", "+1.0", "+1.0"]
    assert [str(e).split()[0] for e in several] == marked
    assert str(several[0]) == "**+1.0** (0.0..+2.0)"


def test_what_is_declared_is_compared_with_its_rival_on_test() -> None:
    right = {
        key: np.array([1.0, 0.0]) for key in ("greedy", "cad", "better prompt", "mti", "drawn")
    }
    found = differences("false", "test", right)
    declared = {key: each.declared for key, each in found.items()}
    assert declared == {
        "cad": True, "better prompt": True, "mti": True, "drawn": False,
        "cad - better prompt": True,
    }  # fmt: skip
    assert not any(each.declared for each in differences("false", "dev", right).values())
    assert differences("false+own", "test", right).keys() == right.keys() - {"greedy"}


# The report


def test_whole_answers_are_chosen_by_a_judge_of_dev(folder: Folder) -> None:
    """What it chooses on test is neither decoded nor seen by it."""
    cells = (CELLS["false"], CELLS["near"])
    assert judge_of(folder, CHAT, cells, 30) is None
    known = []
    for cell in cells:
        problems = [p for s in ("dev", "test") for p in cell.make(CHAT, s, 30)]  # type: ignore[arg-type]
        where = "prompt" if cell.name == "false" else "without"
        known.append({repr(getattr(p, where)): (p.judged.right[0],) for p in problems})

    def says(asked: Request) -> str:
        """The text is believed; a text that says little is likely with it and without."""
        reads = repr(asked.expert.prompt)
        if asked.scored is None:
            return next((right for there in known for right in there.get(reads, ())), "no")
        told = any(reads in there for there in known)
        return "-0.1" if told and asked.scored != "no" else "-2.0"

    for split in ("dev", "test"):
        for cell in cells:
            decode(folder, says, ("greedy", "without the part", CHOICE.key), cell, split, 30)  # type: ignore[arg-type]
    judge = judge_of(folder, CHAT, cells, 30)
    assert judge is not None
    for cell in cells:
        # The judge is one of all cells, whichever the report has.
        alone = outcomes(folder, CHAT, [cell], "test", 30)[cell.name]
        assert alone[CHOICE.key].right.mean() == 1.0
        found = judged(folder, CHAT, cell, "test", list(METHODS.values()), 30, judge)
        assert found[CHOICE.key].right.mean() == 1.0
        assert bool(found["greedy"].right.all()) is (cell.name == "false")
    assert CHOICE.key not in judged(folder, CHAT, CELL, "test", [CHOICE], 30), "no judge"


@pytest.mark.parametrize("name", ["test", "joint"])
def test_what_was_measured_is_that_of_the_run(name: str, tmp_path: Path) -> None:
    kept, table = MEASURED / f"outcomes-{name}.jsonl", models.read()
    before = read_outcomes(kept)
    there = [table[model] for model, _ in before]
    text, raw = render(Folder(tmp_path), there, list(CELLS.values()), "test", before=before)
    assert text == (MEASURED / f"report-{name}.md").read_text(encoding="utf-8")
    assert raw == kept.read_text(encoding="utf-8")
