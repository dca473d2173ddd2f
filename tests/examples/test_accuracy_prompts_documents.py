# SPDX-License-Identifier: Apache-2.0
"""Questions about documents: the answer is in the text, once, and only the expert has the text."""

import re
from typing import get_args

import pytest

from benchmarks.accuracy.prompts import documents
from benchmarks.accuracy.prompts.documents import CELLS, Judged
from benchmarks.accuracy.prompts.pages import CARDS, PAGES, VALUES
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Prompt, Split

pytestmark = pytest.mark.unit

BY_NAME = {cell.name: cell for cell in CELLS}
FOUND = [BY_NAME["page"], BY_NAME["documents"]]


def text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(each["content"] for each in prompt)


def parts_of(problem: Problem) -> tuple[list[str], str]:
    """The documents, and what is asked."""
    said, asked = text_of(problem.prompt).removesuffix("\nAnswer:").split("\n\nQuestion: ")
    return [text.rstrip() for text in said.split("Text: ")[1:]], asked


def each_cell(cells: list[Cell] | tuple[Cell, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cell", cells, ids=lambda cell: cell.name)


def each_model() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", get_args(ModelName))


@each_cell(CELLS)
@each_model()
def test_there_are_enough_and_the_first_are_the_same(cell: Cell, model: ModelName) -> None:
    for split, n in (("dev", 200), ("test", 500)):
        problems = cell.make(model, split, n)  # type: ignore[arg-type]
        assert len({text_of(problem.prompt) for problem in problems}) == n
        assert cell.make(model, split, 7) == problems[:7]  # type: ignore[arg-type]


def made_up_words(cell: Cell, split: Split) -> set[str]:
    """What stands in a split's documents and in no template: names of people and towns."""
    templates = str(PAGES) + str(CARDS) + str(VALUES)
    ordinary = {word.lower() for word in re.findall(r"\w+", templates)}
    texts = " ".join(text_of(problem.prompt) for problem in cell.make("gemma", split, 300))
    ordinary |= {"text", "question", "answer"}
    return {word for word in re.findall(r"[A-Z][a-z]{3,}", texts) if word.lower() not in ordinary}


@each_cell(CELLS)
def test_the_splits_share_no_name(cell: Cell) -> None:
    dev, test = made_up_words(cell, "dev"), made_up_words(cell, "test")
    assert min(len(dev), len(test)) > 100
    assert dev & test == set()
    asked = [
        [
            text_of(problem.without).partition("Question: ")[2][:15]
            for problem in cell.make("gemma", split, 20)
        ]
        for split in get_args(Split)
    ]
    assert asked[0] != asked[1]


def says(text: str, forms: tuple[str, ...]) -> list[int]:
    """Where one of the forms stands in a text."""
    return [
        found.start()
        for form in forms
        for found in re.finditer(rf"(?<![\w.]){re.escape(form)}(?!\w|\.\d)", text.replace("$", " "))
    ]


@each_cell(FOUND)
@each_model()
def test_the_answer_is_in_the_document_and_not_in_the_amateurs_prompt(
    cell: Cell, model: ModelName
) -> None:
    alone = 0
    for problem in cell.make(model, "dev", 200):
        judged: Judged = problem.judged
        assert says(text_of(problem.prompt), judged.answer)
        assert not says(text_of(problem.without), judged.answer)
        assert not set(judged.answer) & set(judged.others)
        alone += not judged.others
    assert alone < 60


def test_one_of_several_documents_has_the_answer_and_the_others_have_near_misses() -> None:
    for problem in BY_NAME["documents"].make("smollm2", "dev", 200):
        texts, _ = parts_of(problem)
        with_answer = [text for text in texts if says(text, problem.judged.answer)]
        with_other = [text for text in texts if says(text, problem.judged.others)]
        assert len(with_answer) == 1 and len(texts) == 3
        assert len(with_other) == len(texts) - 1 and with_answer[0] not in with_other


def test_what_is_not_there_is_said_of_the_others_only() -> None:
    kinds = set()
    for problem in BY_NAME["not-there"].make("smollm2", "dev", 200):
        texts, question = parts_of(problem)
        assert '"unknown"' in question and text_of(problem.without).endswith(
            f"\n\nQuestion: {question}"
        )
        subject = re.findall(r"[A-Z]\w{3,}", question.partition("?")[0])[-1]
        subjects = [text for text in texts if re.search(rf"\b{subject}\b", text)]
        kinds.add(len(subjects))
        assert not any(says(text, problem.judged.others) for text in subjects)
        silent = [text for text in texts if not says(text, problem.judged.others)]
        assert silent == subjects and problem.judged.answer == ()
        # One sentence less than the others have: the one that would say it.
        assert [text.count(".") - text.count("$") for text in texts if text in subjects] == [
            3
        ] * len(subjects)
    assert kinds == {0, 1}


@each_cell(CELLS)
@each_model()
def test_an_amateur_reads_the_same_without_its_part(cell: Cell, model: ModelName) -> None:
    for problem in cell.make(model, "dev", 50):
        texts, asked = parts_of(problem)
        said = "\n\n".join(f"Text: {text}" for text in texts)
        assert problem.unasked is not None
        prompt, without, unasked = map(text_of, (problem.prompt, problem.without, problem.unasked))
        assert without == prompt.replace(f"{said}\n\n", "") and "Text: " not in without
        end = "" if model == "smollm2" else "\n\nAnswer:"
        assert unasked == prompt.partition(said)[0] + said + end
        assert "Question: " not in unasked
        if model == "smollm2":
            assert isinstance(problem.prompt, tuple)
            assert [each["role"] for each in problem.prompt] == ["system", "user"]


@each_cell(CELLS)
@each_model()
def test_other_prompts_have_the_same_question(cell: Cell, model: ModelName) -> None:
    for problem in cell.make(model, "dev", 20):
        assert set(problem.plain) == {"repeated", "better"}
        texts, asked = parts_of(problem)
        question = asked.partition("?")[0]
        better, repeated = (text_of(problem.plain[name]) for name in ("better", "repeated"))
        assert better == text_of(problem.prompt).replace(
            f"Text: {texts[0]}", f"{documents._COPY}\n\nText: {texts[0]}"
        )
        assert ('"unknown"' in better) == (cell.name == "not-there")
        twice = cell.name == "page"
        assert (better.count(texts[0]), better.count(question)) == (1, 1)
        assert (repeated.count(texts[0]), repeated.count(question)) == ((2, 1) if twice else (1, 2))


def problem_with(answer: tuple[str, ...], others: tuple[str, ...]) -> Problem:
    return Problem("", "", Judged(answer, others))


PRICE = problem_with(("14.50",), ("4.50", "65.55"))
DAY = problem_with(documents._forms("day", "21 March"), documents._forms("day", "1 March"))
PERSON = problem_with(documents._forms("person", "Anna Howells"), ("Ash", "Potts"))


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
    for cell in FOUND:
        assert cell.score(answer, problem) == {"right": right, "mentioned": mentioned}


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
    asked = f"Question: What lives in Marlow House 7? {documents._UNKNOWN}"
    text = "Text: Marlow House 7 belongs to Mr Potts, who has 50 friends."
    problem = Problem(f"{text} {asked}", asked, Judged((), ("parrot", "llama")))
    assert BY_NAME["not-there"].score(answer, problem) == {
        "right": right, "invented": invented, "other's": other,
    }  # fmt: skip


def test_a_page_uses_each_value_once() -> None:
    for text, questions in PAGES:
        slots = documents._slots(text)
        assert set(questions) <= set(slots)
        for slot in questions:
            assert text.count(f"{{{slot}}}") == 1, f"{slot} can be read in several places"


def test_what_a_paragraph_speaks_of_is_there_without_the_others() -> None:
    for text, questions in PAGES:
        first, *rest = text.split("\n\n")
        assert len(rest) > documents._PARAGRAPHS
        for paragraph in (first, *rest):
            slots = documents._slots(first + paragraph)
            last = re.findall(r"{last(\d)}", paragraph)
            assert {f"person{number}" for number in last} <= set(slots)
            for asked, question in questions.items():
                if f"{{{asked}}}" in paragraph:
                    assert set(documents._slots(question)) <= set(slots), question
