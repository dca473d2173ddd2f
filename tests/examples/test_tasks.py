# SPDX-License-Identifier: Apache-2.0
"""The example tasks: reproducible, disjoint, and scored by a rule that can say no."""

import json
from pathlib import Path

import pytest

from examples.tasks import TASKS

pytestmark = pytest.mark.unit

ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters"


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_reproducible_and_disjoint(name: str) -> None:
    task = TASKS[name]
    splits = {s: task.prompts(s, 60) for s in ("train", "dev", "test")}  # type: ignore[arg-type]
    assert task.prompts("test", 10) == splits["test"][:10]
    seen = [p.prompt for problems in splits.values() for p in problems]
    assert len(set(seen)) == len(seen) == 180


@pytest.mark.parametrize("name", TASKS)
def test_scores(name: str) -> None:
    task = TASKS[name]
    first, second = task.prompts("test", 2)
    assert task.score(first.answer, first)
    assert not task.score(second.answer, first)
    assert not task.score("", first)
    assert not task.score("I cannot do that.", first)


@pytest.mark.parametrize("name", TASKS)
def test_shipped_adapter_is_small_and_its_training_recorded(name: str) -> None:
    folder = ADAPTERS / name
    assert (folder / "adapter_model.safetensors").stat().st_size <= 4 * 2**20
    record = json.loads((folder / "training.json").read_text())
    assert record["task"] == name
    assert {"seed", "split_seeds", "steps", "examples", "test"} <= record.keys()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == record["rank"]
    assert not str(config["base_model_name_or_path"]).startswith("/")
