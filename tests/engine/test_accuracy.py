# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark from end to end on a tiny model: train, run, run again, report; and its
methods are what they are called.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import models
from benchmarks.accuracy.answers import Answer, read
from benchmarks.accuracy.engine import Engine
from benchmarks.accuracy.methods import CHOICE, METHODS
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.tasks import CELLS
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


@pytest.fixture(scope="module")
def llm(root: Path) -> tuple[Model, Engine]:
    model = models.read(root / "models.toml")["tiny"]
    command.prepare_environment()
    return model, Engine(model, adapters=True)


def test_from_training_to_the_report(
    root: Path, llm: tuple[Model, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [root / "adapters" / "tiny" / f"{TASK}-r8-{percent}" for percent in (25, 50, 100)]
    records = [json.loads((stage / "training.json").read_text()) for stage in stages]
    assert [record["steps_done"] for record in records] == [2, 4, 8]

    monkeypatch.setattr(command.Runner, "_start", lambda self: llm[1])
    monkeypatch.setattr(Engine, "close", lambda self: None)  # others use it, too
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


def test_an_answer_is_as_likely_as_its_tokens(root: Path, llm: tuple[Model, Engine]) -> None:
    """The scoring of a greedy answer gives the log probabilities that decoding it gave."""
    from vllm import SamplingParams

    model, engine = llm
    problem = CELLS["near"].make(model, "dev", 1)[0]
    request = METHODS["greedy"].request(model, CELLS["near"], problem, root)
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0, ignore_eos=True)
    chat: Any = [dict(each) for each in request.expert.prompt]
    (out,) = engine._llm.chat([chat], params, use_tqdm=False)
    tokenizer: Any = engine._llm.get_tokenizer()
    text = out.outputs[0].text
    assert tokenizer(text, add_special_tokens=False).input_ids == list(out.outputs[0].token_ids)
    steps = zip(out.outputs[0].token_ids, out.outputs[0].logprobs, strict=True)
    mean = sum(step[token].logprob for token, step in steps) / 6
    ((said, _),) = engine.run([replace(request, scored=text, sampling={})])
    assert float(said) == pytest.approx(mean, abs=1e-3)
