# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's problems: the same each time, in one split, and only the expert reads
what the amateur lacks.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, data
from benchmarks.accuracy.tasks import CELLS, documents, memory
from benchmarks.accuracy.tasks.instructions import NEUTRAL, requests
from examples.facts import names

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "nowhere", chat=True)
BASE = replace(CHAT, chat=False)
SPLITS: tuple[Split, ...] = ("dev", "test")
# Of an adapter's stages, one: they have the same problems.
ASKED = [c for c in CELLS.values() if c.adapter is None or c.adapter.endswith("-r16-100")]
each_model = pytest.mark.parametrize("model", [CHAT, BASE], ids=["chat", "base"])
each_cell = pytest.mark.parametrize("cell", ASKED, ids=lambda cell: cell.name)


def text_of(prompt: Prompt | None) -> str:
    assert prompt is not None
    return prompt if isinstance(prompt, str) else "\n\n".join(each["content"] for each in prompt)


@each_cell
def test_problems_are_the_same_each_time_and_in_one_split(cell: Cell) -> None:
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
    for problem in cell.make(model, "dev", 60):
        judged: memory.Judged = problem.judged
        text, question = text_of(problem.prompt), text_of(problem.without).split("\n\n")[-1]
        assert names(text, judged.right) is (cell.name != "nothing"), text
        if cell.name == "false":
            assert not names(text.replace(judged.right[0], ""), judged.wrong), text
        assert text.endswith(question) and question.split(": ")[-1] in text
        said = text.removesuffix(question)
        assert text_of(problem.unasked).removesuffix("Answer:").strip() == said.strip()
        better = text_of(problem.plain["better"])
        assert better.replace("According to the text: ", "") == text != better


# Documents


def parts_of(problem: Problem) -> tuple[list[str], str]:
    """The documents, and what is asked."""
    said, asked = text_of(problem.prompt).removesuffix("\nAnswer:").split("\n\nQuestion: ")
    return [text.rstrip() for text in said.split("Text: ")[1:]], asked


def says(text: str, forms: tuple[str, ...]) -> bool:
    return any(
        re.search(rf"(?<![\w.]){re.escape(form)}(?!\w|\.\d)", text.replace("$", " "))
        for form in forms
    )


@pytest.mark.parametrize("name", ["page", "documents"])
def test_the_answer_is_in_one_document_and_not_in_the_amateurs_prompt(name: str) -> None:
    for problem in CELLS[name].make(BASE, "dev", 100):
        judged: documents.Judged = problem.judged
        texts, _ = parts_of(problem)
        with_answer = [text for text in texts if says(text, judged.answer)]
        with_other = [text for text in texts if says(text, judged.others)]
        assert len(with_answer) == 1 and not says(text_of(problem.without), judged.answer)
        assert not set(judged.answer) & set(judged.others)
        assert name == "page" or (len(with_other) == 2 and with_answer[0] not in with_other)


@pytest.mark.parametrize("name", ["page", "documents"])
def test_the_splits_share_no_name(name: str) -> None:
    ordinary = {word.lower() for word in re.findall(r"\w+", str(data("pages")))}
    ordinary |= {"text", "question", "answer"}

    def made_up(split: Split) -> set[str]:
        texts = " ".join(text_of(p.prompt) for p in CELLS[name].make(BASE, split, 200))
        return {w for w in re.findall(r"[A-Z][a-z]{3,}", texts) if w.lower() not in ordinary}

    assert min(len(made_up(split)) for split in SPLITS) > 100
    assert made_up("dev") & made_up("test") == set()


# Instructions


@pytest.mark.parametrize("name", ["language", "json"])
def test_the_amateur_lacks_the_instruction_alone(name: str) -> None:
    topics = {split: {topic for topic, _ in requests(split)} for split in SPLITS}
    assert not topics["dev"] & topics["test"]
    wordings = {}
    for split in SPLITS:
        problems = CELLS[name].make(CHAT, split, 100)
        wordings[split] = {problem.judged.instruction for problem in problems}
        for problem in problems:
            system, *rest = problem.prompt
            assert system["content"] == f"{NEUTRAL} {problem.judged.instruction}"  # type: ignore[index]
            # Of an example, which is a part of the instruction, it has nothing either.
            assert problem.without == ({"role": "system", "content": NEUTRAL}, rest[-1])
            assert problem.plain["better"][1:] == problem.prompt[1:]
            assert text_of(problem.plain["repeated"]).endswith(problem.judged.instruction)
    assert not wordings["dev"] & wordings["test"]
