# SPDX-License-Identifier: Apache-2.0
"""What an API server's process does with CoLD requests, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.ops.interface import NOT_FINITE
from vllm_cold.vllm.frontend import admission, serving
from vllm_cold.vllm.frontend.config import PROCESSOR_V1, SCHEDULER
from vllm_cold.vllm.frontend.errors import request_error

pytestmark = pytest.mark.unit


def body(model: str = "sql", extra: dict[str, Any] | None = None, **xargs: Any) -> Any:
    """As much of an HTTP request's body as is looked at."""
    return SimpleNamespace(model=model, model_extra=extra, vllm_xargs=xargs or None)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server whose engine is prepared and has CoLD as its default, with one adapter."""
    config = SimpleNamespace(
        additional_config={"cold": {"alpha": 0.2}},
        scheduler_config=SimpleNamespace(scheduler_cls=SCHEDULER),
        model_config=SimpleNamespace(logits_processors=[PROCESSOR_V1]),
        lora_config=SimpleNamespace(max_loras=2),
    )
    adapters = {n: SimpleNamespace(lora_int_id=i, lora_name=n) for i, n in enumerate(("sql", "b"))}
    engine = SimpleNamespace(vllm_config=config)
    found = SimpleNamespace(engine_client=engine, lora_requests=adapters)
    monkeypatch.setattr(serving, "_models", found)
    return found


params = serving._make_sampling_params(lambda self: "params")
beams = serving._make_beam_params(lambda self: "beams")


@pytest.mark.usefixtures("models")
def test_a_beam_search_does_not_linger() -> None:
    """What follows in the same context is for CoLD again."""
    assert beams(body(cold=0)) == "beams"
    assert admission.plain_search.get()
    assert params(body()) == "params"
    assert not admission.plain_search.get()


@pytest.mark.usefixtures("models")
def test_keys() -> None:
    for wrong, message in (
        (body(extra={"cold_beta": 3}), "cold_beta=3: belongs into vllm_xargs"),
        (body(extra={"Cold_beta": 3}), "Cold_beta=3: belongs into vllm_xargs"),
        (body(Cold_beta=3), "Cold_beta=3: unknown key"),
        (body(cold_gamma=3), "cold_gamma=3: unknown key"),
        (body(cold_amateur="sql"), "cold_amateur='sql': must differ from the expert"),
        (body(cold_amateur="c"), "cold_amateur='c': no such adapter"),
    ):
        for convert in (params, beams) if wrong.model_extra else (params,):
            with pytest.raises(ValueError, match=message) as caught:
                convert(wrong)
            assert type(caught.value) is type(request_error(ValueError()))
    for foreign in (
        body(coldstart_id=3),
        body("base", coldstart_id=3),
        body(extra={"coldstart": 1}),
        body("base", {"top_k_of_mine": 1}),
    ):
        assert params(foreign) == "params"


async def answered(request: Any) -> dict[str, Any] | None:
    """The header of a request's response; as in vLLM, it is handled in a task of its own."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def handle() -> None:
            if request is not None:
                params(request)

        await asyncio.create_task(handle())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await serving.Header(app)({"type": "http"}, None, send)
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    headers = dict(sent[0]["headers"])
    assert headers.pop(b"a") == b"b"
    said = headers.pop(serving.HEADER, None)
    assert not headers
    return None if said is None else dict(json.loads(said))


@pytest.mark.usefixtures("models")
def test_a_client_is_told_what_was_used() -> None:
    async def all_of_them() -> list[Any]:
        asked = (body(), body(cold=0), body("base"), None,
                 body(cold_beta="adaptive", cold_expert_top_k=5, cold_amateur="b"))  # fmt: skip
        return await asyncio.gather(*(answered(request) for request in asked))

    assert asyncio.run(all_of_them()) == [
        {"cold": 1, "alpha": 0.2, "beta": 0.5, "amateur": None},
        {"cold": 0},
        {"cold": 0},
        None,
        {"cold": 1, "alpha": 0.2, "beta": "adaptive", "beta_max": 1.0, "expert_top_k": 5,
         "amateur": "b"},
    ]  # fmt: skip


@pytest.mark.parametrize("cold", [True, False])
def test_a_failed_request_tells_why(cold: bool, models: Any) -> None:
    """The whole request of several sequences ends, and what is left of it is aborted."""
    ended: list[str] = []

    async def generate(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        try:
            for reason in (None, "error", None):
                one = SimpleNamespace(finish_reason=reason, stop_reason=reason and NOT_FINITE)
                fine = SimpleNamespace(finish_reason=None, stop_reason=None)
                yield SimpleNamespace(outputs=[fine, one])
        finally:
            ended.append("closed")

    async def run() -> list[Any]:
        got = []
        sampling = SimpleNamespace(extra_args=None if cold else {"cold": 0})
        wrapped = serving._make_generate(generate)
        try:
            async for output in wrapped(
                models.engine_client, [1], sampling, "r", lora_request=models.lora_requests["sql"]
            ):
                got.append(output)
        except Exception as error:
            got.append(str(error))
        return got

    got = asyncio.run(run())
    assert ended == ["closed"]
    if cold:
        assert len(got) == 2 and got[1] == NOT_FINITE
    else:
        assert len(got) == 3, "a plain request is handed on as it is"
