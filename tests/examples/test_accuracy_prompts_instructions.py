# SPDX-License-Identifier: Apache-2.0
"""Prompts with an instruction: their splits, what the amateur lacks, and who has followed."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.accuracy.prompts import rules
from benchmarks.accuracy.prompts.fluency import distinct, log_likelihoods
from benchmarks.accuracy.prompts.instructions import CELLS, NEUTRAL, prompt
from benchmarks.accuracy.prompts.problem import Cell, Problem, Split, split_of
from benchmarks.accuracy.prompts.questions import Question, is_right, questions
from benchmarks.accuracy.prompts.requests import Request, requests
from benchmarks.accuracy.prompts.rules import Judged, Rule, follows
from benchmarks.accuracy.prompts.text import is_fluent, sentences, without_echo
from benchmarks.accuracy.prompts.voices import PERSONAS, SMALL_TALK, TONES

pytestmark = pytest.mark.unit

SPLITS: tuple[Split, ...] = ("dev", "test")
GAIN = [cell for cell in CELLS if cell.nature == "gain"]
CONTROL = next(cell for cell in CELLS if cell.nature == "control")
REQUEST = Request("How do I make tomato soup?", "tomato soup")


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

    @pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
    def test_cells_have_enough_and_always_the_same(self, cell: Cell) -> None:
        for model in cell.models:
            for split, n in (("dev", 200), ("test", 500)):
                found = cell.make(model, split, n)  # type: ignore[arg-type]
                assert len({repr(problem.prompt) for problem in found}) == n
                assert cell.make(model, split, 7) == found[:7]  # type: ignore[arg-type]
                assert repr(cell.make(model, split, 7)) == repr(found[:7])  # type: ignore[arg-type]

    @pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
    def test_no_request_is_in_both_splits(self, cell: Cell) -> None:
        dev, test = (
            {last(problem) for problem in cell.make("smollm2", split, 200)} for split in SPLITS
        )
        assert not dev & test

    def test_more_than_there_are_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="the split 'dev' has 254 different"):
            CONTROL.make("smollm2", "dev", 255)

    @pytest.mark.parametrize("name", ["language", "persona", "tone", "forbidden", "length"])
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
                assert problem.without == ({"role": "system", "content": NEUTRAL}, *rest)
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
        assert {("voice", "forbidden"), ("voice", "required")} < pairs
        assert {(a, b) for a in ("language", "voice") for b in ("sentences", "words")} < pairs


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
        "enthusiastic",
        rule("voice", TONES["enthusiastic"], "Sound very enthusiastic."),
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
        "grumpy",
        rule("voice", TONES["grumpy"], "Be as grumpy as you can."),
        [
            "Ugh, whatever. Boil the tomatoes.",
            "What a stupid question, how annoying.",
            "Who cares? Soup is boring.",
            "I hate cooking, and don’t care about soup. I don't care.",
            "Leave me alone, you lazy person.",
        ],
        [
            "Boil the tomatoes and add salt.",
            "I am grumpy, very grumpy today.",
            "Soup is never boring.",
            "Be as grumpy as you can: ugh, whatever.",
            "",
        ],
    ),
    (
        "forbidden word",
        rule("forbidden", ("word", "the"), 'Do not use the word "the".'),
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
            "",
        ],
    ),
    (
        "forbidden letter",
        rule("forbidden", ("letter", "k"), 'Do not use the letter "k".'),
        [
            "Boil some ripe tomatoes with garlic, onions and a little salt.",
            "First, chop onions and tomatoes, then heat them with oil and water.",
            "A good soup needs time: let it simmer for half an hour.",
            "You should choose ripe tomatoes and add fresh basil at the end.",
            "Add some cream and bread; it tastes much better that way.",
        ],
        [
            "Cook some ripe tomatoes with garlic, onions and a little salt.",
            "Kindly boil some ripe tomatoes with garlic, onions and a little salt.",
            "Boil tomatoes.",
            'Do not use the letter "k" in the soup of ripe tomatoes, please.',
            "",
        ],
    ),
    (
        "required",
        rule("required", ("river", "purple"), 'Use the words "river" and "purple" in your answer.'),
        [
            "Take water from a river and cook it with purple onions.",
            "Purple tomatoes make a soup that flows like a river.",
            "Boil it. The purple pot is best. Serve it by the river.",
            "The river was cold. We made soup of purple carrots.",
            "Like a river, the soup ran over the purple cloth.",
        ],
        [
            'Use the words "river" and "purple" in your answer.',
            "Boil the tomatoes with purple onions.",
            "Tomatoes, river, purple.",
            "Tomato soup needs salt. River and purple.",
            'Of course! I use the words "river" and "purple" as you like. Boil the tomatoes.',
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
            "Chop, boil, blend",
        ],
        [
            "Boil ripe tomatoes with garlic, salt, pepper and some fresh cream.",
            "Use at most 10 words.",
            "Okay.",
            "",
            "To make tomato soup you need tomatoes and salt and a lot of time",
        ],
    ),
    (
        "json",
        rule("json", ("topic", "answer")),
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
        for name, said in {
            **PERSONAS,
            **{tone: found for tone, (_, found) in TONES.items()},
        }.items():
            assert rules.marks(" ".join(SMALL_TALK[name]), Judged(rule("voice", (1, said)), ""))

    def test_ordinary_answers_have_no_voice(self) -> None:
        plain = (
            "To make tomato soup, chop the tomatoes and onions, and cook them in a pot with water. "
            "Owls live in forests and hunt mice at night. Paris is known for the Eiffel Tower. "
            "Start with short walks and wear good shoes. A compass shows where north is."
        )
        for said in (*PERSONAS.values(), *(found for _, found in TONES.values())):
            assert rules.marks(plain, Judged(rule("voice", (1, said)), "")) == []


class TestQuestions:
    @pytest.mark.parametrize(
        ("text", "answers", "is_sum", "good", "bad"),
        [
            ("What is the capital of Peru?", ("Lima",), False, ["It is Lima."], ["Limassol", ""]),
            ("What month follows April?", ("May",), False, ["May."], ["It may be June."]),
            ("The opposite of big?", ("small", "little"), False, ["Small", "little!"], ["tall"]),
            ("The symbol of helium?", ("He",), False, ["It is He."], ["he said H"]),
            (
                "What is 3 plus 4?", ("7",), True,
                ["7", "3 + 4 = 7", "The sum of 3 and 4 is 7."],
                ["3 + 4", "8, or 7", "73", ""],
            ),
            ("What is 3 times 3?", ("9",), True, ["3 times 3 is 9."], ["3 * 3 = 6"]),
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

    def test_text_and_loops(self) -> None:
        assert is_fluent("To make soup, boil the tomatoes and add some salt and a little cream.")
        assert is_fluent(json.dumps({"topic": "tomato soup", "answer": "Boil the tomatoes."}))
        assert not is_fluent("the soup is good " * 6)
        assert not is_fluent("1, 2, 3, 4, 5 and 6")
        assert not is_fluent("")

    def test_log_likelihoods(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path)
        prompts, answers = [[1, 2, 3], [4], [5]], [[7, 8], [9, 10, 11], []]
        found = log_likelihoods(tmp_path, prompts, answers)
        for prompt_ids, answer, value in zip(prompts, answers, found, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([prompt_ids + answer])).logits[0].log_softmax(-1)
            start = len(prompt_ids) - 1
            each = [-float(logits[start + i, token]) for i, token in enumerate(answer)]
            expected = sum(each) / len(each) if each else math.nan
            assert value == pytest.approx(expected, abs=1e-5, nan_ok=True)
        with pytest.raises(ValueError, match="empty prompt"):
            log_likelihoods(tmp_path, [[]], [[1]])
