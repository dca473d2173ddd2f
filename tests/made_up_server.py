# SPDX-License-Identifier: Apache-2.0
"""What a vLLM server with vllm-cold says to ``explain``, from a made-up model: no engine."""

import contextlib
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
        bodies: What was asked, by path.
        headers: Of all requests, in lower case.
        models: Status and text instead of the list of models.
        plugin: Whether vllm-cold is there.
        explains: Whether answers tell of their steps.
        reply: Status and text instead of an answer.
    """

    def __init__(self) -> None:
        self.bodies: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: tuple[int, str] | None = None
        self.plugin = True
        self.explains = True
        self.reply: tuple[int, str] | None = None

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer, with what is told of its steps."""
        prompt = body.get("messages") or body["prompt"]
        request = parse_request_args(body["vllm_xargs"])
        given = [amateur.weight for amateur in describe(request)]
        settings, weights = request.settings(weights=given)
        explain = request.values.get("explain", 0)
        steps = tell_all(prompt, settings, weights, body["max_tokens"], explain)
        tokens = [step["tokens"][0] for step in steps]
        text = "".join(map(word, tokens))
        choice = {"finish_reason": "length", "token_ids": tokens}
        ids = {"prompt_token_ids": list(range(len(str(prompt))))}
        reply = {"kv_transfer_params": {"cold": {"steps": steps}} if self.explains else None}
        if "messages" in body:
            return {**reply, **ids, "choices": [{**choice, "message": {"content": text}}]}
        return {**reply, "choices": [{**choice, **ids, "text": text}]}


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
            if made_up.reply is not None:
                return self.send_text(*made_up.reply)
            try:
                self.send(200, made_up.answer(body))
            except ColdError as error:
                self._refuse(str(error))

        def _refuse(self, message: str) -> None:
            self.send(400, {"error": {"message": message, "code": 400}})

    return Handler


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, MadeUp]]:
    """The server's address, and the server."""
    made_up = MadeUp()
    with loopback.serving(_handler(made_up)) as address:
        yield address, made_up
