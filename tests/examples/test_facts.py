# SPDX-License-Identifier: Apache-2.0
"""The facts, and the problems about texts that contradict them."""

from typing import get_args

import pytest

from benchmarks.accuracy.prompts.memory import CELLS, Judged, prompt_of, score
from benchmarks.accuracy.prompts.problem import ModelName, Problem, Split, split_of
from benchmarks.accuracy.prompts.run import CELLS as CELLS_BY_NAME
from benchmarks.accuracy.prompts.run import MODULES
from examples.facts import Fact, facts, names, others

CELL = {cell.name: cell for cell in CELLS}
MODELS: tuple[ModelName, ...] = get_args(ModelName)


def test_every_fact_is_there_once() -> None:
    assert len(facts()) == len({(fact.relation, fact.subject) for fact in facts()}) > 800


def test_a_fact_is_asked_and_said() -> None:
    fact = next(f for f in facts() if f.subject == "the United Kingdom")
    assert fact.question == "What is the capital of the United Kingdom?"
    assert fact.said() == "The capital of the United Kingdom is London."
    assert fact.said("Lima") == "The capital of the United Kingdom is Lima."


def test_a_wrong_answer_is_none_of_the_right_ones() -> None:
    for fact in facts():
        found = others(fact, facts())
        assert found
        assert not set(found) & set(fact.answers)
    sudan = Fact("countries language", "Sudan", ("Arabic",))
    assert "Arabic" not in others(sudan, facts())


@pytest.mark.parametrize(
    ("text", "answers", "named"),
    [
        ("It is in Asunción.", ("Asuncion",), True),
        ("The Yen", ("yen",), True),
        ("dollars", ("dollar",), True),
        ("Nigeria", ("Niger",), False),
        ("I think that it is Pb.", ("I",), False),
        ("Its symbol is I.", ("I",), True),
        ("it is iodine", ("I",), False),
        ("I'm sorry, I cannot say.", ("I",), False),
        ("As an AI model", ("As",), False),
        ("The symbol is He.", ("He",), True),
        ("the symbol is he", ("He",), False),
        ("", ("Lima",), False),
    ],
)
def test_names_are_words_of_their_own(text: str, answers: tuple[str, ...], named: bool) -> None:
    assert names(text, answers) is named


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
    found = score(text, Problem("", "", Judged(right, wrong)))
    assert (found["right"], found["named"]) == expected


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CELL)
def test_splits_share_no_subject(name: str, model: ModelName) -> None:
    def questions(split: Split, count: int) -> list[str]:
        return [repr(p.without) for p in CELL[name].make(model, split, count)]

    dev, test = questions("dev", 400), questions("test", 1000)
    assert len(dev) >= 200
    assert len(test) >= 500
    assert not set(dev) & set(test)
    assert dev[:20] == questions("dev", 20)
    assert {split_of(fact.subject) for fact in facts()} == {"dev", "test"}


@pytest.mark.parametrize("model", MODELS)
def test_what_the_texts_say(model: ModelName) -> None:
    for name, cell in CELL.items():
        for problem in cell.make(model, "dev", 60):
            judged: Judged = problem.judged
            text, alone = repr(problem.prompt), repr(problem.without)
            assert names(text, judged.right) is (name != "nothing"), (name, text)
            if name == "false":
                assert not names(text.replace(judged.right[0], ""), judged.wrong), text
            assert len(alone) < len(text)
            for sentence in alone.strip("()'").split("\\n"):
                assert sentence.split("}")[-1] in text


def test_a_text_is_left_out_whole() -> None:
    assert prompt_of("gemma", "", "Where?") == "Question: Where?\nAnswer:"
    assert prompt_of("gemma", "Here.", "Where?") == "Text: Here.\n\nQuestion: Where?\nAnswer:"
    *_, user = prompt_of("smollm2", "", "Where?")
    assert user == {"role": "user", "content": "Where?"}


def test_cells_have_names_of_their_own() -> None:
    made = [cell.name for module in MODULES for cell in module.CELLS]
    assert sorted(made) == sorted(CELLS_BY_NAME)
