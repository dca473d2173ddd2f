# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's judges: answers that they must take, and such that they must not."""

import re

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Problem, Split
from benchmarks.accuracy.tasks import CELLS, code, memory
from benchmarks.accuracy.tasks.instructions import KINDS, Judged, instruction
from benchmarks.accuracy.tasks.text import is_fluent
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
    subject = memory.subjects(found[1]) if (found := re.search(r"\[(.*)\]", text)) else ()
    judged = memory.Judged(right, wrong, subject)
    told = memory.score(text.replace("[", "").replace("]", ""), Problem("", "", judged))
    assert (told["right"], told["named"]) == expected


def test_what_a_near_text_names_is_wrong() -> None:
    for problem in CELLS["near"].make(CHAT, "test", 20):
        both = f"{problem.judged.right[0]} or {problem.judged.wrong[0]}"
        assert CELLS["near"].score(both, problem) == {"right": False, "named": True}


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


GOOD = {
    "keywords:existence": "The first thing in the world is a {0} and then you need a {1} too.",
    "change_case:english_lowercase": "the soup is good and you can make it with some water.",
    "punctuation:no_comma": "The soup is good and you can make it with some water.",
    "detectable_format:title": "<<About soup>>\nThe soup is good and easy to make.",
    "startend:quotation": '"The soup is good and easy to make."',
    "length_constraints:number_words": "The soup is good and easy to make.",
    "language:response_language": "",
    "detectable_format:json_format": '{"answer": "The soup is good and easy to make."}',
    "keywords:frequency": "Every {0} is better with a second {0} in it.",
    "keywords:forbidden_words": "The soup is good, so make it with some water.",
    "change_case:english_capital": "THE SOUP IS GOOD AND YOU CAN MAKE IT WITH SOME WATER.",
    "detectable_content:postscript": "The soup is good.\n\nP.S. Do not forget the salt in it.",
    "startend:end_checker": "The soup is good. Is there anything else I can help with?",
    "detectable_format:number_bullet_lists": "* Boil some water\n* Add the salt\n* Eat the soup",
    "detectable_format:number_highlighted_sections": "*The soup* is good with *some salt* in it.",
}
IN_LANGUAGE = {
    "fr": "La soupe est très facile. Faites bouillir de l'eau, puis ajoutez le sel.",
    "de": "Schneide die Tomaten und koche sie lange mit viel Knoblauch und etwas Salz.",
    "es": "Necesitas tomates, sal y agua caliente para hacer una buena sopa.",
    "it": "Per fare una buona zuppa bisogna bollire l'acqua e aggiungere il sale.",
    "pt": "Você precisa de tomates, sal e água quente para fazer uma boa sopa.",
}


@pytest.mark.parametrize("split", SPLITS)
def test_instructions(split: Split) -> None:
    pytest.importorskip("langdetect")
    cell = CELLS["instructions"]
    for problem in cell.make(CHAT, split, 45):
        judged: Judged = problem.judged
        words = judged.arguments.get("keywords") or [judged.arguments.get("keyword")]
        good = IN_LANGUAGE.get(judged.arguments.get("language", "")) or GOOD[judged.kind]
        good = good.format(*words) if words[0] else good
        assert cell.score(good, problem)["right"], (judged, good)
        told, _ = instruction(judged.kind, judged.arguments)
        for bad in ("", told, f"{told} {told}", "florb quazzle grintle of snorp"):
            assert not cell.score(bad, problem)["right"], (judged, bad)
    assert not set(KINDS["dev"]) & set(KINDS["test"])


FLUENT = [
    ("en", "To make soup, boil the tomatoes and add some salt and a little cream."),
    ("en", "Paris."),
    ("en", "Arr, boil 'em, matey! Ye need a pot o' water and some salt."),
    ("en", '{"topic": "tomato soup", "answer": "Boil the tomatoes."}'),
    ("fr", "Bien sûr !"),
    ("de", "Schneide die Tomaten und koche sie mit Knoblauch, bis sie weich sind."),
]
GIBBERISH = [
    ("en", ""),
    ("en", "1, 2, 3, 4, 5 and 6"),
    ("en", "the soup is good " * 6),
    ("en", "Florb quazzle the grintle of snorp and beedle with trimbly wozzes."),
    ("en", "アニンゴラストラジアルコロッラバスでは、ドラハスト"),
    ("en", "Coupez les tomates et faites-les cuire avec de l'ail."),
    ("fr", "Le tomatour de la soupille est florbant avec des grintelles et quazlons."),
    ("fr", "la soupe la soupe " * 5),
]


def test_fluency() -> None:
    for fluent, answers in ((True, FLUENT), (False, GIBBERISH)):
        for language, answer in answers:
            assert is_fluent(answer, ("en", language)) is fluent, answer


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
    found = code.score(answer, Problem("", "", ADD))
    assert found == {"right": right, "parses": parses}


def test_a_head_without_its_docstring() -> None:
    assert code.bare(HEAD) == HEAD[: HEAD.index('"""')].rstrip() + "\n"
    two = HEAD + "    return a + b\n\n\ndef more(a):\n    '''More.'''\n"
    assert code.bare(two) == two[: two.index("'''")].rstrip() + "\n"
    assert code.bare("def f():\n") == "def f():\n"


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
    found = CELLS["words-r8-100"].score(answer, problem)
    assert found == {"right": right, "format": holds}
