# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's judges: answers that they must take, and such that they must not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Problem, Split
from benchmarks.accuracy.tasks import CELLS, documents, memory
from benchmarks.accuracy.tasks.adapters import BENCHMARKS
from benchmarks.accuracy.tasks.instructions import (
    Judged,
    Question,
    is_in_language,
    is_json,
    is_right,
)
from benchmarks.accuracy.tasks.text import is_fluent
from examples import tasks

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "nowhere", chat=True)
SPLITS: tuple[Split, ...] = ("dev", "test")


# A text against memory


@pytest.mark.parametrize(
    ("text", "right", "wrong", "expected"),
    [
        ("Lima.", ("Lima",), ("Rome",), (True, True)),
        ("Lima, not Rome", ("Lima",), ("Rome",), (False, True)),
        ("Rome", ("Lima",), ("Rome",), (False, False)),
        # The wrong one's name within the right one's.
        ("Guatemala City", ("Guatemala City",), ("Guatemala",), (True, True)),
        ("guatemala city", ("Guatemala City",), ("Guatemala",), (True, True)),
    ],
)
def test_an_answer_is_right_if_it_names_no_wrong_one(
    text: str, right: tuple[str, ...], wrong: tuple[str, ...], expected: tuple[bool, bool]
) -> None:
    found = memory.score(text, Problem("", "", memory.Judged(right, wrong)))
    assert (found["right"], found["named"]) == expected


# Documents


def problem_with(answer: tuple[str, ...], others: tuple[str, ...]) -> Problem:
    return Problem("", "", documents.Judged(answer, others))


PRICE = problem_with(("14.50",), ("4.50", "65.55"))
DAY = problem_with(documents.forms("day", "21 March"), documents.forms("day", "1 March"))
PERSON = problem_with(documents.forms("person", "Anna Howells"), ("Ash", "Potts"))


@pytest.mark.parametrize(
    ("problem", "answer", "right", "mentioned"),
    [
        (PRICE, " $14.50", True, True),
        (PRICE, "It costs $14.50. Children pay $4.50.", True, True),
        (PRICE, "$4.50, or $14.50 on Sundays", False, True),
        (PRICE, "$4.50\n$14.50", False, True),
        (PRICE, "Children pay $4.50. It costs $14.50.", False, True),
        (PRICE, "$114.50", False, False),
        (PRICE, "", False, False),
        (DAY, "21 March.", True, True),
        (DAY, "on the 21st of March", True, True),
        (DAY, "1 March", False, False),
        (PERSON, "anna howells", True, True),
        (PERSON, "Anna", False, False),
        (PERSON, "Howells and Potts", False, True),
        (PERSON, "Ashley Howells", True, True),
    ],
)
def test_answers_about_a_text(problem: Problem, answer: str, right: bool, mentioned: bool) -> None:
    for name in ("page", "documents"):
        assert CELLS[name].score(answer, problem) == {"right": right, "mentioned": mentioned}


# Instructions


class TestEcho:
    @pytest.mark.parametrize("name", ["language", "json"])
    @pytest.mark.parametrize("split", SPLITS)
    def test_an_echo_alone_follows_no_instruction(self, name: str, split: Split) -> None:
        for problem in CELLS[name].make(CHAT, split, 100):
            judged: Judged = problem.judged
            for echo in ("", judged.instruction, judged.better, *judged.earlier):
                assert not CELLS[name].score(echo, problem)["right"], (judged, echo)
            # Of an example only its being there is in the way.
            assert all(is_json(each, replace(judged, earlier=())) for each in judged.earlier)


@pytest.mark.parametrize(
    ("code", "good", "bad"),
    [
        (
            "fr",
            [
                "Coupez les tomates et faites-les cuire avec de l'ail.",
                "Voici une recette simple : un oignon, des tomates et du bouillon.",
                "La soupe est très facile. Faites bouillir l'eau, puis ajoutez le sel.",
                "Paris est connue pour la tour Eiffel et pour ses musées.",
            ],
            [
                "Bonjour! To make tomato soup, you need tomatoes, salt and hot water.",
                "Corta los tomates y cocínalos con ajo y aceite.",
                "Coupez les tomates.",
                "Voici une recette très simple et facile pour vous: cut tomatoes and boil them.",
                "Je réponds toujours en français à l'utilisateur.",
            ],
        ),
        (
            "de",
            [
                "Schneide die Tomaten und koche sie mit Knoblauch.",
                "Berlin ist bekannt für das Brandenburger Tor und viele Museen.",
                "Das ist eine gute Frage! Zuerst kaufst du eine Gitarre.",
            ],
            [
                "Snijd de tomaten en kook ze met knoflook in een pan.",
                "Ich antworte dir gern und immer nur auf Deutsch.",
                "Ja, natürlich.",
                "You need tomatoes, salt and hot water.",
                "Tomaten sind gut und gesund. The soup needs about half an hour of cooking time.",
            ],
        ),
        (
            "pt",
            [
                "Você precisa de tomates, sal e água quente.",
                "Lisboa é conhecida pelos bondes e pelas colinas.",
                "Os pinguins comem peixes e vivem no mar frio.",
            ],
            [
                "Necesitas tomates, sal y agua caliente.",
                "Los pingüinos comen peces y viven en el mar frío.",
                "Per cominciare, compra un buon paio di scarpe.",
            ],
        ),
    ],
)
def test_languages(code: str, good: list[str], bad: list[str]) -> None:
    judged = Judged(code, "Obey.", "Obey at once.")
    assert [answer for answer in good if not is_in_language(answer, judged)] == []
    assert [answer for answer in bad if is_in_language(answer, judged)] == []


def test_json() -> None:
    told = "Give a short answer; use a few words for each value."
    judged = Judged(("topic", "answer"), told, "Obey at once.")
    right = '{"topic": "soup", "answer": "Boil tomatoes."}'
    good = [
        right, f"```json\n{right}\n```", f"```\n{right}\n```", '{"topic": "soup", "answer": 3}',
        '\n{\n "answer": "Boil", "topic": "tomato soup"\n}\n',
    ]  # fmt: skip
    bad = [
        right[:-2], f"Here it is: {right}", right.replace("soup", "topic"), "[]",
        '{"topic": "...", "answer": "..."}', '{"topic": "soup", "answer": "Boil", "more": "Salt"}',
        right.replace("Boil tomatoes", "A short answer"), right.replace("soup", "obey at once"),
    ]  # fmt: skip
    assert [answer for answer in good if not is_json(answer, judged)] == []
    assert [answer for answer in bad if is_json(answer, judged)] == []
    assert not is_json(right, replace(judged, earlier=(f" {right}",)))


class TestQuestions:
    @pytest.mark.parametrize(
        ("text", "answers", "is_sum", "good", "bad"),
        [
            (
                "What is the capital of Peru?", ("Lima",), False,
                ["It is Lima.", "LIMA"], ["Limassol", "LIMASSOL", ""],
            ),
            ("What month follows April?", ("May",), False, ["May."], ["It may be June."]),
            ("The opposite of big?", ("small", "little"), False, ["Small", "little!"], ["tall"]),
            ("The symbol of helium?", ("He",), False, ["It is He."], ["he said H", "HE"]),
            (
                "What is 3 plus 4?", ("7",), True,
                ["7", "3 + 4 = 7", "The sum of 3 and 4 is 7."],
                ["3 + 4", "8, or 7", "73", ""],
            ),
            ("What is 3 times 3?", ("9",), True, ["3 times 3 is 9."], ["3 * 3 = 6"]),
            (
                "What is 32 minus 12?", ("20",), True,
                ["20.", "32-12=20", "32 -12 = 20", "It is 20.0"],
                ["-20", "20.5", "It is -20.", "2.20"],
            ),
        ],
    )  # fmt: skip
    def test_answers(
        self, text: str, answers: tuple[str, ...], is_sum: bool, good: list[str], bad: list[str]
    ) -> None:
        question = Question(text, answers, is_sum)
        assert all(is_right(answer, question) for answer in good)
        assert not any(is_right(answer, question) for answer in bad)


class TestFluency:
    @pytest.mark.parametrize(
        ("language", "answer"),
        [
            ("en", "To make soup, boil the tomatoes and add some salt and a little cream."),
            ("en", "Paris."),
            ("en", "Arr, boil 'em, matey! Ye need a pot o' water and some salt."),
            ("en", '{"topic": "tomato soup", "answer": "Boil the tomatoes."}'),
            ("fr", "Bien sûr !"),
            ("de", "Schneide die Tomaten und koche sie mit Knoblauch, bis sie weich sind."),
            ("es", "Necesitas tomates, sal y agua caliente."),
        ],
    )
    def test_good_answers(self, language: str, answer: str) -> None:
        assert is_fluent(answer, ("en", language))

    @pytest.mark.parametrize(
        ("language", "answer"),
        [
            ("en", ""),
            ("en", "1, 2, 3, 4, 5 and 6"),
            ("en", "the soup is good " * 6),
            ("en", "Florb quazzle the grintle of snorp and beedle with trimbly wozzes."),
            ("en", "アニンゴラストラジアルコロッラバスでは、ドラハスト"),
            ("en", "Coupez les tomates et faites-les cuire avec de l'ail."),
            ("fr", "Le tomatour de la soupille est florbant avec des grintelles et quazlons."),
            ("es", "La tomatura de la sopilla es florbante con las grintelas y los quazlones."),
            ("fr", "la soupe la soupe " * 5),
        ],
    )
    def test_gibberish_and_loops(self, language: str, answer: str) -> None:
        assert not is_fluent(answer, ("en", language))


# Tasks of adapters


@pytest.mark.parametrize("name", BENCHMARKS)
def test_tasks(name: str) -> None:
    task = BENCHMARKS[name].task
    first, *others = task.prompts("dev", 40)
    other = next(problem for problem in others if problem.answer != first.answer)
    assert task.score(first.answer, first)
    assert task.score(first.answer + "\n", first)
    for wrong in (other.answer, "", "I cannot do that."):
        assert not task.score(wrong, first)


ORDER = '{"name": "Mei", "city": "Oslo", "amount": 2, "colour": "red", "item": "mug", "date": "d"}'


@pytest.mark.parametrize(
    ("answer", "right", "holds"),
    [
        (ORDER, True, True),
        (ORDER.replace("Mei", "Wei"), False, True),
        (ORDER.replace("item", "thing"), False, False),
        (f"Here it is: {ORDER}", False, False),
        ("[]", False, False),
    ],
)
def test_formats(answer: str, right: bool, holds: bool) -> None:
    problem = Problem("", "", tasks.Problem("", ORDER))
    assert CELLS["orders-r16-100"].score(answer, problem) == {"right": right, "format": holds}
