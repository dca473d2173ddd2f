# SPDX-License-Identifier: Apache-2.0
"""The recipes that talk to a server: the page's own blocks, in real processes, against the server
of its own block. A recorder in between shows what the clients send; the same requests, sent
directly, show what they should have got.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import block
from tests.recipes.conftest import PROBLEMS
from tests.recipes.page import accuracy, answers, run, served
from tests.recipes.recorder import Recorder, record
from tests.server.conftest import serve

pytestmark = [pytest.mark.server, pytest.mark.full]

PAGE = "docs/benchmarking.md"


@dataclass
class Recipes:
    """A working folder, and the server that its recipes see."""

    folder: Path
    variables: dict[str, str]
    recorder: Recorder

    def run(self, script: str) -> str:
        self.recorder.take()
        return run(script, self.folder, self.variables)

    def results(self, name: str) -> Path:
        return self.folder / "results" / name


@pytest.fixture(scope="module")
def recipes(
    checkout: Path, variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recipes]:
    """The page's server, with what the tiny model needs."""
    arguments = [
        *served(block(PAGE, "server"), variables),
        *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32"),
        *("--hf-overrides", json.dumps({"max_position_embeddings": 1024})),
    ]
    with (
        serve(tmp_path_factory.mktemp("serve"), arguments) as server,
        record(server.port) as (recorder, url),
    ):
        yield Recipes(checkout, variables | {"URL": url}, recorder)


def text(recorder: Recorder, body: dict[str, Any], **xargs: Any) -> str:
    """What the server says to a recorded completion, unstreamed; ``xargs`` replace its own."""
    plain = {key: value for key, value in body.items() if key != "stream_options"}
    plain |= {"stream": False} | ({"vllm_xargs": xargs} if xargs else {})
    (choice,) = recorder.post("/v1/completions", plain)["choices"]
    return choice["text"]  # type: ignore[no-any-return]


def test_bench_serve(recipes: Recipes) -> None:
    """Both runs send the same requests, and each gets what the server gives to a single one."""
    recipes.run(block(PAGE, "bench-serve"))
    bodies = recipes.recorder.take()
    sent = {  # but for two that warm up
        cold: [b for b in bodies if b["vllm_xargs"] == {"cold": cold}][2:] for cold in (1, 0)
    }
    assert len(bodies) == 2 * (2 + 32)
    texts = {}
    for cold, requests in sent.items():
        detail = json.loads(recipes.results(f"cold-{cold}.json").read_text())
        assert (detail["completed"], detail["failed"]) == (32, 0)
        assert detail["output_lens"] == [64] * 32
        assert {(b["model"], b["temperature"]) for b in requests} == {("sorting", 0.0)}
        texts[cold] = detail["generated_texts"]
        for body in requests[:6]:
            answer = text(recipes.recorder, body)
            assert answer in texts[cold]
            assert text(recipes.recorder, body, cold=1 - cold) not in texts[cold]
    prompts = [sorted(str(b["prompt"]) for b in requests) for requests in sent.values()]
    assert prompts[0] == prompts[1]
    differing = sum(a != b for a, b in zip(texts[1], texts[0], strict=True))

    printed = recipes.run(block(PAGE, "bench-compare"))
    assert re.search(
        r"^contrastive decoding   32 completed, 0 failed, [\d.]+ tokens/s, median TPOT", printed
    )
    assert f"{differing} of 32 texts differ" in printed


def test_bench_serve_with_several_adapters(recipes: Recipes) -> None:
    recipes.run(block(PAGE, "bench-adapters"))
    bodies = recipes.recorder.take()
    assert [b["model"] for b in bodies].count("sorting") == 16
    assert [b["model"] for b in bodies].count("orders") == 16
    detail = json.loads(recipes.results("adapters.json").read_text())
    assert (detail["completed"], detail["failed"]) == (32, 0)
    for body in bodies[:4]:  # the server's default is contrastive decoding
        assert text(recipes.recorder, body) in detail["generated_texts"]
        assert text(recipes.recorder, body, cold=0) not in detail["generated_texts"]


def test_lm_eval(recipes: Recipes) -> None:
    """vllm-cold solves the problems that the reference made for it, adapter and base model do not;
    all answers are those of single requests.
    """
    recipes.run(block(PAGE, "lm-eval"))
    bodies = recipes.recorder.take()
    assert len(bodies) == 3 * PROBLEMS
    model = recipes.variables["MODEL"]
    for number, (name, asked, cold) in enumerate(
        (("cold", "sorting", 1), ("greedy", "sorting", 0), ("base", model, 0))
    ):
        requests = bodies[number * PROBLEMS : (number + 1) * PROBLEMS]
        assert {b["model"] for b in requests} == {asked}
        assert all(b["vllm_xargs"] == {"cold": cold} for b in requests)
        folder = recipes.results(name)
        assert accuracy(folder, "sorting") == (1.0 if cold else 0.0)
        direct = [text(recipes.recorder, body) for body in requests]
        assert sorted(direct) == sorted(answers(folder, "sorting"))


def test_lm_eval_by_a_tasks_file(recipes: Recipes) -> None:
    task = recipes.folder / "examples" / "lm_eval" / "own.yaml"
    settings = block(PAGE, "lm-eval-task") + "  max_gen_toks: 8\n"
    task.write_text(f"include: sorting.yaml\ntask: own\n{settings}")
    recipes.run(
        "lm_eval --model local-completions --model_args model=sorting,num_concurrent=8"
        ' base_url="$URL/v1/completions",tokenizer="$MODEL",tokenizer_backend=huggingface'
        " --tasks own --include_path examples/lm_eval --apply_chat_template"
    )
    bodies = recipes.recorder.take()
    assert [b["vllm_xargs"] for b in bodies] == [{"cold_alpha": 0.1, "cold_beta": 0.5}] * PROBLEMS


def test_lm_eval_chat(recipes: Recipes) -> None:
    """The server's default is enough."""
    recipes.run(block(PAGE, "lm-eval-chat"))
    bodies = recipes.recorder.take()
    assert len(bodies) == PROBLEMS
    assert all("messages" in b and "vllm_xargs" not in b for b in bodies)
    assert accuracy(recipes.results("chat"), "sorting") == 1.0
