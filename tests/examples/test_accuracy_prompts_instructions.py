# SPDX-License-Identifier: Apache-2.0
"""Prompts with an instruction: their splits, what the amateur lacks, and who has followed."""

import json
import math
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.accuracy.prompts import fluency, rules, store
from benchmarks.accuracy.prompts.engine import Answers
from benchmarks.accuracy.prompts.fluency import log_likelihoods, summary
from benchmarks.accuracy.prompts.instructions import CELLS, NEUTRAL, prompt
from benchmarks.accuracy.prompts.problem import Cell, Problem, Split, split_of
from benchmarks.accuracy.prompts.questions import Question, is_right, questions
from benchmarks.accuracy.prompts.requests import Request, requests
from benchmarks.accuracy.prompts.rules import Judged, Rule, follows
from benchmarks.accuracy.prompts.text import (
    distinct,
    is_fluent,
    sentences,
    without_asides,
    without_echo,
    words,
)
from benchmarks.accuracy.prompts.voices import PERSONAS, SMALL_TALK, TONE_WORDS, TONES

pytestmark = pytest.mark.unit

SPLITS: tuple[Split, ...] = ("dev", "test")
GAIN = [cell for cell in CELLS if cell.nature == "gain"]
CONTROL = next(cell for cell in CELLS if cell.nature == "control")
REQUEST = Request("How do I make tomato soup?", "tomato soup", ("delicious",))


def last(problem: Problem) -> str:
    """The user's last message."""
    return cast(str, cast(Any, problem.prompt)[-1]["content"])


def rule(kind: str, wanted: Any = None, instruction: str = "Obey.") -> Rule:
    return Rule(kind, wanted, instruction, "Obey at once.")


def kept(answer: str, demand: Rule, earlier: tuple[str, ...] = ()) -> bool:
    return follows(answer, Judged(demand, REQUEST.text, earlier))


class TestProblems:
    def test_requests_are_many_and_in_one_split(self) -> None:
        dev, test = (requests(split) for split in SPLITS)
        texts = {request.text for request in dev + test}
        assert len(texts) == len(dev) + len(test) >= 800
        assert not {request.topic for request in dev} & {request.topic for request in test}
        assert all(split_of(request.topic) == "test" for request in test)

    def test_likely_words_are_not_in_the_request(self) -> None:
        for split in SPLITS:
            for request in (
                *requests(split),
                *requests(split, "writing"),
                *requests(split, "opinion"),
            ):
                assert len(request.likely) >= 3
                assert not set(request.likely) & set(words(request.text))

    @pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
    def test_cells_have_enough_and_always_the_same(self, cell: Cell) -> None:
        for model in cell.models:
            for split, n in (("dev", 200), ("test", 500)):
                found = cell.make(model, split, n)  # type: ignore[arg-type]
                enough = n if cell.nature == "gain" else {"dev": 127, "test": 292}[split]
                assert len({repr(problem.prompt) for problem in found}) == len(found) == enough
                assert cell.make(model, split, 7) == found[:7]  # type: ignore[arg-type]
                assert repr(cell.make(model, split, 7)) == repr(found[:7])  # type: ignore[arg-type]

    @pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
    def test_no_request_is_in_both_splits(self, cell: Cell) -> None:
        dev, test = (
            {last(problem) for problem in cell.make("smollm2", split, 200)} for split in SPLITS
        )
        assert not dev & test

    def test_more_than_there_are_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"the split 'dev' has \d+ different"):
            GAIN[0].make("smollm2", "dev", 999)

    @pytest.mark.parametrize("split", SPLITS)
    def test_a_plain_question_is_asked_once(self, split: Split) -> None:
        found = [problem.judged for problem in CONTROL.make("smollm2", split, 999)]
        assert sorted(found, key=repr) == sorted(
            questions(split)[: len(questions(split)) // 2], key=repr
        )

    @pytest.mark.parametrize(
        "name", ["language", "persona", "tone", "forbidden", "required", "length", "json"]
    )
    def test_wordings_of_dev_are_not_those_of_test(self, name: str) -> None:
        cell = next(cell for cell in CELLS if cell.name == name)
        dev, test = (
            {problem.judged.rule.instruction for problem in cell.make("smollm2", split, 200)}
            for split in SPLITS
        )
        assert not dev & test

    @pytest.mark.parametrize("cell", GAIN, ids=lambda cell: cell.name)
    def test_the_amateur_lacks_the_instruction_alone(self, cell: Cell) -> None:
        for split in SPLITS:
            for problem in cell.make("smollm2", split, 50):
                instruction = problem.judged.rule.instruction
                system, *rest = cast(Any, problem.prompt)
                assert system["content"] == f"{NEUTRAL} {instruction}"
                # Of an example, which is a part of the instruction, it has nothing either.
                seen = rest[-1:] if cell.name == "json" else rest
                assert problem.without == ({"role": "system", "content": NEUTRAL}, *seen)
                better, repeated = (
                    cast(Any, problem.plain[name]) for name in ("better", "repeated")
                )
                assert better[0]["content"] == f"{NEUTRAL} {problem.judged.rule.better}"
                assert better[1:] == problem.prompt[1:]
                assert repeated[:-1] == problem.prompt[:-1]
                assert repeated[-1]["content"] == f"{rest[-1]['content']} {instruction}"

    def test_documents(self) -> None:
        for cell in GAIN:
            if "gemma" in cell.models:
                for problem in cell.make("gemma", "dev", 20):
                    line = f"Instructions for the assistant: {problem.judged.rule.instruction}\n"
                    assert isinstance(problem.prompt, str)
                    assert problem.prompt.replace(line, "", 1) == problem.without
                    assert problem.prompt.endswith("\nAssistant:")
        assert prompt("gemma", "", "Why?", (("Hello!", "Hi!"),)).endswith(  # type: ignore[union-attr]
            "\n\nUser: Hello!\nAssistant: Hi!\nUser: Why?\nAssistant:"
        )

    def test_control_lacks_the_system_message(self) -> None:
        for problem in CONTROL.make("smollm2", "test", 50):
            system, user = cast(Any, problem.prompt)
            assert system["role"] == "system"
            assert problem.without == (user,)

    def test_the_example_keeps_to_its_rule_and_is_no_answer(self) -> None:
        cell = next(cell for cell in CELLS if cell.name == "json")
        for split in SPLITS:
            for problem in cell.make("smollm2", split, 50):
                example = cast(Any, problem.prompt)[2]["content"]
                assert kept(example, problem.judged.rule)
                assert not follows(example, problem.judged)
                assert not follows(f" {example}\n", problem.judged)

    def test_turns_are_two_or_three_with_and_without_the_rule_kept(self) -> None:
        turns = next(cell for cell in CELLS if cell.name == "turns")
        problems = turns.make("smollm2", "test", 150)
        assert {len(problem.prompt) for problem in problems} == {4, 6}
        in_manner = [p for p in problems if p.judged.earlier[0] in dict(SMALL_TALK.values())]
        assert 50 < len(in_manner) < 100
        assert all(
            p.judged.earlier == SMALL_TALK[p.judged.rule.name][: len(p.judged.earlier)]
            for p in in_manner
        )
        assert all(p.prompt[2]["content"] == p.judged.earlier[0] for p in problems)  # type: ignore[index]

    def test_every_kind_of_pair_occurs_in_several(self) -> None:
        several = next(cell for cell in CELLS if cell.name == "several")
        pairs = {
            tuple(part.kind for part in problem.judged.rule.wanted)
            for problem in several.make("smollm2", "test", 130)
        }
        assert pairs == {
            ("voice", "required"),
            *(
                (a, b)
                for a in ("language", "voice", "required", "forbidden")
                for b in ("sentences", "words")
            ),
        }  # fmt: skip


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

    def test_an_echo_alone_follows_no_rule(self) -> None:
        for cell in GAIN:
            for split in SPLITS:
                for problem in cell.make("smollm2", split, 200):
                    demand = problem.judged.rule
                    for echo in (demand.instruction, demand.better, *problem.judged.earlier):
                        assert not cell.score(echo, problem)["right"], (demand, echo)

    def test_earlier_turns_do_not_count_again(self) -> None:
        pirate = rule("voice", (2, PERSONAS["a pirate"]))
        assert kept("Ahoy there, matey! Boil it.", pirate)
        assert not kept("Ahoy there, matey! Boil it.", pirate, ("Ahoy there, matey!",))

    def test_words_of_the_instruction_and_of_the_request_are_no_mark(self) -> None:
        demand = rule("voice", (2, ("ahoy", "captain", "soup", "ship")), "Talk like a captain.")
        judged = Judged(demand, REQUEST.text)
        assert rules.marks("Ahoy, captain, your soup! Ship's biscuits.", judged) == ["ahoy", "ship"]

    def test_forms_of_a_word_are_one_and_excuses_are_none(self) -> None:
        said = ("sorry", "unfortunately", "spell", "spells", "thou", "art thou", "mystery")
        judged = Judged(rule("voice", (2, (*said, "mysteries"))), "")
        assert rules.marks("Sorry, unfortunately spells spell.", judged) == ["spell"]
        assert rules.marks("Art thou a mystery of mysteries?", judged) == ["thou", "mystery"]

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
        "pirate",
        rule("voice", (2, PERSONAS["a pirate"]), "Talk like a pirate."),
        [
            "Arr, chop the tomatoes, matey, and boil 'em!",
            "Ahoy! Ye need tomatoes and salt.",
            "Aye, me hearty, set sail for the kitchen.",
            "Avast, landlubber! Boil the water first.",
            "Gather yer crew and share the booty.",
        ],
        [
            "You need tomatoes, salt and hot water.",
            "Arr arr arr arr arr.",
            "As a pirate, I would boil the tomatoes.",
            "Talk like a pirate: ahoy, matey!",
            "Yesterday the crew-cut man made soup.",
        ],
    ),
    (
        "wizard",
        rule("voice", (2, PERSONAS["a wizard"]), "Talk like a wizard."),
        [
            "Behold, the potion is a soup!",
            "I cast a spell of magic on it.",
            "My wand stirs the cauldron.",
            "The answer is a potion of arcane herbs.",
        ],
        [
            "I am not a wizard and I never say spell or spells to people.",
            "It is magic, quite magical.",
        ],
    ),
    (
        "knight",
        rule("voice", (2, PERSONAS["a medieval knight"]), "Talk like a knight."),
        ["Hark, thou shalt boil it.", "By my sword, a noble soup!"],
        ["How art thou today?", "It is an honor and an honour."],
    ),
    (
        "sad",
        rule("voice", (TONE_WORDS, TONES["sad"]), "Be sad."),
        ["Alas, I miss my soup.", "I am lonely, and the soup is gone."],
        ["I'm sorry, but unfortunately I do not know.", "I'm sorry for your loss."],
    ),
    (
        "enthusiastic",
        rule("voice", (TONE_WORDS, TONES["enthusiastic"]), "Sound very enthusiastic."),
        [
            "Wow, what an amazing idea! Boil the tomatoes.",
            "I love soup! It is absolutely easy.",
            "Fantastic! This will be awesome.",
            "Yay! I'm so excited about it.",
            "Tomato soup is incredible, and making it is exciting! Go!",
        ],
        [
            "Boil the tomatoes and add salt.",
            "Tomato soup is a wonderful dish.",
            "Sure! Boil the tomatoes!",
            "I am enthusiastic about it. Boil them.",
            "Sound very enthusiastic, wow, amazing!",
        ],
    ),
    (
        "angry",
        rule("voice", (TONE_WORDS, TONES["angry"]), "Be as angry as you can."),
        [
            "Enough! Boil the tomatoes.",
            "What a stupid question, how annoying.",
            "I hate soup, and I am sick of tomatoes.",
            "How dare you! Soup is awful.",
            "It is ridiculous and unacceptable.",
        ],
        [
            "Boil the tomatoes and add salt.",
            "I am angry, very angry today.",
            "Soup is never terrible.",
            "Be as angry as you can: enough, you fool!",
            "",
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
    (
        "several",
        rule(
            "several",
            (rule("voice", (2, PERSONAS["a pirate"])), rule("words", 10)),
            "Talk like a pirate. Use at most 10 words.",
        ),
        [
            "Arr, boil the tomatoes, matey!",
            "Ahoy! Ye need tomatoes and salt.",
            "Aye, lad, tomatoes it be.",
            "Avast! Ye boil it.",
            "Boil 'em, matey, arr!",
        ],
        [
            "Boil the tomatoes and add salt.",
            "Arr, boil the ripe tomatoes, matey, with garlic, salt, pepper and cream!",
            "Talk like a pirate. Use at most 10 words.",
            "Talk like a pirate, arr, matey!",
            "Arr.",
        ],
    ),
]


class TestJudges:
    @pytest.mark.parametrize(
        ("demand", "good", "bad"),
        [case[1:] for case in GOOD_AND_BAD],
        ids=[case[0] for case in GOOD_AND_BAD],
    )
    def test_good_and_bad_answers(self, demand: Rule, good: list[str], bad: list[str]) -> None:
        assert [answer for answer in good if not kept(answer, demand)] == []
        assert [answer for answer in bad if kept(answer, demand)] == []

    def test_every_rule_that_is_drawn_has_a_judge(self) -> None:
        for draw in (
            rules.draw_language, rules.draw_persona, rules.draw_tone, rules.draw_forbidden,
            rules.draw_required, rules.draw_length, rules.draw_json, rules.draw_several,
        ):  # fmt: skip
            for seed in range(20):
                for split in SPLITS:
                    demand = draw(Random(seed), split, REQUEST)
                    assert not kept("", demand)
                    assert "{" not in demand.instruction

    def test_small_talk_is_there_for_every_voice_and_in_character(self) -> None:
        for name, said in {**PERSONAS, **TONES}.items():
            assert rules.marks(" ".join(SMALL_TALK[name]), Judged(rule("voice", (1, said)), ""))

    def test_ordinary_answers_have_no_voice(self) -> None:
        plain = (
            "To make tomato soup, chop the tomatoes and onions, and cook them in a pot with water. "
            "Owls live in forests and hunt mice at night. Paris is known for the Eiffel Tower. "
            "Start with short walks and wear good shoes. A compass shows where north is."
        )
        for said in (*PERSONAS.values(), *TONES.values()):
            assert rules.marks(plain, Judged(rule("voice", (1, said)), "")) == []


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

    def test_asked_in_the_other_way_in_the_second_half(self) -> None:
        found = questions("test")
        half = len(found) // 2
        for first, second in zip(found[:half], found[half:], strict=True):
            assert first.answers == second.answers
            assert first.text != second.text


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
        cell = next(cell for cell in CELLS if cell.name == "language")
        problem = next(p for p in cell.make("smollm2", "dev", 50) if p.judged.rule.name == "French")
        good = "Coupez les tomates et faites-les cuire avec de l'ail."
        for text, follows_it, is_text in (
            (good, True, True), (" ".join([good] * 4), True, False),
            ("Cut the tomatoes and cook them with garlic.", False, True),
        ):  # fmt: skip
            assert list(cell.score(text, problem).items()) == [
                ("right", follows_it and is_text), ("follows", follows_it), ("fluent", is_text),
            ]  # fmt: skip

    def test_log_likelihoods(self) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        prompts, answers = [[1, 2, 3], [4], [5]], [[7, 8], [9, 10, 11], []]
        found = log_likelihoods(model, prompts, answers)
        for prompt_ids, answer, value in zip(prompts, answers, found, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt_ids + answer])).logits[0].log_softmax(-1)
            start = len(prompt_ids) - 1
            each = [-float(logits[start + i, token]) for i, token in enumerate(answer)]
            expected = sum(each) / len(each) if each else math.nan
            assert value == pytest.approx(expected, abs=1e-5, nan_ok=True)
        with pytest.raises(ValueError, match="empty prompt"):
            log_likelihoods(model, [[]], [[1]])

    @pytest.mark.parametrize(
        ("answer", "fluent"),
        [
            ("12 + 8 = 20", True), ("It is 20.", True),
            ("1 + 1 + 1 + 1 + 1 + 1 + 1 + 1", False), ("", False),
        ],
    )  # fmt: skip
    def test_an_equation_answers_a_sum(self, answer: str, fluent: bool) -> None:
        problems = CONTROL.make("smollm2", "dev", 50)
        a_sum = next(p for p in problems if p.judged.is_sum)
        assert CONTROL.score(answer, a_sum)["fluent"] == fluent
        other = next(p for p in problems if not p.judged.is_sum)
        assert not CONTROL.score("12 + 8 = 20", other)["fluent"]

    def test_summary(self) -> None:
        answers = [[1, 2, 3, 1, 2, 3], [4], []]
        assert summary([math.log(2), math.log(8), math.nan], answers, "110") == {
            "answers": 3, "perplexity": 4.0, "distinct": round((3 / 4 + 2) / 3, 4),
            "fluent": 0.6667,
        }  # fmt: skip
        assert summary([math.nan], [[]], None) == {
            "answers": 1, "perplexity": None, "distinct": 1.0, "fluent": None,
        }  # fmt: skip

    def test_the_command_goes_on_where_it_stopped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cell = next(cell for cell in CELLS if cell.name == "language")
        problems = cell.make("smollm2", "dev", 2)
        found = Answers(["Oui.", "Non."], [[5, 6], [7]], 1.0)
        monkeypatch.setattr(store, "ANSWERS", tmp_path / "answers")
        mark = store.mark_of("smollm2", cell, problems)
        kept_store = partial(store.Store, root=tmp_path)
        kept_store("smollm2", "language", "dev", mark).add("greedy", cell, problems, found)
        monkeypatch.setattr(fluency, "MEASURED", tmp_path)
        monkeypatch.setattr(fluency, "Store", kept_store)
        asked: list[list[list[int]]] = []

        class Reader:
            model = None

            def __init__(self, name: str) -> None:
                assert name == "smollm2"

            def ids(self, prompt: Any) -> list[int]:
                return [len(prompt)]

        def judge(model: None, prompts: list[list[int]], answers: list[list[int]]) -> list[float]:
            asked.append(prompts)
            return [1.0] * len(answers)

        monkeypatch.setattr(fluency, "_Reader", Reader)
        monkeypatch.setattr(fluency, "log_likelihoods", judge)
        options = ["--models", "smollm2", "--cells", "language", "--splits", "dev"]
        monkeypatch.setattr("sys.argv", ["fluency", *options])
        fluency.main()
        fluency.main()
        assert asked == [[[2], [2]]]
        data = json.loads((tmp_path / "fluency-smollm2-dev.json").read_text())
        assert list(data["language"]) == ["greedy"]
        assert data["language"]["greedy"]["perplexity"] == round(math.e, 3)
        # Other answers are judged anew.
        again = Answers(["Oui.", "Non."], [[5, 6], [8]], 1.0)
        kept_store("smollm2", "language", "dev", mark).add("greedy", cell, problems, again)
        fluency.main()
        assert len(asked) == 2
        # The file is about answers to these problems: without their outcomes there is none.
        (tmp_path / "smollm2-language-dev.json").write_text('{"mark": "other", "outcomes": {}}')
        with pytest.raises(ValueError, match="outcomes of other problems"):
            fluency.main()
