# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's problems: the same each time, in one split, and only the expert reads
what the amateur lacks.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Prompt, Split, data
from benchmarks.accuracy.tasks import CELLS, joint, memory, retrieved
from benchmarks.accuracy.tasks.instructions import NEUTRAL, requests
from examples.facts import facts, names

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "chat", "nowhere")
BASE = replace(CHAT, kind="base")
SPLITS: tuple[Split, ...] = ("dev", "test")
# Of an adapter's stages, one: they have the same problems. Of others' data there may be none.
FETCHED = ("swapped", "squad", "squad-near", "humaneval", "gsm8k", "told-requests")
ASKED = [c for c in CELLS.values() if c.name not in FETCHED and c.adapter in (None, "words-r8-100")]
each_model = pytest.mark.parametrize("model", [CHAT, BASE], ids=["chat", "base"])
each_cell = pytest.mark.parametrize("cell", ASKED, ids=lambda cell: cell.name)


def text_of(prompt: Prompt | None) -> str:
    assert prompt is not None
    return prompt if isinstance(prompt, str) else "\n\n".join(each["content"] for each in prompt)


@each_cell
def test_problems_are_the_same_each_time_and_in_one_split(cell: Cell) -> None:
    if cell.name == "instructions" or cell.name.startswith("told"):
        pytest.importorskip("langdetect")
    seen = set[str]()
    for split in SPLITS:
        problems = cell.make(CHAT, split, 60)
        assert cell.make(CHAT, split, 7) == problems[:7]
        prompts = {text_of(problem.prompt) for problem in problems}
        assert len(prompts) == len(problems) >= 10
        assert not prompts & seen
        seen |= prompts


# A text against memory


@pytest.mark.parametrize("cell", memory.CELLS, ids=lambda cell: cell.name)
@each_model
def test_what_the_texts_say(cell: Cell, model: Model) -> None:
    for problem in cell.make(model, "test", 200):
        judged: memory.Judged = problem.judged
        text, question = text_of(problem.prompt), text_of(problem.without).split("\n\n")[-1]
        assert names(text, judged.right) is (cell.name not in ("nothing", "near")), text
        if cell.name == "false":
            assert not names(text.replace(judged.right[0], ""), judged.wrong), text
        assert text.endswith(question) and question.split(": ")[-1] in text
        said = text.removesuffix(question)
        assert text_of(problem.unasked).removesuffix("Answer:").strip() == said.strip()
        better = text_of(problem.plain["better"])
        assert better.replace("According to the text: ", "") == text != better


def test_the_splits_share_no_form_of_sentence() -> None:
    """Nor what near texts say; and each form has the fact's answer and subject in it."""
    forms = data("forms")["forms"]
    assert not set(forms["dev"].values()) & set(forms["test"].values())
    for relation, said in data("forms")["relations"].items():
        assert said["near"]["dev"] != said["near"]["test"]
        fact = next(fact for fact in facts() if fact.relation == relation)
        texts = [memory.sentence(fact, form, "Xyz") for form in {**forms["dev"], **forms["test"]}]
        assert not any(names(text, fact.answers) for text in texts)
        for text in (*texts, *(memory.near(fact, split, "Xyz") for split in SPLITS)):
            assert "Xyz" in text and fact.subject.lower() in text.lower() and "{" not in text


# Passages that a search found


def test_the_passages_of_a_search() -> None:
    """What the best passage says of its subject is right, and no other one names that by chance."""
    problems = CELLS["retrieved"].make(CHAT, "test", 60)
    assert {problem.kind for problem in problems} == set(retrieved.KINDS)
    for problem, found in zip(problems, retrieved.found("test"), strict=False):
        texts = [passage.text for passage in found.passages]
        assert "\n\n".join(texts) in text_of(problem.prompt)
        assert text_of(problem.plain["best"]).count("\n\n") == 2 and list(found.scores) == sorted(
            found.scores, reverse=True
        )
        naming = [text for text in texts if names(text, problem.judged.right)]
        assert len(naming) == (0 if problem.kind == "none answers" else 1) or not any(
            passage.answers and passage.fact == found.fact for passage in found.passages
        )
        shown = found.scores[0] >= retrieved.fitted()
        assert problem.plain["enough"] == (problem.plain["best"] if shown else problem.without)


# Instructions


def test_the_amateur_lacks_the_instruction_alone() -> None:
    pytest.importorskip("langdetect")
    topics = {split: {topic for topic, _ in requests(split)} for split in SPLITS}
    assert not topics["dev"] & topics["test"]
    kinds = {}
    for split in SPLITS:
        problems = CELLS["instructions"].make(CHAT, split, 60)
        kinds[split] = {problem.kind for problem in problems}
        for problem in problems:
            told = problem.judged.said[0]
            system, *rest = problem.prompt
            assert system["content"] == f"{NEUTRAL} {told}"  # type: ignore[index]
            assert problem.without == ({"role": "system", "content": NEUTRAL}, *rest)
            assert problem.plain["better"][1:] == problem.prompt[1:]
            assert text_of(problem.plain["repeated"]).endswith(told)
    assert not kinds["dev"] & kinds["test"]


# Followed and right


@each_model
@pytest.mark.parametrize("name", ["told-facts", "told-two", "told-long", "told-turns"])
def test_instructions_with_questions(name: str, model: Model) -> None:
    """The amateur reads all but the system prompt; what is repeated is the instruction alone."""
    for problem in CELLS[name].make(model, "test", 30):
        judged: joint.Judged = problem.judged
        said = " ".join(joint._words_of(*each) for each in judged.told)
        whole, left = text_of(problem.prompt), text_of(problem.without)
        assert said in whole and said not in left and whole.endswith(left)
        again = text_of(problem.plain["repeated"])
        assert again.count(said) == 2 and "".join(again.rsplit(f" {said}", 1)) == whole
        assert judged.known is not None
        known = replace(problem, judged=judged.known)
        assert not memory.score(whole, known)["named"], "what is asked for is not said"
        assert len(judged.told) == (2 if name == "told-two" else 1)


def test_an_answer_must_follow_and_be_right() -> None:
    (problem,) = (
        problem for problem in CELLS["told-facts"].make(CHAT, "test", 10) if problem.kind == "title"
    )
    right = problem.judged.known.right[0]
    for text, both, followed, is_right, parrots in (
        (f"<<Answer>> {right}", True, True, True, False),
        (f"<<{right}>>", True, True, True, False),
        (right, False, False, True, False),
        ("<<Answer>> none", False, True, False, False),
        (f"<<poem of joy>> {right}", False, False, True, True),
        (f"<<Poem of Joy>> <<Answer>> {right}", True, True, True, True),
        ("", False, False, False, False),
    ):
        assert joint.score(text, problem) == {
            "both": both, "followed": followed, "right": is_right, "parrots": parrots,
            "disagree": False, "misjudged": False,
        }, text  # fmt: skip


def test_short_answers_are_judged_by_their_letters() -> None:
    """ "paris" is Indonesian, says langdetect, which IFEval's checks ask."""
    pytest.importorskip("langdetect")
    kinds = {"english_lowercase": str.lower, "english_capital": str.upper}
    for problem in CELLS["told-facts"].make(CHAT, "test", 10):
        if said := kinds.get(problem.kind):
            right = said(problem.judged.known.right[0])
            found = joint.score(right, problem)
            assert found["both"] and not found["disagree"]
            assert not joint.score(f"{right} {right.swapcase()}", problem)["followed"]
    problem = replace(problem, judged=joint.Judged((("change_case:english_lowercase", {}),), None))
    assert joint.score("paris", problem)["misjudged"]


def test_of_two_questions_each_half_is_judged() -> None:
    problem = CELLS["half-answered"].make(CHAT, "test", 1)[0]
    text, rest = problem.judged.by_text, problem.judged.by_memory
    for answer, said in (
        (f"{text.right[0]}. {rest.right[0]}", (True, True, True)),
        (f"{text.right[0]}.", (False, True, False)),
        (f"{text.wrong[0]}. {rest.right[0]}", (False, False, True)),
    ):
        assert tuple(joint.score_halves(answer, problem).values()) == said
    assert text.right[0] in text_of(problem.prompt)
    assert text.right[0] not in text_of(problem.without)
