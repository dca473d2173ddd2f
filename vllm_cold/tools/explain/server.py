# SPDX-License-Identifier: Apache-2.0
"""The source that asks a running server over HTTP."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

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
_T = TypeVar("_T")
_Logprob = Annotated[float, AfterValidator(lambda x: -math.inf if x <= _NO_LOGPROB else x)]
_Token = Annotated[
    int, BeforeValidator(lambda x: x.removeprefix("token_id:") if isinstance(x, str) else x)
]


class _Entry(BaseModel):
    logprob: _Logprob
    decoded_token: str | None = None


class _Top(BaseModel):
    token: _Token
    logprob: _Logprob


class _Content(BaseModel):
    top_logprobs: list[_Top]


class _Named(BaseModel):
    top_logprobs: list[dict[_Token, _Logprob] | None] | None = None
    content: list[_Content] | None = None  # of a chat

    @property
    def values(self) -> dict[int, float] | None:
        """By token id, of an answer of one token."""
        if self.content is not None:
            (one,) = self.content
            return {each.token: each.logprob for each in one.top_logprobs}
        (found,) = self.top_logprobs or [None]
        return found


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    text: str | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[_Token, _Entry] | None] | None = None
    logprobs: _Named | None = None


class _Weights(BaseModel):
    weights: tuple[tuple[float | None, ...], ...]


class _Transfer(BaseModel):
    cold: _Weights | None = None


class _Reply(BaseModel):
    """What is read of a reply, or of a part of a streamed one."""

    choices: list[_Choice]
    # Of a chat:
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[_Token, _Entry] | None] | None = None
    kv_transfer_params: _Transfer | None = None


class _Detokenized(BaseModel):
    prompt: str


class _Whole(_Reply):
    choices: Annotated[list[_Choice], Field(min_length=1)]


def _sent(reads: Content) -> Any:
    """What a stream reads, as a request carries it."""
    return as_sent(reads.value) if isinstance(reads, Messages) else reads.value


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

    def _need(self, value: _T | None, name: str) -> _T:
        if value is None:
            self._server._lacks(name)
        return value

    def _body(self, prompt: Any, adapter: str | None, xargs: Mapping[str, Any]) -> dict[str, Any]:
        """A request that decodes greedily; messages are a chat, a text or token ids are none."""
        is_chat = isinstance(prompt[0], dict)
        return {
            "model": adapter or self.model,
            "messages" if is_chat else "prompt": prompt,
            "vllm_xargs": dict(xargs),
            "return_token_ids": True,
            **_GREEDY,
        }

    async def _ask(self, prompt: Any, adapter: str | None, **more: Any) -> tuple[_Choice, _Reply]:
        """The reply to a request of one token without CoLD."""
        body = {**self._body(prompt, adapter, {"cold": 0}), "max_tokens": 1, **more}
        path = "/chat/completions" if "messages" in body else "/completions"
        with self._server._errors():
            reply = await self._server.client.post(path, body=body, cast_to=httpx.Response)
            found = _Whole.model_validate_json(reply.text)
        return found.choices[0], found

    async def tokens(self, field: str, reads: Content) -> list[int]:
        """See ``Source``. The server itself tokenizes, for a completion of one token."""
        choice, reply = await self._ask(_sent(reads), self.expert)
        return self._read(choice, reply)

    def _read(self, choice: _Choice, reply: _Reply) -> list[int]:
        """The token ids of a reply's prompt."""
        found = reply.prompt_token_ids or choice.prompt_token_ids
        return self._need(found, "choices.0.prompt_token_ids")

    async def _ask_of(self, text: Stream, **more: Any) -> tuple[_Choice, _Reply]:
        """The reply to a request for one token behind a text. With images it is a chat, which ends
        with the answer's beginning.
        """
        if text.media is None:
            return await self._ask(list(text.ids), text.adapter, **more)
        messages = _sent(text.media)
        if not text.answer:
            return await self._ask(messages, text.adapter, **more)
        more |= {"add_generation_prompt": False, "continue_final_message": True}
        whole = await self._text_of(text.answer)
        # Some templates put the space themselves with which answers begin.
        for begun in dict.fromkeys((whole, whole.removeprefix(" "))):
            chat = [*messages, {"role": "assistant", "content": begun}]
            choice, reply = await self._ask(chat, text.adapter, **more)
            if tuple(self._read(choice, reply)) == text.ids:
                return choice, reply
        raise ToolError(
            f"--url={self._server._url}: a chat with an image cannot be asked about the answer "
            f"{whole!r}, as the server makes other tokens of its text than were decoded; explain "
            "it with an engine in this process (--model)"
        )

    async def _text_of(self, tokens: Sequence[int]) -> str:
        """Of an answer's tokens, with special ones, as the server makes it."""
        body = {"model": self.model, "tokens": list(tokens)}
        url = f"{str(self._server.client.base_url).rstrip('/').removesuffix('/v1')}/detokenize"
        with self._server._errors():
            reply = await self._server.client.post(url, body=body, cast_to=httpx.Response)
            return _Detokenized.model_validate_json(reply.text).prompt

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
        tokens: list[int] = []
        texts: list[str] = []
        reason, weights = "", None
        async for part in self._stream(prompt, greedy, max_tokens):
            tokens += part.tokens
            texts.append(part.text)
            reason = part.finish_reason or reason
            weights = part.weights or weights
            if part.text:
                tell(part.text)
        if prompt.contrast.settings.rule is not None and not greedy:
            self._need(weights, "kv_transfer_params.cold.weights")
        return Decoded(tuple(tokens), "".join(texts), reason, weights or ())

    async def _stream(self, prompt: Asked, greedy: bool, max_tokens: int) -> AsyncIterator[Decoded]:
        """What is new of an answer; ``finish_reason`` is "" in all but the last."""
        reads = expert_reads(prompt.row.prompt, prompt.chat)
        xargs = {"cold": 0} if greedy else self.xargs(prompt)
        sent = _sent(reads)
        body = self._body(sent, self.expert, xargs)
        chat = "messages" in body
        api: Any = self._server.client.chat.completions if chat else self._server.client.completions
        given = {"messages" if chat else "prompt": sent, "max_tokens": max_tokens}
        ended, ids = False, None
        with self._server._errors():
            chunks = await api.create(model=body["model"], stream=True, extra_body=body, **given)
            async with chunks:
                async for chunk in chunks:
                    part = _Reply.model_validate(chunk.model_dump())
                    if part.kv_transfer_params and (told := part.kv_transfer_params.cold):
                        yield Decoded((), "", "", told.weights)
                    for choice in part.choices:
                        ids = ids or part.prompt_token_ids or choice.prompt_token_ids
                        text = choice.text or (choice.delta.content if choice.delta else "") or ""
                        ended = choice.finish_reason is not None
                        tokens = tuple(choice.token_ids or ())
                        yield Decoded(tokens, text, choice.finish_reason or "")
        if not ended:
            raise ToolError(
                f"--url={self._server._url}: the server's answer broke off; look at its log, and "
                "ask again"
            )
        if tuple(self._need(ids, "choices.0.prompt_token_ids")) != prompt.streams[0].ids:
            raise ToolError(
                f"--url={self._server._url}: the server reads the prompt "
                f"{prompt.row.start!r} in another way each time, so its "
                "probabilities cannot be asked for"
            )

    def xargs(self, asked: Asked) -> dict[str, Any]:
        """A prompt's own keys, and all that would otherwise be the server's default."""
        contrast = asked.contrast
        knobs = {PREFIX + name: value for name, value in contrast.settings.as_dict().items()}
        parts = zip(contrast.amateurs, contrast.weights, strict=True)
        of_beta = [weight for one, weight in parts if one.weight is None]
        if not of_beta:
            del knobs[PREFIX + "beta"]  # which no amateur uses
        elif of_beta[0] is not None:
            knobs[PREFIX + "beta"] = -of_beta[0]  # beside a rule that another amateur names
        said, key = {**knobs, **asked.args}, PREFIX + "rule_parameters"
        if isinstance(said.get(key), dict):
            said[key] = json.dumps(said[key])  # vLLM takes no objects
        if contrast.settings.rule is not None:
            said[EXPLAIN] = 1
        return request_args(said, self.model)

    async def score(self, texts: Sequence[Stream], top: int) -> list[list[Row]]:
        """See ``Source``."""

        async def one(text: Stream) -> list[Row]:
            choice, reply = await self._ask_of(text, prompt_logprobs=top)
            found = reply.prompt_logprobs or choice.prompt_logprobs
            rows = self._need(found, "choices.0.prompt_logprobs")
            return [
                make_row({t: (e.logprob, e.decoded_token) for t, e in (row or {}).items()})
                for row in rows[1:]
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
            choice, _ = await self._ask_of(
                text,
                logprobs=1 if text.media is None else True,
                logprob_token_ids=list(ids),
                return_tokens_as_token_ids=True,
            )
            told = self._need(choice.logprobs, "choices.0.logprobs")
            found = self._need(told.values, "choices.0.logprobs.top_logprobs")
            if not found.keys() >= set(ids):
                self._server._lacks("logprobs of logprob_token_ids")
            return found

        return await side_by_side(one(text, ids) for text, ids in asked)
