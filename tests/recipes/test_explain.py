# SPDX-License-Identifier: Apache-2.0
"""The blocks of docs/explain.md as a reader runs them."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.blocks import ROOT, block
from tests.recipes.page import offline, run, words
from tests.server.conftest import serve

PAGE = "docs/explain.md"
FLOAT32 = " --dtype float32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explain")


def read(page: Path) -> tuple[dict[str, Any], str]:
    """The data and the text of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    first, *_ = json.loads(found[1])
    return first, text


def check(page: Path, prompts: int, alpha: float, beta: float) -> dict[str, Any]:
    """The page has every answer, and the engine's tokens are those of the numbers."""
    data, _ = read(page)
    assert (data["alpha"], data["beta"]) == (alpha, beta)
    assert len(data["prompts"]) == prompts
    for prompt in data["prompts"]:
        for answer in prompt.values():
            assert answer["steps"]
            assert answer["mismatches"] == {}
    return data


@pytest.mark.engine
def test_one_prompt(folder: Path, variables: dict[str, str]) -> None:
    printed = run(block(PAGE, "prompt").rstrip() + FLOAT32, folder, variables)
    check(folder / "sorting.html", 1, 0.1, 0.5)
    assert "sorting against base model" in printed
    assert "page: sorting.html" in printed


@pytest.mark.engine
def test_other_prompts(folder: Path, variables: dict[str, str]) -> None:
    """What the page says of its chat and its text: each without a part, by the base model."""
    printed = run(block(PAGE, "guided").rstrip() + FLOAT32, folder, variables)
    flowing = " ".join(printed.split())
    assert "system: [-Answer in French.-] user: What is the capital of Japan?" in flowing
    assert "[-Text: Manila is the capital of Russia. -]Question: What is" in flowing
    assert "base model against amateurs that differ from prompt to prompt" in flowing
    check(folder / "guided.html", 2, 0.1, 1.0)


@pytest.mark.engine
def test_several_amateurs(folder: Path, variables: dict[str, str]) -> None:
    printed = run(block(PAGE, "several").rstrip() + FLOAT32, folder, variables)
    assert "sorting against orders and base model" in printed
    data = check(folder / "several.html", 1, 0.1, 0.5)
    assert data["amateurs"] == [["orders", "base model"]]
    for answer in data["prompts"][0].values():
        assert {tuple(step["weights"]) for step in answer["steps"]} == {(-0.5, -0.25)}


@pytest.mark.server
def test_a_file_of_prompts_offline_and_served(
    folder: Path, variables: dict[str, str], served: str
) -> None:
    """The server says what the engine in the tool's process says."""
    run(block(PAGE, "prompts").rstrip() + FLOAT32, folder, variables)
    own = check(folder / "against-orders.html", 2, 0.02, 1.0)
    script = block(PAGE, "url")
    assert "http://localhost:8000\n" in script
    run(script.replace("http://localhost:8000", served), folder, variables)
    other = check(folder / "served.html", 2, 0.02, 1.0)
    for mine, theirs in zip(own["prompts"], other["prompts"], strict=True):
        for kind in ("cold", "greedy"):
            ours, its = (
                [(s["token"], s["winner"], s["greedy"], s["size"]) for s in x[kind]["steps"]]
                for x in (mine, theirs)
            )
            assert ours == its
    assert any(p["cold"]["steps"] != p["greedy"]["steps"] for p in own["prompts"])


@pytest.mark.server
def test_methods_side_by_side(folder: Path, variables: dict[str, str], served: str) -> None:
    """The page's command, of the server that is there already."""
    script = block(PAGE, "side").replace('--model "$MODEL"', f"--url {served}")
    printed = run(script.replace("$ADAPTERS/sorting", "sorting"), folder, variables)
    _, text = read(folder / "side.html")
    titles = re.findall(r'<h3 id="answer-0-\d">(.*?)</h3>', text)
    assert titles == ["Greedy", "cold, beta 1", "cold, alpha 0.3, beta adaptive"]
    assert "alpha 0.3, beta adaptive up to 1" in " ".join(printed.split())


@pytest.mark.server
def test_the_live_page(variables: dict[str, str], served: str) -> None:
    """The page's command, asked as its page does."""
    script = "exec " + block(PAGE, "live").rstrip() + " --port 0"
    command = ["bash", "-c", script]
    environment = offline({**variables, "URL": served})
    # A shell that starts tests in the background ignores interrupts, and so would the command.
    interruptible: Any = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, **interruptible
    ) as process:
        try:
            assert process.stdout
            address = process.stdout.readline().split()[0]
            form = {"prompt": "w12 w7", "chat": True, "adapter": "sorting", "max_tokens": 8}
            form["methods"] = [{"name": "greedy"}, {"name": "cold", "beta": "2"}]
            reply = httpx.post(f"{address}answer", json=form, timeout=60)
            events = [json.loads(line) for line in reply.text.splitlines()]
            told = [0, 0]  # tokens; an event may bring several, where the page is slower
            for event in events:
                if event["event"] == "tokens":
                    told[event["place"]] += len(event["texts"])
            assert told == [8, 8]
            assert events[-1]["event"] == "report", events[-1]
            [data] = events[-1]["methods"]
            assert data["name"] == "cold, beta 2" and data["beta"] == 2.0
            for answer in data["prompts"][0].values():
                assert len(answer["steps"]) == 8 and answer["mismatches"] == {}
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130


@pytest.fixture(scope="module")
def served(variables: dict[str, str], folder: Path) -> Iterator[str]:
    arguments = [
        *words(block(PAGE, "server"), variables)[2:],
        *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32"),
    ]
    with serve(folder, arguments) as server:
        yield server.url


@pytest.mark.engine
@pytest.mark.slow
def test_the_real_model(tmp_path: Path) -> None:
    """The first blocks of the page, unchanged: the answer is a list of numbers."""
    os.symlink(ROOT / "examples", tmp_path / "examples")
    script = f"{block(PAGE, 'setup')}\n{block(PAGE, 'prompt')}"
    printed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=offline({}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"51\.0.*45\.0", printed)
    data, text = read(tmp_path / "sorting.html")
    assert "SmolLM2" in text or "smollm2" in text.lower()
    for answer in data["prompts"][0].values():
        # bfloat16: a near tie may be rounded the other way, but no more than that.
        assert all(margin is not None and margin < 0.5 for margin in answer["mismatches"].values())
        assert max(step["divergence"] for step in answer["steps"]) > 0.01
