# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's problems: the same each time, in one split, and only the expert reads
what the amateur lacks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, data, split_of
from benchmarks.accuracy.tasks import CELLS, MODULES, chosen, documents, memory
from benchmarks.accuracy.tasks.instructions import NEUTRAL, questions, requests
from examples.facts import facts, names

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "nowhere", chat=True)
BASE = replace(CHAT, chat=False)
SPLITS: tuple[Split, ...] = ("dev", "test")
# Of an adapter's stages, one: they have the same problems.
ASKED = [c for c in CELLS.values() if c.adapter is None or c.adapter.endswith("-r16-100")]
each_cell = pytest.mark.parametrize("cell", ASKED, ids=lambda cell: cell.name)
each_model = pytest.mark.parametrize("model", [CHAT, BASE], ids=["chat", "base"])


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


@each_cell
@each_model
def test_models_get_what_they_read(cell: Cell, model: Model) -> None:
    if not cell.is_for(model):
        assert cell.chat_only
        return
    for problem in cell.make(model, "dev", 5):
        read = (problem.prompt, problem.without, *problem.plain.values())
        assert all(isinstance(each, tuple if model.chat else str) for each in read)
        assert problem.unasked is None or isinstance(problem.unasked, type(problem.prompt))
        assert set(problem.plain) in (set(), {"better", "repeated"})
        if problem.without != problem.prompt:
            assert len(text_of(problem.without)) < len(text_of(problem.prompt))


def test_cells_are_found_by_name_and_module() -> None:
    assert sum(len(module.CELLS) for module in MODULES.values()) == len(CELLS)
    assert [c.name for c in chosen(["page", "instructions"])] == [
        "language", "json", "plain-questions", "page",
    ]  # fmt: skip
    assert chosen([]) == list(CELLS.values())


# A text against memory


def test_there_are_enough_facts_on_other_subjects() -> None:
    counts = {split: len(CELLS["false"].make(CHAT, split, 2000)) for split in SPLITS}
    assert counts["dev"] >= 200 and counts["test"] >= 500
    assert {split_of(fact.subject) for fact in facts()} == set(SPLITS)


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


@pytest.mark.parametrize("page", data("pages")["pages"], ids=range(len(data("pages")["pages"])))
def test_pages_can_be_taken_apart(page: dict[str, Any]) -> None:
    """A value is read in one place, and a paragraph needs the first one alone."""
    first, *rest = page["text"].split("\n\n")
    assert len(rest) > documents.PARAGRAPHS
    for asked in page["questions"]:
        assert page["text"].count(f"{{{asked}}}") == 1, f"{asked} can be read in several places"
    for paragraph in (first, *rest):
        slots = set(documents.slots(first + paragraph))
        last = re.findall(r"{last(\d)}", paragraph)
        assert {f"person{number}" for number in last} <= slots
        for asked, question in page["questions"].items():
            if f"{{{asked}}}" in paragraph:
                assert set(documents.slots(question)) <= slots, question


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


def test_documents_with_an_instruction() -> None:
    for problem in CELLS["language"].make(BASE, "dev", 20):
        line = f"Instructions for the assistant: {problem.judged.instruction}\n"
        assert text_of(problem.prompt).replace(line, "", 1) == problem.without
        assert text_of(problem.prompt).endswith("\nAssistant:")


def test_the_control_lacks_the_system_message() -> None:
    found = [CELLS["plain-questions"].make(CHAT, split, 999) for split in SPLITS]
    assert [len(problems) for problems in found] == [len(questions(split)) for split in SPLITS]
    for problem in found[0]:
        system, user = problem.prompt
        assert system["role"] == "system" and problem.without == (user,)  # type: ignore[index]


# Tasks of adapters


def test_the_amateur_of_a_format_lacks_the_order() -> None:
    for problem in CELLS["orders-r4-25"].make(CHAT, "dev", 5):
        order, form = text_of(problem.prompt).split("\n")[-2:]
        assert text_of(problem.without).endswith(form) and order not in text_of(problem.without)
