# SPDX-License-Identifier: Apache-2.0
"""Images over HTTP, in chats of experts and of amateurs: the tokens are those of transformers, and
regular requests next to them are served as ever.
"""

import base64
import io
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import make_families
from tests.engine.media import MAX_TOKENS, OTHER, QUESTION, SEEN, SYSTEM, Picture
from tests.naive import Trace, assert_same_tokens
from tests.server.conftest import Server, serve

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
full = pytest.mark.full

FAMILIES = ("llava-1.5", pytest.param("qwen2-vl", marks=full))


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its adapters and the reference's answers."""
    folder = tmp_path_factory.mktemp("seeing")
    return make_families(folder, "tests.engine.media", request.param) / request.param


def arguments(seeing: Path) -> list[str]:
    return [
        str(seeing / "model"),
        *("--served-model-name", "base", "--dtype", "float32", "--enforce-eager"),
        *("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"),
        *("--lora-modules", f"one={seeing / 'one'}", f"two={seeing / 'two'}"),
        *("--max-model-len", "256", "--max-num-seqs", "16", "--max-num-batched-tokens", "64"),
        *("--gpu-memory-utilization", "0.2", "--skip-mm-profiling"),
        *("--limit-mm-per-prompt", '{"image": 2, "video": 0}'),
    ]


@pytest.fixture(scope="module")
def server(seeing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serve(folder, [*arguments(seeing), "--sampler", "cold", "--cold-without", "tool"]) as one:
        yield one


def png(picture: Picture) -> bytes:
    data = io.BytesIO()
    picture.make().save(data, "PNG")
    return data.getvalue()


def url(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def messages(*urls: str, system: bool = True) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": each}} for each in urls]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}
    return [{"role": "system", "content": SYSTEM}, user] if system else [user]


def asked(seen: str, other: str) -> list[dict[str, Any]]:
    """What ``media.make_chats`` lists, in its order."""
    at = {"cold_alpha": 0, "cold_beta": 1}
    return [
        {"cold_preset": "vcd"},
        {"cold_without": "images", **at},
        {"cold_without": "system,images", **at},
        {"cold_amateur_messages": json.dumps(messages(other)), **at},
    ]


def body(model: str, conversation: list[Any], **more: Any) -> dict[str, Any]:
    return {
        **{"model": model, "messages": conversation, "max_tokens": MAX_TOKENS, "temperature": 0},
        **{"ignore_eos": True, "return_token_ids": True, **more},
    }


def tokens(server: Server, asked: dict[str, Any], stream: bool = False) -> list[int]:
    status, text = server.post("/v1/chat/completions", {**asked, "stream": stream})
    assert status == 200, text
    lines = text.splitlines() if stream else [text]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if "choices" in line]
    found = [choice for event in events for choice in event["choices"]]
    return [token for choice in found for token in choice.get("token_ids") or ()]


def traces(seeing: Path) -> list[Trace]:
    read = json.loads((seeing / "traces.json").read_text())["chats"]
    return [Trace(**one["trace"]) for one in read]


def bodies(seen: str, other: str, names: tuple[str, str] = ("base", "one")) -> list[dict[str, Any]]:
    return [
        body(model, messages(seen), vllm_xargs=args)
        for model in names
        for args in asked(seen, other)
    ]


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=full)])
def test_tokens_are_the_references(server: Server, seeing: Path, stream: bool) -> None:
    """One after the other, twice, and all at once."""
    wanted = bodies(url(SEEN), url(OTHER))
    for _ in range(2):
        assert_same_tokens([tokens(server, one, stream) for one in wanted], traces(seeing))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda one: tokens(server, one, stream), wanted))
    assert_same_tokens(got, traces(seeing))
    server.wait_until_idle()


@full
def test_regular_requests_next_to_them(server: Server, seeing: Path) -> None:
    """With the same images, new ones every time, at the same moment: no image counts as sent that
    has not arrived.
    """
    rng = random.Random(3)
    regular: dict[int, list[int]] = {}
    for seed in range(100, 112):
        picture = url(Picture(seed))
        several = [body("base", messages(picture), vllm_xargs={"cold": 0}) for _ in range(3)]
        several += bodies(picture, url(Picture(seed + 1000)))
        rng.shuffle(several)
        with ThreadPoolExecutor(len(several)) as pool:
            got = list(pool.map(lambda one: tokens(server, one), several))
        answers = [
            found
            for one, found in zip(several, got, strict=True)
            if one["vllm_xargs"] == {"cold": 0}
        ]
        assert answers[0] == answers[1] == answers[2]
        regular[seed] = answers[0]
    assert len({tuple(found) for found in regular.values()}) > 3
    assert "cache miss" not in server.new_log()
    server.wait_until_idle()


@full
def test_several_front_ends(seeing: Path, tmp_path: Path) -> None:
    """Each of which has a cache of its own, before two engines."""
    command = [*arguments(seeing), "--api-server-count", "2", "--data-parallel-size", "2"]
    # vLLM would want a NUMA node for each engine.
    one = serve(tmp_path, command, VLLM_CPU_OMP_THREADS_BIND="nobind")
    with one as server, ThreadPoolExecutor(8) as pool:
        wanted = bodies(url(SEEN), url(OTHER)) * 2
        got = list(pool.map(lambda one: tokens(server, one), wanted))
        assert_same_tokens(got, traces(seeing) * 2)
