# SPDX-License-Identifier: Apache-2.0
"""What an API server's process does with CoLD requests, without a server."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.renderers.inputs.preprocess import prompt_to_seq

from tests.front_end import ONE, TWO, Front
from vllm_cold.group.stream import from_extra_args
from vllm_cold.ops.interface import NOT_FINITE
from vllm_cold.vllm import patching
from vllm_cold.vllm.frontend import serving
from vllm_cold.vllm.frontend.config import PROCESSOR_V1, SCHEDULER
from vllm_cold.vllm.frontend.errors import request_error
from vllm_cold.vllm.frontend.plan import plain_search
from vllm_cold.vllm.frontend.prompts import Recipe

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
        model_config=SimpleNamespace(logits_processors=[PROCESSOR_V1], served_model_name="base"),
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
    assert plain_search.get()
    assert params(body()) == "params"
    assert not plain_search.get()


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


# ---- amateurs' prompts ---------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": " w1 w2"}
USER = {"role": "user", "content": " w3"}
TOOL = {"role": "tool", "content": " w4", "tool_call_id": "1"}


class Online:
    """What a server makes of a body: vLLM's renderer and its classes of bodies."""

    def __init__(self, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
        patching.install(serving.online())
        owner = serving.online_renderer()
        given = {
            "model_config": front.config.model_config,
            "renderer": front.renderer,
            "request_logger": None,
            "chat_template": None,
            "chat_template_content_format": "auto",
            "trust_request_chat_template": True,
            "model_registry": None,
            "default_chat_template_kwargs": {"mood": " w8"},
        }
        wanted = inspect.signature(owner.__init__).parameters
        self.renderer = owner(**{k: v for k, v in given.items() if k in wanted})
        self.front = front
        engine = SimpleNamespace(vllm_config=front.config, input_processor=front.processor)
        models = SimpleNamespace(engine_client=engine, lora_requests={"one": ONE, "two": TWO})
        monkeypatch.setattr(serving, "_models", models)

    def answer(self, body: dict[str, Any], model: str = "one") -> tuple[dict[str, Any], list[Any]]:
        """The header, and the streams of each prompt (None for a plain request)."""
        kind = serving_protocol("messages" in body)
        request = kind(**{"model": model, "max_tokens": 4, **body})
        used: list[str] = []

        async def handle() -> list[Any]:
            serving._used.set(used)
            if "messages" in body:
                _, made = await self.renderer.preprocess_chat(
                    request, request.messages, None, "auto", {"mood": " w8"},
                    tool_dicts=[tool.model_dump() for tool in request.tools or ()],
                )  # fmt: skip
            else:
                made = await self.renderer.preprocess_cmpl(request, prompt_to_seq(request.prompt))
            found = []
            for one in made:
                params = request.to_sampling_params(4, {})
                lora = {"one": ONE, "two": TWO}.get(model)
                sampling = self.front.request(one, params, lora).sampling_params
                found.append(from_extra_args(sampling.extra_args))
            return found

        found = self.front.run(handle())
        return json.loads(used[-1]), found

    def prompts(self, body: dict[str, Any], model: str = "one", **xargs: Any) -> list[str | None]:
        """What the amateurs of the first prompt read."""
        xargs = {f"cold_{k}": v for k, v in xargs.items()}
        _, (stream, *_) = self.answer({**body, "vllm_xargs": xargs}, model)
        decode = self.front.tokenizer.decode
        return [one.prompt and decode(one.prompt) for one in stream.amateurs]


def serving_protocol(chat: bool) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return ChatCompletionRequest if chat else CompletionRequest


@pytest.fixture(scope="module")
def front(tiny: Path) -> Front:
    return Front(tiny / "model", max_model_len=256)


@pytest.fixture
def online(front: Front, monkeypatch: pytest.MonkeyPatch) -> Online:
    return Online(front, monkeypatch)


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def test_amateurs_of_a_chat(online: Online) -> None:
    body = chat(SYSTEM, USER, TOOL)
    assert online.prompts(body, without="system") == ["user:  w3\ntool:  w4\nassistant:"]
    assert online.prompts(body, without="system,tool") == ["user:  w3\nassistant:"]
    assert online.prompts(body, without=[0, 1]) == ["tool:  w4\nassistant:"]
    assert online.prompts(body, "base", without=2) == ["system:  w1 w2\nuser:  w3\nassistant:"]
    said = json.dumps([USER])
    assert online.prompts(body, amateur_messages=said) == ["user:  w3\nassistant:"]
    assert online.prompts(body, amateur_prompt=" w9") == [" w9"]
    several = {"weights": [0.5, -0.5, -1], "amateur": ["two", "", "base"],
               "without": ["", "tool", "system"]}  # fmt: skip
    assert online.prompts(body, **several) == [
        None,
        "system:  w1 w2\nuser:  w3\nassistant:",
        "user:  w3\ntool:  w4\nassistant:",
    ]
    parts = {"role": "user", "content": [{"type": "text", "text": " w5"}]}
    assert online.prompts(chat(SYSTEM, parts), without=0) == ["user:  w5\nassistant:"]


def test_the_template_and_its_arguments_are_the_requests(online: Online) -> None:
    template = (
        "{{ mood }}{{ tone }}{{ tools | length }}{% for m in messages %}{{ m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    body = chat(SYSTEM, USER, chat_template=template, tools=[tool], tool_choice="none",
                add_generation_prompt=False, chat_template_kwargs={"tone": " w7"})  # fmt: skip
    assert online.prompts(body, without="system") == [" w8 w71 w3"]
    assert online.prompts(body, amateur_messages=json.dumps([TOOL])) == [" w8 w71 w4"]


def test_amateurs_of_completions(online: Online) -> None:
    body = {"prompt": "Text: w1 Question: w3"}
    assert online.prompts(body, part="0:9") == ["Question: w3"]
    assert online.prompts({"prompt": [100, 101, 102]}, part="0:2") == [" w1"]
    assert online.prompts(body, amateur_prompt=" w9") == [" w9"]
    said = json.dumps([USER])
    assert online.prompts(body, amateur_messages=said) == ["user:  w3\nassistant:"]
    _, streams = online.answer(
        {"prompt": [" w1", " w2"], "vllm_xargs": {"cold_amateur_prompt": " w9"}}
    )
    assert len(streams) == 2 and streams[0].amateurs == streams[1].amateurs
    assert online.prompts({**body, "n": 3}, part="0:9") == ["Question: w3"]


@pytest.mark.parametrize(
    ("body", "xargs", "message"),
    [
        (chat(USER), {"without": "system"}, "cold_without='system': the conversation has no such"),
        (chat(USER), {"without": [0]}, "cold_without='0': leaves no message"),
        (chat(USER), {"without": 7}, "cold_without=7: the conversation has the messages 0 to 0"),
        (chat(USER), {"part": [0, 1]}, "cold_part='0:1': is for completions"),
        (chat(USER), {"amateur_messages": "x"}, "cold_amateur_messages='x': must be a JSON list"),
        (chat(USER), {"amateur_messages": json.dumps([USER])}, "the amateur is the expert"),
        (chat(USER), {"amateur_prompt": ""}, "cold_amateur_prompt='': must not be empty"),
        (chat(USER), {"amateur_prompt": "w" * 400}, "cold_amateur_prompt='wwwwwwww"),
        (chat(USER), {"preset": "dola"}, "cold_preset='dola': must be one of cold, cad,"),
        (chat(USER), {"weights": [1e9]}, "must be a number from -1e6 to 1e6"),
        (chat(USER), {"weights": [1.0] * 33}, "has 33 entries"),
        ({"prompt": " w1"}, {"without": "system"}, "cold_without='system': is for chats"),
        ({"prompt": [" w1", " w2"]}, {"part": "0:1"}, "cold_part=2: is for one prompt"),
    ],
)
def test_wrong_amateurs(body: Any, xargs: Any, message: str, online: Online) -> None:
    """Refused before a response starts, as what vLLM answers with HTTP 400."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        online.prompts(body, **xargs)
    assert type(caught.value) is type(request_error(ValueError()))


def test_what_a_client_is_told_of_amateurs(online: Online) -> None:
    body = chat(SYSTEM, USER)

    def header(model: str = "one", **xargs: Any) -> Any:
        return online.answer({**body, "vllm_xargs": {f"cold_{k}": v for k, v in xargs.items()}})[0]

    common = {"cold": 1, "alpha": 0.1}
    assert header(without="system") == {
        **common, "beta": 0.5, "amateur": "one", "prompt": "without system",
    }  # fmt: skip
    assert header(preset="adacad", without=0) == {
        "cold": 1, "alpha": 0.0, "beta": "adaptive", "beta_max": 1.0, "preset": "adacad",
        "amateur": "one", "prompt": "without 0",
    }  # fmt: skip
    assert header(weights=-0.75, amateur="base") == {**common, "amateur": None, "weight": -0.75}
    assert header(weights=[1, "adaptive"], amateur=["two", ""], amateur_prompt=["", " w9"]) == {
        **common, "beta_max": 1.0, "amateurs": [
            {"amateur": "two", "weight": 1.0},
            {"amateur": "one", "prompt": "text", "weight": "adaptive"},
        ],
    }  # fmt: skip


def test_a_server_that_guides_every_chat(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front.config, "additional_config", {"cold": {"without": "system"}})
    for model in ("one", "base"):
        said, [stream] = online.answer(chat(SYSTEM, USER), model)
        assert said["prompt"] == "without system" and stream.amateurs[0].prompt
        for body in (chat(USER), {"prompt": " w1"}):
            said, [stream] = online.answer(body, model)
            assert said == {"cold": 0} and stream is None
    said, [stream] = online.answer(chat(SYSTEM, USER, vllm_xargs={"cold": 0}))
    assert said == {"cold": 0} and stream is None
    with pytest.raises(ValueError, match="the engine's default.*no such message"):
        online.answer(chat(USER, vllm_xargs={"cold": 1}))
    beams = serving_protocol(chat=True)(model="base", use_beam_search=True, **chat(SYSTEM, USER))
    with pytest.raises(ValueError, match="CoLD does not support beam search"):
        beams.to_beam_search_params(4, {})
    beams = serving_protocol(chat=False)(model="one", use_beam_search=True, prompt=" w1")
    assert beams.to_beam_search_params(4, {}) is not None, "it would not be contrasted"
    plain_search.set(False)


def test_a_default_that_comes_to_nothing(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for nothing is served as without it, and told so; who asked is refused."""
    monkeypatch.setattr(front.config, "additional_config", {"cold": {"without": "system"}})
    # What is left out is cut off: expert and amateur read the same.
    cut = chat(SYSTEM, USER, truncate_prompt_tokens=2)
    said, [stream] = online.answer(cut)
    assert said == {"cold": 0} and stream is None
    with pytest.raises(ValueError, match="the amateur is the expert"):
        online.answer({**cut, "vllm_xargs": {"cold_without": "system"}})

    def say(body: dict[str, Any], made: list[Any] | None = None) -> Any:
        request = serving_protocol(chat=True)(model="base", max_tokens=4, **body)
        used: list[str] = []

        async def handle() -> None:
            serving._used.set(used)
            if made is not None:
                assert await serving._prepare(online.renderer, request, made) == made
            request.to_sampling_params(4, {})

        front.run(handle())
        return json.loads(used[-1])

    # Prompts that others than vLLM's chat renderer make, and those with images.
    assert say(chat(SYSTEM, USER)) == {"cold": 0}
    image = {"type": "multimodal", "prompt_token_ids": [1]}
    assert say(chat(USER), [image]) == {"cold": 0}
    seen = {**image, "cold_recipe": Recipe(messages=[SYSTEM, USER])}
    for body, made in (
        (chat(SYSTEM, USER), seen),
        (chat(USER, vllm_xargs={"cold_without": "system"}), image),
    ):
        with pytest.raises(ValueError, match="CoLD does not support multimodal prompts"):
            say(body, [made])


def test_each_chat_of_a_batch_is_looked_at_once(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts are made first, then the parameters of all."""
    monkeypatch.setattr(front.config, "additional_config", {"cold": {"without": "system"}})
    kind = serving_protocol(chat=True)
    requests = [kind(model="one", max_tokens=4, **chat(SYSTEM, USER)) for _ in range(2)]
    used: list[str] = []

    async def handle() -> None:
        serving._used.set(used)
        for request in requests:
            await online.renderer.preprocess_chat(request, request.messages, None, "auto", {})
        for request in requests:
            request.to_sampling_params(4, {})

    front.run(handle())
    assert [json.loads(said)["cold"] for said in used] == [1, 1]
