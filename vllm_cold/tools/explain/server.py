# SPDX-License-Identifier: Apache-2.0
"""The source that asks a running server over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vllm_cold.method.amateurs import Text
from vllm_cold.method.settings import PREFIX
from vllm_cold.tools.contrast import Content, expert_reads, request_args
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.replies import (
    Answered,
    C,
    Chat,
    Completion,
    Encoded,
    Grown,
    LookedUp,
    Scored,
    Spoken,
    Written,
)
from vllm_cold.tools.explain.sources import (
    MAX_NAMED,
    Decoded,
    Description,
    Read,
    read,
    read_rows,
)
from vllm_cold.tools.explain.trace import COLD, Row
from vllm_cold.tools.server import Server

WANTED_TOP = 256  # asked for where 20, vLLM's default for --max-logprobs, are not enough
BATCH = 32  # texts in one request; the server works on them side by side

# A server takes what a request leaves out from the model's generation_config.json.
_GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_GREEDY_EXTRA: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class ServerSource(Server):
    """An OpenAI-compatible vLLM server; see ``Source`` for what it can be asked, and ``Server`` for
    the arguments and errors.
    """

    def __init__(self, url: str, *args: Any, **options: Any) -> None:
        super().__init__(url, *args, **options)
        self.vocab_size: int | None = None
        self._largest_top: int | None = None
        self.description = Description(
            model=self.base, adapter=self.expert, source=f"server at {self.root}"
        )

    def _complete(
        self,
        form: type[Completion[C]],
        model: str,
        prompts: Sequence[Sequence[int]],
        **options: Any,
    ) -> list[C]:
        """The choices of all prompts, in their order."""
        extra = {**_GREEDY_EXTRA, **options.pop("extra", {}), "vllm_xargs": {"cold": 0}}
        choices: list[C] = []
        for start in range(0, len(prompts), BATCH):
            batch = [list(prompt) for prompt in prompts[start : start + BATCH]]
            with self._errors():
                reply = self._client.completions.with_raw_response.create(
                    model=model, prompt=batch, extra_body=extra, **_GREEDY, **options
                )
                found = form.model_validate_json(reply.text).choices
            choices += sorted(found, key=lambda choice: choice.index)
        return choices

    def read(self, prompts: Sequence[Asked]) -> list[Read]:
        """See ``Source``. The server itself tokenizes, for completions of one token."""
        return [read(one, self._make, self.expert, self.base, self.loaded) for one in prompts]

    def _make(self, _: str, reads: Content) -> list[int]:
        """The token ids of a text, or of messages."""
        reply = self._ask(reads.value, 1, {"cold": 0})
        with self._errors():
            if isinstance(reads, Text):
                encoded = Completion[Encoded].model_validate_json(reply).choices[0]
                return encoded.prompt_token_ids
            return Chat.model_validate_json(reply).prompt_token_ids

    def _options(self, max_tokens: int, xargs: Mapping[str, Any]) -> dict[str, Any]:
        """Of a request for one answer."""
        return {
            "model": self._name(self.expert),
            "max_tokens": max_tokens,
            "extra_body": {**_GREEDY_EXTRA, "return_token_ids": True, "vllm_xargs": xargs},
            **_GREEDY,
        }

    def _ask(self, prompt: str | list[Any], max_tokens: int, xargs: Mapping[str, Any]) -> str:
        """What the server replies to one prompt, asked as a user would."""
        options = self._options(max_tokens, xargs)
        with self._errors():
            if isinstance(prompt, str):
                completions = self._client.completions.with_raw_response
                return completions.create(prompt=prompt, **options).text
            chats = self._client.chat.completions.with_raw_response
            return chats.create(messages=prompt, **options).text

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Decoded]:
        """See ``Source``."""
        choices = self._complete(
            Completion[Written],
            self._name(self.expert),
            prompts,
            max_tokens=max_tokens,
            extra={"return_token_ids": True},
        )
        return [Decoded(tuple(c.token_ids), c.text, c.finish_reason) for c in choices]

    def cold(self, prompts: Sequence[Read], max_tokens: int) -> list[Decoded]:
        """See ``Source``. Each prompt is sent as it was given, with the amateurs' keys."""
        with ThreadPoolExecutor(BATCH) as pool:
            return list(pool.map(lambda one: self._cold(one, max_tokens), prompts))

    def _cold(self, prompt: Read, max_tokens: int) -> Decoded:
        asked = prompt.asked
        reads = expert_reads(asked.prompt, asked.chat)
        reply = self._ask(reads.value, max_tokens, self._xargs(asked))
        with self._errors():
            if isinstance(reads, Text):
                written = Completion[Answered].model_validate_json(reply).choices[0]
                ids, found = written.prompt_token_ids, written.text
                tokens, reason = written.token_ids, written.finish_reason
            else:
                chat = Spoken.model_validate_json(reply)
                ids, found = chat.prompt_token_ids, chat.choices[0].message.content or ""
                tokens, reason = chat.choices[0].token_ids, chat.choices[0].finish_reason
        if tuple(ids) != prompt.streams[0].ids:
            raise ToolError(
                f"--url={self._url}: the server reads the prompt {asked.start!r} in another way "
                "each time, so its probabilities cannot be asked for"
            )
        return Decoded(tuple(tokens), found, reason)

    def stream(self, prompt: Read, kind: str, max_tokens: int) -> Iterator[Decoded]:
        """An answer while it is decoded.

        Args:
            prompt: Sent as it was given.
            kind: ``GREEDY`` or ``COLD``.
            max_tokens: The most that it may have.

        Yields:
            What is new; ``finish_reason`` is "" in all but the last.
        """
        asked = prompt.asked
        reads = expert_reads(asked.prompt, asked.chat)
        xargs = self._xargs(asked) if kind == COLD else {"cold": 0}
        options = self._options(max_tokens, xargs) | {"stream": True}
        with self._errors():
            if isinstance(reads, Text):
                chunks = self._client.completions.create(prompt=reads.value, **options)
            else:
                chats: Any = self._client.chat.completions
                chunks = chats.create(messages=reads.value, **options)
            ended = False
            with chunks:
                for chunk in chunks:
                    grown = Grown.model_validate(chunk.model_dump())
                    for choice in grown.choices:
                        text = choice.text or (choice.delta.content if choice.delta else "") or ""
                        ids = tuple(choice.token_ids or ())
                        ended = choice.finish_reason is not None
                        yield Decoded(ids, text, choice.finish_reason or "")
        if not ended:
            raise ToolError(
                f"--url={self._url}: the server's answer broke off; look at its log, and ask again"
            )

    def _xargs(self, asked: Asked) -> dict[str, Any]:
        """A prompt's own keys, and all that would otherwise be the server's default."""
        contrast = asked.contrast
        knobs = {PREFIX + name: value for name, value in contrast.settings.as_dict().items()}
        if all(one.weight is not None for one in contrast.amateurs):
            del knobs[PREFIX + "beta"]  # which no amateur uses
        return request_args({**knobs, **asked.args}, self.base)

    def choose(self, texts: Sequence[Read]) -> list[Decoded | None]:
        """See ``Source``. An amateur's own prompt cannot be sent as token ids."""
        return [None] * len(texts)

    def score(
        self, adapter: str | None, texts: Sequence[Sequence[int]], top: int
    ) -> list[list[Row]]:
        """See ``Source``."""
        extra = {"prompt_logprobs": top}
        choices = self._complete(
            Completion[Scored], self._name(adapter), texts, max_tokens=1, extra=extra
        )
        return [read_rows(choice.prompt_logprobs) for choice in choices]

    def largest_top(self) -> int:
        """See ``Source``. A server says what its --max-logprobs is if asked for more."""
        if self._largest_top is None:
            self._largest_top = WANTED_TOP
            try:
                self.score(self.expert, [[0, 0]], WANTED_TOP)
            except ToolError as error:
                limit = re.search(r"greater than max allowed: (\d+)", str(error))
                if limit is None:
                    raise
                self._largest_top = int(limit[1])
        return self._largest_top

    def look_up(
        self, adapter: str | None, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        """See ``Source``. One request has the same ids for all of its texts."""
        found: list[Mapping[int, float]] = []
        for texts, ids in pack(asked):
            choices = self._complete(
                Completion[LookedUp],
                self._name(adapter),
                texts,
                max_tokens=1,
                logprobs=1,
                extra={"logprob_token_ids": ids, "return_tokens_as_token_ids": True},
            )
            for choice in choices:
                tops = choice.logprobs.top_logprobs
                found.append((tops[0] if tops else None) or {})
        return found

    def _name(self, adapter: str | None) -> str:
        return self.base if adapter is None else adapter


def pack(
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Iterator[tuple[list[Sequence[int]], list[int]]]:
    """Put neighbours together while their ids are at most ``MAX_NAMED`` in all.

    Yields:
        Texts, and the ids that are asked for after each of them.
    """
    texts: list[Sequence[int]] = []
    ids: dict[int, None] = {}
    for text, wanted in asked:
        if texts and (len({*ids, *wanted}) > MAX_NAMED or len(texts) == BATCH):
            yield texts, list(ids)
            texts, ids = [], {}
        texts.append(text)
        ids.update(dict.fromkeys(wanted))
    if texts:
        yield texts, list(ids)
