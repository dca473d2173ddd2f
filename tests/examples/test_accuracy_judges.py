# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's judges: answers that they must take, and such that they must not."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Problem, Split
from benchmarks.accuracy.tasks import CELLS, documents, memory, rules
from benchmarks.accuracy.tasks.adapters import BENCHMARKS
from benchmarks.accuracy.tasks.instructions import Question, is_right, questions
from benchmarks.accuracy.tasks.rules import Judged, Request, Rule, follows
from benchmarks.accuracy.tasks.text import (
    distinct,
    is_fluent,
    sentences,
    without_asides,
    without_echo,
)
from examples import tasks

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "nowhere", chat=True)
SPLITS: tuple[Split, ...] = ("dev", "test")
REQUEST = Request("How do I make tomato soup?", "tomato soup", ("delicious",))


def rule(kind: str, wanted: Any = None, instruction: str = "Obey.") -> Rule:
    return Rule(kind, wanted, instruction, "Obey at once.")


def kept(answer: str, demand: Rule, earlier: tuple[str, ...] = ()) -> bool:
    return follows(answer, Judged(demand, REQUEST.text, earlier))


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
        (PRICE, "14.50 dollars\n\nQuestion: $65.55", True, True),
        (PRICE, "$4.50, or $14.50 on Sundays", False, True),
        (PRICE, "$4.50\n$14.50", False, True),
        (PRICE, "It has no roof. It costs $14.50.", True, True),
        (PRICE, "Children pay $4.50. It costs $14.50.", False, True),
        (PRICE, "$114.50", False, False),
        (PRICE, "$14.505", False, False),
        (PRICE, "", False, False),
        (DAY, "21 March.", True, True),
        (DAY, "on the 21st of March", True, True),
        (DAY, "March 21", True, True),
        (DAY, "1 March", False, False),
        (DAY, "21", False, False),
        (PERSON, "anna howells", True, True),
        (PERSON, "Howells", True, True),
        (PERSON, "Anna", False, False),
        (PERSON, "Howells and Potts", False, True),
        (PERSON, "Ashley Howells", True, True),
    ],
)
def test_answers_about_a_text(problem: Problem, answer: str, right: bool, mentioned: bool) -> None:
    for name in ("page", "documents", "stories"):
        assert CELLS[name].score(answer, problem) == {"right": right, "mentioned": mentioned}


@pytest.mark.parametrize(
    ("answer", "right", "invented", "other"),
    [
        ("unknown", True, False, False),
        (" Unknown.", True, False, False),
        ("The text does not say it.", True, False, False),
        ("The text does not provide the price", True, False, False),
        ("The text does not say it, but he has a llama", False, False, True),
        ("It doesn't say.", True, False, False),
        ("It isn't mentioned.\nA parrot", True, False, False),
        ("Not stated; the other one has a parrot.", False, False, True),
        ("A parrot", False, True, True),
        ("A tiger. It is unknown why.", False, True, False),
        ("", False, False, False),
        ('If the text does not say it, the answer is "unknown".', False, False, False),
        ("I do not know, 50.", False, True, False),
        ("There is no information, but I guess 50.", False, True, False),
        ("The unknown artist Smith.", False, True, False),
        ("It cannot be opened before 9.", False, True, False),
        ("It cannot be opened.", False, True, False),
        ("It cannot be determined.", True, False, False),
        ("It isn't clear.", True, False, False),
        ("None.", False, False, False),
        # Words of the question.
        ("It is unknown what lives in Marlow House 7.", True, False, False),
        ('The Text says "Unknown".', True, False, False),
        ("It does not say what lives in the house of Potts.", True, False, False),
    ],
)
def test_answers_that_no_text_has(answer: str, right: bool, invented: bool, other: bool) -> None:
    asked = f"Question: What lives in Marlow House 7? {documents.UNKNOWN}"
    text = "Text: Marlow House 7 belongs to Mr Potts, who has 50 friends."
    problem = Problem(f"{text} {asked}", asked, documents.Judged((), ("parrot", "llama")))
    assert CELLS["not-there"].score(answer, problem) == {
        "right": right, "invented": invented, "other's": other,
    }  # fmt: skip


# Summaries

SOURCE = (
    "Aspirin for gout. In the GOUT-2 trial 1,240 women from Norway were given aspirin or nothing "
    "for three weeks. Pain fell by 12.5% with aspirin (TiO2 tablets, n = 620)."
)


@pytest.mark.parametrize(
    ("answer", "right", "consistent", "copied"),
    [
        ("Women with gout had 12.5% less pain after 3 weeks of aspirin.", True, True, False),
        ("In Norway, GOUT-2 found less pain with aspirin for 1240 women.", True, True, False),
        ("Two GOUTs of women from Norway: less pain in weeks of aspirin.", True, True, False),
        ("Pain of women fell by 12.4% after weeks of aspirin tablets.", False, False, False),
        ("Pain of 124 women from Norway fell after weeks of aspirin.", False, False, False),
        ("Women from Sweden had less pain after three weeks of aspirin.", False, False, False),
        ("NSAID tablets helped women of Norway against pain in three weeks.", False, False, False),
        ("Aspirin helped women in the TiO3 trial against pain for weeks.", False, False, False),
        ("Women in Norway had pain.", False, True, False),
        ("Physicians discuss possible results of various important subjects.", False, True, False),
        ("Women with pain, women with pain, women with pain, women with pain.", False, True, False),
        ("Women from Norway were given aspirin or nothing for three weeks.", False, True, True),
        ("Some women had less pain after some weeks of aspirin tablets.", False, True, False),
        # Cut off: its last word is not judged.
        (
            "In the trial women had 12.5% less pain after weeks on aspirin from Nor",
            True,
            True,
            False,
        ),
        ("", False, False, False),
    ],
)
def test_summaries(answer: str, right: bool, consistent: bool, copied: bool) -> None:
    assert CELLS["summaries"].score(answer, Problem("", "", SOURCE)) == {
        "right": right, "consistent": consistent, "copied": copied,
    }  # fmt: skip


def test_where_there_is_nothing_to_name_nothing_need_be_named() -> None:
    source = "Aspirin helps women. Pain falls after some weeks, and so does fever."
    answer = "For women, pain and fever are gone after weeks of aspirin."
    assert CELLS["summaries"].score(answer, Problem("", "", source))["right"]


# Instructions


class TestEcho:
    @pytest.mark.parametrize(
        "sentence",
        [
            "I will talk like a pirate.",
            '"Talk like a pirate, matey."',
            "Sure: talk like a pirate!",
            "Like a pirate, talk.",
        ],
    )
    def test_a_repetition_goes_and_the_rest_stays(self, sentence: str) -> None:
        answer = f"{sentence} Boil the tomatoes, then add salt."
        assert without_echo(answer, ("Talk like a pirate.",)) == "Boil the tomatoes, then add salt."

    def test_nothing_said_is_no_echo(self) -> None:
        assert without_echo("Ahoy! Add salt.", ("", "Talk like a pirate.")) == "Ahoy! Add salt."

    @pytest.mark.parametrize("name", ["language", "forbidden", "required", "length", "json"])
    @pytest.mark.parametrize("split", SPLITS)
    def test_an_echo_alone_follows_no_rule(self, name: str, split: Split) -> None:
        for problem in CELLS[name].make(CHAT, split, 100):
            demand = problem.judged.rule
            for echo in (demand.instruction, demand.better, *problem.judged.earlier):
                assert not CELLS[name].score(echo, problem)["right"], (demand, echo)

    def test_of_the_task_only(self) -> None:
        answer = "Sure, I will use it in my answer. The answer is salt. I can't help but eat."
        assert without_asides(answer) == "The answer is salt. I can't help but eat."

    def test_sentences(self) -> None:
        assert sentences('He said "no." Then: yes!\n\n- One\n2.5 kg.') == [
            'He said "no.', "Then: yes!", "- One", "2.5 kg.",
        ]  # fmt: skip


GOOD_AND_BAD: list[tuple[str, Rule, list[str], list[str]]] = [
    (
        "french",
        rule("language", "fr"),
        [
            "Coupez les tomates et faites-les cuire avec de l'ail.",
            "Pour la soupe, il vous faut des tomates, du sel et de l'eau chaude.",
            "Voici une recette simple : un oignon, des tomates et du bouillon.",
            "La soupe est très facile. Faites bouillir l'eau, puis ajoutez le sel.",
            "Paris est connue pour la tour Eiffel et pour ses musées.",
        ],
        [
            "Cut the tomatoes and cook them with garlic.",
            "Bonjour! To make tomato soup, you need tomatoes, salt and hot water.",
            "Corta los tomates y cocínalos con ajo y aceite.",
            "Coupez les tomates.",
            "Voici une recette très simple et facile pour vous: cut tomatoes and boil them well.",
            "Je réponds toujours en français à l'utilisateur.",
        ],
    ),
    (
        "german",
        rule("language", "de"),
        [
            "Schneide die Tomaten und koche sie mit Knoblauch.",
            "Du brauchst Tomaten, Salz und heißes Wasser.",
            "Berlin ist bekannt für das Brandenburger Tor und viele Museen.",
            "Pinguine fressen Fische und kleine Krebse, die sie im Meer fangen.",
            "Das ist eine gute Frage! Zuerst kaufst du eine Gitarre.",
        ],
        [
            "Snijd de tomaten en kook ze met knoflook in een pan.",
            "Ich antworte dir gern und immer nur auf Deutsch.",
            "Guten Tag! I am happy to help you with your tomato soup today.",
            "Ja, natürlich.",
            "You need tomatoes, salt and hot water.",
            "Tomaten sind gut und gesund. The soup needs about half an hour of cooking time.",
        ],
    ),
    (
        "spanish and portuguese are told apart",
        rule("language", "pt"),
        [
            "Você precisa de tomates, sal e água quente.",
            "Lisboa é conhecida pelos bondes e pelas colinas.",
            "Corte os tomates e cozinhe com alho.",
            "Os pinguins comem peixes e vivem no mar frio.",
            "Para começar, compre um bom par de tênis.",
        ],
        [
            "Necesitas tomates, sal y agua caliente.",
            "Lisboa es conocida por los tranvías y las colinas.",
            "Corta los tomates y cocínalos con ajo.",
            "Los pingüinos comen peces y viven en el mar frío.",
            "Per cominciare, compra un buon paio di scarpe.",
        ],
    ),
    (
        "forbidden word",
        rule("forbidden", "the", 'Do not use the word "the".'),
        [
            "Boil some ripe tomatoes with garlic, onions and a little salt.",
            "There is a simple way: cook tomatoes, then add salt and cream.",
            "Cut six tomatoes, cook them for twenty minutes and add basil leaves.",
            "Other people cook tomatoes slowly; they add garlic, basil and pepper.",
            "Start with onions. Add tomatoes. Then boil everything with water and salt.",
        ],
        [
            "Boil the ripe tomatoes with garlic, onions and a little salt.",
            "THE soup needs ripe tomatoes with garlic, onions and some salt.",
            "Boil tomatoes.",
            "Okay, I will not use the word, so boil tomatoes with onions and salt.",
            "Sure, I will not use that word in my answer, whatever you may ask of me.",
            "I'm sorry, but I know nothing of soup or of anything that people cook.",
            "As an AI, I do not have personal opinions or feelings about soup or food.",
            "I cannot help you with soup today, since I am only a small program.",
            "",
        ],
    ),
    (
        "required",
        rule("required", "river", 'Use the word "river" in your answer.'),
        [
            "Take water from a river and cook it.",
            "Purple tomatoes make a soup that flows like a river.",
            "Boil it. Serve it by the river at night.",
            "There are soups as long as rivers.",
            "River Elara was full of tomato soup.",
        ],
        [
            'Use the word "river" in your answer.',
            "Boil the tomatoes with purple onions.",
            "Tomatoes, river, purple.",
            'The word "river" is an excellent example of a word, and soup is another.',
            'Of course! I use the word "river" in your answer. Boil the tomatoes.',
            "My answer contains the word river today.",
            "Sure, I will use river in my reply.",
            "I cannot use the word river here, sorry.",
            "Sure! Here is a sentence with a river in it.",
            "The answer mentions a river, as it must.",
        ],
    ),
    (
        "one sentence",
        rule("sentences", 1, "Answer in one single sentence."),
        [
            "Boil the tomatoes and add salt.",
            "You need tomatoes, salt and 1.5 litres of water!",
            "To make tomato soup, boil tomatoes.",
            '"Boil the tomatoes, then add salt."',
            "Would you like to boil some tomatoes?",
        ],
        [
            "Boil the tomatoes. Add salt.",
            "Boil the tomatoes and then, after some time, add",
            "Yes.",
            "You need:\n- tomatoes\n- salt.",
            "Answer in one single sentence.",
            "This is my one single sentence.",
            "I'm sorry, but I cannot help you.",
        ],
    ),
    (
        "ten words",
        rule("words", 10, "Use at most 10 words."),
        [
            "Boil tomatoes and add salt.",
            "Boil ripe tomatoes with garlic, salt, pepper and some cream.",
            "You need tomatoes, salt, water.",
            "Tomatoes. Salt. Water.",
            "Chop, boil, blend!",
        ],
        [
            "Boil ripe tomatoes with garlic, salt, pepper and some fresh cream.",
            "Use at most 10 words.",
            "Boil ripe tomatoes with garlic and",
            "",
            "I will keep my answer short.",
            "I will be very brief.",
            "I use ten words only.",
            "To make tomato soup you need tomatoes and salt and a lot of time",
        ],
    ),
    (
        "json",
        rule("json", ("topic", "answer"), "Give a short answer; use a few words for each value."),
        [
            '{"topic": "soup", "answer": "Boil tomatoes."}',
            '```json\n{"topic": "soup", "answer": "Boil tomatoes."}\n```',
            '\n{\n "answer": "Boil", "topic": "tomato soup"\n}\n',
            '{"topic": "soup", "answer": 3}',
            '```\n{"topic": "soup", "answer": "Boil"}\n```',
        ],
        [
            '{"topic": "soup", "answer": "Boil tomatoes.',
            '{"topic": "topic", "answer": "Boil tomatoes."}',
            '{"topic": "...", "answer": "..."}',
            'Here it is: {"topic": "soup", "answer": "Boil tomatoes."}',
            '{"topic": "soup", "answer": "Boil", "more": "Salt"}',
            '{"topic": "soup", "answer": "a few words"}',
            '{"topic": "soup", "answer": "A short answer."}',
            '{"topic": "obey at once", "answer": "Boil tomatoes."}',
        ],
    ),
]


@pytest.mark.parametrize(
    ("demand", "good", "bad"),
    [case[1:] for case in GOOD_AND_BAD],
    ids=[case[0] for case in GOOD_AND_BAD],
)
def test_good_and_bad_answers(demand: Rule, good: list[str], bad: list[str]) -> None:
    assert [answer for answer in good if not kept(answer, demand)] == []
    assert [answer for answer in bad if kept(answer, demand)] == []


def test_every_rule_that_is_drawn_has_a_judge() -> None:
    for draw in (
        rules.draw_language, rules.draw_forbidden, rules.draw_required, rules.draw_length,
        rules.draw_json,
    ):  # fmt: skip
        for seed in range(20):
            for split in SPLITS:
                demand = draw(Random(seed), split, REQUEST)
                assert not kept("", demand)
                assert "{" not in demand.instruction


def test_the_example_keeps_to_its_rule_and_is_no_answer() -> None:
    for split in SPLITS:
        for problem in CELLS["json"].make(CHAT, split, 50):
            example = problem.prompt[2]["content"]  # type: ignore[index]
            assert kept(example, problem.judged.rule)  # type: ignore[arg-type]
            assert not follows(f" {example}\n", problem.judged)


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

    def test_no_question_answers_itself(self) -> None:
        for split in SPLITS:
            assert [q for q in questions(split) if is_right(q.text, q)] == []


class TestFluency:
    def test_distinct(self) -> None:
        assert distinct("abcd", 3) == 1.0
        assert distinct("ababab", 2) == 2 / 5
        assert distinct("ab", 3) == 1.0

    @pytest.mark.parametrize(
        ("language", "answer"),
        [
            ("en", "To make soup, boil the tomatoes and add some salt and a little cream."),
            ("en", "Paris."),
            ("en", "Yes, owls are clever."),
            ("en", "Arr, boil 'em, matey! Ye need a pot o' water and some salt."),
            ("en", '{"topic": "tomato soup", "answer": "Boil the tomatoes."}'),
            ("fr", "Coupez les tomates et faites-les cuire avec de l'ail et de l'huile d'olive."),
            ("fr", "Bien sûr !"),
            ("de", "Schneide die Tomaten und koche sie mit Knoblauch, bis sie weich sind."),
            ("es", "Necesitas tomates, sal y agua caliente."),
            ("it", "Taglia i pomodori e cuocili con l'aglio."),
            ("pt", "Lisboa é conhecida pelos bondes e pelas colinas."),
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
            ("en", "مائة الأرجاب الأرجابية"),
            ("en", "Coupez les tomates et faites-les cuire avec de l'ail."),
            ("fr", "Le tomatour de la soupille est florbant avec des grintelles et quazlons."),
            ("de", "Die Tomatür der Suppling ist florbig mit den Grintelen und Quazlonen."),
            ("es", "La tomatura de la sopilla es florbante con las grintelas y los quazlones."),
            ("it", "La tomatura della zuppilla è florbante con le grintelle e i quazloni."),
            ("pt", "A tomatura da sopilha é florbante com as grintelhas e os quazlões."),
            ("fr", "la soupe la soupe " * 5),
        ],
    )
    def test_gibberish_and_loops(self, language: str, answer: str) -> None:
        assert not is_fluent(answer, ("en", language))

    def test_right_is_both(self) -> None:
        cell = CELLS["language"]
        problem = next(p for p in cell.make(CHAT, "dev", 50) if p.judged.rule.wanted == "fr")
        good = "Coupez les tomates et faites-les cuire avec de l'ail."
        for text, follows_it, is_text in (
            (good, True, True), (" ".join([good] * 4), True, False),
            ("Cut the tomatoes and cook them with garlic.", False, True),
        ):  # fmt: skip
            assert list(cell.score(text, problem).items()) == [
                ("right", follows_it and is_text), ("follows", follows_it), ("fluent", is_text),
            ]  # fmt: skip

    @pytest.mark.parametrize(
        ("answer", "fluent"),
        [
            ("12 + 8 = 20", True), ("It is 20.", True),
            ("1 + 1 + 1 + 1 + 1 + 1 + 1 + 1", False), ("", False),
        ],
    )  # fmt: skip
    def test_an_equation_answers_a_sum(self, answer: str, fluent: bool) -> None:
        problems = CELLS["plain-questions"].make(CHAT, "dev", 50)
        a_sum = next(p for p in problems if p.judged.is_sum)
        assert CELLS["plain-questions"].score(answer, a_sum)["fluent"] == fluent
        other = next(p for p in problems if not p.judged.is_sum)
        assert not CELLS["plain-questions"].score("12 + 8 = 20", other)["fluent"]


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


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "good", "bad"),
    [
        # What is not worked out is not right, and a wrong step to the right end is.
        ("sums", "Work out 10 + 20 - 5", "10 + 20 = 30; 30 - 5 = 25",
         ["10 + 20 = 31; 31 - 6 = 25"], ["10 + 20 = 30; 30 - 5 = 24", "25"]),
        ("phonemes", "Pronounce: read", "R EH D", ["R IY D"], ["R AE D"]),
        ("verdicts", "Does it?", "Yes", ["Yes, it does.", "Yes."], ["yes", "No. Yes"]),
    ],
)  # fmt: skip
def test_answers_of_tasks(
    name: str, prompt: str, answer: str, good: list[str], bad: list[str]
) -> None:
    problem = tasks.Problem(prompt, answer)
    assert all(BENCHMARKS[name].task.score(text, problem) for text in good)
    assert not any(BENCHMARKS[name].task.score(text, problem) for text in bad)


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
