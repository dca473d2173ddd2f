# SPDX-License-Identifier: Apache-2.0
"""Answers of a server, which tells of each step how it came about."""

from collections.abc import Callable
from typing import Any

import openai

from vllm_cold.settings.sources import Messages
from vllm_cold.settings.table import EXPLAIN, PREFIX, SETTINGS
from vllm_cold.tools.asked_contrast import request_args
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.explain.account import LISTED, make_answer
from vllm_cold.tools.explain.explain_prompts import Question
from vllm_cold.tools.explain.record import Answer
from vllm_cold.tools.pictures import as_sent
from vllm_cold.tools.server import Server

# A server takes what a request leaves out from the model's generation_config.json.
_GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
# What says how amateurs count. Their prompts and adapters are those of both answers.
_HOW = {PREFIX + name for name in (*SETTINGS, "preset", "weights")}


async def answer(
    server: Server,
    asked: Question,
    greedy: bool,
    max_tokens: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Answer:
    """The contrastive answer, or the expert's own: the same request with weights of 0. ``tell`` is
    given its text piece by piece, while it is decoded.

    Raises:
        ToolError: the server refuses the prompt, or its answer breaks off.
    """
    path, kind, sent = "/completions", "prompt", asked.reads.value
    if isinstance(asked.reads, Messages):
        path, kind, sent = "/chat/completions", "messages", as_sent(asked.reads.value)
    body = {
        "model": server.expert or server.base,
        kind: sent,
        "vllm_xargs": xargs(asked, greedy, server.base),
        "return_token_ids": True,
        "max_tokens": max_tokens,
        "stream": True,
        **_GREEDY,
    }
    tokens: list[int] = []
    text, last = "", dict[str, Any]()
    with server.errors():
        parts = await server.client.post(
            path,
            body=body,
            cast_to=object,
            stream=True,
            stream_cls=openai.AsyncStream[Any],
        )
        async with parts:
            async for part in parts:
                # Chats have in a choice what completions have beside it, and the reverse.
                now = {**part, **(part.get("choices") or [{}])[0]}
                last |= {name: value for name, value in now.items() if value is not None}
                tokens += now.get("token_ids") or ()
                if new := now.get("text") or (now.get("delta") or {}).get("content"):
                    text += new
                    tell(new)
    if "finish_reason" not in last:
        raise ToolError(
            f"{server.called}: the server's answer broke off; look at its log, and ask again"
        )
    if tokens:
        last["token_ids"] = tokens
    with server.errors():
        return make_answer(asked, greedy, text, last)


def xargs(asked: Question, greedy: bool, base: str) -> dict[str, Any]:
    """A prompt's own keys, and all that would otherwise be the server's default; ``base`` is the
    base model's name.
    """
    said = {PREFIX + "preset": "cold", **asked.args}
    if greedy:
        settings, zeros = asked.contrast.settings, [0.0] * len(asked.contrast.weights)
        said = {name: value for name, value in said.items() if name not in _HOW}
        said |= {PREFIX + "preset": "cold", PREFIX + "alpha": settings.alpha}
        said[PREFIX + "weights"] = zeros if zeros[1:] else 0.0
        if settings.expert_top_k is not None:
            said[PREFIX + "expert_top_k"] = settings.expert_top_k
    return request_args({**said, EXPLAIN: LISTED}, base)
