# SPDX-License-Identifier: Apache-2.0
"""Two data-parallel engines behind one port give the tokens of one, and both get work: of a Llama
and of a model with SSM layers.
"""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.contracts.source import since
from tests.docs.blocks import block
from tests.engine.families import WITH_SSM, make_adapter, make_model
from tests.naive import NaiveCold
from tests.recipes.page import served
from tests.server.clients import Asked, assert_right, references, storm
from tests.server.conftest import Server, arguments, serve
from tests.tiny import make_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.full]


def make_requests() -> list[Asked]:
    """With both adapters, against the base model and each other; with the base model against an
    adapter and a shorter prompt; and regular ones.
    """
    rng = random.Random(5)
    roles = [("one", 0.5, None), ("two", 2.0, None), ("one", 1.0, "two")]
    roles += [("base", None, None), ("two", None, None)]
    roles += [("one", 0.5, None, True), ("base", 1.0, "two", True)]
    requests = []
    for i in range(49):
        prompt = tuple(rng.randrange(4, 512) for _ in range((1, 31, 33, 64)[i % 4]))
        model, beta, amateur, *shorter = roles[i % 7]
        skip = len(prompt) // 3 if shorter else 0
        requests.append(Asked(prompt, 16, model, beta, amateur, skip))
    return requests


def by_engine(server: Server, name: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for sample in server.samples(name):
        found[sample.labels["engine"]] += int(sample.value)
    assert found.keys() == {"0", "1"}
    return found


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """A Granite 4 with two adapters."""
    family = WITH_SSM["granite-4-hybrid"]
    model = make_model(family, tmp_path / "model")
    make_tokenizer().save_pretrained(model)
    for seed, name in enumerate(("one", "two"), 1):
        make_adapter(family, model, tmp_path / name, seed)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)  # eight processes start
@pytest.mark.parametrize(
    ("fixture", "num_blocks"),
    [
        ("tiny", 13),
        pytest.param("hybrid", 28, marks=since("0.32")),
    ],
)
def test_data_parallel(
    fixture: str, num_blocks: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The page's command, with vLLM's coordinator and an API server process for each engine."""
    folder = request.getfixturevalue(fixture)
    naive = NaiveCold(folder / "model", {name: folder / name for name in ("one", "two")})
    variables = {"MODEL": str(folder / "model"), "ADAPTERS": str(folder)}
    model, *options = served(block("docs/scale-out.md", "data-parallel"), variables)
    command = [model, *arguments(folder)[1:], *options]
    command += ["--block-size", "32", "--num-gpu-blocks-override", str(num_blocks)]
    asked = make_requests()
    # vLLM would want a NUMA node for each engine.
    with serve(tmp_path, command, VLLM_CPU_OMP_THREADS_BIND="nobind") as server:
        got = asyncio.run(storm(server.url, asked, [None] * len(asked)))
        assert_right(got, asked, references(naive, asked))
        tokens = by_engine(server, "vllm:generation_tokens_total")
        assert min(tokens.values()) >= 16 * 5, tokens
        assert sum(tokens.values()) == 16 * len(asked)
        server.wait_until_idle()
        # Ours too, added up over both API servers.
        cold = [a for a in asked if a.beta is not None]
        found = by_engine(server, "vllm:cold_generation_tokens_total")
        assert min(found.values()) > 0 and sum(found.values()) == 16 * len(cold)
        assert server.metric("vllm:cold_requests_total") == len(cold)
        assert server.metric("vllm:cold_candidates_count") == 16 * len(cold)
        # What a contrastive request may take is counted in one engine's blocks, not in both
        # engines'.
        large = {**asked[0].body(), "max_tokens": 250}
        if fixture == "tiny":
            status, text = server.post("/v1/completions", {**large, "stream": False})
            assert status == 400
            assert "need 16 KV cache blocks of 32 tokens, and the engine has 12" in text
        for number in range(4):  # whichever API server answers
            bad = {**asked[0].body(), "vllm_xargs": {"cold_amateur": f"nobody{number}"}}
            status, text = server.post("/v1/completions", bad)
            assert status == 400
            assert (
                "no such adapter is loaded (loaded: one, two)"
                in json.loads(text)["error"]["message"]
            )
        # Engines share the seed, but not what they sample for requests without one.
        sampled = {**large, "max_tokens": 16, "temperature": 2.0, "stream": False}
        drawn = []
        for rank in "01":
            status, text = server.post("/v1/completions", sampled, **{"X-data-parallel-rank": rank})
            assert status == 200, text
            drawn.append(json.loads(text)["choices"][0]["token_ids"])
        assert drawn[0] != drawn[1]
