# SPDX-License-Identifier: Apache-2.0
"""The blocks of docs/rag.md and docs/adapters.md as a reader runs them: real packages, a real
server, the small real model. What the recorder saw, asked for in so many words, is what each of
them got.
"""

import csv
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, block
from tests.recipes import page
from tests.recipes.environment import python_with
from tests.recipes.page import offline
from tests.recipes.recorder import Recorder, record
from tests.server.conftest import Server, serve

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(900)]

PAGE = "docs/rag.md"
ADAPTERS = "docs/adapters.md"
LLAMA_INDEX = "llama-index-llms-openai-like==0.8.1"
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}
QUESTION = {"role": "user", "content": "What is the capital of Japan?"}
TEXT = "Since 2031 the capital of Japan is Osaka."
CAD = {"cold_alpha": 0, "cold_beta": 0.5, "cold_without": 1}


@pytest.fixture(scope="module")
def model() -> str:
    from examples.smollm2 import model_path

    return str(model_path())


def options(name: str, model: str) -> list[str]:
    """Of a server of the page, for a machine without an accelerator."""
    own = {
        "MODEL": model,
        "sql=/path/to/sql-adapter": f"sql={ROOT / 'examples' / 'adapters' / 'sorting'}",
    }
    found = page.served(
        {"rag": block(PAGE, "rag-server"), "ab": block(ADAPTERS, "ab-server")}[name], own
    )
    small = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512")
    return [*found, *small, "--gpu-memory-utilization", "0.2"]


@pytest.fixture(scope="module")
def served(
    model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Recorder, str, Server]]:
    """One server with what two of the page's have, and the recorder in front of it."""
    both = [*options("rag", model), *options("ab", model)[1:]]
    with (
        serve(tmp_path_factory.mktemp("recipes"), both) as server,
        record(server.port) as (recorder, url),
    ):
        yield recorder, url, server


def run_python(text: str, url: str, python: Path | str = sys.executable, **own: str) -> str:
    """What a block prints, run as a file of its own."""
    assert "http://localhost:8000" in text
    done = subprocess.run(
        [str(python), "-c", text.replace("http://localhost:8000", url)],
        env=offline(own),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def said(recorder: Recorder, body: dict[str, Any], **xargs: Any) -> str:
    """What the base model answers to these messages with these settings."""
    plain = {"model": "base", "messages": body["messages"], "max_tokens": 32, "temperature": 0.0}
    (choice,) = recorder.post("/v1/chat/completions", plain | {"vllm_xargs": xargs})["choices"]
    return str(choice["message"]["content"]).strip()


def check_rag(recorder: Recorder, printed: str) -> None:
    """It sent the document as a message of its own and nothing that others would not know, and got
    what an explicit request gets.
    """
    (body,) = recorder.take()
    assert (body["model"], body["temperature"]) == ("base:cad", 0.0)
    assert "vllm_xargs" not in body
    system, document, question = body["messages"]
    assert (system, question) == (SYSTEM, QUESTION)
    assert (document["role"], document["content"].strip()) == ("tool", TEXT)
    assert printed == said(recorder, body, **CAD)
    assert "Osaka" in printed and "Tokyo" in said(recorder, body)


@pytest.mark.server
def test_openai(served: tuple[Recorder, str, Server]) -> None:
    recorder, url, _ = served
    recorder.take()
    assert f"openai {importlib.metadata.version('openai')}" in (ROOT / PAGE).read_text()
    check_rag(recorder, run_python(block(PAGE, "rag-openai"), url))


@pytest.mark.server
def test_langchain(served: tuple[Recorder, str, Server]) -> None:
    recorder, url, _ = served
    recorder.take()
    version = importlib.metadata.version("langchain-openai")
    assert f"langchain-openai {version}" in (ROOT / PAGE).read_text()
    text = block(PAGE, "rag-langchain")
    check_rag(recorder, run_python(text, url, LANGSMITH_TRACING="false"))
    # What the page has in place of the name.
    other = 'model="base", extra_body={"vllm_xargs": {"cold_preset": "cad", "cold_beta": 1.0}}'
    assert other in (ROOT / PAGE).read_text()
    printed = run_python(text.replace('model="base:cad"', other), url, LANGSMITH_TRACING="false")
    (body,) = recorder.take()
    assert printed == said(recorder, body, **CAD | {"cold_beta": 1.0})


@pytest.mark.server
def test_llamaindex(served: tuple[Recorder, str, Server]) -> None:
    """In an environment of its own: it takes an older openai than vLLM's packages."""
    recorder, url, _ = served
    recorder.take()
    assert LLAMA_INDEX.replace("==", " ") in (ROOT / PAGE).read_text()
    python = python_with(LLAMA_INDEX)
    text = block(PAGE, "rag-llamaindex")
    check_rag(recorder, run_python(text, url, python))
    other = 'additional_kwargs={"extra_body": {"vllm_xargs": {"cold_preset": "cad", '
    other += '"cold_beta": 1.0}}}'
    assert other in (ROOT / PAGE).read_text()
    own = text.replace('model="base:cad"', f'model="base", {other}')
    printed = run_python(own, url, python)
    (body,) = recorder.take()
    assert printed == said(recorder, body, **CAD | {"cold_beta": 1.0})


@pytest.mark.server
def test_two_names(served: tuple[Recorder, str, Server]) -> None:
    recorder, _, server = served
    printed = run_python(block(ADAPTERS, "ab"), server.url).splitlines()
    plain, cold = (next(x for x in printed if x.startswith(n)) for n in ("sql {", "sql:cold {"))
    assert json.loads(plain[4 : plain.index("}") + 1]) == {"cold": 0}
    assert json.loads(cold[9 : cold.index("}") + 1])["preset"] == "cold"
    messages = [{"role": "user", "content": "Sort these numbers: 32.0 7.5 -4.0"}]
    body = {"model": "sql", "messages": messages, "max_tokens": 32, "temperature": 0.0}
    found = {
        i: recorder.post("/v1/chat/completions", body | {"vllm_xargs": xargs})
        for i, xargs in enumerate(({"cold": 0}, {"cold_amateur": "base"}))
    }
    texts = [found[i]["choices"][0]["message"]["content"] for i in (0, 1)]
    # An answer may have several lines.
    shown, _, behind = "\n".join(printed).partition("\nsql:cold {")
    assert texts[0] in shown and texts[1] in behind
    assert found[0]["model"] == recorder.post(
        "/v1/chat/completions", body | {"model": "sql:cold"}
    )["model"] == "sql"  # fmt: skip


@pytest.mark.server
def test_two_answers(served: tuple[Recorder, str, Server], tmp_path: Path) -> None:
    """What only the document says, and what only memory knows, as the document says otherwise."""
    known = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Germany": "Berlin"}
    known |= {"Spain": "Madrid", "Russia": "Moscow", "Greece": "Athens", "China": "Beijing"}

    def row(text: str, question: str, answer: str) -> dict[str, Any]:
        chat = [{"role": "user", "content": question}]
        return {"with": [{"role": "user", "content": f"{text} {question}"}], "without": chat,
                "answers": [answer]}  # fmt: skip

    rows = []
    for number, (country, capital) in enumerate(known.items()):
        room = f"The code of room {number} is {7 * number + 101}."
        rows.append(row(room, f"What is the code of room {number}?", str(7 * number + 101)))
        other = f"Since 2031 the capital of {country} is Osaka."
        rows.append(row(other, f"What is the capital of {country}?", capital))
    for name in ("rows", "new"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    script = block(PAGE, "choose").replace("--model", f"--url {served[2].url}/v1 --model")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=offline({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.startswith(f"{len(rows)} rows: with the text "), done.stderr
    for line in done.stdout.splitlines():
        found = json.loads(line)
        assert found["answer"] in (found["with_text"], found["from_memory"])
        assert len(found["numbers"]) == 4 and max(found["numbers"]) <= 0
    assert len(done.stdout.splitlines()) == len(rows)


@pytest.mark.engine
def test_fifty_problems(tiny: Path, tmp_path: Path) -> None:
    """From a table of pairs to the verdict. On the tiny model, whose answers are always wrong."""
    with (tmp_path / "pairs.csv").open("w", newline="") as pairs:
        csv.writer(pairs).writerows(
            (f'The "code" of room {n}, today, is {7 * n}.', f"What is the code of room {n}?", 7 * n)
            for n in range(100, 150)
        )
    folder = {"cwd": tmp_path, "env": offline({"MODEL": str(tiny / "model")})}
    text = block(PAGE, "tune-problems")
    subprocess.run([sys.executable, "-c", text], check=True, **folder)  # type: ignore[call-overload]
    problems = [json.loads(x) for x in (tmp_path / "problems.jsonl").read_text().splitlines()]
    assert len(problems) == 50
    assert problems[0]["answer"] == "700"
    assert problems[0]["messages"][1]["content"] == 'The "code" of room 100, today, is 700.'
    script = block(PAGE, "tune").rstrip() + " --dtype float32 --enforce-eager"
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**offline({"MODEL": str(tiny / "model")}), **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Use greedy decoding: no setting or baseline beats it significantly" in done.stdout
    found = json.loads((tmp_path / "cold-tune" / "report.json").read_text())
    tried = [row["setting"] for row in found["settings"] if "plain" not in row["setting"]]
    settings = [(setting.get("preset"), setting.get("beta")) for setting in tried]
    assert [beta for preset, beta in settings if not preset] == [0.25, 0.5, 1.0]
    assert [preset for preset, _ in settings if preset] == ["adacad"]
    assert found["test"]["count"] == 25
    assert found["run"]["contrast"] == {"cold_without": "tool"}


def test_the_best_passage_or_none() -> None:
    """The threshold separates what is known, and leaves out what is below."""
    found: dict[str, Any] = {}
    exec(block(PAGE, "rag-best"), found)
    known = [(0.9, True), (0.7, True), (0.6, False), (0.2, False)]
    assert found["fit"](known) == 0.7
    assert found["best_or_none"]([(0.3, "b"), (0.8, "a")], 0.7) == ["a"]
    assert found["best_or_none"]([(0.3, "b"), (0.6, "a")], 0.7) == []
