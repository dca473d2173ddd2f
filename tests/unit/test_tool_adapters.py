# SPDX-License-Identifier: Apache-2.0
"""Models and adapters as a command line names them."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.tools.adapters import (
    RANKS,
    Adapter,
    engine_arguments,
    read_adapter,
    read_adapters,
    read_model,
)
from vllm_cold.tools.command_error import ToolError

pytestmark = pytest.mark.unit


def make_adapter(folder: Path, **config: Any) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_adapters(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "sql", r=8, rank_pattern={"q_proj": 24})
    assert read_adapter("--adapter", folder) == Adapter("sql", folder, 24)
    assert read_adapter("--adapter", f"other={folder}").name == "other"
    (tmp_path / "link").symlink_to(folder)
    assert read_adapter("--adapter", f"{tmp_path / 'link'}/") == Adapter("link", folder, 24)
    assert read_adapter("--adapter", f"{folder}/x/..") == Adapter("sql", folder, 24)
    odd = make_adapter(tmp_path / "a=b", r=8)
    assert read_adapter("--adapter", odd) == Adapter("a=b", odd, 8)


def test_adapters_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"--adapter=.*missing': no such folder"):
        read_adapter("--adapter", str(tmp_path / "missing"))
    with pytest.raises(ToolError, match=r"--amateur=.*: no adapter_config.json in"):
        read_adapter("--amateur", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ToolError, match="--adapter='.*adapter_config.json cannot be read as JSON"):
        read_adapter("--adapter", str(tmp_path))


def test_two_adapters_differ(tmp_path: Path) -> None:
    one, two = (make_adapter(tmp_path / name, r=8) for name in ("one", "two"))
    assert [a.name for a in read_adapters(one)] == ["one"]
    assert [a.name for a in read_adapters(one, [two])] == ["one", "two"]
    assert [a.name for a in read_adapters(None, [two, one])] == ["two", "one"]
    for expert, amateurs in ((one, [f"other={one}"]), (None, [one, f"other={one}"])):
        with pytest.raises(ToolError, match="has the name or the folder of another adapter"):
            read_adapters(expert, amateurs)
    with pytest.raises(ToolError, match="has the name or the folder of another adapter"):
        read_adapters(one, [f"one={two}"])


def test_an_engine_takes_what_is_used() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == RANKS
    assert engine_arguments([]) == {"additional_config": {"cold": {"enabled": False}}}
    two = [Adapter("a", "/a", 8), Adapter("b", "/b", 24)]
    assert engine_arguments(two) == {"enable_lora": True, "max_loras": 2, "max_lora_rank": 32}
    assert engine_arguments(two[:1])["max_lora_rank"] == 8
    cold = {"enabled": False, "rules": ["a:B"]}
    assert engine_arguments([], ["a:B"]) == {"additional_config": {"cold": cold}}
    assert engine_arguments(two, ["a:B"])["additional_config"] == {"cold": cold}
    with pytest.raises(ToolError, match="serves ranks up to 512"):
        engine_arguments([Adapter("a", "/a", 600)])


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_model("org/model") == "org/model"
    for missing in ("./none", "/none/of/them", str(tmp_path)):
        with pytest.raises(ToolError, match="--model=.*: no config.json there"):
            read_model(missing)
    (tmp_path / "config.json").write_text("{}")
    assert read_model(".") == read_model(str(tmp_path)) == str(tmp_path)
