# SPDX-License-Identifier: Apache-2.0
"""What an API server's process does with CoLD requests, without a server."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from vllm.renderers.inputs.preprocess import prompt_to_seq

from tests.front_end import JUNK, ONE, TWO, Front
from vllm_cold.group.stream import from_extra_args
from vllm_cold.ops.interface import NOT_FINITE
from vllm_cold.vllm import patching
from vllm_cold.vllm.frontend import serving
from vllm_cold.vllm.frontend.capacity import most_tokens
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
        speculative_config=None,
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
        used: dict[int, dict[str, Any]] = {}

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
        return told(used), found

    def prompts(self, body: dict[str, Any], model: str = "one", **xargs: Any) -> list[str | None]:
        """What the amateurs of the first prompt read."""
        xargs = {f"cold_{k}": v for k, v in xargs.items()}
        _, (stream, *_) = self.answer({**body, "vllm_xargs": xargs}, model)
        decode = self.front.tokenizer.decode
        return [one.prompt and decode(one.prompt) for one in stream.amateurs]


def told(used: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The header."""
    return dict(json.loads(serving._header(list(used.values()))))


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
        (chat(USER), {"weights": [math.nan]}, "must be a number from -1e6 to 1e6"),
        (chat(SYSTEM, USER), {"without": "system,x"}, "cold_without='x': the conversation has no"),
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
    for more in (chat(USER), chat(SYSTEM), {"prompt": " w1"}):
        kind = serving_protocol(chat="messages" in more)
        beams = kind(model="one", use_beam_search=True, **more)
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
        used: dict[int, dict[str, Any]] = {}

        async def handle() -> None:
            serving._used.set(used)
            if made is not None:
                assert await serving._prepare(online.renderer, request, made) == made
            request.to_sampling_params(4, {})

        front.run(handle())
        return told(used)

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
    """All prompts are made first, then the parameters of all; the header speaks of each."""
    monkeypatch.setattr(front.config, "additional_config", {"cold": {"without": "system"}})
    kind = serving_protocol(chat=True)

    def header(*bodies: dict[str, Any]) -> dict[str, Any]:
        requests = [kind(model="one", max_tokens=4, **body) for body in bodies]
        used: dict[int, dict[str, Any]] = {}

        async def handle() -> None:
            serving._used.set(used)
            probe = kind(**chat(SYSTEM))  # as vLLM makes of /v1/messages, to see what comes of it
            for request in (probe, *requests):
                await online.renderer.preprocess_chat(request, request.messages, None, "auto", {})
            for request in requests:
                request.to_sampling_params(4, {})

        front.run(handle())
        return told(used)

    guided, plain = chat(SYSTEM, USER), chat(USER)
    one = header(guided)
    assert one["cold"] == 1 and "choices" not in one
    assert header(guided, guided) == one
    assert header(plain, plain) == {"cold": 0}
    assert header(plain, guided, plain, guided) == {**one, "choices": [1, 3]}
    assert header(guided, plain) == {**one, "choices": [0]}
    assert header(plain, *[guided] * 101)["choices"] == 101


def test_a_preset_alone(online: Online, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what its amateur does not read, for all chats that have it: what a model's alias
    sends, or a client that says it once for all its requests.
    """
    body, plain = chat(SYSTEM, USER, TOOL), chat(USER)
    context = {"cad": "tool", "adacad": "tool", "cfg": "system"}
    left = {
        "tool": "system:  w1 w2\nuser:  w3\nassistant:",
        "system": "user:  w3\ntool:  w4\nassistant:",
    }
    for cold in (True, {"alpha": 0.3, "beta": 2}, {"enabled": False, "alpha": 0.3}):
        monkeypatch.setattr(front.config, "additional_config", {"cold": cold})
        for preset, without in context.items():
            assert online.prompts(body, "base", preset=preset) == [left[without]]
            for more in ({}, {"cold_beta": 1}, {"cold": 1}):
                asked = {"vllm_xargs": {"cold_preset": preset, **more}}
                said, _ = online.answer(body | asked)
                assert (said["prompt"], said["alpha"]) == (f"without {without}", 0)
                assert said["beta"] == more.get(
                    "cold_beta", 0.5 if preset != "adacad" else "adaptive"
                )
                said, [stream] = online.answer(plain | asked)
                assert said == {"cold": 0} and stream is None
            field = f"cold_without ({preset}'s default)='{without}': "
            cut = chat(SYSTEM, USER, TOOL, truncate_prompt_tokens=2)
            for wrong, why in (
                ({"prompt": " w1"}, "is for chats"),
                (cut, "the amateur is the exp"),
            ):
                with pytest.raises(ValueError, match=re.escape(field) + why):
                    online.answer({**wrong, "vllm_xargs": {"cold_preset": preset}})
        both = [left["tool"], "system:  w1 w2\ntool:  w4\nassistant:"]
        assert online.prompts(body, "base", preset="grounded") == both
        said, _ = online.answer(body | {"vllm_xargs": {"cold_preset": "grounded"}})
        assert (said["alpha"], said["preset"]) == (0.3, "grounded")
        assert [one["weight"] for one in said["amateurs"]] == [-0.25, -0.25]
        for lacking in (chat(SYSTEM, USER), chat(SYSTEM, TOOL)):  # one of its amateurs would equal
            said, [stream] = online.answer(lacking | {"vllm_xargs": {"cold_preset": "grounded"}})
            assert said == {"cold": 0} and stream is None
    # The server's own default comes before it, but for methods that read the expert's prompt or
    # have several amateurs.
    monkeypatch.setattr(front.config, "additional_config", {"cold": {"without": "system"}})
    assert online.prompts(body, preset="cad") == [left["system"]]
    assert online.prompts(body, preset="cad", without="tool") == [left["tool"]]
    assert online.prompts(body, preset="cold") == [None]
    assert online.prompts(body, preset="grounded") == both
    assert online.prompts(body, preset="grounded", without=["user", "tool"]) == both[::-1]
    with pytest.raises(ValueError, match="CoLD needs an adapter as expert"):
        online.prompts(body, "base", preset="cold")
    with pytest.raises(ValueError, match="cold_preset='dexperts': is for 2 amateurs"):
        online.prompts(body, preset="dexperts")
    with pytest.raises(ValueError, match="no such message"):  # who names it is told
        online.prompts(plain, preset="cad", without="tool")


# ---- refused before the headers ------------------------------------------------------------------

LONG = " w9" * 100


@pytest.fixture
def cache(front: Front, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many blocks of 16 tokens the engine has."""
    config = front.config.cache_config
    monkeypatch.setattr(config, "block_size", 16)
    return lambda blocks: monkeypatch.setattr(config, "num_gpu_blocks", blocks + 1)


def prepared(online: Online, body: dict[str, Any]) -> Any:
    """All that is done before a response starts."""
    request = serving_protocol("messages" in body)(**{"model": "one", **body})

    async def handle() -> Any:
        if "messages" in body:
            return await online.renderer.preprocess_chat(
                request, request.messages, None, "auto", {}
            )
        return None, await online.renderer.preprocess_cmpl(request, prompt_to_seq(request.prompt))

    return online.front.run(handle())[1]


def own(prompt: str, **more: Any) -> dict[str, Any]:
    return {"vllm_xargs": {"cold_amateur_prompt": prompt}, **more}


def test_what_does_not_fit_the_context(online: Online) -> None:
    """Of what the client asked for; the server's default is shortened to what is left."""
    for field in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(
            ValueError, match="cold_amateur_prompt=' w9 w9.*which with max_tokens=157"
        ):
            prepared(online, chat(USER, **own(LONG), **{field: 157}))
    with pytest.raises(ValueError, match="the amateur's prompt has 256 tokens, which with max_tok"):
        prepared(online, chat(USER, **own(" w9" * 256)))

    def tokens(default: int, length: int, **more: Any) -> int:
        body = {**chat(USER), **own(" w9" * length), **more}
        [made] = prepared(online, body)
        request = serving_protocol(chat=True)(model="one", **body)
        params = request.to_sampling_params(default, {})
        return int(online.front.request(made, params, ONE).sampling_params.max_tokens)

    assert tokens(156, 100, max_tokens=156) == 156
    assert tokens(4, 255) == 1
    # vLLM's number, less than its own rest of the context: nobody asked for it.
    assert tokens(200, 100) == 156
    assert tokens(200, 40) == 200
    # What is more than the context has is vLLM's to shorten, too.
    assert tokens(238, 100, max_tokens=250) == 156


def test_what_does_not_fit_the_cache(online: Online, cache: Any) -> None:
    text = {"prompt": [100] * 20}
    cache(6)
    for more in ({"max_tokens": 29}, {"max_tokens": 29, "n": 2}):
        assert prepared(online, {**text, **own(LONG[:60]), **more})
    message = (
        "max_tokens=30: with prompts of 20, 20 tokens|with the prompt's 20 tokens, the two str"
    )
    with pytest.raises(ValueError, match=message):
        prepared(online, {**text, **own(LONG[:60]), "max_tokens": 30})
    body = {**chat(USER), **own(LONG)}
    cache(7)
    with pytest.raises(ValueError, match="max_tokens=1: with prompts of .* need 9"):
        prepared(online, body)
    cache(10)
    [made] = prepared(online, body)
    params = serving_protocol(chat=True)(model="one", **body).to_sampling_params(200, {})
    sampling = online.front.request(made, params, ONE).sampling_params
    # 18 + 15 - 1 tokens take 2 blocks, 100 + 15 - 1 take 8.
    assert len(made["prompt_token_ids"]) == 18 and sampling.max_tokens == 15
    with pytest.raises(ValueError, match="max_tokens=250: .* need 32 KV cache blocks"):
        prepared(online, {**body, "max_tokens": 250})


def test_what_the_servers_owner_allows(
    online: Online, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM does, the least of what is asked for and what is allowed."""
    cache(6)
    body = {"prompt": [100] * 20, **own(LONG[:60]), "max_tokens": 240}
    with pytest.raises(ValueError, match="max_tokens=240: .* two streams"):
        prepared(online, body)
    monkeypatch.setattr(online.front.processor, "cold_most_tokens", 29, raising=False)
    assert prepared(online, body)
    with pytest.raises(ValueError, match="max_tokens=29: .* two streams"):
        prepared(online, {**body, "prompt": [100] * 40})


def test_where_it_stands_what_the_owner_allows(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = front.config.model_config
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 40}')
    for source, override, most in (
        ("auto", {}, None),
        ("auto", {"max_new_tokens": 30}, 30),
        ("vllm", {"max_new_tokens": 30}, 30),
        (str(tmp_path), {}, 40),
        (str(tmp_path), {"max_new_tokens": 30}, 30),
    ):
        monkeypatch.setattr(config, "generation_config", source)
        monkeypatch.setattr(config, "override_generation_config", override)
        assert most_tokens(config) == most


def test_prompts_that_are_embeddings(online: Online) -> None:
    import torch

    def made(**xargs: Any) -> Any:
        request = serving_protocol(chat=False)(model="one", prompt=" w1", vllm_xargs=xargs)
        one = {"type": "embeds", "prompt_embeds": torch.zeros(5, 64)}
        [found] = online.front.run(serving._prepare(online.renderer, request, [one]))
        return found["cold_recipe"].prepared

    assert len(made(cold_amateur_prompt=" w9 w8").prompts[0]) == 2
    for wrong in ({"cold_part": [0, 1]}, {"cold_without": "system"}):
        with pytest.raises(ValueError, match="is for c"):
            made(**wrong)


def test_a_suffix_moves_positions(online: Online) -> None:
    body = {"prompt": "Text: w1", "suffix": " w2"}
    with pytest.raises(ValueError, match="cold_part='0:3': is for a prompt without a suffix"):
        prepared(online, {**body, "vllm_xargs": {"cold_part": "0:3"}})
    assert online.prompts(body, amateur_prompt=" w9") == [" w9"]
    assert online.prompts({**body, "suffix": None, "echo": True}, part="0:6") == ["w1"]


def test_chats_without_a_chat_template(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt-oss: vLLM makes their prompts itself, so ``preprocess_chat`` is not called."""
    monkeypatch.setattr(front.config.model_config.hf_config, "model_type", "gpt_oss")

    def params(model: str = "one", **xargs: Any) -> Any:
        request = serving_protocol(chat=True)(model=model, vllm_xargs=xargs, **chat(SYSTEM, USER))
        return request.to_sampling_params(4, {})

    for key, value in (
        ("cold_without", "system"),
        ("cold_amateur_messages", json.dumps([USER])),
        ("cold_part", "0:1"),
        ("cold_amateur_prompt", " w9"),
    ):
        with pytest.raises(ValueError, match=f"{key}=.*without a chat template") as caught:
            params(**{key: value})
        assert type(caught.value) is type(request_error(ValueError()))
    assert params(cold=1) and params(cold_amateur="two") and params("base")
    assert online.prompts({"prompt": "Text: w1"}, part="0:6") == ["w1"]


def test_equal_prompts_are_made_once(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(online.front.renderer)
    calls: list[str] = []
    for name in ("render_cmpl_async", "render_chat_async"):
        render = getattr(kind, name)

        def counted(
            self: Any, *args: Any, _render: Any = render, _name: str = name, **kwargs: Any
        ) -> Any:
            calls.append(_name)
            return _render(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, counted)
    monkeypatch.setattr(online.front.config.lora_config, "max_loras", 3)
    body = chat(SYSTEM, USER)
    read = online.prompts(
        body, weights=[-0.1] * 6, without=["system", "", "0", "", "system", "0"],
        amateur=["", "base", "", "two", "base", "two"],
        amateur_prompt=["", " w9", "", " w9", "", ""],
    )  # fmt: skip
    guided = "user:  w3\nassistant:"
    assert read == [guided, " w9", guided, " w9", guided, guided]
    assert calls == [
        "render_chat_async",
        "render_chat_async",
        "render_cmpl_async",
        "render_chat_async",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    JUNK,
    st.sampled_from(["one", "base"]),
    st.sampled_from([None, 1, 30, 200, 250]),
    st.sampled_from([0, 0, 1, 60, 240, 256]),
    st.sampled_from([chat(SYSTEM, USER), chat(USER, TOOL), {"prompt": [100] * 20}]),
    st.sampled_from([3, 10, 20, 1000]),
)
def test_all_that_is_wrong_is_said_before_the_headers(
    online: Online, front: Front, args: Any, model: str, asked: int | None, length: int,
    body: Any, blocks: int,
) -> None:  # fmt: skip
    """What comes through there is not refused later."""
    if length:
        args = {**args, "amateur_prompt": " w9" * length}
    body = {**body, "model": model, "vllm_xargs": {f"cold_{k}": v for k, v in args.items()}}
    config = front.config.cache_config
    before = config.num_gpu_blocks, config.block_size
    config.num_gpu_blocks, config.block_size = blocks + 1, 16
    try:
        request = serving_protocol("messages" in body)(**body, max_tokens=asked)
        [made] = prepared(online, {**body, "max_tokens": asked})
        left = 256 - len(made["prompt_token_ids"])
        most = min(left, request.max_tokens or left)
        params = request.to_sampling_params(most, {})
    except (ValidationError, type(request_error(ValueError()))):
        return
    else:
        lora = {"one": ONE}.get(model)
        sampling = front.request(made, params, lora).sampling_params
        assert 1 <= sampling.max_tokens <= most
        assert sampling.max_tokens == most or asked is None or asked > left
    finally:
        config.num_gpu_blocks, config.block_size = before
