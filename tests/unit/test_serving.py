# SPDX-License-Identifier: Apache-2.0
"""What an API server's process does with CoLD requests, without a server: vLLM's own classes of
bodies, its renderer and its input processor.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.renderers.inputs.preprocess import prompt_to_seq
from vllm.renderers.params import TokenizeParams

from tests.front_end import JUNK, ONE, TWO, Front
from tests.places import wrapped
from vllm_cold import patching, places
from vllm_cold.errors import ColdError
from vllm_cold.group import results
from vllm_cold.group.stream import from_extra_args
from vllm_cold.vllm import versions
from vllm_cold.vllm.frontend import admission, intake, serving
from vllm_cold.vllm.frontend.capacity import most_tokens
from vllm_cold.vllm.frontend.intake import FRONT_END

pytestmark = pytest.mark.unit

SYSTEM = {"role": "system", "content": " w1 w2"}
USER = {"role": "user", "content": " w3"}
TOOL = {"role": "tool", "content": " w4", "tool_call_id": "1"}
MOOD = {"mood": " w8"}  # the server's own template arguments


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def xargs(**args: Any) -> dict[str, Any]:
    return {"vllm_xargs": {f"cold_{k}": v for k, v in args.items()}}


def protocol(body: dict[str, Any]) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return ChatCompletionRequest if "messages" in body else CompletionRequest


class Online:
    """What a server makes of a body."""

    def __init__(self, front: Front) -> None:
        patching.install(places.rows(places.ONLINE))
        owner, _, _ = wrapped(".preprocess_chat").find()
        given = {
            "model_config": front.config.model_config,
            "renderer": front.renderer,
            "request_logger": None,
            "chat_template": None,
            "chat_template_content_format": "auto",
            "trust_request_chat_template": True,
            "model_registry": None,
            "default_chat_template_kwargs": MOOD,
        }
        wanted = inspect.signature(owner.__init__).parameters
        self.renderer = owner(**{k: v for k, v in given.items() if k in wanted})
        self.front = front

    async def prepare(self, request: Any) -> Any:
        """What is done before a response starts."""
        if not hasattr(request, "messages"):
            return await self.renderer.preprocess_cmpl(request, prompt_to_seq(request.prompt))
        tools = [tool.model_dump() for tool in request.tools or ()]
        _, made = await self.renderer.preprocess_chat(
            request, request.messages, None, "auto", MOOD, tool_dicts=tools
        )
        return made

    def prepared(self, body: dict[str, Any]) -> Any:
        return self.front.run(self.prepare(protocol(body)(**{"model": "one", **body})))

    async def answer_async(self, body: dict[str, Any], model: str = "one") -> tuple[Any, list[Any]]:
        """The header, and the streams of each prompt (None for a plain request)."""
        request = protocol(body)(**{"model": model, "max_tokens": 4, **body})
        found, sent = [], {}

        async def handle() -> None:  # as in vLLM, in a task of its own
            for one in await self.prepare(request):
                params = request.to_sampling_params(4, {})
                sampling = self.front.request(one, params, {"one": ONE, "two": TWO}.get(model))
                found.append(from_extra_args(sampling.sampling_params.extra_args))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.create_task(handle())
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body"})

        async def send(message: dict[str, Any]) -> None:
            sent[message["type"]] = message

        await serving.Header(app)({"type": "http"}, None, send)
        headers = dict(sent["http.response.start"]["headers"])
        assert headers.pop(b"a") == b"b" and "http.response.body" in sent
        return json.loads(headers.pop(serving.HEADER)), found

    def answer(self, body: dict[str, Any], model: str = "one") -> tuple[Any, list[Any]]:
        return self.front.run(self.answer_async(body, model))  # type: ignore[no-any-return]

    def prompts(self, body: dict[str, Any], model: str = "one", **args: Any) -> list[str | None]:
        """What the amateurs of the first prompt read."""
        _, (stream, *_) = self.answer({**body, **xargs(**args)}, model)
        decode = self.front.tokenizer.decode
        return [one.prompt and decode(one.prompt) for one in stream.amateurs]


@pytest.fixture(scope="module")
def front(tiny: Path) -> Front:
    return Front(tiny / "model", max_model_len=256)


@pytest.fixture
def online(front: Front) -> Online:
    front.serve()
    FRONT_END.begin()
    return Online(front)


# ---- a request is decided once -------------------------------------------------------------------


def test_a_request_is_parsed_once(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    parse = admission.parse_request_args
    monkeypatch.setattr(admission, "parse_request_args", lambda a: calls.append(a) or parse(a))
    for body in (
        chat(SYSTEM, USER, **xargs(without="system")),
        chat(SYSTEM, USER),
        {"prompt": [" w1", " w2"], "n": 2, **xargs(beta=2)},
        {"prompt": " w1"},
        {"prompt": " w1", "vllm_xargs": {"cold": 0}},
    ):
        for default in (None, True):
            front.serve(default=default)
            calls.clear()
            online.answer(body)
            assert len(calls) == 1
    # Where vLLM makes the prompt without a template, and by whoever uses AsyncLLM.
    front.serve()
    request = protocol(chat())(model="one", max_tokens=4, **chat(USER, **xargs(beta=2)))
    calls.clear()
    params = request.to_sampling_params(4, {})

    async def original(self: Any, request_id: str, prompt: Any, params: Any, *args: Any) -> Any:
        return front.request(prompt, params).sampling_params

    add_request = intake._make_add_request(original)
    for sampling in (params, SamplingParams(extra_args=xargs(beta=2)["vllm_xargs"])):
        engine = front.serve()
        sent = front.run(
            add_request(engine, "r", front.text(" w1"), sampling, lora_request=ONE)
        ).extra_args
        assert from_extra_args(sent).settings.beta == 2.0 and len(sent) == 1
        assert len(calls) == 1
        calls.clear()


# ---- what is refused, and what is not ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (chat(USER, Cold_beta=3), "Cold_beta=3: belongs into vllm_xargs"),
        (chat(USER, vllm_xargs={"Cold_beta": 3}), "Cold_beta=3: unknown key"),
        (chat(USER, **xargs(other="\ud800")), "cold_other='\\ud800': unknown key"),
        (chat(USER, vllm_xargs={"cold_\ud800": 1}), "cold_\\ud800=1: unknown key"),
        ({"prompt": " w1", **xargs(amateur="one")}, "'one': must differ from the expert"),
        ({"prompt": " w1", **xargs(amateur="c")}, "cold_amateur='c': no such adapter"),
        (chat(USER, **xargs(amateur="base", without=0, part="0:1")), "the amateur has a prompt al"),
        (chat(USER, **xargs(part=[0, 1])), "cold_part='0:1': is for completions"),
        (chat(USER, **xargs(amateur_messages=json.dumps([USER]))), "the amateur is the expert"),
        ({"prompt": " w1", **xargs(without="system")}, "cold_without='system': is for chats"),
        ({"prompt": [" w1", " w2"], **xargs(part="0:1")}, "cold_part=2: is for one prompt"),
        ({"prompt": [" w1", " w2"], **xargs(explain=1)}, "prompt=2: must be one beside cold_expl"),
        ({"prompt": "Text: w1", "suffix": " w2", **xargs(part="0:3")}, "for a prompt without a su"),
    ],
)  # fmt: skip
def test_what_is_refused(body: dict[str, Any], message: str, online: Online) -> None:
    """As what vLLM answers with HTTP 400, by a search by beams too."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        online.answer(body)
    assert type(caught.value).__name__ == "ColdRequestError"
    str(caught.value).encode()  # HTTP sends it
    beams = protocol(body)(model="one", use_beam_search=True, **body)
    with pytest.raises(ValueError) as caught:
        beams.to_beam_search_params(4, {})
    assert type(caught.value).__name__ == "ColdRequestError"


def test_errors_show_the_beginning_of_what_is_deep_or_long(online: Online) -> None:
    deep, wide = "[" * 600 + "]" * 600, json.dumps([[[1] * 99] * 99] * 99)
    for body in (
        xargs(rule="mti", rule_parameters=f'{{"a": {deep}}}'),
        xargs(rule="mti", rule_parameters=f'{{"beta": {deep}}}'),
        {"cold_beta": json.loads(deep)},
        {"cold_beta": json.loads(wide)},
    ):
        started = time.perf_counter()
        with pytest.raises(ValueError) as caught:
            online.answer({"prompt": " w1", **body})
        assert type(caught.value).__name__ == "ColdRequestError" and len(str(caught.value)) < 500
        assert time.perf_counter() - started < 0.5
    error = str(ColdError("f", {"a": ["x", 1, (2,)], "b": {}}, "no"))
    assert error == "f={'a': ['x', 1, (2,)], 'b': {}}: no"


def test_a_search_by_beams_does_not_read_what_is_long(
    online: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "describe", None)
    body = {"prompt": " w1", **xargs(amateur_prompt="a " * 50_000)}
    beams = protocol(body)(model="one", use_beam_search=True, **body)
    with pytest.raises(ValueError, match="use_beam_search=True: CoLD does not support beam search"):
        beams.to_beam_search_params(4, {})
    body["vllm_xargs"]["cold"] = 0
    protocol(body)(model="one", use_beam_search=True, **body).to_beam_search_params(4, {})


def test_what_cannot_be_sent_to_the_engine(online: Online) -> None:
    """Whosever key it is: vLLM would say HTTP 500."""
    for value in ("\ud800", 2**64):
        with pytest.raises(ValueError, match="vllm_xargs cannot be sent to the engine"):
            online.answer({"prompt": " w1", "vllm_xargs": {"mine": value}})


def test_what_is_none_of_ours(online: Online) -> None:
    for body in ({"vllm_xargs": {"coldstart_id": 3}}, {"coldstart": 1}, {"top_k_of_mine": 1}):
        assert online.answer({"prompt": " w1", **body}) == ({"cold": 0}, [None])


def test_a_beam_search(online: Online, front: Front) -> None:
    """Its own requests are plain; what follows on the server is for CoLD again."""
    front.serve(default=True)
    beams = protocol(chat())(model="one", use_beam_search=True, **chat(USER))
    with pytest.raises(ValueError, match="CoLD does not support beam search"):
        beams.to_beam_search_params(4, {})
    beams.vllm_xargs = {"cold": 0}
    assert beams.to_beam_search_params(4, {}) is not None
    step = front.request(front.text(" w1"), SamplingParams(max_tokens=1))
    assert not step.sampling_params.extra_args
    said, [stream] = online.answer(chat(USER))
    assert said["cold"] == 1 and stream is not None


# ---- what amateurs read --------------------------------------------------------------------------


def test_amateurs_of_a_chat(online: Online) -> None:
    body = chat(SYSTEM, USER, TOOL)
    left = "user:  w3\ntool:  w4\nassistant:"
    for args, model, read in (
        ({"without": "system"}, "one", [left]),
        ({"without": "system,tool"}, "one", ["user:  w3\nassistant:"]),
        ({"without": 2}, "base", ["system:  w1 w2\nuser:  w3\nassistant:"]),
        ({"amateur_messages": json.dumps([USER])}, "one", ["user:  w3\nassistant:"]),
        ({"amateur_prompt": " w9"}, "one", [" w9"]),
        (
            {
                "weights": [0.5, -0.5, -1],
                "amateur": ["two", "", "base"],
                "without": ["", "tool", "system"],
            },
            "one",
            [None, "system:  w1 w2\nuser:  w3\nassistant:", left],
        ),
    ):
        assert online.prompts(body, model, **args) == read
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
    assert online.prompts({**body, "n": 3, "echo": True}, part="0:9") == ["Question: w3"]
    assert online.prompts({"prompt": [100, 101, 102]}, part="0:2") == [" w1"]
    assert online.prompts({**body, "suffix": " w2"}, amateur_prompt=" w9") == [" w9"]
    _, streams = online.answer({"prompt": [" w1", " w2"], **xargs(amateur_prompt=" w9")})
    assert len(streams) == 2 and streams[0].amateurs == streams[1].amateurs


def test_chats_without_a_chat_template(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt-oss: vLLM makes their prompts itself, so ``preprocess_chat`` is not called."""
    monkeypatch.setattr(front.config.model_config.hf_config, "model_type", "gpt_oss")

    def params(model: str = "one", **args: Any) -> Any:
        request = protocol(chat())(model=model, vllm_xargs=args, **chat(SYSTEM, USER))
        return request.to_sampling_params(4, {})

    for key, value in (
        ("cold_without", "system"),
        ("cold_amateur_messages", json.dumps([USER])),
        ("cold_part", "0:1"),
        ("cold_amateur_prompt", " w9"),
    ):
        with pytest.raises(ValueError, match=f"{key}=.*without a chat template"):
            params(**{key: value})
    for asked in ({"cold": 1}, {"cold_amateur": "two"}):
        sampling = front.request(front.text(" w1"), params(**asked)).sampling_params
        assert from_extra_args(sampling.extra_args) is not None
    for model, asked in (("base", {}), ("one", {"cold": 0})):
        assert not front.request(
            front.text(" w1"), params(model, **asked)
        ).sampling_params.extra_args
    assert online.prompts({"prompt": "Text: w1"}, part="0:6") == ["w1"]


# ---- what a client is told -----------------------------------------------------------------------


def test_a_client_is_told_what_was_used(online: Online, front: Front) -> None:
    front.serve(default={"alpha": 0.2})
    text = {"prompt": " w1"}

    async def all_of_them() -> list[Any]:
        asked = ((text, "one"), ({**text, "vllm_xargs": {"cold": 0}}, "one"), (text, "base"),
                 ({**text, **xargs(rule="adaptive", expert_top_k=5, amateur="two")}, "one"),
                 (chat(SYSTEM, USER, **xargs(without="system")), "one"),
                 (chat(SYSTEM, USER, **xargs(preset="adacad", without=0)), "one"),
                 ({**text, **xargs(weights=-0.75, amateur="base")}, "one"),
                 (chat(USER, **xargs(weights=[1, "mti"], amateur=["two", ""],
                                     rule_parameters='{"tau": 2}', amateur_prompt=["", " w9"])),
                  "one"),
                 ({**text, **xargs(rule="acd")}, "one"))  # fmt: skip
        answers = await asyncio.gather(*(online.answer_async(*one) for one in asked))
        return [said for said, _ in answers]

    common, most = {"cold": 1, "alpha": 0.2}, {"rule_parameters": {"beta_max": 1.0}}
    assert front.run(all_of_them()) == [
        {**common, "beta": 0.5, "amateur": None},
        {"cold": 0},
        {"cold": 0},
        {**common, "rule": "adaptive", **most, "expert_top_k": 5, "amateur": "two"},
        {**common, "beta": 0.5, "amateur": "one", "prompt": "without system"},
        {"cold": 1, "alpha": 0.0, "rule": "adaptive", **most, "preset": "adacad",
         "amateur": "one", "prompt": "without 0"},
        {**common, "amateur": None, "weight": -0.75},
        {**common, "rule_parameters": {"beta": 0.5, "tau": 2.0}, "amateurs": [
            {"amateur": "two", "weight": 1.0},
            {"amateur": "one", "prompt": "text", "weight": "mti"}]},
        {**common, "rule": "acd", "amateur": None},
    ]  # fmt: skip


@pytest.mark.parametrize(("asks", "has"), [(True, False), (False, False), (True, True)])
def test_weights_follow_a_streamed_answer(
    front: Front, asks: bool, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, behind its last part, for who asks; unless vLLM puts them there itself."""
    assert serving._streams_have_them() is (versions.vllm_version() >= "0.33")
    monkeypatch.setattr(serving, "_streams_have_them", lambda: has)
    rows = [{"weights": [-0.5, None]}, {"weights": [-0.25, None]}]
    parts = [b'data: {"choices": []}\n\n', b"data: [DONE]\n\n", b""]
    sent: list[bytes] = []

    async def outputs() -> AsyncGenerator[Any, None]:
        for num in (1, 2):
            told = results.with_steps({"theirs": 1}, rows[:num]) if asks else {"theirs": 1}
            yield SimpleNamespace(outputs=[], kv_transfer_params=told)
        yield SimpleNamespace(outputs=[], kv_transfer_params=None)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async for _ in serving._looked_at(outputs(), FRONT_END.exchange()):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in parts:
            await send({"type": "http.response.body", "body": memoryview(part)})

    async def send(message: dict[str, Any]) -> None:
        sent.append(bytes(message.get("body", b"")))

    front.run(serving.Header(app)({"type": "http"}, None, send))
    if not asks or has:
        assert sent == [b"", *parts]
        return
    assert [sent[1], sent[3]] == [parts[0], b""]
    told, done, rest = sent[2].split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert json.loads(told.removeprefix(b"data: ")) == {
        "choices": [], "kv_transfer_params": {"cold": {"steps": rows}},
    }  # fmt: skip


def test_each_chat_of_a_batch_is_told(online: Online, front: Front) -> None:
    """All prompts are made first, then the parameters of all; the header speaks of each."""
    front.serve(default={"without": "system"})
    kind = protocol(chat())

    def header(*bodies: dict[str, Any]) -> Any:
        requests = [kind(model="one", max_tokens=4, **body) for body in bodies]
        exchange = FRONT_END.begin()

        async def handle() -> None:
            probe = kind(**chat(SYSTEM))  # as vLLM makes of /v1/messages, to see what comes of it
            for request in (probe, *requests):
                await online.prepare(request)
            for request in requests:
                request.to_sampling_params(4, {})

        front.run(handle())
        return json.loads(serving.header(list(exchange.used.values())))

    guided, plain = chat(SYSTEM, USER), chat(USER)
    one = header(guided)
    assert one["cold"] == 1 and "choices" not in one
    assert header(guided, guided) == one
    assert header(plain, plain) == {"cold": 0}
    assert header(plain, guided, plain, guided) == {**one, "choices": [1, 3]}
    assert header(plain, *[guided] * 101)["choices"] == 101


# ---- defaults ------------------------------------------------------------------------------------


def test_a_server_that_guides_every_chat(online: Online, front: Front) -> None:
    front.serve(default={"without": "system"})
    for model in ("one", "base"):
        said, [stream] = online.answer(chat(SYSTEM, USER), model)
        assert said["prompt"] == "without system" and stream.amateurs[0].prompt
        # The last: what is left out is cut off, so expert and amateur read the same.
        cut = chat(SYSTEM, USER, truncate_prompt_tokens=2)
        for body in (chat(USER), {"prompt": " w1"}, cut):
            assert online.answer(body, model) == ({"cold": 0}, [None])
    assert online.answer(chat(SYSTEM, USER, vllm_xargs={"cold": 0})) == ({"cold": 0}, [None])
    # What a request says of its amateurs replaces the server's.
    body = chat(SYSTEM, USER, TOOL)
    assert online.prompts(body, without="tool") == ["system:  w1 w2\nuser:  w3\nassistant:"]
    assert online.prompts(body, amateur="base") == [None]
    assert online.prompts(body, beta=2) == ["user:  w3\ntool:  w4\nassistant:"]
    for body, why in (
        (chat(USER, vllm_xargs={"cold": 1}), "the engine's default.*no such message"),
        ({**cut, **xargs(without="system")}, "the amateur is the expert"),
    ):
        with pytest.raises(ValueError, match=why):
            online.answer(body)
    beams = protocol(chat())(model="base", use_beam_search=True, **chat(SYSTEM, USER))
    with pytest.raises(ValueError, match="CoLD does not support beam search"):
        beams.to_beam_search_params(4, {})
    for more in (chat(USER), chat(SYSTEM), {"prompt": " w1"}):
        beams = protocol(more)(model="one", use_beam_search=True, **more)
        assert beams.to_beam_search_params(4, {}) is not None, "it would not be contrasted"


def test_a_preset_alone(online: Online, front: Front) -> None:
    """It says what its amateur does not read, for all chats that have it: what a model's alias
    sends, or a client that says it once for all its requests.
    """
    body, plain = chat(SYSTEM, USER, TOOL), chat(USER)
    context = {"adacad": "tool", "cfg": "system"}
    left = {
        "tool": "system:  w1 w2\nuser:  w3\nassistant:",
        "system": "user:  w3\ntool:  w4\nassistant:",
    }
    both = [left["tool"], "system:  w1 w2\ntool:  w4\nassistant:"]
    for cold in (True, {"enabled": False, "alpha": 0.3, "beta": 2}):
        front.serve(default=cold)
        for preset, without in context.items():
            assert online.prompts(body, "base", preset=preset) == [left[without]]
            for more in ({}, {"cold_beta": 1}, {"cold": 1}):
                asked = {"vllm_xargs": {"cold_preset": preset, **more}}
                said, _ = online.answer(body | asked)
                assert (said["prompt"], said["alpha"]) == (f"without {without}", 0)
                of_preset = ("beta", 0.5) if preset != "adacad" else ("rule", "adaptive")
                name, value = ("beta", 1) if "cold_beta" in more else of_preset
                assert said[name] == value and len(said.keys() & {"beta", "rule"}) == 1
                assert online.answer(plain | asked) == ({"cold": 0}, [None])
            field = f"cold_without ({preset}'s default)='{without}': "
            cut = chat(SYSTEM, USER, TOOL, truncate_prompt_tokens=2)
            with pytest.raises(ValueError, match=re.escape(field) + "the amateur is the exp"):
                online.answer(cut | xargs(preset=preset))
        assert online.prompts(body, "base", preset="grounded") == both
        said, _ = online.answer(body | xargs(preset="grounded"))
        assert (said["alpha"], said["preset"]) == (0.3, "grounded")
        assert [one["weight"] for one in said["amateurs"]] == [-0.25, -0.25]
        for lacking in (chat(SYSTEM, USER), chat(SYSTEM, TOOL)):  # one of its amateurs would equal
            assert online.answer(lacking | xargs(preset="grounded")) == ({"cold": 0}, [None])
    # The server's own default comes before it, but for methods that read the expert's prompt or
    # have several amateurs.
    front.serve(default={"without": "system"})
    for args, read in (
        ({"preset": "cad"}, [left["system"]]),
        ({"preset": "cad", "without": "tool"}, [left["tool"]]),
        ({"preset": "cold"}, [None]),
        ({"preset": "grounded"}, both),
        ({"preset": "grounded", "without": ["user", "tool"]}, both[::-1]),
    ):
        assert online.prompts(body, **args) == read
    for whole, model, args, why in (
        (body, "base", {"preset": "cold"}, "CoLD needs an adapter as expert"),
        (body, "one", {"preset": "dexperts"}, "cold_preset='dexperts': is for 2 amateurs"),
        (plain, "one", {"preset": "cad", "without": "tool"}, "no such message"),  # who names it
    ):
        with pytest.raises(ValueError, match=why):
            online.prompts(whole, model, **args)


# ---- refused before the headers ------------------------------------------------------------------

LONG = " w9" * 100
# vLLM 0.23 takes what a request asks for off what its prompts may have, the amateurs' too.
HOLDS_BACK = TokenizeParams(max_total_tokens=256, max_output_tokens=6).max_input_tokens == 250


@pytest.fixture
def cache(front: Front, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many blocks of 16 tokens the engine has."""
    config = front.config.cache_config
    monkeypatch.setattr(config, "block_size", 16)
    return lambda blocks: monkeypatch.setattr(config, "num_gpu_blocks", blocks + 1)


def own(prompt: str, **more: Any) -> dict[str, Any]:
    return {**xargs(amateur_prompt=prompt), **more}


def tokens(online: Online, default: int, length: int, **more: Any) -> int:
    """What a chat gets beside an amateur's prompt of so many tokens."""
    body = {**chat(USER), **own(" w9" * length), **more}
    request = protocol(body)(model="one", **body)
    [made] = online.front.run(online.prepare(request))
    params = request.to_sampling_params(default, {})
    return int(online.front.request(made, params, ONE).sampling_params.max_tokens)


def test_what_does_not_fit_the_context(online: Online) -> None:
    """Of what the client asked for; the server's default is shortened to what is left."""
    why = "requested 157 output tokens" if HOLDS_BACK else "which with max_tokens=157"
    for field in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(ValueError, match=f"cold_amateur_prompt=' w9 w.*{why}"):
            online.prepared(chat(USER, **own(LONG), **{field: 157}))
    with pytest.raises(ValueError, match="the amateur's prompt has 256 tokens, which with max_tok"):
        online.prepared(chat(USER, **own(" w9" * 256)))

    assert tokens(online, 156, 100, max_tokens=156) == 156
    assert tokens(online, 4, 255) == 1
    # vLLM's number, less than its own rest of the context: nobody asked for it.
    assert tokens(online, 200, 100) == 156
    assert tokens(online, 200, 40) == 200


def test_what_the_servers_owner_allows(
    online: Online, front: Front, cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM does, the least of what is asked for and what is allowed."""
    cache(6)
    body = {"prompt": [100] * 20, **own(LONG[:60]), "max_tokens": 200}
    with pytest.raises(ValueError, match="max_tokens=200: .* two streams"):
        online.prepared(body)
    front.serve(most_tokens=29)
    assert online.prepared(body)
    with pytest.raises(ValueError, match="max_tokens=29: .* two streams"):
        online.prepared({**body, "prompt": [100] * 40})

    config = front.config.model_config
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 40}')
    for source, override, most in (
        ("auto", {}, None),
        ("vllm", {"max_new_tokens": 30}, 30),
        (str(tmp_path), {}, 40),
        (str(tmp_path), {"max_new_tokens": 30}, 30),
    ):
        monkeypatch.setattr(config, "generation_config", source)
        monkeypatch.setattr(config, "override_generation_config", override)
        assert most_tokens(config) == most


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    body = {**body, "model": model, **xargs(**args)}
    config = front.config.cache_config
    before = config.num_gpu_blocks, config.block_size
    config.num_gpu_blocks, config.block_size = blocks + 1, 16
    try:
        request = protocol(body)(**body, max_tokens=asked)
        [made] = front.run(online.prepare(request))
        left = 256 - len(made["prompt_token_ids"])
        most = min(left, request.max_tokens or left)
        params = request.to_sampling_params(most, {})
    except (ValidationError, VLLMValidationError):  # ours is one of vLLM's
        return
    else:
        sampling = front.request(made, params, {"one": ONE}.get(model)).sampling_params
        assert 1 <= sampling.max_tokens <= most
        assert sampling.max_tokens == most or asked is None or asked > left
    finally:
        config.num_gpu_blocks, config.block_size = before
