# SPDX-License-Identifier: Apache-2.0
"""The rank in ``adapter_config.json``: as vLLM reads it, and a sentence for everything else."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.frontend.adapter_config import read_rank

pytestmark = pytest.mark.unit


def write(folder: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    (folder / "adapter_config.json").write_bytes(data)
    return str(folder)


@pytest.mark.parametrize(
    ("rank", "pattern", "largest"),
    [(8, None, 8), (8, {}, 8), (8, {"q_proj": 24, "v_proj": 4}, 24), (16, {"q_proj": 4}, 16)],
)
def test_the_rank_is_the_one_that_vllm_compares(
    tmp_path: Path, rank: int, pattern: Any, largest: int
) -> None:
    from vllm.lora.peft_helper import PEFTHelper

    fields = {"r": rank, "rank_pattern": pattern, "lora_alpha": 8, "target_modules": ["q_proj"]}
    assert read_rank(write(tmp_path, json.dumps(fields))) == largest
    if pattern and "rank_pattern" not in PEFTHelper.__dataclass_fields__:
        pytest.skip("this vLLM does not know rank_pattern yet")
    vllms = PEFTHelper.from_local_dir(str(tmp_path), None)
    vllms.validate_legal(SimpleNamespace(max_lora_rank=largest))
    with pytest.raises(ValueError, match=f"rank {largest} is greater"):
        vllms.validate_legal(SimpleNamespace(max_lora_rank=largest - 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"r": null}', r"Expected `int`, got `null` - at `\$.r`; give the folder that peft's"),
        ('{"r": "8"}', r"Expected `int`, got `str` - at `\$.r`"),
        ('{"r": true}', "Expected `int`, got `bool`"),
        ('{"r": Infinity}', "Expected `int`, got `float`"),
        ('{"r": 0}', "Expected `int` >= 1"),
        ("{}", "Object missing required field `r`; give the folder"),
        ('{"r": 8, "rank_pattern": {"q": 0}}', r"Expected `int` >= 1 - at `\$.rank_pattern"),
        ('{"r": 8, "rank_pattern": [4]}', "Expected `object | null`, got `array`"),
        ("[8]", "Expected `object`, got `array`"),
        ("", r"cannot be read as JSON \(.*\); give the folder"),
        ("[" * 100_000, r"cannot be read as JSON \(.*\)"),
        ('{"r": ' + "9" * 5000 + "}", r"cannot be read as JSON \(.*\)"),
        (b'{"r": 8, "x": "\xff"}', r"cannot be read as JSON \(.*\)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_a_sentence(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_rank(write(tmp_path, content))
    assert str(tmp_path / "adapter_config.json") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_file_is_a_sentence(tmp_path: Path) -> None:
    """A pipe too, and nobody waits for its other end."""
    for name in ("folder", "pipe", "loop"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "adapter_config.json").mkdir()
    os.mkfifo(tmp_path / "pipe" / "adapter_config.json")
    (tmp_path / "loop" / "adapter_config.json").symlink_to("adapter_config.json")
    for name in ("nothing", "", "folder", "pipe", "loop", "a\0b"):
        with pytest.raises(ValueError, match="^no adapter_config.json in .* that is"):
            read_rank(str(tmp_path / name))
