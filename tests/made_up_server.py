# SPDX-License-Identifier: Apache-2.0
"""What a vLLM server with vllm-cold says to ``explain``, from a made-up model: no engine."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests import loopback
from tests.browser.reports import WORDS, tell_all
from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import describe
from vllm_cold.settings.arguments import parse_request_args

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
        headers: Of all requests, in lower case.
        hold: Streams wait for this before each token.
        sent: Tokens that streams have sent.
        models: Status and text instead of the list of models.
        plugin: Whether vllm-cold is there.
        changed: Fields of all choices that are not as they should be; None takes one out.
    """

    def __init__(self) -> None:
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

    def choice(self, body: dict[str, Any], prompt: Any) -> dict[str, Any]:
        """The answer, with what is told of its steps."""
        request = parse_request_args(body["vllm_xargs"])
        given = [one.weight for one in describe(request)]
        settings, weights = request.settings(weights=given)
        explain = request.values.get("explain", 0)
        steps = tell_all(prompt, settings, weights, body["max_tokens"], explain)
        tokens = [step["tokens"][0] for step in steps]
        ids = list(range(len(str(prompt))))
        told = {"prompt_token_ids": ids, "token_ids": tokens, "steps": steps}
        return {"index": 0, "finish_reason": "length", **told, **self.changed}


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
            chat = self.path.endswith("/chat/completions")
            prompt = body["messages"] if chat else body["prompt"]
            try:
                choice = made_up.choice(body, prompt)
            except ColdError as error:
                return self._refuse(str(error))
            self._stream(choice, chat)

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
            told = {"cold": {"steps": choice["steps"]}}
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
