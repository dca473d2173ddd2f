# SPDX-License-Identifier: Apache-2.0
"""Summaries of abstracts, judged by whether their names and numbers are the abstract's."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.accuracy.prompts import others, summaries
from benchmarks.accuracy.prompts.problem import ModelName, Problem, Prompt, split_of

pytestmark = pytest.mark.unit

(CELL,) = summaries.CELLS
SOURCE = (
    "Aspirin for gout. In the GOUT-2 trial 1,240 women from Norway were given aspirin or nothing "
    "for three weeks. Pain fell by 12.5% with aspirin (TiO2 tablets, n = 620)."
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with the same files, and less in them."""
    for folder, about in (("population_span_extraction", "gout"), ("abstract2title", "cells")):
        lines = [
            {"input": [{"content": "Do."}, {"content": f"On {about} {n}.\n  Old."}], "ideal": ""}
            for n in range(40)
        ]
        lines.append({"input": [{"content": "long " * 400}], "ideal": ""})
        file = tmp_path / "evals/registry/data" / folder / "samples.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "evals/__init__.py").write_text("raise ImportError('it is not to be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    caches = (others._items, summaries._texts)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


def text_of(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("model", ["smollm2", "gemma"])
def test_problems(model: ModelName) -> None:
    dev, test = CELL.make(model, "dev", 15), CELL.make(model, "test", 40)
    assert CELL.make(model, "dev", 4) == dev[:4]
    assert {text.split()[1] for problem in dev for text in [problem.judged]} == {"gout", "cells"}
    assert len({problem.judged for problem in (*dev, *test)}) == 55
    for split, problems in (("dev", dev), ("test", test)):
        for problem in problems:
            text = problem.judged
            assert split_of(text) == split and "\n" not in text and len(text) < 40
            prompt, without = text_of(problem.prompt), text_of(problem.without)
            asked = without.removesuffix("\nSummary:")
            said = f"Text: {text}" if model == "gemma" else text
            assert prompt == f"{said}\n\n{without}" and asked.endswith("one sentence.")
            better, repeated = (text_of(problem.plain[name]) for name in ("better", "repeated"))
            assert "only names and numbers that are in the text" in better and said in better
            assert repeated == f"{asked}\n\n{prompt}"
    everything = CELL.make(model, "dev", 900) + CELL.make(model, "test", 900)
    assert {problem.judged for problem in everything} == {
        f"On {about} {n}. Old." for about in ("gout", "cells") for n in range(40)
    }


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
def test_scores(answer: str, right: bool, consistent: bool, copied: bool) -> None:
    assert CELL.score(answer, Problem("", "", SOURCE)) == {
        "right": right, "consistent": consistent, "copied": copied,
    }  # fmt: skip


def test_where_there_is_nothing_to_name_nothing_need_be_named() -> None:
    source = "Aspirin helps women. Pain falls after some weeks, and so does fever."
    answer = "For women, pain and fever are gone after weeks of aspirin."
    assert CELL.score(answer, Problem("", "", source))["right"]
