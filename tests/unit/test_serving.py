# SPDX-License-Identifier: Apache-2.0
"""What an API server's process does with contrastive requests, without a server: vLLM's own classes
of bodies, its renderer and its input processor.
"""

import asyncio
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
from vllm.renderers.params import TokenizeParams

from tests.front_end import JUNK, ONE, Front, Online, protocol
from tests.requests import (
    DEFAULTS,
    MISTAKES,
    REQUESTS,
    SYSTEM,
    TOOL,
    USER,
    WRONG_BODIES,
    body,
    chat,
    ids,
    xargs,
)
from vllm_cold.compat import versions, vllm_errors
from vllm_cold.errors import ColdError
from vllm_cold.frontend import serving
from vllm_cold.frontend.intake import FRONT_END
from vllm_cold.wire import transfer_params
from vllm_cold.wire.stream import from_extra_args

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def front(tiny: Path) -> Front:
    return Front(tiny / "model", max_model_len=256)


@pytest.fixture
def online(front: Front) -> Online:
    front.serve()
    FRONT_END.begin()
    return Online(front)


def test_every_way_of_saying_it(online: Online, front: Front) -> None:
    for name, asked in REQUESTS.items():
        for said in asked.said:
            whole = body(asked.prompt, **xargs(**said))
            takes = str(protocol(whole).model_fields["vllm_xargs"].annotation)
            if "list" not in takes and any(isinstance(each, list) for each in said.values()):
                continue  # completions of vLLM 0.23
            told, [stream] = online.answer(whole, asked.model)
            assert told["cold"] == 1 and stream is not None, name
            front.check(stream, asked)


# ---- what is refused, and what is not ------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [*((body(each, vllm_xargs=said), why) for each, said, why in MISTAKES), *WRONG_BODIES],
)
def test_what_is_refused(wrong: dict[str, Any], message: str, online: Online) -> None:
    """As what vLLM answers with HTTP 400."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        online.answer(wrong)
    assert type(caught.value).__name__ == "ColdRequestError"
    str(caught.value).encode()  # HTTP sends it


def test_a_vllm_without_its_class_of_errors_still_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("vllm.exceptions.VLLMValidationError")
    monkeypatch.setattr(vllm_errors, "_request_error", vllm_errors._request_error.__wrapped__)
    with pytest.raises(ValueError, match="unavailable, as"), vllm_errors.as_http_400():
        raise ValueError("unavailable, as it has no VLLMValidationError")


def test_errors_show_the_beginning_of_what_is_deep_or_long(online: Online) -> None:
    deep, wide = "[" * 600 + "]" * 600, [[[1] * 99] * 99] * 99
    parameters = (f'{{"a": {deep}}}', f'{{"beta": {deep}}}')
    for wrong in (
        *(xargs(rule="mti", rule_parameters=text) for text in parameters),
        {"cold_beta": json.loads(deep)},
        {"cold_beta": wide},
    ):
        started = time.perf_counter()
        with pytest.raises(ValueError) as caught:
            online.answer({"prompt": " w1", **wrong})
        assert type(caught.value).__name__ == "ColdRequestError" and len(str(caught.value)) < 500
        assert time.perf_counter() - started < 0.5
    for value, shown in (
        ({"a": ["x", 1, (2,)], "b": {}}, "{'a': ['x', 1, (2,)], 'b': {}}"),
        ("begins" + "x" * 999, "'begins" + "x" * 93 + "..."),
        (10**199, "1" + "0" * 99 + "..."),
    ):
        assert str(ColdError("f", value, "no")) == f"f={shown}: no"


def test_what_cannot_be_sent_to_the_engine(online: Online) -> None:
    """Whosever key it is: vLLM would say HTTP 500."""
    for value in ("\ud800", 2**64):
        with pytest.raises(ValueError, match="vllm_xargs cannot be sent to the engine"):
            online.answer({"prompt": " w1", "vllm_xargs": {"mine": value}})


def test_a_beam_search(online: Online, front: Front) -> None:
    """Its own requests are regular; later ones on the server are contrastive again."""
    front.serve(default=True)
    with pytest.raises(ValueError, match="use_beam_search=True: vllm-cold does not support beam"):
        online.beams(chat(USER))
    front.serve(default={"without": "system"})
    with pytest.raises(ValueError, match="use_beam_search"):
        online.beams(chat(SYSTEM, USER))
    for regular in (chat(USER), chat(SYSTEM, USER, vllm_xargs={"cold": 0})):
        assert online.beams(regular) is not None
    front.serve(default=True)
    step = front.request(front.text(" w1"), SamplingParams(max_tokens=1))
    assert not step.sampling_params.extra_args
    said, [stream] = online.answer(chat(USER))
    assert said["cold"] == 1 and stream is not None


# ---- what amateurs read --------------------------------------------------------------------------


def test_the_template_and_its_arguments_are_the_requests(online: Online) -> None:
    template = (
        "{{ mood }}{{ tone }}{{ tools | length }}{% for m in messages %}{{ m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    body = chat(SYSTEM, USER, chat_template=template, tools=[tool], tool_choice="none",
                add_generation_prompt=False, chat_template_kwargs={"tone": " w7"})  # fmt: skip
    assert online.prompts(body, without="system") == [" w8 w71 w21 w22"]
    assert online.prompts(body, amateur_messages=json.dumps([TOOL])) == [" w8 w71 w31 w32"]


def test_amateurs_of_completions(online: Online) -> None:
    assert online.prompts({"prompt": " w1", "suffix": " w2"}, amateur_prompt=" w9") == [" w9"]
    _, streams = online.answer({"prompt": [" w1", " w2"], **xargs(amateur_prompt=" w9")})
    assert len(streams) == 2 and streams[0].amateurs == streams[1].amateurs


def test_chats_without_a_chat_template(
    online: Online, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt-oss: vLLM makes their prompts itself, so ``preprocess_chat`` is not called."""
    monkeypatch.setattr(front.config.model_config.hf_config, "model_type", "gpt_oss")

    def params(model: str = "one", **args: Any) -> Any:
        request = protocol(chat(USER))(model=model, vllm_xargs=args, **chat(SYSTEM, USER))
        return request.to_sampling_params(4, {})

    for key, value in (
        ("cold_without", "system"),
        ("cold_amateur_messages", json.dumps([USER])),
        ("cold_part", "0:1"),
        ("cold_amateur_prompt", " w9"),
    ):
        with pytest.raises(ValueError, match=f"{key}=.*without a chat template"):
            params(**{key: value})
    # What is long is not read on the event loop.
    with pytest.raises(ValueError, match="vllm_xargs=.*without a chat template"):
        params(cold_amateur_prompt="a " * 50_000)
    for asked in ({"cold": 1}, {"cold_amateur": "two"}):
        sampling = front.request(front.text(" w1"), params(**asked)).sampling_params
        assert from_extra_args(sampling.extra_args) is not None and len(sampling.extra_args) == 1
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


STEPS: dict[str, Any] = {"steps": [{"weights": [-0.5, None]}, {"weights": [-0.25, None]}]}
BUDGET: dict[str, Any] = {"budget": {"bits": 8.0, "spent": [1.5], "left": [6.5], "reached": [True]}}


@pytest.mark.parametrize(
    "told", [STEPS, BUDGET, STEPS | BUDGET, {}], ids=lambda told: "+".join(told)
)
@pytest.mark.parametrize("has", [False, True])
def test_what_is_told_follows_a_streamed_answer(
    front: Front, told: dict[str, Any], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, after its last part: steps if the client asks, the budget of a rule that charges;
    unless vLLM puts them there itself.
    """
    assert serving._streams_have_them() is (versions.vllm_version() >= "0.33")
    monkeypatch.setattr(serving, "_streams_have_them", lambda: has)
    parts = [b'data: {"choices": []}\n\n', b"data: [DONE]\n\n", b""]
    sent: list[bytes] = []

    async def outputs() -> AsyncGenerator[Any, None]:
        theirs = {"theirs": 1}
        yield SimpleNamespace(outputs=[], kv_transfer_params=theirs)
        ours = transfer_params.with_ours(theirs, **told) if told else theirs
        yield SimpleNamespace(outputs=[], kv_transfer_params=ours)
        yield SimpleNamespace(outputs=[], kv_transfer_params=None)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async for _ in serving._watch(outputs(), FRONT_END.exchange()):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in parts:
            await send({"type": "http.response.body", "body": memoryview(part)})

    async def send(message: dict[str, Any]) -> None:
        sent.append(bytes(message.get("body", b"")))

    front.run(serving.Header(app)({"type": "http"}, None, send))
    if not told or has:
        assert sent == [b"", *parts]
        return
    assert [sent[1], sent[3]] == [parts[0], b""]
    event, done, rest = sent[2].split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert json.loads(event.removeprefix(b"data: ")) == {
        "choices": [], "kv_transfer_params": {"cold": told},
    }  # fmt: skip


def test_each_chat_of_a_batch_is_told(online: Online, front: Front) -> None:
    """All prompts are made first, then the parameters of all; the header speaks of each."""
    front.serve(default={"without": "system"})
    kind = protocol(chat(USER))

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
        return json.loads(serving.header(exchange.used))

    guided, regular = chat(SYSTEM, USER), chat(USER)
    one = header(guided)
    assert one["cold"] == 1 and "choices" not in one
    assert header(guided, guided) == one
    assert header(regular, regular) == {"cold": 0}
    assert header(regular, guided, regular, guided) == {**one, "choices": [1, 3]}
    assert header(regular, *[guided] * 101)["choices"] == 101


# ---- defaults ------------------------------------------------------------------------------------


def test_defaults_of_servers_and_of_presets(online: Online, front: Front) -> None:
    for default, asked, model, reads in DEFAULTS:
        front.serve(default=default)
        if reads is None:
            assert online.answer(asked, model) == ({"cold": 0}, [None]), asked
            continue
        if isinstance(reads, str):
            with pytest.raises(ValueError, match=re.escape(reads)):
                online.answer(asked, model)
            continue
        told, [stream] = online.answer(asked, model)
        assert told["cold"] == 1
        wanted = [each and ids(front.tokenizer, each) for each in reads]
        assert [one.prompt for one in stream.amateurs] == wanted, asked


# ---- refused before the headers ------------------------------------------------------------------

# vLLM 0.23 takes what a request asks for off what its prompts may have, the amateurs' too.
HOLDS_BACK = TokenizeParams(max_total_tokens=256, max_output_tokens=6).max_input_tokens == 250


@pytest.fixture
def cache(front: Front, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many blocks of 16 tokens the engine has."""
    config = front.config.cache_config
    monkeypatch.setattr(config, "block_size", 16)
    return lambda blocks: monkeypatch.setattr(config, "num_gpu_blocks", blocks + 1)


def own(length: int) -> dict[str, Any]:
    """An amateur's prompt."""
    return xargs(amateur_prompt=" w9" * length)


def test_what_does_not_fit_the_context(online: Online) -> None:
    """Of what the client asked for; the server's default is shortened to what is left."""
    why = "requested 157 output tokens" if HOLDS_BACK else "which with max_tokens=157"
    for field in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(ValueError, match=f"cold_amateur_prompt=' w9 w.*{why}"):
            online.prepared(chat(USER, **own(100), **{field: 157}))
    # The owner's number of tokens, the amateur's prompt, and what the request gets.
    for most, length, tokens in ((4, 255, 1), (200, 100, 156), (200, 40, 200)):
        online.most = most
        [(made, params)] = online.prepared(chat(USER, **own(length)))
        request = online.front.request(made, params, ONE)
        assert request.sampling_params.max_tokens == tokens


def test_what_the_servers_owner_allows(online: Online, cache: Any) -> None:
    """As vLLM does, the least of what is asked for and what is allowed."""
    cache(6)
    asked = {"prompt": [100] * 20, **own(20), "max_tokens": 200}
    with pytest.raises(ValueError, match="max_tokens=200: .* two streams"):
        online.prepared(asked)
    online.most = 29
    assert online.prepared(asked)
    with pytest.raises(ValueError, match="max_tokens=29: .* two streams"):
        online.prepared({**asked, "prompt": [100] * 40})
    # Each prompt of several has what is left for it.
    with pytest.raises(ValueError, match="max_tokens=29: with prompts of 40, 20 tokens"):
        online.prepared({**asked, "prompt": [[100] * 20, [100] * 40]})


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
        [(made, params)] = online.prepared({**body, "max_tokens": asked})
    except (ValidationError, VLLMValidationError) as error:  # ours is one of vLLM's
        if type(error).__name__ == "ColdRequestError":
            assert (
                str(error).startswith(("cold_", "contrastive decoding ", "max_"))
                and len(str(error)) < 1000
            )
        return
    else:
        most = params.max_tokens
        request = front.request(made, params, {"one": ONE}.get(model))
    finally:
        config.num_gpu_blocks, config.block_size = before
    assert 1 <= request.sampling_params.max_tokens <= most
    assert request.sampling_params.max_tokens == most or asked is None
    if (stream := from_extra_args(request.sampling_params.extra_args)) is None:
        return
    # They can be scored.
    assert 1 <= len(stream.amateurs) <= 32
    assert (None in {one.weight for one in stream.amateurs}) == (stream.settings.rule is not None)
    for one in stream.amateurs:
        assert one.weight is None or abs(one.weight) <= 1e6
        assert one.prompt is None or all(0 <= i < 512 for i in one.prompt) and one.prompt
        different = one.prompt is not None and one.prompt != made["prompt_token_ids"]
        expert = None if model == "base" else model
        assert different or (one.adapter and one.adapter["lora_name"]) != expert


@pytest.mark.parametrize(
    ("path", "stream", "has_room"),
    [
        ("/v1/chat/completions", True, True),
        ("/v1/chat/completions/batch", False, False),
        ("/v1/messages", False, True),
        ("/v1/messages", True, False),
    ],
)
@pytest.mark.parametrize(
    ("said", "refused"),
    [({"explain": 2}, "cold_explain=2"), ({"preset": "bound"}, "cold_rule='bound'")],
)
def test_what_answers_have_no_room_for_is_refused(
    path: str, stream: bool, has_room: bool, said: dict[str, Any], refused: str, online: Online
) -> None:
    """vLLM's bodies of these have none, and the client would wait for what it is never told."""
    body = chat(SYSTEM, USER, stream=stream, **xargs(without="system", **said))
    serving.FRONT_END.begin().path = path
    try:
        if has_room:
            assert online.prepared(body)
        else:
            with pytest.raises(ValueError, match=f"{refused}: vLLM's answers of {path} have"):
                online.prepared(body)
    finally:
        serving.FRONT_END.begin()
