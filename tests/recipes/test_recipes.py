# SPDX-License-Identifier: Apache-2.0
"""The blocks of docs/rag.md and docs/adapters.md as a reader runs them: real packages, a real
server, the small real model. What the recorder saw, asked for in so many words, is what each of
them got.
"""

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, block
from tests.recipes import page
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
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recorder, str, Server]]:
    """One server with what two of the page's have, and the recorder in front of it."""
    from examples.smollm2 import model_path

    adapter = ROOT / "examples" / "adapters" / "sorting"
    own = {"MODEL": str(model_path()), "sorting=cold-example/sorting": f"sorting={adapter}"}
    options = page.served(block(PAGE, "rag-server"), own)
    options += page.served(block(ADAPTERS, "ab-server"), own)[1:]
    # For a machine without an accelerator.
    options += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    options += ["--gpu-memory-utilization", "0.2"]
    with (
        serve(tmp_path_factory.mktemp("recipes"), options) as server,
        record(server.port) as (recorder, url),
    ):
        yield recorder, url, server


def answer_of(recorder: Recorder, body: dict[str, Any], **xargs: Any) -> str:
    """What the base model answers to these messages with these settings."""
    plain = {"model": "base", "messages": body["messages"], "max_tokens": 32, "temperature": 0.0}
    (choice,) = recorder.post("/v1/chat/completions", plain | {"vllm_xargs": xargs})["choices"]
    return str(choice["message"]["content"]).strip()


KEYS = '"vllm_xargs": {"cold_preset": "cad", "cold_beta": 1.0}'
CLIENTS = {
    "openai": (block(PAGE, "rag-openai"), None),
    # And what the page has in place of the name.
    "langchain-openai": (block(PAGE, "rag-langchain"), f"extra_body={{{KEYS}}}"),
    # In an environment of its own: it takes an older openai than vLLM's packages.
    LLAMA_INDEX: (
        block(PAGE, "rag-llamaindex"),
        f'additional_kwargs={{"extra_body": {{{KEYS}}}}}',
    ),
}


@pytest.mark.server
@pytest.mark.parametrize("client", CLIENTS)
def test_rag(client: str, served: tuple[Recorder, str, Server]) -> None:
    """It sends the document as a message of its own and nothing that others would not know, and
    gets what an explicit request gets.
    """
    recorder, url, _ = served
    recorder.take()
    name, _, version = client.partition("==")
    python = page.python_with(client) if version else sys.executable
    text, by_keys = CLIENTS[client]
    shown = (ROOT / PAGE).read_text()
    assert f"{name} {version or importlib.metadata.version(name)}" in shown
    printed = page.run_python(text, url, python, LANGSMITH_TRACING="false")
    (body,) = recorder.take()
    assert (body["model"], body["temperature"]) == ("base:cad", 0.0)
    assert "vllm_xargs" not in body
    system, document, question = body["messages"]
    assert (system, question) == (SYSTEM, QUESTION)
    assert (document["role"], document["content"].strip()) == ("tool", TEXT)
    assert printed == answer_of(recorder, body, **CAD)
    assert "Osaka" in printed and "Tokyo" in answer_of(recorder, body)
    if by_keys is not None:
        assert by_keys in shown
        own = text.replace('model="base:cad"', f'model="base", {by_keys}')
        printed = page.run_python(own, url, python, LANGSMITH_TRACING="false")
        (body,) = recorder.take()
        assert printed == answer_of(recorder, body, **CAD | {"cold_beta": 1.0})


@pytest.mark.server
def test_the_usual_layout(served: tuple[Recorder, str, Server]) -> None:
    """Context and question in one message; the amateur reads the question alone."""
    recorder, url, _ = served
    recorder.take()
    printed = page.run_python(block(PAGE, "rag-usual"), url)
    (body,) = recorder.take()
    question = f"{QUESTION['content']} {SYSTEM['content']}"
    assert body["messages"] == [{"role": "user", "content": f"{TEXT}\n\n{question}"}]
    assert (body["model"], body["vllm_xargs"]) == ("base:cad", {"cold_without_text": TEXT})
    amateur = json.dumps([{"role": "user", "content": f"\n\n{question}"}])
    how = {"cold_alpha": 0, "cold_beta": 0.5, "cold_amateur_messages": amateur}
    assert printed == answer_of(recorder, body, **how)
    assert "Osaka" in printed


@pytest.mark.server
def test_two_names(served: tuple[Recorder, str, Server]) -> None:
    recorder, _, server = served
    printed = page.run_python(block(ADAPTERS, "ab"), server.url).splitlines()

    def header(name: str) -> Any:
        line = next(line for line in printed if line.startswith(name + " {"))
        return json.loads(line[len(name) : line.index("}") + 1])

    assert header("sorting") == {"cold": 0} and header("sorting:cold")["preset"] == "cold"
    messages = [{"role": "user", "content": "Sort these numbers: 32.0 7.5 -4.0"}]
    body = {"model": "sorting", "messages": messages, "max_tokens": 32, "temperature": 0.0}

    def post(**more: Any) -> dict[str, Any]:
        return recorder.post("/v1/chat/completions", body | more)

    plain, cold = (post(vllm_xargs=xargs) for xargs in ({"cold": 0}, {"cold_preset": "cold"}))
    # An answer may have several lines.
    before, _, behind = "\n".join(printed).partition("\nsorting:cold {")
    assert plain["choices"][0]["message"]["content"] in before
    assert cold["choices"][0]["message"]["content"] in behind
    assert plain["model"] == post(model="sorting:cold")["model"] == "sorting"


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
    (tmp_path / "cold-example").mkdir()
    file = tmp_path / "cold-example" / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = block(PAGE, "choose").replace("--model", f"--url {served[2].url}/v1 --model")
    done = page.finished([*page.SHELL, script], tmp_path, {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.startswith(f"{len(rows)} rows: with the text "), done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(rows)
    for answer in answers:
        assert answer["answer"] in (answer["with_text"], answer["from_memory"])
        assert len(answer["numbers"]) == 4 and max(answer["numbers"]) <= 0


def test_the_best_passage_or_none() -> None:
    """The threshold separates what is known, and leaves out what is below."""
    namespace: dict[str, Any] = {}
    exec(block(PAGE, "rag-best"), namespace)
    known = [(0.9, True), (0.7, True), (0.6, False), (0.2, False)]
    assert namespace["fit"](known) == 0.7
    assert namespace["best_or_none"]([(0.3, "b"), (0.8, "a")], 0.7) == ["a"]
    assert namespace["best_or_none"]([(0.3, "b"), (0.6, "a")], 0.7) == []
