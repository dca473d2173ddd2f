# SPDX-License-Identifier: Apache-2.0
"""Many streaming clients at a time, some of which hang up, and what each of them got."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.naive import Amateur, Group, NaiveCold, Trace, assert_same_tokens

ALPHA = 0.05  # of every contrastive request here
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)


@dataclass(frozen=True)
class Asked:
    """One request: a group with one of two adapters as expert, or regular with or without one."""

    prompt: tuple[int, ...]
    max_tokens: int
    model: str = "base"
    beta: float | None = None  # None: regular
    amateur: str | None = None
    skip: int = 0
    """If not 0, a second amateur is the expert without so many tokens at the prompt's start."""
    transfer: dict[str, Any] | None = field(default=None, compare=False)
    """What a KV connector is told."""

    def body(self) -> dict[str, Any]:
        """The request as JSON."""
        xargs: dict[str, Any] = {"cold": 0}
        if self.beta is not None:
            xargs = {"cold_alpha": ALPHA, "cold_beta": self.beta}
        if self.amateur is not None:
            xargs["cold_amateur"] = self.amateur
        if self.skip:
            xargs |= {
                "cold_weights": [-self.beta] * 2,
                "cold_amateur": [self.amateur or "base", ""],
                "cold_part": ["", f"0:{self.skip}"],
            }
            del xargs["cold_beta"]
        return {
            "model": self.model,
            "prompt": list(self.prompt),
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "vllm_xargs": xargs,
            **({"kv_transfer_params": self.transfer} if self.transfer else {}),
        }


@dataclass
class Got:
    """What one client saw of its stream."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    status: int | None = None
    hung_up: bool = False
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first token."""


@dataclass(frozen=True)
class HangUp:
    """When a client hangs up: after so many chunks, or seconds after it asked, if it can."""

    chunks: int | None = None
    seconds: float | None = None


async def stream(
    client: httpx.AsyncClient, url: str, asked: Asked, got: Got, hang_up: HangUp | None = None
) -> Got:
    """Read one stream to its end, or until it is time to hang up."""
    limit = hang_up.seconds if hang_up is not None else None
    try:
        async with asyncio.timeout(limit):
            await _read(client, url, asked, got, hang_up.chunks if hang_up is not None else None)
    except TimeoutError:
        got.hung_up = True
    return got


async def _read(
    client: httpx.AsyncClient, url: str, asked: Asked, got: Got, chunks: int | None
) -> None:
    async with client.stream("POST", f"{url}/v1/completions", json=asked.body()) as response:
        got.status = response.status_code
        if response.status_code != 200:
            got.error = json.loads(await response.aread())["error"]
            return
        seen = 0
        async for line in response.aiter_lines():
            if chunks is not None and seen >= chunks:
                got.hung_up = True
                return
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                got.error = event["error"]
                return
            seen += 1
            choice = event["choices"][0]
            got.tokens += choice["token_ids"] or []
            got.finish_reason = choice["finish_reason"]
            got.started.set()


async def storm(url: str, asked: Sequence[Asked], hang_ups: Sequence[HangUp | None]) -> list[Got]:
    """All of them at once."""
    async with httpx.AsyncClient(limits=LIMITS, timeout=120.0) as client:
        return await asyncio.gather(
            *(
                stream(client, url, one, Got(), hang_up)
                for one, hang_up in zip(asked, hang_ups, strict=True)
            )
        )


def references(
    naive: NaiveCold, asked: Sequence[Asked], folders: dict[str, str] | None = None
) -> list[Trace]:
    """What each request gets on the naive reference.

    Args:
        naive: The reference.
        asked: The requests; equal ones are computed once.
        folders: For names that the server uses, the reference's name of the same adapter.
    """
    names: dict[str | None, Any] = {None: None, "base": None, **(folders or {})}

    def group(a: Asked) -> Group:
        expert, amateurs = names.get(a.model, a.model), []
        if a.beta is not None:
            amateurs.append(Amateur(-a.beta, names.get(a.amateur, a.amateur)))
            if a.skip:
                amateurs.append(Amateur(-a.beta, expert, a.prompt[a.skip :]))
        return Group(a.prompt, expert, amateurs, ALPHA, a.max_tokens)

    cold = [a for a in dict.fromkeys(asked) if a.beta is not None]
    traces = dict(zip(cold, naive.generate_many(list(map(group, cold))), strict=True))
    for a in dict.fromkeys(asked):
        if a.beta is None:  # by code that knows no groups
            traces[a] = naive.greedy(a.prompt, names.get(a.model, a.model), a.max_tokens)
    return [traces[a] for a in asked]


def assert_right(got: Sequence[Got], asked: Sequence[Asked], expected: Sequence[Trace]) -> None:
    """All streams came to their end, or were left by their client, with the right tokens."""
    for one, request in zip(got, asked, strict=True):
        assert one.error is None, f"{request.model}: {one.error}"
        if not one.hung_up:
            assert (one.status, one.finish_reason) == (200, "length")
            assert len(one.tokens) == request.max_tokens
    cut = [
        Trace(t.tokens[:n], t.margins[:n], t.edges[:n])
        for t, n in ((t, len(g.tokens)) for t, g in zip(expected, got, strict=True))
    ]
    assert_same_tokens([g.tokens for g in got], cut)
