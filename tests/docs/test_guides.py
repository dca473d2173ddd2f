# SPDX-License-Identifier: Apache-2.0
"""Each guide ends in commands that run as pasted, on the files of ``vllm-cold example``."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.blocks import ROOT, block, blocks
from tests.recipes import page
from vllm_cold.rules import registry
from vllm_cold.tools import models
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.main import main

IMAGES = "docs/images.md"
ENDS = {
    "docs/tutorial.md": block("docs/tutorial.md", "end"),
    "docs/rag.md": block("docs/rag.md", "end"),
    "docs/system-prompts.md": block("docs/system-prompts.md", "end"),
    "docs/adapters.md": block("docs/adapters.md", "end"),
    "docs/bound.md": block("docs/bound.md", "end"),
    IMAGES: block("docs/images.md", "end"),
    "docs/tuning.md": block("docs/tuning.md", "end"),
    "docs/explain.md": block("docs/explain.md", "end"),
    "docs/write-a-rule.md": block("docs/write-a-rule.md", "end"),
    "docs/benchmarking.md": block("docs/benchmarking.md", "end"),
}
STEPS = {
    "problems": block("docs/tutorial.md", "problems"),
    "explain": block("docs/tutorial.md", "explain"),
    "free": block("docs/tutorial.md", "free"),
}


def commands(text: str) -> list[list[str]]:
    """The words of a block's vllm-cold commands."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("vllm-cold ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's, with the rule of its page; there is a model as far as its folder shows."""
    model = tmp_path / "cache" / "SmolLM2-135M-Instruct-bf16"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.setenv("COLD_CACHE", str(model.parent))
    (tmp_path / "my_rules.py").write_text(block("docs/write-a-rule.md", "rule"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_added", {})
    return tmp_path


@pytest.mark.unit
def test_each_guide_ends_so() -> None:
    """The last block that a reader runs is that one, and it needs nothing but the example."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    (guides,) = [part["Guides"] for part in nav if "Guides" in part]
    names = {f"docs/{name}" for guide in guides for name in guide.values()}
    assert ENDS.keys() == names | {"docs/tutorial.md"}
    for name, text in ENDS.items():
        runnable = [each for each in blocks(name) if each.language not in ("text", "json")]
        assert runnable[-1].text == text, name
        assert "vllm-cold example\n" in text or name == "docs/tutorial.md", name


@pytest.mark.unit
@pytest.mark.parametrize("name", [*ENDS, *STEPS])
def test_the_commands_find_all_that_they_name(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As pasted, up to the server that they would start."""

    def serving(*_: Any, **__: Any) -> Any:
        raise ToolError("a server starts")

    monkeypatch.setattr(models, "serving", serving)
    text = ENDS.get(name) or STEPS[name]
    assert main(["example"]) == 0
    capsys.readouterr()
    for path in re.findall(r"cold-example/[\w.-]+", text):
        assert Path(path).exists(), path
    for words in commands(text):
        status = main(words)
        said = capsys.readouterr().err
        if words[0] == "example":
            assert status == 0
        else:
            assert (status, said.splitlines()[-1]) == (2, f"vllm-cold {words[0]}: a server starts")


@pytest.mark.server
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(ENDS.keys() - {IMAGES}))
def test_the_commands_run(name: str, tmp_path: Path) -> None:
    """With the example's model; that of images is in tests/recipes."""
    (tmp_path / "my_rules.py").write_text(block("docs/write-a-rule.md", "rule"))
    text = ENDS[name]
    if name == "docs/tutorial.md":
        text = "\n".join([*STEPS.values(), text])
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = page.finished(["bash", "-c", text], tmp_path, environment, 800)
    # 1: nothing is to be used.
    assert done.returncode in (0, 1), done.stderr[-3000:]
    verdict = r"\n(Use|Keep|Leave) .* on \d+ held-out problems.*\n$"
    ends = {"tune": verdict, "explain": r"page: cold-explain.html\n$", "example": "Throughput: "}
    kind = commands(text)[-1][0]
    assert re.search(ends[kind], done.stdout), done.stdout[-2000:]
