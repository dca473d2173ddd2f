# SPDX-License-Identifier: Apache-2.0
"""Answers of a server, which tells of each step how it came about."""

from collections.abc import Callable
from typing import Any

import openai

from vllm_cold.settings.table import EXPLAIN, PREFIX, SETTINGS
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import endpoint, request_args
from vllm_cold.tools.explain.account import LISTED, make_answer
from vllm_cold.tools.explain.explain_prompts import Question
from vllm_cold.tools.explain.record import Answer
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


async def fetch_answer(
    server: Server,
    question: Question,
    greedy: bool,
    max_tokens: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Answer:
    """Get the contrastive answer, or the expert's own: the same request with weights of 0.
    ``tell`` is called with its text piece by piece, while it is decoded.

    Raises:
        ToolError: the server refuses the prompt, or its answer breaks off.
    """
    path, prompt = endpoint(question.reads)
    body = {
        "model": server.expert or server.base,
        **prompt,
        "vllm_xargs": xargs(question, greedy, server.base),
        "return_token_ids": True,
        "max_tokens": max_tokens,
        "stream": True,
        **_GREEDY,
    }
    tokens: list[int] = []
    text, last = "", dict[str, Any]()
    with server.errors():
        stream_cls = openai.AsyncStream[Any]
        parts = await server.client.post(
            path, body=body, cast_to=object, stream=True, stream_cls=stream_cls
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
            f"{server.where}: the server's answer broke off; look at its log, and ask again"
        )
    if tokens:
        last["token_ids"] = tokens
    with server.errors():
        return make_answer(question, greedy, text, last)


def xargs(question: Question, greedy: bool, base: str) -> dict[str, Any]:
    """Return a prompt's own keys, and all that would otherwise be the server's default; ``base``
    is the base model's name.
    """
    args = {PREFIX + "preset": "cold", **question.args}
    if greedy:
        settings, zeros = question.contrast.settings, [0.0] * len(question.contrast.weights)
        args = {name: value for name, value in args.items() if name not in _HOW}
        args |= {PREFIX + "preset": "cold", PREFIX + "alpha": settings.alpha}
        args[PREFIX + "weights"] = zeros if zeros[1:] else 0.0
        if settings.expert_top_k is not None:
            args[PREFIX + "expert_top_k"] = settings.expert_top_k
    return request_args({**args, EXPLAIN: LISTED}, base)
