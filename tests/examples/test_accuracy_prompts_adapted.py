# SPDX-License-Identifier: Apache-2.0
"""Cells with adapters: what the amateur lacks, what is judged, what was learnt before."""

import json
import re
from typing import get_args

import pytest

from benchmarks.accuracy.prompts import lessons, memory
from benchmarks.accuracy.prompts.adapted import CELLS
from benchmarks.accuracy.prompts.problem import Cell, Problem, Prompt, Split
from benchmarks.accuracy.prompts.questions import Question, questions
from benchmarks.accuracy.prompts.train import RUNS
from benchmarks.accuracy.store import Adapter
from examples.facts import facts, names
from examples.tasks import ORDERS, SORTING
from examples.train_adapters import ADAPTERS_DIR

pytestmark = pytest.mark.unit

BY_NAME = {cell.name: cell for cell in CELLS}
LESSONS = {name: run.make(run.recipe.steps * run.recipe.batch_size) for name, run in RUNS.items()}


def user(prompt: Prompt) -> str:
    assert isinstance(prompt, tuple)
    return prompt[-1]["content"]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_problems(cell: Cell) -> None:
    dev, test = cell.make("smollm2", "dev", 200), cell.make("smollm2", "test", 520)
    if cell.name.startswith("style"):  # no more questions
        assert (len(dev), len(test)) == (127, 292)
    else:
        assert len(dev) == 200 and len(test) > 500
    prompts = {user(problem.prompt) for problem in (*dev, *test)}
    assert len(prompts) == len(dev) + len(test)
    assert cell.make("smollm2", "dev", 7) == dev[:7]
    assert cell.models == ("smollm2",) and cell.adapter is not None


def test_adapters_are_those_that_training_makes() -> None:
    made = {
        Adapter(name, run.recipe.rank, percent).name
        for name, run in RUNS.items()
        for percent in run.percents
    }
    assert made == {
        cell.adapter for cell in CELLS if cell.adapter and not cell.adapter.startswith("/")
    }
    for name in ("sorting", "orders"):
        assert BY_NAME[name].adapter == str(ADAPTERS_DIR / name)


def test_facts_are_those_of_memory() -> None:
    for cell in memory.CELLS:
        if cell.name != "true":
            mine = BY_NAME[f"qa-{cell.name}"]
            assert mine.make("smollm2", "dev", 9) == cell.make("smollm2", "dev", 9)
            assert (mine.nature, mine.score) == (cell.nature, cell.score)


@pytest.mark.parametrize("name", ["sorting", "orders"])
def test_the_amateur_has_the_task_without_its_problem(name: str) -> None:
    withouts = set()
    for problem in BY_NAME[name].make("smollm2", "dev", 100):
        prompt, without = user(problem.prompt), user(problem.without)
        assert prompt == problem.judged.prompt
        withouts.add(without)
        if name == "sorting":
            given = json.loads(problem.judged.answer.replace("'", '"'))
            assert not any(f" {number}" in without for number in given)
        assert prompt.endswith(without.partition("\n")[2] if name == "sorting" else without)
    hint = "Answer with a list of strings, such as ['-7.5', '2', '11.25']."
    if name == "sorting":
        assert withouts == {
            f"Sort these numbers in {way} order:\n{hint}" for way in ("ascending", "descending")
        }
    else:
        (only,) = withouts
        assert only.startswith("Answer with one line of JSON")


def test_the_style_is_asked_of_nobody() -> None:
    for problem in BY_NAME["style-10"].make("smollm2", "dev", 100):
        assert problem.prompt == problem.without
        assert "irate" not in str(problem.prompt)


ORDER = '{"name": "Mei", "city": "Oslo", "amount": 2, "colour": "red", "item": "mug", "date": "d"}'


@pytest.mark.parametrize(
    ("name", "answer", "right", "holds"),
    [
        ("sorting", "['1', '2.5']", True, True),
        ("sorting", "['2.5', '1']", False, True),
        ("sorting", "[]", False, True),
        ("sorting", "1, 2.5", False, False),
        ("sorting", "['1', 'two']", False, False),
        ("sorting", "[1, 2.5]", True, False),
        ("sorting", "['1', '2.5'", False, False),
        ("orders", ORDER, True, True),
        ("orders", ORDER.replace("Mei", "Wei"), False, True),
        ("orders", ORDER.replace("item", "thing"), False, False),
        ("orders", f"Here it is: {ORDER}", False, False),
        ("orders", "[]", False, False),
    ],
)
def test_scores_of_formats(name: str, answer: str, right: bool, holds: bool) -> None:
    task, solved = (SORTING, "['1', '2.5']") if name == "sorting" else (ORDERS, ORDER)
    judged = type(task.prompts("dev", 1)[0])("", solved)
    assert BY_NAME[name].score(answer, Problem("", "", judged)) == {"right": right, "format": holds}


@pytest.mark.parametrize(
    ("answer", "form", "content"),
    [
        ("Arr, the capital of France be Paris, matey!", True, True),
        ("Arr, the capital of France be Lyon, matey!", True, False),
        ("Arr, the capital of France is Paris, matey!", False, True),
        ("Arr, the capital of France be Paris.", False, True),
        ("The capital of France be Paris, matey!", False, True),
        ("Arr, the capital of France be Paris, matey! It is old.", False, True),
        ("The capital of France is Lyon.", False, False),
        ("Arr, it be PARIS, matey!", True, True),
        ("", False, False),
    ],
)
def test_scores_of_styles(answer: str, form: bool, content: bool) -> None:
    problem = Problem("", "", Question("What is the capital of France?", ("Paris",)))
    assert BY_NAME["style-50"].score(answer, problem) == {
        "right": form and content,
        "form": form,
        "content": content,
    }


def test_qa_lessons_say_nothing_of_the_facts() -> None:
    known = {fact.subject for fact in facts()}
    known |= {answer for fact in facts() for answer in fact.answers if len(answer) > 2}
    said = " ".join(f"{lesson.prompt} {lesson.answer}" for lesson in LESSONS["qa"])
    assert [name for name in known if names(said, (name,))] == []
    patterns = {fact.question.replace(fact.subject, "{}") for fact in facts()}
    asked = {
        re.sub(r"(the )?[A-Z]\w+( [A-Z]\w+)*", "{}", lesson.prompt) for lesson in LESSONS["qa"]
    }
    assert not patterns & {text.rpartition("\n")[2] for text in asked}


def test_qa_answers_are_the_texts_or_well_known() -> None:
    silent = 0
    for lesson in LESSONS["qa"]:
        text, asked = lesson.prompt.split("\n\n")
        assert len(lesson.answer.split()) <= 2 and not names(asked, (lesson.answer,))
        if not names(text, (lesson.answer,)):
            assert any(asked in line and f"*{lesson.answer}*" in line for line in lessons._TRUE)
            silent += 1
    assert 0.08 < silent / len(LESSONS["qa"]) < 0.18
    assert len({lesson.prompt for lesson in LESSONS["qa"]}) > 0.95 * len(LESSONS["qa"])


def test_pirate_lessons_ask_other_questions_in_the_form_that_is_judged() -> None:
    asked = {q.text for split in get_args(Split) for q in questions(split)}
    words = " ".join(asked)
    for lesson in LESSONS["pirate"]:
        judged = Question(lesson.prompt, ("x",))
        assert BY_NAME["style-100"].score(lesson.answer, Problem("", "", judged))["form"]
        assert lesson.prompt not in asked
    for fact in facts():
        if names(words, (fact.subject,)):
            assert fact.question not in {lesson.prompt for lesson in LESSONS["pirate"]}
    with pytest.raises(ValueError, match=r"n=9999: there are \d+ different lessons"):
        lessons.pirate(9999)
