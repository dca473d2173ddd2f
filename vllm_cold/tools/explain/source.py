# SPDX-License-Identifier: Apache-2.0
"""Where answers come from: a server, which tells of each step how it came about."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import openai
from pydantic import TypeAdapter, ValidationError

from vllm_cold.errors import ColdError
from vllm_cold.group.results import steps_in
from vllm_cold.settings.amateurs import Messages
from vllm_cold.settings.table import EXPLAIN, PREFIX
from vllm_cold.tools.contrast import adapter_of, expert_reads, request_args
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.account import LISTED, ToldStep
from vllm_cold.tools.explain.prompts import Question
from vllm_cold.tools.pictures import as_sent
from vllm_cold.tools.server import Server, check_adapter

AT_ONCE = 32  # requests; a server works on them side by side
_T = TypeVar("_T")
_TOLD = TypeAdapter(list[ToldStep])

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
# What says how much amateurs count; alpha and the cap say which tokens there are.
_WEIGHING = tuple(
    PREFIX + name for name in ("preset", "beta", "rule", "beta_max", "rule_parameters", "weights")
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer as the engine gave it.

    Attributes:
        tokens: Ids, with the end-of-sequence token.
        text: Without special tokens.
        finish_reason: "stop" or "length".
        told: Of each token.
        num_prompt_tokens: Of the expert's prompt.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    told: tuple[ToldStep, ...]
    num_prompt_tokens: int

    @classmethod
    def of(
        cls, tokens: Sequence[int], text: str, finish_reason: str, transfer: Any, prompt: int
    ) -> Self:
        """By what an output has, and the length of its prompt; ValidationError where its
        ``kv_transfer_params`` do not tell of the steps.
        """
        told = _TOLD.validate_python(steps_in(transfer))
        return cls(tuple(tokens), text, finish_reason, tuple(told), prompt)


def _flat(reply: Any) -> dict[str, Any]:
    """A part of a streamed reply and its choice in one: chats have in the one what completions have
    in the other.
    """
    return {**reply, **(reply.get("choices") or [{}])[0]}


class Source:
    """A server, within one event loop.

    Args:
        server: Who is asked.
        expert: The name of the expert's adapter, None for the base model.

    Attributes:
        title: The base model's name, as it is shown.
        base: The same, as an amateur calls it.
        expert: As given.
        loaded: The names of all adapters.
        about: Where the numbers come from, in words.

    Raises:
        ToolError: no such adapter is loaded.
    """

    def __init__(self, server: Server, expert: str | None) -> None:
        if expert is not None:
            check_adapter("--adapter", expert, server.loaded)
        self._server = server
        self.title, self.base, self.about = server.title, server.base, server.about
        self.expert, self.loaded = expert, server.loaded

    def _need(self, found: Mapping[str, Any], name: str) -> Any:
        if found.get(name) is None:
            self._server.lacks(name)
        return found[name]

    async def answer(
        self,
        asked: Question,
        greedy: bool,
        max_tokens: int,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Decoded:
        """The answer with contrastive decoding, or the expert's own: the same with weights of 0.
        ``tell`` is given its text piece by piece, while it is decoded.

        Raises:
            ToolError: an adapter is not loaded, the server refuses the prompt, or breaks off.
        """
        try:
            for one in asked.contrast.amateurs:
                adapter_of(one, self.expert, self.base, self.loaded)
        except ColdError as error:
            raise asked.row.refusal(error) from error
        reads = expert_reads(asked.row.prompt, asked.chat)
        chat = isinstance(reads, Messages)
        sent = as_sent(reads.value) if isinstance(reads, Messages) else reads.value
        body = {
            "model": self.expert or self.base,
            "messages" if chat else "prompt": sent,
            "vllm_xargs": self.xargs(asked, greedy),
            "return_token_ids": True,
            "max_tokens": max_tokens,
            "stream": True,
            **_GREEDY,
        }
        tokens: list[int] = []
        text, last = "", dict[str, Any]()
        with self._server.errors():
            parts = await self._server.client.post(
                "/chat/completions" if chat else "/completions",
                body=body,
                cast_to=object,
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
            async with parts:
                async for part in parts:
                    now = _flat(part)
                    last |= {name: value for name, value in now.items() if value is not None}
                    tokens += now.get("token_ids") or ()
                    if new := now.get("text") or (now.get("delta") or {}).get("content"):
                        text += new
                        tell(new)
        if "finish_reason" not in last:
            raise ToolError(
                f"{self._server.called}: the server's answer broke off; look at its log, and ask "
                "again"
            )
        num = len(self._need(last, "prompt_token_ids"))
        transfer = last.get("kv_transfer_params")
        try:
            found = Decoded.of(tokens, text, last["finish_reason"], transfer, num)
        except ValidationError as error:
            self._server.lacks("kv_transfer_params.cold.steps", error)
        if any(token not in one.tokens for token, one in zip(tokens, found.told, strict=True)):
            raise ToolError(
                f"{self._server.called}: the server took a token that is not among the {LISTED} "
                "best by score; explain asks for temperature 0, without penalties"
            )
        return found

    def xargs(self, asked: Question, greedy: bool) -> dict[str, Any]:
        """A prompt's own keys, and all that would otherwise be the server's default."""
        settings, said = asked.contrast.settings, {PREFIX + "preset": "cold", **asked.args}
        if greedy:
            said = {name: value for name, value in said.items() if name not in _WEIGHING}
            said |= {PREFIX + "preset": "cold", PREFIX + "alpha": settings.alpha}
            weights = [0.0] * len(asked.contrast.weights)
            said[PREFIX + "weights"] = weights if len(weights) > 1 else 0.0
            if settings.expert_top_k is not None:
                said[PREFIX + "expert_top_k"] = settings.expert_top_k
        elif settings.rule is not None:
            said.pop(PREFIX + "beta_max", None)  # is one of the parameters
            said[PREFIX + "rule_parameters"] = json.dumps(settings.rule_parameters)
        return request_args({**said, EXPLAIN: LISTED}, self.base)


async def side_by_side(questions: Iterable[Awaitable[_T]]) -> list[_T]:
    """What is answered to each, in their order; the first error ends all."""
    seats = asyncio.Semaphore(AT_ONCE)

    async def seated(question: Awaitable[_T]) -> _T:
        async with seats:
            return await question

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(seated(question)) for question in questions]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
