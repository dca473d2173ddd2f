# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with a running server, against the naive reference."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.asked import asked
from tests.engine.test_explain import CHAT, TEXT, TOKENS, check_streams
from tests.naive import NaiveCold
from tests.server.conftest import Server, arguments, serve
from vllm_cold.tools.contrast import Prompt
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect
from vllm_cold.tools.explain.record import Report
from vllm_cold.tools.explain.server import ServerSource
from vllm_cold.tools.server import Server as Asking

pytestmark = pytest.mark.server

PARTS = [{"role": "developer", "content": [{"type": "text", "text": "w3"}]}]
# With a mask that never leaves more valid tokens than a server lists.
CONTRASTS: dict[str, tuple[str | None, Prompt, dict[str, Any]]] = {
    "a text as a chat": ("one", " w5 w6 hello", {"beta": 2.0, "chat": True}),
    "the base model": (None, CHAT, {"without": "system", "beta": 2.0}),
    "messages": ("one", CHAT, {"amateur_messages": json.dumps(PARTS), "beta": 2.0}),
    "a rule": ("one", TEXT, {"rule": "adaptive", "beta_max": 300.0}),
    "a stream that ends": ("one", CHAT, {"rule": "grd", "without": "system"}),
    "two amateurs": (
        "one",
        TEXT,
        {"amateur": ["base", ""], "amateur_prompt": ["", "w9 w8"], "weights": [-2.0, 0.5]},
    ),
}


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its own default is CoLD with a cap of 1, for chats against what is not from a user: a request
    that forgets an override is greedy, or another contrast.
    """
    default = ("--sampler", "cold", "--cold-expert-top-k", "1", "--cold-without", "system,0")
    command = [*arguments(tiny), *default]
    with serve(tmp_path_factory.mktemp("explain"), command) as running:
        yield running


def source(server: Server, adapter: str | None = "one") -> ServerSource:
    return ServerSource(Asking(server.url, adapter), adapter)


def explained(source: ServerSource, **contrast: Any) -> Report:
    work = collect.explain(source, asked([TEXT], **contrast), max_tokens=TOKENS)
    return asyncio.run(work)


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_number_is_that_of_the_models(name: str, server: Server, naive: NaiveCold) -> None:
    adapter, prompt, contrast = CONTRASTS[name]
    answer = check_streams(source(server, adapter), naive, prompt, alpha=0.3, **contrast)
    ends = any(step.ends for step in answer.steps)
    assert ends is (name == "a stream that ends")
    assert ends or any(step.differs for step in answer.steps)


def test_a_valid_set_beyond_the_servers_limit(server: Server) -> None:
    """What cannot be known is not said; the answer's own tokens are the server's word."""
    [one] = explained(source(server), alpha=1e-5, beta=0.5).explanations
    cold, greedy = one.answers
    open_ = [step for step in cold.steps if not step.complete]
    assert open_ and all(step.valid_size >= 20 and step.winner == step.token for step in open_)
    assert not any(step.wrong for step in (*cold.steps, *greedy.steps))
    assert any(step.winner is None for step in greedy.steps)


def test_nothing_to_contrast_with(server: Server) -> None:
    with pytest.raises(ToolError, match="nothing to contrast with"):
        explained(source(server, None))
