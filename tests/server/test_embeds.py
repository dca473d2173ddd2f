# SPDX-License-Identifier: Apache-2.0
"""Prompts of embeddings over HTTP, of experts and of amateurs, as vLLM's completions take them."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.naive import Amateur, Group, NaiveCold, assert_same_tokens
from tests.server.conftest import Server, arguments, serve

pytestmark = [pytest.mark.server, pytest.mark.full]

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embeds")
    with serve(folder, [*arguments(tiny), "--enable-prompt-embeds"]) as running:
        yield running


def rows(num: int, seed: int) -> torch.Tensor:
    return 0.3 * torch.randn(num, 64, generator=torch.Generator().manual_seed(seed))


def encoded(tensor: torch.Tensor) -> str:
    file = io.BytesIO()
    torch.save(tensor, file)
    return base64.b64encode(file.getvalue()).decode()


def post(server: Server, stream: bool = False, **body: Any) -> tuple[int, str]:
    body = {"model": "one", "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True, **body}
    return server.post("/v1/completions", {"return_token_ids": True, "stream": stream, **body})


def test_embeddings_over_http(server: Server, naive: NaiveCold) -> None:
    mine, others, ids = rows(40, 1), rows(70, 2), list(range(20, 50))
    own = {"cold_alpha": 0, "cold_beta": 1, "cold_amateur_prompt_embeds": encoded(others)}
    group = Group((), "one", [Amateur(-1.0, "one")], 0.0, MAX_TOKENS)
    several = Group((), "one", [Amateur(0.5, "two"), Amateur(-1.5, None)], 0.0, MAX_TOKENS)
    asked: list[tuple[dict[str, Any], Group, list[Any]]] = [
        ({"prompt_embeds": encoded(mine), "vllm_xargs": own}, group, [mine, others]),
        ({"prompt": ids, "vllm_xargs": own}, group, [ids, others]),
        (
            {
                "prompt_embeds": encoded(mine),
                "vllm_xargs": {
                    "cold_alpha": 0,
                    "cold_weights": [0.5, -1.5],
                    "cold_amateur": ["two", "base"],
                    "cold_amateur_prompt_embeds": ["", encoded(others)],
                },
            },
            several,
            [mine, mine, others],
        ),
    ]
    expected = [naive.decode(one, prompts) for _, one, prompts in asked]
    for stream in (False, True):
        got = []
        for body, _, _ in asked:
            status, text = post(server, stream, **body)
            assert status == 200, text
            lines = text.splitlines() if stream else [text]
            events = [json.loads(x.removeprefix("data: ")) for x in lines if "choices" in x]
            found = [choice for event in events for choice in event["choices"]]
            got.append([token for choice in found for token in choice["token_ids"] or ()])
        assert_same_tokens(got, expected)


def test_wrong_embeddings(server: Server) -> None:
    narrow = encoded(torch.zeros(3, 63))
    for stream in (False, True):
        for wrong, message in (
            ({"vllm_xargs": {"cold_amateur_prompt_embeds": narrow}}, "does not match the model's"),
            ({"vllm_xargs": {"cold_amateur_prompt_embeds": "AAAA"}}, "cold_amateur_prompt_embeds="),
            ({"vllm_xargs": {"cold_without": "tool"}}, "is for chats"),
            ({"vllm_xargs": {"cold": 1}, "repetition_penalty": 1.1}, "is for the tokens of a"),
        ):
            status, text = post(server, stream, prompt_embeds=encoded(rows(3, 1)), **wrong)
            assert status == 400 and message in text, text
        # The expert's are vLLM's matter.
        status, text = post(server, stream, prompt_embeds=narrow, vllm_xargs={"cold": 1})
        assert status == 400 and "does not match" in text
    server.wait_until_idle()
