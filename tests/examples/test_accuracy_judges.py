# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's judges: answers that they must take, and such that they must not."""

import re

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Problem, Split
from benchmarks.accuracy.tasks import CELLS, code, memory
from benchmarks.accuracy.tasks.instructions import KINDS, Judged, instruction
from examples import tasks

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "chat", "nowhere")
SPLITS: tuple[Split, ...] = ("dev", "test")


# A text against memory


@pytest.mark.parametrize(
    ("text", "right", "wrong", "expected"),
    [
        ("Lima.", ("Lima",), ("Rome",), (True, True)),
        ("Lima, not Rome", ("Lima",), ("Rome",), (False, True)),
        ("Rome", ("Lima",), ("Rome",), (False, False)),
        # The wrong one's name within the right one's.
        ("guatemala city", ("Guatemala City",), ("Guatemala",), (True, True)),
        ("New York", ("York",), ("New York",), (False, False)),
        # An answer's name within the subject's, which stands in brackets.
        ("Santa Fe, in [New Mexico]", ("Santa Fe",), ("Mexico",), (True, True)),
        ("People in [Laos] speak Thai.", ("Thai",), ("Lao",), (True, True)),
        ("Lao, of course", ("Thai",), ("Lao",), (False, False)),
        ("The inventor of [the diesel engine]", ("Diesel",), (), (False, False)),
        ("Diesel invented [the diesel engine]", ("Diesel",), (), (True, True)),
    ],
)
def test_an_answer_is_right_if_it_names_no_wrong_one(
    text: str, right: tuple[str, ...], wrong: tuple[str, ...], expected: tuple[bool, bool]
) -> None:
    match = re.search(r"\[(.*)\]", text)
    subject = memory.subjects(match[1]) if match else ()
    judged = memory.Judged(right, wrong, subject)
    outcome = memory.score(text.replace("[", "").replace("]", ""), Problem("", "", judged))
    assert (outcome["right"], outcome["named"]) == expected


def test_articles_and_short_names() -> None:
    for relation, answer, text, right in (
        ("cities country", "the Netherlands", "It is in the Netherlands.", True),
        ("cities country", "the Netherlands", "Netherlands", True),
        ("books author", "Jack London", "London", True),
        ("states capital", "Little Rock", "Rock", False),
    ):
        names = memory.names_of(relation, (answer,))
        assert memory.score(text, Problem("", "", memory.Judged(names, ())))["right"] is right


# Instructions


# Of some kinds: IFEval's own checks judge the rest of an answer.
GOOD = {
    "detectable_format:title": "<<About soup>>\nThe soup is good and easy to make.",
    "keywords:existence": "The first thing in the world is a {0} and then you need a {1} too.",
    "keywords:frequency": "Every {0} is better with a second {0} in it.",
    "detectable_format:json_format": '{{"answer": "The soup is good and easy to make."}}',
    "fr": "La soupe est très facile. Faites bouillir de l'eau, puis ajoutez le sel.",
    "de": "Schneide die Tomaten und koche sie lange mit viel Knoblauch und etwas Salz.",
}


@pytest.mark.parametrize("split", SPLITS)
def test_instructions(split: Split) -> None:
    pytest.importorskip("langdetect")
    cell, seen = CELLS["instructions"], set()
    for problem in cell.make(CHAT, split, 45):
        judged: Judged = problem.judged
        keywords = judged.arguments.get("keywords") or [judged.arguments.get("keyword")]
        kind = judged.arguments.get("language", judged.kind)
        if kind in GOOD:
            seen.add(kind)
            assert cell.score(GOOD[kind].format(*keywords), problem)["right"], judged
        asks, _ = instruction(judged.kind, judged.arguments)
        for bad in ("", asks, f"{asks} {asks}", "florb quazzle grintle of snorp"):
            assert not cell.score(bad, problem)["right"], (judged, bad)
    assert len(seen) == {"dev": 2, "test": 4}[split]
    assert not set(KINDS["dev"]) & set(KINDS["test"])


# Code


HEAD = """from typing import List


def add(a: int, b: int) -> int:
    \"\"\"Add.
    >>> add(1, 2)
    3
    \"\"\"
"""
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n"
ADD = code.Judged(HEAD, TEST, "add")


@pytest.mark.parametrize(
    ("answer", "right", "parses"),
    [
        ("    return a + b\n", True, True),
        ("Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds.", True, True),
        ("```\ndef add(a: List, b):\n    return a + b", True, True),
        ("    return a - b\n", False, True),
        ("    return (a", False, False),
        ("    while True:\n        pass\n", False, True),
        ("    print('passed')\n    raise SystemExit\n", False, True),
        ("    open('/tmp/x' * 999)\n", False, True),
    ],
)
def test_programs(answer: str, right: bool, parses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "SECONDS", 1)
    assert code.score(answer, Problem("", "", ADD)) == {"right": right, "parses": parses}


# Numbers


@pytest.mark.parametrize(
    ("answer", "right", "holds"),
    [
        ("3 + 4 = 7\n#### 7", True, True),
        ("It is 7.", True, False),
        ("#### 7 apples, of 9", True, True),
        ("#### 1,007", False, True),
        ("7 of 9", False, False),
        ("", False, False),
    ],
)
def test_numbers(answer: str, right: bool, holds: bool) -> None:
    problem = Problem("", "", tasks.Problem("", "Seven.\n#### 7"))
    assert CELLS["words-r8-100"].score(answer, problem) == {"right": right, "format": holds}
