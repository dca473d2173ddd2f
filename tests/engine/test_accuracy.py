# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark from end to end on a tiny model: train, run, run again, report; and its
methods are what they are called.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import models
from benchmarks.accuracy.answers import Answer, read
from benchmarks.accuracy.engine import Engine, voted
from benchmarks.accuracy.methods import METHODS, Method, fixed
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.tasks import CELLS
from tests.tiny import make_tiny_adapter, make_tiny_model
from vllm_cold.vllm.frontend.config import engine_defaults

pytestmark = pytest.mark.engine

TASK, PROBLEMS = "dates", 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with the tiny model, and a trained adapter's stages."""
    found = tmp_path_factory.mktemp("accuracy")
    make_tiny_model(found / "model")
    (found / "models.toml").write_text(
        f'[tiny]\ntitle = "Tiny"\nsource = "{found / "model"}"\nchat = true\n'
        'dtype = "float32"\nmax_length = 512\ncache_gib = 0.25\n'
    )
    done(found, "train", "--tasks", TASK, "--ranks", "16", "--steps", "8")
    return found


def done(root: Path, name: str, *options: str) -> None:
    command.main([name, "--table", str(root / "models.toml"), "--folder", str(root), *options])


def answers(root: Path, cell: str, split: str) -> list[Answer]:
    return list(read(root / "answers" / "tiny" / f"{cell}-{split}.jsonl").values())


@pytest.fixture(scope="module")
def llm(root: Path) -> tuple[Model, Engine]:
    model = models.read(root / "models.toml")["tiny"]
    command.prepare_environment()
    return model, Engine(model, adapters=True)


def test_from_training_to_the_report(
    root: Path, llm: tuple[Model, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [root / "adapters" / "tiny" / f"{TASK}-r16-{percent}" for percent in (25, 50, 100)]
    records = [json.loads((stage / "training.json").read_text()) for stage in stages]
    assert [record["steps_done"] for record in records] == [2, 4, 8]

    monkeypatch.setattr(command.Runner, "_start", lambda self: llm[1])
    cells = (f"{TASK}-r16-100", "false")
    options = ("--cells", *cells, "--problems", str(PROBLEMS))
    methods = ("greedy", "base model", "cold", "cold, amateur: quarter", "cad", "grounded")
    done(root, "run", *options, "--grid", "--methods", *methods, "vote of 3")
    found = {cell: answers(root, cell, "test") for cell in cells}
    asked = {cell: {answer.method for answer in found[cell]} for cell in cells}
    assert {"greedy", "base model", "cold", "cold, amateur: quarter"} < asked[cells[0]]
    assert {"greedy", "cad", "grounded", "vote of 3"} < asked["false"]
    for answer in (each for there in found.values() for each in there):
        assert answer.tokens >= 1 and answer.by.startswith("vllm ")

    def start(self: command.Runner) -> Engine:
        raise AssertionError("all is decoded")

    monkeypatch.setattr(command.Runner, "_start", start)
    done(root, "run", *options, "--grid", "--methods", *methods, "vote of 3")
    assert {cell: answers(root, cell, "test") for cell in cells} == found
    done(root, "train", "--tasks", TASK, "--ranks", "16", "--steps", "8")
    again = [json.loads((stage / "training.json").read_text()) for stage in stages]
    assert again == records, "trained again"

    done(root, "report", *options)
    text = (root / "report-test.md").read_text()
    assert "## An adapter of rank 16 after 100 % of its training: Tiny" in text
    assert text.count(f"| problems | {PROBLEMS} |") == 2
    for method in (*methods[1:], "picked on dev"):
        assert f"| {method} | " in text


def test_methods_are_what_they_are_called(root: Path, llm: tuple[Model, Engine]) -> None:
    model, engine = llm
    adapters = root / "made"
    for seed, percent in enumerate((25, 100)):
        make_tiny_adapter(root / "model", adapters / f"t-r8-{percent}", seed)
    cell = replace(CELLS["false"], adapter="t-r8-100")
    problems = cell.make(model, "dev", 6)

    def texts(method: Method) -> list[str]:
        requests = [method.request(model, cell, each, adapters) for each in problems]
        return [text for text, _ in engine.run(requests)]

    assert not engine_defaults(engine._llm.llm_engine.vllm_config).enabled, "greedy is no contrast"
    greedy, cad = texts(METHODS["greedy"]), texts(METHODS["cad"])
    assert texts(fixed(0.0, 0.5)) == cad != greedy
    assert texts(fixed(1.0, 0.5)) == greedy
    kinds = ("without", "base without", "base", "quarter")
    strong = [texts(fixed(0.0, 2.0, kind)) for kind in kinds]  # type: ignore[arg-type]
    bare = texts(METHODS["base model"])
    assert len({tuple(found) for found in (greedy, bare, *strong)}) == 6
    two = Method("two", {"alpha": 0.0}, weights=(-0.5, -0.5))
    assert texts(replace(two, weights=(-0.5, 0.0))) == cad != texts(two)
    # Drawn from the likeliest token alone, all votes are greedy decoding's answer.
    sure = replace(METHODS["greedy"], sampling={"temperature": 1.0, "top_k": 1}, votes=3)
    assert texts(sure) == greedy


def test_the_most_frequent_answer_counts() -> None:
    said = ["Bonn", "Berlin.", "bonn ", "Rome", " berlin"]
    assert voted(said) == "Bonn", "the first of two as frequent ones"
    assert voted(said[1:]) == "Berlin."
