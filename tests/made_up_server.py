# SPDX-License-Identifier: Apache-2.0
"""What a vLLM server with vllm-cold says to ``explain``, from a made-up model: no engine."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests import loopback
from tests.browser.reports import WORDS
from tests.unit.test_explain_numbers import Model, make
from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import Messages, Text
from vllm_cold.method.settings import MAX_EXPERT_TOP_K
from vllm_cold.tools.contrast import Prompt, Stream, read_contrast, with_pictures
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain.prompts import Asked, Row, ask
from vllm_cold.tools.explain.source import Decoded
from vllm_cold.tools.pictures import picture_of_url

ADAPTER = "adapter"
CARDS = [
    {"id": "base", "parent": None, "max_model_len": 400},
    {"id": ADAPTER, "parent": "base"},
    {"id": "other", "parent": "base"},
]


_FIRST = 0x4E00  # the character of token 0, in texts that become tokens again


def chat_of(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Messages as a row has them."""
    turns, pictures = [], []
    for one in messages:
        parts = one["content"]
        if not isinstance(parts, str):
            urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            pictures += [picture_of_url("x", url) for url in urls]
            parts = "".join(part["text"] for part in parts if part["type"] == "text")
        turns.append((one["role"], parts))
    return with_pictures(tuple(turns), pictures)


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
        headers: Of all requests, in lower case.
        hold: Streams wait for this before each token.
        sent: Tokens that streams have sent.
        models: Status and text instead of the list of models.
        plugin: Whether vllm-cold is there.
        changed: Fields of all choices that are not as they should be; None takes one out.
        text: What is sent instead of any JSON.
        reads_alike: Whether an answer's text becomes the tokens again that it was made of.
    """

    def __init__(self) -> None:
        self.model = Model(spread=2.5)
        self.delay = 0.0
        self.fails: int | None = None
        self.breaks: int | None = None
        self.bodies: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.sent = 0
        self.models: tuple[int, str] | None = None
        self.plugin = True
        self.changed: dict[str, Any] = {}
        self.text: str | None = None
        self.reads_alike = True

    def answer(self, model: str, prompt: Any, xargs: dict[str, Any], most: int) -> Decoded:
        """Decode, greedily or with CoLD."""
        adapter, is_cold = None if model == "base" else model, bool(xargs.get("cold"))
        if is_cold:
            args = {k: v for k, v in xargs.items() if k != "cold" and v != MAX_EXPERT_TOP_K}
            explains = args.pop("cold_explain", 0)
            asked = prompt if isinstance(prompt, str) else chat_of(prompt)
            read = self.model.read_one(ask(Row(asked, {}), args), adapter)
        else:
            streams = (Stream(adapter, self.ids(prompt)),)
            read = Asked(Row("", {}), False, {}, read_contrast({}), streams)
        found = self.model.answer(read, not is_cold, most)
        weights = found.weights if is_cold and explains else ()
        return Decoded(found.tokens, "".join(map(word, found.tokens)), "length", weights)

    def ids(self, prompt: Any, continued: bool = False) -> tuple[int, ...]:
        """Of a text, of messages, of messages that end with an answer's beginning, or of ids."""
        if isinstance(prompt, str):
            return tuple(make("", Text(prompt)))
        if not isinstance(prompt[0], dict):
            return tuple(prompt)
        if not continued:
            return tuple(make("", Messages(prompt)))
        *messages, begun = prompt
        assert begun["role"] == "assistant"
        behind = [max(0, ord(c) - _FIRST) * self.reads_alike for c in begun["content"]]
        return (*make("", Messages(messages)), *behind)

    def choice(self, body: dict[str, Any], prompt: Any) -> dict[str, Any]:
        """The answer, whatever is asked of it."""
        adapter = None if body["model"] == "base" else body["model"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "text": ""}
        ids = self.ids(prompt, body.get("continue_final_message", False))
        assert body.get("continue_final_message") is not body.get("add_generation_prompt", True)
        if (top := body.get("prompt_logprobs")) is not None:
            told = [
                {str(t): {"logprob": e.value, "decoded_token": word(t)} for t, e in row.items()}
                for row in self.model.rows(Stream(adapter, ids), top)
            ]
            choice["prompt_logprobs"] = [None, *told]
        elif (wanted := body.get("logprob_token_ids")) is not None:
            values = self.model.logprobs(Stream(adapter, ids))
            found = {f"token_id:{t}": values[t] for t in wanted}
            choice["logprobs"] = {"top_logprobs": [found]}
            if "messages" in body:
                assert body["logprobs"] is True
                tops = [{"token": name, "logprob": value} for name, value in found.items()]
                choice["logprobs"] = {"content": [{"token": "x", "top_logprobs": tops}]}
        else:
            found = self.answer(body["model"], prompt, body["vllm_xargs"], body["max_tokens"])
            choice |= {"text": found.text, "token_ids": list(found.tokens)}
            choice["weights"] = found.weights
        return {**choice, "prompt_token_ids": list(ids), **self.changed}


def _handler(made_up: MadeUp) -> type[loopback.Answering]:
    class Handler(loopback.Answering):
        def do_GET(self) -> None:
            made_up.headers.append({k.lower(): v for k, v in self.headers.items()})
            if made_up.models is not None:
                return self.send_text(*made_up.models)
            self.send(200, {"object": "list", "data": CARDS})

        def do_POST(self) -> None:
            made_up.headers.append({k.lower(): v for k, v in self.headers.items()})
            body = self.body()
            made_up.bodies.append((self.path, body))
            wants = (body.get("vllm_xargs") or {}).get("cold_alpha")
            if wants == -1 and made_up.plugin:
                return self._refuse("cold_alpha=-1: must be a number in [0, 1]")
            if wants == -1:
                return self.send(200, {"choices": []})
            if made_up.text is not None:
                return self.send_text(200, made_up.text)
            if body.get("prompt_logprobs", 0) > 20:
                return self._refuse("prompt_logprobs: greater than max allowed: 20")
            if self.path == "/detokenize":
                # As templates have it that put a space in front of what an assistant says.
                text = " " + "".join(chr(_FIRST + token) for token in body["tokens"])
                return self.send(200, {"prompt": text})
            chat = self.path.endswith("/chat/completions")
            prompt = body["messages"] if chat else body["prompt"]
            try:
                choice = made_up.choice(body, prompt)
            except (ColdError, ToolError) as error:
                return self._refuse(str(error))
            if body.get("stream"):
                return self._stream(choice, chat)
            names = ("prompt_token_ids", "prompt_logprobs") if chat else ()
            self.send(200, {"choices": [choice], **{n: choice.pop(n, None) for n in names}})

        def _stream(self, choice: dict[str, Any], chat: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()  # the stream ends with the connection
            ids = choice["prompt_token_ids"]
            if chat:  # whose first part has a role and no token
                empty = {"delta": {"role": "assistant", "content": ""}}
                self._chunk(empty, prompt_token_ids=ids)
            tokens = choice["token_ids"]
            for number, token in enumerate(tokens, 1):
                made_up.hold.wait(10)
                time.sleep(made_up.delay)
                if number - 1 == made_up.fails:
                    return self._event({"error": {"message": "out of order", "code": 500}})
                if number - 1 == made_up.breaks:
                    self.wfile.write(b"data: {")
                    return
                text = word(token)
                said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
                if number == 1 and not chat:
                    said["prompt_token_ids"] = ids
                reason = "length" if number == len(tokens) else None
                self._chunk({**said, "token_ids": [token], "finish_reason": reason})
                made_up.sent += 1
            if choice["weights"]:
                told = {"cold": {"weights": choice["weights"]}}
                self._event({"id": "x", "choices": [], "kv_transfer_params": told})
            self.wfile.write(b"data: [DONE]\n\n")

        def _chunk(self, choice: dict[str, Any], **more: Any) -> None:
            self._event({"id": "x", "choices": [{"index": 0, **choice}], **more})

        def _event(self, value: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
            self.wfile.flush()

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
