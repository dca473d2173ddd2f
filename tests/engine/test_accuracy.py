# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark from end to end on a tiny model: train, run, run again, report."""

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import models
from benchmarks.accuracy.answers import Answer, read
from benchmarks.accuracy.engine import Engine
from benchmarks.accuracy.methods import CHOICE
from tests.tiny import make_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.full]

TASK, PROBLEMS = "words", 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with the tiny model, and a trained adapter's stages."""
    found = tmp_path_factory.mktemp("accuracy")
    make_tiny_model(found / "model")
    (found / "models.toml").write_text(
        f'[tiny]\ntitle = "Tiny"\nsource = "{found / "model"}"\nkind = "chat"\n'
        'dtype = "float32"\nmax_length = 512\ncache_gib = 0.25\n'
    )
    done(found, "train", "--steps", "8")
    return found


def done(root: Path, name: str, *options: str) -> None:
    command.main(
        [name, "--model-entry", str(root / "models.toml"), "--folder", str(root), *options]
    )


def answers(root: Path, cell: str, split: str) -> list[Answer]:
    return list(read(root / "answers" / "tiny" / f"{cell}-{split}.jsonl").values())


def test_from_training_to_the_report(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [root / "adapters" / "tiny" / f"{TASK}-r8-{percent}" for percent in (25, 50, 100)]
    records = [json.loads((stage / "training.json").read_text()) for stage in stages]
    assert [record["steps_done"] for record in records] == [2, 4, 8]

    command.prepare_environment()
    engine = Engine(models.read(root / "models.toml")["tiny"], adapters=True)
    monkeypatch.setattr(command.Runner, "_start", lambda self: engine)
    cells = (f"{TASK}-r8-100", "false")
    options = ("--cells", *cells, "--problems", str(PROBLEMS))
    methods = (
        "greedy", "without the part", "base model", "cold", "cold, amateur: quarter", "cad",
        "grounded", "drawn, cold", "adapter x 1.5",
    )  # fmt: skip
    done(root, "run", *options, "--methods", *methods, CHOICE.key)
    found = {cell: answers(root, cell, "test") for cell in cells}
    asked = {cell: {answer.method for answer in found[cell]} for cell in cells}
    assert {"greedy", "base model", "cold", "cold, amateur: quarter"} < asked[cells[0]]
    assert asked["false"] == {"greedy", "without the part", "cad", "grounded", CHOICE.key}
    for answer in (each for there in found.values() for each in there):
        if answer.method == CHOICE.key:
            assert -30 < float(answer.text) < 0  # a random model's, in nats
        else:
            assert answer.tokens >= 1 and answer.by.startswith("vllm ")

    def start(self: command.Runner) -> Engine:
        raise AssertionError("all is decoded")

    monkeypatch.setattr(command.Runner, "_start", start)
    done(root, "run", *options, "--methods", *methods, CHOICE.key)
    assert {cell: answers(root, cell, "test") for cell in cells} == found
    done(root, "train", "--steps", "8")
    again = [json.loads((stage / "training.json").read_text()) for stage in stages]
    assert again == records, "trained again"

    done(root, "report", *options)
    text = (root / "report-test.md").read_text()
    assert "## An adapter against the base model: Tiny" in text
    assert text.count(f"| problems | {PROBLEMS} |") == 2
    for method in methods[1:]:
        assert f"| {method} | " in text
