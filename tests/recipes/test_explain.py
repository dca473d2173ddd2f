# SPDX-License-Identifier: Apache-2.0
"""The blocks of docs/explain.md as a reader runs them."""

import ast
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.blocks import ROOT, block
from tests.made_up_server import ADAPTER, serving
from tests.recipes.page import offline, run, served, words
from tests.unit.test_explain_command import asks
from tests.vllm_parser import serve_parser

PAGE = "docs/explain.md"
FLOAT32 = " --dtype float32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explain")


def read(page: Path) -> list[dict[str, Any]]:
    """The two answers of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    explained = json.loads(found[1])["explanations"]
    answers = [{**one, **answer} for one in explained for answer in one["answers"]]
    assert [answer["title"] for answer in answers] == ["Contrastive", "Greedy"]
    return answers


@pytest.mark.engine
def test_one_prompt(folder: Path, variables: dict[str, str]) -> None:
    printed = run(block(PAGE, "prompt").rstrip() + FLOAT32, folder, variables)
    assert all(answer["steps"] for answer in read(folder / "sorting.html"))
    assert "against base model, weight -0.5" in printed and "page: sorting.html" in printed


COMMANDS = {
    "prompts": block(PAGE, "prompts"),
    "guided": block(PAGE, "guided"),
    "several": block(PAGE, "several"),
    "url": block(PAGE, "url"),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other commands of the page are taken, with their files."""
    monkeypatch.chdir(tmp_path)
    adapters = {"MODEL": "org/model", "URL": "http://localhost:8000"}
    adapters["ADAPTERS"] = str(ROOT / "examples" / "adapters")
    for file, here in re.findall(
        r"cat > (\S+) <<'END'\n(.*?)END\n", COMMANDS["prompts"] + COMMANDS["guided"], re.S
    ):
        Path(file).write_text(here)
    command = COMMANDS[name].rpartition("vllm-cold explain")[2]
    found = asks(*words(command, adapters))
    labels = [str(one.source) for asked in found for one in asked.contrast.amateurs]
    assert labels == {"guided": ["without system", "without 0:39"]}.get(name, ["None"] * 2)


@pytest.mark.unit
def test_the_server() -> None:
    given = served(block(PAGE, "server"), {"MODEL": "org/model", "ADAPTERS": "/adapters"})
    found = serve_parser().parse_args(given)
    assert [one.name for one in found.lora_modules] == ["sorting", "orders"]


@pytest.mark.unit
@pytest.mark.slow
def test_the_live_page() -> None:
    """The page's command, asked as its page does, before a made-up server; Ctrl-C ends it."""
    with serving() as (url, _):
        script = "exec " + block(PAGE, "live").replace("sorting", ADAPTER).rstrip() + " --port 0"
        # A shell that starts tests in the background ignores interrupts, and so would the command.
        interruptible: Any = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        with subprocess.Popen(
            ["bash", "-c", script],
            env=offline({"URL": url}),
            stdout=subprocess.PIPE,
            text=True,
            **interruptible,
        ) as process:
            try:
                assert process.stdout
                address = process.stdout.readline().split()[0]
                form = {"prompt": "ab", "adapter": ADAPTER, "max_tokens": 4, "beta": "2"}
                reply = httpx.post(f"{address}answer", json=form, timeout=60)
                assert json.loads(reply.text.splitlines()[-1])["event"] == "report"
            finally:
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 130


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.slow
def test_the_real_model(tmp_path: Path) -> None:
    """The first blocks of the page, unchanged: lists of the prompt's numbers, in an order that
    bfloat16 may decide, and each token is the best of its candidates.
    """
    os.symlink(ROOT / "examples", tmp_path / "examples")
    printed = run(f"{block(PAGE, 'setup')}\n{block(PAGE, 'prompt')}", tmp_path, {})
    assert "expert: sorting, SmolLM2" in printed and "against base model, weight -0.5" in printed
    for answer in read(tmp_path / "sorting.html"):
        text = "".join(step["text"] for step in answer["steps"])
        numbers = re.findall(r"-?\d+\.\d+", answer["pieces"][0]["text"])
        listed = ast.literal_eval(text.removesuffix("<|im_end|>"))
        assert len(listed) > 2 and {*map(str, listed)} <= {*numbers}
        # The terminal breaks lines, shows some spaces, and has choices that differ in brackets.
        assert re.sub(r"[\s␣[\]]", "", text) in re.sub(r"[\s␣[\]]", "", printed)
        assert max(step["divergences"][0] for step in answer["steps"]) > 0.1
        for step in answer["steps"]:
            left = {c["token"]: c["score"] for c in step["candidates"] if c["score"] is not None}
            assert left[step["token"]] == max(left.values())
