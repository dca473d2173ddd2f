# SPDX-License-Identifier: Apache-2.0
"""The rank in ``adapter_config.json``: as vLLM reads it, and a sentence for everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold import adapter_config
from vllm_cold.adapter_config import AdapterConfigError, read_rank

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


WRONG: dict[str, tuple[str | bytes, str]] = {
    "null": ('{"r": null}', "r=None: must be an integer >= 1"),
    "text": ('{"r": "8"}', "r='8': must be an integer >= 1"),
    "list": ('{"r": [8]}', r"r=\[8\]: must be an integer >= 1"),
    "boolean": ('{"r": true}', "r=True: must be an integer >= 1"),
    "fraction": ('{"r": 8.0}', "r=8.0: must be an integer >= 1"),
    "infinity": ('{"r": Infinity}', "r=inf: must be an integer >= 1"),
    "zero": ('{"r": 0}', "r=0: must be an integer >= 1"),
    "negative": ('{"r": -8}', "r=-8: must be an integer >= 1"),
    "missing": ("{}", "names no rank, r; give the folder that peft's save_pretrained wrote"),
    "long": (json.dumps({"r": "x" * 9999}), r"r='x+\.\.\.x+': must be an integer >= 1"),
    "of a module": (
        '{"r": 8, "rank_pattern": {"q": "8"}}',
        r"rank_pattern\['q'\]='8': must be an integer >= 1",
    ),
    "pattern": ('{"r": 8, "rank_pattern": [4]}', r"rank_pattern=\[4\]: must be an object of ranks"),
    "no object": ("[8]", "holds no JSON object; give the folder"),
    "no JSON": ('{"r": 8', r"is no JSON \(.*\); give the folder"),
    "nothing": ("", r"is no JSON \(.*\); give the folder"),
    "deep": ("[" * 100_000, r"is no JSON \(.*\); give the folder"),
    "digits": ('{"r": ' + "9" * 5000 + "}", r"is no JSON \(.*\); give the folder"),
    "no UTF-8": (b'{"r": 8, "x": "\xff"}', r"is no UTF-8 text \(.*\); give the folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_a_sentence(tmp_path: Path, case: str) -> None:
    content, message = WRONG[case]
    with pytest.raises(AdapterConfigError, match=message) as error:
        read_rank(write(tmp_path, content))
    assert isinstance(error.value, ValueError)
    assert str(tmp_path / "adapter_config.json") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(AdapterConfigError, match=f"no adapter_config.json in {folder}; give"):
            read_rank(str(folder))
    with pytest.raises(AdapterConfigError, match="cannot be read .*null"):
        read_rank("a\0b")
    (tmp_path / "adapter_config.json").mkdir()
    with pytest.raises(AdapterConfigError, match="is not a regular file"):
        read_rank(str(tmp_path))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "adapter_config.json")
    with pytest.raises(AdapterConfigError, match="is not a regular file"):  # and does not wait
        read_rank(str(tmp_path / "pipe"))
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "adapter_config.json").symlink_to("adapter_config.json")
    with pytest.raises(AdapterConfigError, match="cannot be read .*symbolic links"):
        read_rank(str(tmp_path / "loop"))


def test_a_file_is_read_once_and_again_when_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    real = json.load
    monkeypatch.setattr(adapter_config.json, "load", lambda file: reads.append(1) or real(file))
    for content, time, rank in (
        ('{"r": 8}', 1, 8),
        ('{"r": 16}', 1, 16),  # another size
        ('{"r": 32}', 2, 32),  # another time
    ):
        folder = write(tmp_path, content)
        os.utime(tmp_path / "adapter_config.json", ns=(time, time))
        reads.clear()
        assert read_rank(folder) == read_rank(folder) == rank
        assert len(reads) == 1
    with pytest.raises(AdapterConfigError):
        read_rank(write(tmp_path, "{"))
    assert read_rank(write(tmp_path, '{"r": 8}')) == 8  # an error is not kept


def test_it_imports_neither_vllm_nor_torch() -> None:
    code = (
        "import sys, vllm_cold.adapter_config; sys.exit(bool({'vllm', 'torch'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
