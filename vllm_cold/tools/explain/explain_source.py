# SPDX-License-Identifier: Apache-2.0
"""Answers of a server, which tells of each step how it came about."""

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from vllm_cold.settings.table import EXPLAIN, PREFIX, SETTINGS
from vllm_cold.tools.contrast_args import endpoint, request_args
from vllm_cold.tools.explain.account import LISTED, make_answer, make_report
from vllm_cold.tools.explain.explain_prompts import Question
from vllm_cold.tools.explain.record import Answer, Report
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


async def explain(server: Server, questions: Sequence[Question], max_tokens: int) -> Report:
    """Decode and explain prompts that have the same settings; say on stderr what is decoded.
    ToolError if the server refuses a prompt, or cannot answer.
    """
    answers: list[list[Answer]] = []
    async with server.client:
        for greedy, how in ((False, "with the contrast"), (True, "greedily")):
            print(f"decoding {how} ...", file=sys.stderr, flush=True)
            fetch = partial(_fetch_answer, server, greedy, max_tokens)
            answers.append(await asyncio.gather(*map(fetch, questions)))
    return make_report(server, questions, list(zip(*answers, strict=True)))


async def _fetch_answer(
    server: Server, greedy: bool, max_tokens: int, question: Question
) -> Answer:
    """Get the contrastive answer, or the expert's own: the same request with weights of 0."""
    path, prompt = endpoint(question.reads)
    body = {
        "model": server.expert or server.base,
        **prompt,
        "vllm_xargs": xargs(question, greedy, server.base),
        "return_token_ids": True,
        "max_tokens": max_tokens,
        **_GREEDY,
    }
    reply = await server.post(server.client, path, body)
    with server.errors():
        # Chats have in a choice what completions have beside it, and the reverse.
        fields = {**reply, **reply["choices"][0]}
        text = fields["message"]["content"] if "message" in fields else fields["text"]
        return make_answer(question, greedy, text or "", fields)


def xargs(question: Question, greedy: bool, base: str) -> dict[str, Any]:
    """Return a prompt's own keys, and all that would otherwise be the server's default; ``base``
    is the base model's name.
    """
    args = {**question.args, EXPLAIN: LISTED}
    if greedy:
        settings, zeros = question.contrast.settings, [0.0] * len(question.contrast.weights)
        args = {name: value for name, value in args.items() if name not in _HOW}
        args |= {PREFIX + "alpha": settings.alpha, PREFIX + "weights": zeros if zeros[1:] else 0.0}
        if settings.expert_top_k is not None:
            args[PREFIX + "expert_top_k"] = settings.expert_top_k
    return request_args({PREFIX + "preset": "cold", **args}, base)
