# SPDX-License-Identifier: Apache-2.0
"""What a vLLM server with vllm-cold says to ``explain``, from a made-up model: no engine."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests import loopback
from tests.browser.reports import WORDS
from tests.unit.test_explain_collect import Model, make
from vllm_cold.method.amateurs import Messages, Text
from vllm_cold.method.settings import MAX_EXPERT_TOP_K, ColdError
from vllm_cold.tools.explain.prompts import Row, ask
from vllm_cold.tools.explain.sources import Decoded, Read, read

ADAPTER = "adapter"
CARDS = [
    {"id": "base", "parent": None, "max_model_len": 400},
    {"id": ADAPTER, "parent": "base"},
    {"id": "other", "parent": "base"},
]


def word(token: int) -> str:
    """A token's text."""
    return WORDS[token % len(WORDS)]


class MadeUp:
    """The server's answers, and what a test may have of it.

    Attributes:
        delay: Seconds between the tokens of a stream.
        fails: After how many tokens a stream ends with an error; None: it does not.
        breaks: After how many it breaks off.
        bodies: What was asked, by path.
        hold: Streams wait for this before each token.
        sent: Tokens that streams have sent.
    """

    def __init__(self) -> None:
        self.model = Model(spread=2.5)
        self.delay = 0.0
        self.fails: int | None = None
        self.breaks: int | None = None
        self.bodies: list[tuple[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.sent = 0

    def answer(self, model: str, prompt: Any, xargs: dict[str, Any], most: int) -> Decoded:
        """Decode, greedily or with CoLD."""
        adapter = None if model == "base" else model
        args = {k: v for k, v in xargs.items() if k != "cold" and v != MAX_EXPERT_TOP_K}
        if xargs.get("cold"):
            row = Row(prompt if isinstance(prompt, str) else _pairs(prompt), {})
            asked = ask(row, args)
            reads = read(asked, make, adapter, "base", [ADAPTER, "other"])
        else:
            reads = Read(None, (_Stream(adapter, self.ids(prompt)),))  # type: ignore[arg-type]
        tokens: list[int] = []
        for _ in range(most):
            if xargs.get("cold"):
                tokens.append(int(self.model.scores(reads.after(tokens)).argmax()))
            else:
                values = self.model.logprobs(adapter, [*reads.streams[0].ids, *tokens])
                tokens.append(values.index(max(values)))
        return Decoded(tuple(tokens), "".join(map(word, tokens)), "length")

    def ids(self, prompt: Any) -> tuple[int, ...]:
        """Of a text, of messages, or of ids."""
        if isinstance(prompt, str):
            return tuple(make("", Text(prompt)))
        return tuple(make("", Messages(prompt)) if isinstance(prompt[0], dict) else prompt)

    def choice(self, body: dict[str, Any], index: int, prompt: Any) -> dict[str, Any]:
        """One prompt's answer, whatever is asked of it."""
        adapter = None if body["model"] == "base" else body["model"]
        choice: dict[str, Any] = {"index": index, "finish_reason": "length"}
        ids = self.ids(prompt)
        if (top := body.get("prompt_logprobs")) is not None:
            [rows] = self.model.score(adapter, [ids], top)
            told = [
                {str(t): {"logprob": e.value, "decoded_token": word(t)} for t, e in row.items()}
                for row in rows
            ]
            return {**choice, "text": "", "prompt_logprobs": [None, *told]}
        if (wanted := body.get("logprob_token_ids")) is not None:
            values = self.model.logprobs(adapter, ids)
            tops = {f"token_id:{t}": values[t] for t in wanted}
            return {**choice, "text": "", "logprobs": {"top_logprobs": [tops]}}
        found = self.answer(body["model"], prompt, body["vllm_xargs"], body["max_tokens"])
        return {
            **choice,
            "text": found.text,
            "token_ids": list(found.tokens),
            "prompt_token_ids": list(ids),
        }


class _Stream:
    """As ``contrast.Stream``, for a request without amateurs."""

    def __init__(self, adapter: str | None, ids: tuple[int, ...]) -> None:
        self.adapter, self.ids = adapter, ids


def _pairs(messages: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((one["role"], one["content"]) for one in messages)


def _handler(made_up: MadeUp) -> type[loopback.Answering]:
    class Handler(loopback.Answering):
        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": CARDS})

        def do_POST(self) -> None:
            body = self.body()
            made_up.bodies.append((self.path, body))
            if (body.get("vllm_xargs") or {}).get("cold_alpha") == -1:
                return self._refuse("cold_alpha=-1: must be a number in [0, 1]")
            if body.get("prompt_logprobs", 0) > 20:
                return self._refuse("prompt_logprobs: greater than max allowed: 20")
            chat = self.path.endswith("/chat/completions")
            prompts = [body["messages"]] if chat else body["prompt"]
            if isinstance(prompts, str):
                prompts = [prompts]
            try:
                choices = [made_up.choice(body, i, one) for i, one in enumerate(prompts)]
            except ColdError as error:
                return self._refuse(str(error))
            if body.get("stream"):
                return self._stream(choices[0], chat)
            if chat:
                choices[0]["message"] = {"content": choices[0]["text"]}
            self.send(200, {"choices": choices} | ({"prompt_token_ids": made_up.ids(prompts[0])}))

        def _stream(self, choice: dict[str, Any], chat: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()  # the stream ends with the connection
            if chat:
                self._chunk({"delta": {"role": "assistant", "content": ""}})
            tokens = choice["token_ids"]
            for number, token in enumerate(tokens, 1):
                made_up.hold.wait(10)
                time.sleep(made_up.delay)
                if number - 1 == made_up.fails:
                    self._event({"error": {"message": "out of order", "code": 500}})
                    return
                if number - 1 == made_up.breaks:
                    self.wfile.write(b"data: {")
                    return
                text = word(token)
                said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
                last = number == len(tokens)
                reason = "length" if last else None
                self._chunk({**said, "token_ids": [token], "finish_reason": reason})
                made_up.sent += 1
            self.wfile.write(b"data: [DONE]\n\n")

        def _chunk(self, choice: dict[str, Any]) -> None:
            self._event({"id": "x", "choices": [{"index": 0, **choice}]})

        def _event(self, value: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

        def _refuse(self, message: str) -> None:
            self.send(400, {"error": {"message": message, "code": 400}})

    return Handler


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, MadeUp]]:
    """The server's address, and the server."""
    made_up = MadeUp()
    with loopback.serving(_handler(made_up)) as address:
        try:
            yield address, made_up
        finally:
            made_up.hold.set()
