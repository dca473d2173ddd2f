# SPDX-License-Identifier: Apache-2.0
"""The source that asks a running server over HTTP."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import openai

from vllm_cold.group.results import weights_in
from vllm_cold.method.amateurs import Messages
from vllm_cold.method.settings import EXPLAIN, PREFIX
from vllm_cold.tools.contrast import Content, Stream, expert_reads, request_args
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.source import Decoded, Row, make_row, side_by_side
from vllm_cold.tools.pictures import as_sent
from vllm_cold.tools.server import Server, check_adapter

WANTED_TOP = 256  # asked for where 20, vLLM's default for --max-logprobs, are not enough
_NO_LOGPROB = -9999.0  # vLLM's servers send this for -inf, which JSON does not have

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


def _sent(reads: Content) -> Any:
    """What a stream reads, as a request carries it."""
    return as_sent(reads.value) if isinstance(reads, Messages) else reads.value


def _flat(reply: Any) -> dict[str, Any]:
    """A reply, or a part of a streamed one, and its choice in one: chats have in the one what
    completions have in the other.
    """
    return {**reply, **(reply.get("choices") or [{}])[0]}


def _logprob(value: float) -> float:
    return -math.inf if value <= _NO_LOGPROB else value


def _named(logprobs: Mapping[str, Any]) -> dict[int, float]:
    """Of an answer of one token what ``logprob_token_ids`` asked for."""
    if chat := logprobs.get("content"):
        found = {one["token"]: one["logprob"] for one in chat[0]["top_logprobs"]}
    else:
        found = logprobs["top_logprobs"][0] or {}
    return {int(token.removeprefix("token_id:")): _logprob(x) for token, x in found.items()}


class ServerSource:
    """A server; see ``Source`` for what it can be asked.

    Args:
        server: Who is asked, within one event loop.
        expert: The name of the expert's adapter, None for the base model.

    Raises:
        ToolError: no such adapter is loaded.
    """

    def __init__(self, server: Server, expert: str | None) -> None:
        if expert is not None:
            check_adapter("--adapter", expert, server.loaded)
        self._server = server
        self.model = self.base = server.base
        self.expert, self.loaded = expert, server.loaded
        self.about = f"server at {server.root}"
        self.max_model_len = server.max_model_len
        self.vocab_size: int | None = None
        self._largest_top: int | None = None

    def _need(self, found: Mapping[str, Any], name: str) -> Any:
        if found.get(name) is None:
            self._server._lacks(name)
        return found[name]

    def _request(
        self, prompt: Any, adapter: str | None, xargs: Mapping[str, Any], **more: Any
    ) -> tuple[str, dict[str, Any]]:
        """Where a request for a greedy answer goes, and what it is; messages are a chat, a text or
        token ids are none.
        """
        chat = isinstance(prompt[0], dict)
        body = {
            "model": adapter or self.model,
            "messages" if chat else "prompt": prompt,
            "vllm_xargs": dict(xargs),
            "return_token_ids": True,
            **_GREEDY,
            **more,
        }
        return "/chat/completions" if chat else "/completions", body

    async def _post(self, path: str, body: Any) -> Any:
        with self._server._errors():
            reply = await self._server.client.post(path, body=body, cast_to=httpx.Response)
        try:
            return reply.json()
        except ValueError as error:
            self._server._lacks("JSON", error)

    async def _ask(self, prompt: Any, adapter: str | None, **more: Any) -> dict[str, Any]:
        """The reply to a request of one token without CoLD."""
        request = self._request(prompt, adapter, {"cold": 0}, max_tokens=1, **more)
        return _flat(await self._post(*request))

    async def tokens(self, field: str, reads: Content) -> list[int]:
        """See ``Source``. The server itself tokenizes, for a completion of one token."""
        found = self._need(await self._ask(_sent(reads), self.expert), "prompt_token_ids")
        return list(found)

    async def _ask_behind(self, text: Stream, **more: Any) -> dict[str, Any]:
        """The reply to a request for one token behind a text. With images it is a chat, which ends
        with the answer's beginning.
        """
        if text.media is None:
            return await self._ask(list(text.ids), text.adapter, **more)
        messages = _sent(text.media)
        if not text.answer:
            return await self._ask(messages, text.adapter, **more)
        more |= {"add_generation_prompt": False, "continue_final_message": True}
        root = str(self._server.client.base_url).rstrip("/").removesuffix("/v1")
        tokens = {"model": self.model, "tokens": list(text.answer)}
        whole = self._need(await self._post(f"{root}/detokenize", tokens), "prompt")
        # Some templates put the space themselves with which answers begin.
        for begun in dict.fromkeys((whole, whole.removeprefix(" "))):
            chat = [*messages, {"role": "assistant", "content": begun}]
            found = await self._ask(chat, text.adapter, **more)
            if tuple(self._need(found, "prompt_token_ids")) == text.ids:
                return found
        raise ToolError(
            f"--url={self._server._url}: a chat with an image cannot be asked about the answer "
            f"{whole!r}, as the server makes other tokens of its text than were decoded; explain "
            "it with an engine in this process (--model)"
        )

    async def decode(
        self, prompts: Sequence[Asked], greedy: bool, max_tokens: int
    ) -> list[Decoded]:
        """See ``Source``. Each prompt is sent as it was given, with the amateurs' keys."""
        return await side_by_side(self.answer(one, greedy, max_tokens) for one in prompts)

    async def answer(
        self,
        prompt: Asked,
        greedy: bool,
        max_tokens: int,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Decoded:
        """An answer; ``tell`` is given its text piece by piece, while it is decoded."""
        sent = _sent(expert_reads(prompt.row.prompt, prompt.chat))
        xargs = {"cold": 0} if greedy else self.xargs(prompt)
        path, body = self._request(sent, self.expert, xargs, max_tokens=max_tokens, stream=True)
        tokens: list[int] = []
        text, last = "", dict[str, Any]()
        with self._server._errors():
            parts = await self._server.client.post(
                path, body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
            )
            async with parts:
                async for part in parts:
                    found = _flat(part)
                    last |= {name: value for name, value in found.items() if value is not None}
                    tokens += found.get("token_ids") or ()
                    if new := found.get("text") or (found.get("delta") or {}).get("content"):
                        text += new
                        tell(new)
        if "finish_reason" not in last:
            raise ToolError(
                f"--url={self._server._url}: the server's answer broke off; look at its log, and "
                "ask again"
            )
        if tuple(self._need(last, "prompt_token_ids")) != prompt.streams[0].ids:
            raise ToolError(
                f"--url={self._server._url}: the server reads the prompt "
                f"{prompt.row.start!r} in another way each time, so its "
                "probabilities cannot be asked for"
            )
        weights = weights_in(last.get("kv_transfer_params")) or ()
        if prompt.contrast.settings.rule is not None and not greedy and not weights:
            self._server._lacks("kv_transfer_params.cold.weights")
        return Decoded(tuple(tokens), text, last["finish_reason"], tuple(map(tuple, weights)))

    def xargs(self, asked: Asked) -> dict[str, Any]:
        """A prompt's own keys, and all that would otherwise be the server's default."""
        settings = asked.contrast.settings
        said = {PREFIX + "preset": "cold", **asked.args}
        if settings.rule is not None:
            said.pop(PREFIX + "beta_max", None)  # is one of the parameters
            said[PREFIX + "rule_parameters"] = json.dumps(settings.rule_parameters)
            said[EXPLAIN] = 1
        return request_args(said, self.model)

    async def score(self, texts: Sequence[Stream], top: int) -> list[list[Row]]:
        """See ``Source``."""

        async def one(text: Stream) -> list[Row]:
            found = await self._ask_behind(text, prompt_logprobs=top)
            return [
                make_row(
                    {
                        int(token): (_logprob(entry["logprob"]), entry.get("decoded_token"))
                        for token, entry in row.items()
                    }
                )
                for row in self._need(found, "prompt_logprobs")[1:]
            ]

        return await side_by_side(map(one, texts))

    async def largest_top(self) -> int:
        """See ``Source``. A server says what its --max-logprobs is if asked for more."""
        if self._largest_top is None:
            self._largest_top = WANTED_TOP
            try:
                await self.score([Stream(self.expert, (0, 0))], WANTED_TOP)
            except ToolError as error:
                limit = re.search(r"greater than max allowed: (\d+)", str(error))
                if limit is None:
                    raise
                self._largest_top = int(limit[1])
        return self._largest_top

    async def look_up(
        self, asked: Sequence[tuple[Stream, Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """See ``Source``."""

        async def one(text: Stream, ids: Sequence[int]) -> Mapping[int, float]:
            found = await self._ask_behind(
                text,
                logprobs=1 if text.media is None else True,
                logprob_token_ids=list(ids),
                return_tokens_as_token_ids=True,
            )
            values = _named(self._need(found, "logprobs"))
            if not values.keys() >= set(ids):
                self._server._lacks("logprobs of logprob_token_ids")
            return values

        return await side_by_side(one(text, ids) for text, ids in asked)
