# SPDX-License-Identifier: Apache-2.0
"""Two engines, one of which prefills and the other decodes. The second finds the KV of all streams
of a request, amateurs' own prompts too: under vLLM's block hashes, or where the first one says.
"""

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.source import since
from tests.docs.blocks import ROOT
from tests.naive import NaiveCold
from tests.server.clients import Asked, assert_right, references, storm
from tests.server.conftest import arguments, serve

pytestmark = [pytest.mark.server, pytest.mark.full, since("0.31")]

BLOCK = 32


def make_requests() -> list[Asked]:
    """Against the base model, another adapter and a shorter prompt; no two begin alike."""
    rng = random.Random(3)
    roles = [("one", 0.5, None), ("one", 1.0, "two"), ("two", 0.5, None, True)]
    roles += [("base", 1.0, "two", True), ("base", None, None), ("two", None, None)]
    requests = []
    for i in range(24):
        prompt = tuple(rng.randrange(4, 512) for _ in range((20, 33, 100, 130)[i % 4]))
        model, beta, amateur, *shorter = roles[i % len(roles)]
        requests.append(Asked(prompt, 16, model, beta, amateur, 10 if shorter else 0))
    return requests


def lengths(asked: Asked) -> list[int]:
    """Of its streams' prompts."""
    both = [len(asked.prompt)] * (1 if asked.beta is None else 2)
    return both + [len(asked.prompt) - asked.skip] * bool(asked.skip)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("connector", ["FolderConnector", "RequestConnector"])
def test_prefill_and_decode(connector: str, tiny: Path, tmp_path: Path, naive: NaiveCold) -> None:
    def command(role: str) -> list[str]:
        transfer = {
            "kv_connector": connector,
            "kv_connector_module_path": "tests.engine.folder_connector",
            "kv_role": role,
            "kv_connector_extra_config": {"folder": str(tmp_path)},
        }
        options = ["--kv-transfer-config", json.dumps(transfer), "--block-size", str(BLOCK)]
        return [*arguments(tiny), *options, "--num-gpu-blocks-override", "200"]

    asked, by_request = make_requests(), connector == "RequestConnector"
    told = {"do_remote_decode": True} if by_request else None
    with (
        serve(tmp_path, command("kv_producer"), PYTHONPATH=str(ROOT)) as prefill,
        serve(tmp_path, command("kv_consumer"), PYTHONPATH=str(ROOT)) as decode,
    ):
        handed_on = []
        for one in asked:
            body = {**replace(one, transfer=told).body(), "max_tokens": 1, "stream": False}
            status, text = prefill.post("/v1/completions", body)
            assert status == 200, text
            handed_on.append(replace(one, transfer=json.loads(text)["kv_transfer_params"]))
        prefill.wait_until_idle()
        got = asyncio.run(storm(decode.url, handed_on, [None] * len(asked)))
        assert_right(got, asked, references(naive, asked))
        loaded = decode.metric("vllm:external_prefix_cache_hits_total")
        whole = [length for one in asked for length in lengths(one)]
        # By blocks, none has the last token.
        assert loaded == sum(whole if by_request else [(n - 1) // BLOCK * BLOCK for n in whole])
        assert not prefill.metric("vllm:external_prefix_cache_hits_total")
        decode.wait_until_idle()
