# SPDX-License-Identifier: Apache-2.0
"""From a request to its streams, by vLLM's own input processor and renderer; no engine runs."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.lora.request import LoRARequest
from vllm.renderers.base import BaseRenderer

from tests.front_end import JUNK, MAX_LEN, ONE, THREE, TWO, Front
from tests.tiny import BOS_ID
from vllm_cold import Amateur, ColdParams, adapter_config
from vllm_cold.group.stream import from_extra_args
from vllm_cold.method.settings import ColdSettings
from vllm_cold.vllm.frontend import intake
from vllm_cold.vllm.frontend.intake import FRONT_END

pytestmark = pytest.mark.unit

SYSTEM = {"role": "system", "content": " w1 w2"}
USER = {"role": "user", "content": " w3"}
TOOL = {"role": "tool", "content": " w4 w5"}
CHAT = [SYSTEM, USER, TOOL]


@pytest.fixture(scope="module")
def front(tiny: Path) -> Front:
    return Front(tiny / "model")


read_rank = adapter_config.read_rank


@pytest.fixture(autouse=True)
def files(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters have none."""
    front.serve()
    monkeypatch.setattr(adapter_config, "read_rank", lambda path: 8)


@pytest.fixture(scope="module")
def special(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Front:
    """With a tokenizer that puts a special token before a text."""
    folder = tmp_path_factory.mktemp("special")
    shutil.copy(tiny / "model" / "config.json", folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    tokenizer.save_pretrained(folder)
    return Front(folder)


def test_one_amateur_as_ever(front: Front) -> None:
    plain = front.text(" w1 w2")
    stream = front.streams(plain, ColdParams(alpha=0.2, beta=2.0))
    assert stream.settings == ColdSettings(0.2, 2.0)
    [one] = stream.amateurs
    assert (one.weight, one.adapter, one.prompt) == (-2.0, None, None)
    [one] = front.streams(plain, ColdParams(amateur=TWO)).amateurs
    assert one.adapter is not None and LoRARequest(**one.adapter) == TWO and one.prompt is None
    for extra in ({}, {"cold": 0, "cold_beta": 1}, {"cold": 0, "cold_amateur_prompt": "x"}):
        request = front.request(plain, SamplingParams(extra_args=extra))
        assert not request.sampling_params.extra_args


def test_prompts_in_every_form(front: Front) -> None:
    """Each is what vLLM makes of the same prompt as a request of its own."""
    expert = front.text(" w1 w2 w3")
    chat = front.chat(CHAT)
    for prompt, alone in (
        (" w9", front.text(" w9")),
        ([102, 103], front.text([102, 103])),
        ([USER], front.chat([USER])),
        ([{"role": "user", "content": [{"type": "text", "text": " w3"}]}], front.chat([USER])),
    ):
        params = ColdParams(amateur=Amateur(prompt=prompt))
        for whole in (expert, chat, " w1 w2 w3"):
            [one] = front.streams(whole, params).amateurs
            assert one.prompt == alone["prompt_token_ids"]
            assert one.adapter is not None and LoRARequest(**one.adapter) == ONE
    assert front.prompts(expert, amateur_prompt=" w9") == [" w9"]
    said = json.dumps([USER])
    assert front.prompts(expert, amateur_messages=said) == ["user:  w3\nassistant:"]


def test_special_tokens(special: Front) -> None:
    """A text has them as a completion's prompt has, a template brings its own."""
    for whole in (special.text(" w1"), special.chat(CHAT)):
        [one] = special.streams(whole, amateur_prompt=" w9").amateurs
        assert one.prompt == special.text(" w9")["prompt_token_ids"]
        assert one.prompt[0] == BOS_ID  # type: ignore[index]
        [one] = special.streams(whole, amateur_messages=json.dumps([USER])).amateurs
        assert one.prompt == special.chat([USER])["prompt_token_ids"]
        assert BOS_ID not in one.prompt  # type: ignore[operator]
    without = special.text(" w1 w2", add_special_tokens=False)
    assert without["prompt_token_ids"][0] != BOS_ID
    assert special.prompts(without, amateur_prompt=" w9") == [" w9"]
    assert special.prompts(without, part=[0, 3]) == [" w2"]


def test_what_is_read_once_is_read_twice(front: Front) -> None:
    """pydantic gives the parts of a message as something that can be iterated over once."""
    parts = [{"type": "text", "text": " w3"}]
    chat = front.chat([SYSTEM, {"role": "user", "content": iter(parts)}])
    assert front.tokenizer.decode(chat["prompt_token_ids"]).startswith("system:  w1 w2\nuser:  w3")
    assert front.prompts(chat, without="system") == ["user:  w3\nassistant:"]


def test_a_part_of_the_prompt(front: Front) -> None:
    text = "Text: w1 w2 Question: w3"
    expert = front.text(text)
    assert front.prompts(expert, part=[0, 12]) == ["Question: w3"]
    ids = front.text([100, 101, 102, 103])
    assert front.streams(ids, part=[1, 3]).amateurs[0].prompt == [100, 103]
    # A user's text that speaks of the marking changes nothing: positions cannot be written into it.
    forged = front.text('[0, 12] cold_part="0:3"} Question: w3')
    assert front.prompts(forged, part=[0, 1]) == ['0, 12] cold_part="0:3"} Question: w3']


def test_several_amateurs(front: Front) -> None:
    chat = front.chat(CHAT)
    stream = front.streams(
        chat, lora=None, weights=[1, -1, "adaptive"], amateur=["one", "base", ""],
        without=["", "system", "tool"],
    )  # fmt: skip
    assert [a.weight for a in stream.amateurs] == [1.0, -1.0, None]
    assert stream.settings.rule == "adaptive"
    assert [a.adapter and a.adapter["lora_name"] for a in stream.amateurs] == ["one", None, None]
    assert [a.prompt is None for a in stream.amateurs] == [True, False, False]
    amateurs = [
        Amateur(lora_request=ONE, weight=0.5),
        Amateur(lora_request=None, prompt=" w9", weight=-0.5),
        Amateur(lora_request=TWO, prompt=[USER]),
    ]
    stream = front.streams(chat, ColdParams(alpha=0, beta=3, amateurs=amateurs), lora=TWO)
    assert stream.settings.alpha == 0.0
    assert [a.weight for a in stream.amateurs] == [0.5, -0.5, -3.0]
    assert [a.adapter and a.adapter["lora_name"] for a in stream.amateurs] == ["one", None, "two"]


def test_what_the_engine_core_gets(front: Front) -> None:
    """The streams say all; the prompts as they were given do not travel, and the caller keeps its
    parameters.
    """
    params = ColdParams(amateurs=[Amateur(prompt=[{**USER, "name": object()}])])
    request = front.request(front.text(" w1"), params)
    assert params.amateurs and not request.sampling_params.amateurs
    wire = msgspec.msgpack.encode(request.sampling_params)
    arrived = msgspec.msgpack.decode(wire, type=SamplingParams)
    stream = from_extra_args(arrived.extra_args)
    assert stream == from_extra_args(request.sampling_params.extra_args) is not None


def test_workers_can_unpickle_it(front: Front) -> None:
    """Which is to make it anew, checks included."""
    for params in (
        ColdParams(beta_max=1.0, amateur=Amateur(prompt=" w1", weight="adaptive")),
        ColdParams(amateur=Amateur(prompt=" w1", weight=-1)),
        ColdParams(rule="adaptive", beta_max=2.0),
        ColdParams(rule="mti", rule_parameters={"tau": 2.0}),
    ):
        found = front.request(front.text(" w2"), params).sampling_params
        assert pickle.loads(pickle.dumps(found)).extra_args == found.extra_args


def refused(front: Front, prompt: Any, lora: Any = ONE, params: Any = None, **args: Any) -> str:
    params = params or SamplingParams(extra_args={f"cold_{k}": v for k, v in args.items()})
    with pytest.raises(ValueError) as raised:
        front.request(prompt, params, lora)
    assert type(raised.value).__name__ == "ColdRequestError"
    return str(raised.value)


def test_an_amateur_that_is_its_expert(front: Front) -> None:
    text, same = front.text(" w1 w2"), Amateur(prompt=" w1 w2")
    equal = "the amateur is the expert, prompt and adapter"
    for lora in (ONE, None):
        assert equal in refused(front, text, lora, params=ColdParams(amateur=same))
    assert equal in refused(front, text, amateur_prompt=" w1 w2", amateur="one")
    assert "amateurs[1]=' w1 w2': " + equal in refused(
        front, text, params=ColdParams(amateurs=[Amateur(), same])
    )
    front.streams(text, amateur_prompt=" w1 w2", amateur="base")
    front.streams(text, ColdParams(amateur=Amateur(prompt=" w1 w2", lora_request=TWO)))
    for one in (ONE, LoRARequest("alias", 1, "/one"), LoRARequest("one", 9, "/one")):
        said = refused(front, text, params=ColdParams(amateur=one))
        assert "must differ from the expert" in said  # by its number or its name
    assert "CoLD needs an adapter as expert" in refused(front, text, None, amateur="base")
    assert front.streams(text, ColdParams(amateur=ONE), lora=None).amateurs[0].adapter


def test_wrong_prompts(front: Front) -> None:
    text, chat = front.text(" w1 w2"), front.chat(CHAT)
    for prompt, args, message in (
        (chat, {"without": "assistant"}, "'assistant': the conversation has no such message"),
        (chat, {"without": 3}, "cold_without=3: the conversation has the messages 0 to 2"),
        (text, {"part": [0, 7]}, "cold_part='0:7': the prompt has 6 characters"),
        (text, {"part": [0, 6]}, "cold_part='0:6': leaves nothing of the prompt"),
        (text, {"amateur_prompt": " w1" * 65}, "no prompt can be made of it: This model's maximum"),
        (chat, {"amateur": "four"}, "no such adapter is loaded (loaded: one, three, two)"),
    ):
        assert message in refused(front, prompt, **args)
    for key in ("Cold_beta", "cold_foo"):  # in other letters, or none of ours
        params = SamplingParams(extra_args={key: 3})
        assert f"{key}=3: unknown key" in refused(front, text, params=params)
    strict = "{% for m in messages %}{{ raise_exception('no ' + m['role']) }}{% endfor %}"
    ids = Amateur(prompt=[100, 512])
    assert "token 512 is none of the model's 512" in refused(
        front, text, params=ColdParams(amateur=ids)
    )
    with pytest.raises(Exception, match="no system"):
        front.chat(CHAT, strict)
    lenient = " w9" + strict.replace(
        "for m in messages", "for m in messages if messages | length < 3"
    )
    chat = front.chat(CHAT, lenient, add_generation_prompt=True, tokenize=False)
    assert "cold_without='system': no prompt can be made of it: no user" in refused(
        front, chat, without="system"
    )


def test_rules(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each request, which the engine's own may be; none that drafts would confuse."""
    text = front.text(" w1 w2")
    mti = ColdSettings(rule="mti", rule_parameters={"tau": 2.0})
    for tau in ('{"tau": 2}', {"tau": 2}):
        assert front.streams(text, rule="mti", rule_parameters=tau).settings == mti
    two: dict[str, Any] = {"amateur_prompt": [" w8", " w9"]}
    front.serve(default={"rule": "adaptive", "beta_max": 3})
    own = ColdSettings(rule="adaptive", rule_parameters={"beta_max": 3.0})
    assert front.streams(text).settings == own
    assert front.streams(text, rule="acd").settings == ColdSettings(rule="acd")
    assert front.streams(text, preset="cold").settings == ColdSettings()
    stream = front.streams(text, weights=["mti", 0.5], **two)
    assert stream.settings == ColdSettings(rule="mti")
    assert [a.weight for a in stream.amateurs] == [None, 0.5]
    drafts = SimpleNamespace(num_speculative_tokens=1)
    monkeypatch.setattr(front.config, "speculative_config", drafts)
    front.streams(text, rule="mti")
    said = "'grd': this rule keeps state from step to step, which speculative decoding may"
    for name, args in (
        ("cold_rule", {"rule": "grd"}),
        ("cold_weights", {"weights": "grd"}),
        ("rule", {"params": ColdParams(rule="grd")}),
    ):
        assert refused(front, text, **args).startswith(f"{name}={said}")


def test_whose_steps_are_told(front: Front) -> None:
    """Of requests that ask."""
    text = front.text(" w1 w2")
    assert not front.streams(text, rule="mti").explain
    assert front.streams(text, beta=0.5, explain=1).explain == 1
    assert front.streams(text, rule="mti", explain=20).explain == 20
    assert front.streams(text, ColdParams(rule="mti", explain=20)).explain == 20
    assert not front.streams(text, ColdParams(rule="mti")).explain
    many = ColdParams(rule="mti", explain=1, n=2, temperature=1.0)
    assert front.streams(text, many).explain == 1


def same_but(change: Any) -> Any:
    """``render_cmpl``, with what it makes changed."""
    return lambda self, *args, _render=BaseRenderer.render_cmpl, **kwargs: change(
        _render(self, *args, **kwargs)
    )


def test_messages_that_templates_fail_with_are_a_clients(
    front: Front, logged: list[logging.LogRecord]
) -> None:
    """And vLLM is not said to have changed."""
    deep = {"function": {"name": "f", "arguments": "[" * 5000}, "id": "1", "type": "function"}
    own = json.dumps([USER, {"role": "assistant", "tool_calls": [deep]}])
    with pytest.raises(ValueError, match="cold_amateur_messages=.* no prompt can be made of"):
        args = {"cold_amateur_messages": own}
        front.request(front.chat(CHAT), SamplingParams(extra_args=args))
    assert [record for record in logged if record.levelname == "ERROR"] == []
    params = ColdParams(amateur=Amateur(prompt=[USER]))
    assert front.streams(front.chat(CHAT), params).amateurs


def test_messages_that_are_too_long_are_not_read(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = {"type": "text", "text": ""}
    own = json.dumps([{"role": "user", "content": [part] * 2 * MAX_LEN}])
    args = {"cold_amateur_messages": own}
    with pytest.raises(ValueError, match=f"is more than max_model_len={MAX_LEN} tokens"):
        front.request(front.text(" w1"), SamplingParams(extra_args=args))


CHANGED: dict[str, Any] = {
    "other arguments": lambda self, prompts: None,
    "other keys": same_but(lambda made: [{"type": "token", "ids": one} for one in made]),
    "no ids": same_but(lambda made: [{**one, "prompt_token_ids": ["a"]} for one in made]),
    "gone": None,
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_vllm_is_no_mistake_of_a_client(
    change: str,
    front: Front,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[logging.LogRecord],
) -> None:
    """It is told apart, with a traceback in the log; the next request is served."""
    text, asked = front.text(" w1 w2"), ColdParams(amateur=Amateur(prompt=" w9"))
    with monkeypatch.context() as patch:
        patch.setattr(BaseRenderer, "render_cmpl", CHANGED[change])
        with pytest.raises(RuntimeError, match="this vLLM .* has changed where vllm-cold") as said:
            front.request(text, asked)
    assert "Install vLLM" in str(said.value) and not isinstance(said.value, ValueError)
    answer = OpenAIServingCompletion.create_error_response(said.value).error
    assert (answer.code, answer.message) == (500, str(said.value))
    (record,) = (r for r in logged if r.levelname == "ERROR")
    assert record.exc_info is not None
    assert front.prompts(text, asked) == [" w9"]


def test_a_preset_alone_is_refused_where_no_header_would_show_it(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a chat that has nothing to leave out."""
    monkeypatch.setattr(FRONT_END.of(front.processor), "is_server", False)
    message = refused(front, front.chat([USER]), preset="cfg")
    assert "cold_without (cfg's default)='system': the conversation has no such" in message


def test_adapters_in_one_batch(front: Front) -> None:
    """The different ones count, max_loras=2 of them."""
    text = front.text(" w1 w2")
    own = Amateur(prompt=" w9")
    fits = [own, Amateur(lora_request=None), Amateur(lora_request=TWO), Amateur(prompt=" w8")]
    front.streams(text, ColdParams(amateurs=fits))
    message = refused(front, text, params=ColdParams(amateurs=[*fits, Amateur(lora_request=THREE)]))
    assert "amateurs[4]='three': expert and amateurs are 3 adapters in one batch" in message
    front.config.lora_config.max_loras = 1
    try:
        front.streams(text, ColdParams(amateur=own))
        front.streams(text, ColdParams(amateur=ONE), lora=None)
        message = refused(front, text, params=ColdParams(amateur=TWO))
        assert "expert and amateurs are 2 adapters in one batch, but max_loras=1" in message
    finally:
        front.config.lora_config.max_loras = 2


def test_no_amateur_is_at_the_end_before_its_expert(front: Front) -> None:
    text = front.text([100] * 10)
    long = Amateur(prompt=[101] * 40)

    def tokens(max_tokens: int | None, *amateurs: Amateur) -> int:
        params = ColdParams(amateurs=amateurs, max_tokens=max_tokens)
        return int(front.request(text, params).sampling_params.max_tokens)

    assert tokens(MAX_LEN - 40, long) == MAX_LEN - 40
    # As much as fits: of the longest stream.
    assert tokens(None, Amateur(prompt=[101] * 5), long) == MAX_LEN - 40
    assert tokens(1000, long) == MAX_LEN - 40
    message = refused(
        front, text, params=ColdParams(amateurs=[Amateur(), long], max_tokens=MAX_LEN - 39)
    )
    assert (
        message.startswith("amateurs[1]=[101, ") and "the amateur's prompt has 40 tokens" in message
    )
    assert f"max_tokens={MAX_LEN - 39} is more than max_model_len={MAX_LEN}" in message
    # One that is no longer than its expert is not the one that stops.
    assert tokens(1000, Amateur(prompt=[101] * 10)) == 1000
    full = Amateur(prompt=[101] * MAX_LEN)
    assert "the amateur's prompt has 64 tokens" in refused(
        front, text, params=ColdParams(amateur=full, max_tokens=None)
    )


def test_sessions(front: Front) -> None:
    params = ColdParams(amateur=Amateur(prompt=" w9"))
    request = front.request(front.text(" w1"), SamplingParams())
    request.sampling_params = params.clone()
    request.resumable = True
    with pytest.raises(ValueError, match="does not support streaming-input sessions"):
        FRONT_END.of(front.processor).admit(front.text(" w1"), params, request)


# ---- the engine's defaults -----------------------------------------------------------------------


def test_what_an_operator_allows(tiny: Path, front: Front) -> None:
    """By default no request may drain the engine: a quarter of its sequences, at least two."""
    text, config = front.text(" w1"), front.config.scheduler_config

    def refused_of(number: int) -> str | None:
        args = {"cold_weights": [-0.5] * number, "cold_amateur_prompt": " w9"}
        try:
            front.request(text, SamplingParams(extra_args=args))
            params = ColdParams(amateurs=[Amateur(prompt=" w9", weight=-0.5)] * number)
            front.request(text, params)
        except ValueError as error:
            return str(error)
        return None

    before = config.max_num_seqs
    try:
        for seats, most in ((4, 2), (8, 2), (20, 5), (128, 32), (1000, 32)):
            config.max_num_seqs = seats
            front.serve()
            assert refused_of(most) is None
            if most < 32:
                assert refused_of(most + 1) == (
                    f"cold_weights={most + 1}: is how many amateurs the request has, and this "
                    f"engine allows {most}; name fewer, or start it with max_amateurs "
                    f"(--cold-max-amateurs) {most + 1}"
                )
    finally:
        config.max_num_seqs = before
    front.serve(default={"enabled": False, "max_amateurs": 1})
    assert refused_of(1) is None
    assert "cold_weights=2: is how many amateurs" in str(refused_of(2))
    with pytest.raises(ValueError, match="^amateurs=2: is how many amateurs the request has"):
        front.request(text, ColdParams(amateurs=[Amateur(prompt=" w9", weight=-0.5)] * 2))
    with pytest.raises(ValueError, match="^cold_preset=2: is how many amateurs the request has"):
        front.request(front.chat(CHAT), SamplingParams(extra_args={"cold_preset": "grounded"}))


def test_an_engine_without_lora(tiny: Path) -> None:
    """It has CoLD where it asks, and is otherwise left alone."""
    plain = Front(tiny / "model", enable_lora=False)
    assert plain.config.scheduler_config.scheduler_cls is None
    assert not plain.config.model_config.logits_processors
    assert "cold_recipe" not in plain.text(" w1")
    own = ColdParams(amateur=Amateur(prompt=" w9"))
    assert "LoRA is off, and the engine was not asked for CoLD" in refused(
        plain, plain.text(" w1"), None, own
    )
    for asks in (True, {"enabled": False}):
        front = Front(tiny / "model", enable_lora=False, additional_config={"cold": asks})
        assert "ColdScheduler" in str(front.config.scheduler_config.scheduler_cls) or (
            "ColdAsyncScheduler" in str(front.config.scheduler_config.scheduler_cls)
        )
        assert front.prompts(front.text(" w1"), own, lora=None) == [" w9"]
        message = refused(front, front.text(" w1"), None, ColdParams(amateur=ONE))
        assert message.startswith("amateur='one': LoRA is off; start the engine with enable_lora")
        request = front.request(front.text(" w1"), SamplingParams(), None)
        assert not request.sampling_params.extra_args


# ---- adapters that a caller brings along ---------------------------------------------------------


def test_an_amateur_that_cannot_be_loaded(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot load an adapter takes the engine down, so admission looks first."""
    monkeypatch.setattr(adapter_config, "read_rank", read_rank)
    text = front.text(" w1")

    def asked(path: str) -> ColdParams:
        return ColdParams(amateur=LoRARequest("two", 2, path))

    for path in (str(tmp_path / "nowhere"), "~/nowhere", "no/such-folder"):
        message = refused(front, text, params=asked(path))
        assert message.startswith("amateur='two': no adapter_config.json")
    for content, message in (
        ('{"r": 64}', "its rank 64 is above the engine's max_lora_rank=16"),
        ('{"r": 8, "rank_pattern": {"q_proj": 64}}', "rank 64 is above"),
        ('{"r": null}', "Expected `int`, got `null` - at `$.r`"),
        ('{"r": ', "JSON"),
    ):
        (tmp_path / "adapter_config.json").write_text(content)
        assert message in refused(front, text, params=asked(str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    front.streams(text, asked(str(tmp_path)))


# ---- on an event loop ----------------------------------------------------------------------------


def test_nothing_that_takes_time_is_done_on_the_event_loop(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``AsyncLLM.add_request`` has files read in another thread, and makes prompts as a server
    makes a request's own.
    """
    engine, chat, text = front.serve(), front.chat(CHAT), front.text(" w1 w2")
    readers: list[bool] = []

    def watched(path: str) -> int:
        readers.append(threading.current_thread() is threading.main_thread())
        return 8 if path == TWO.lora_path else 64

    async def original(
        self: Any, request_id: str, prompt: Any, params: Any, arrival: Any, lora: Any
    ) -> Any:
        return from_extra_args(front.request(prompt, params, lora).sampling_params.extra_args)

    add_request = intake._make_add_request(original)

    def run(prompt: Any, params: Any) -> Any:
        return front.run(add_request(engine, "r", prompt, params, lora_request=ONE))

    monkeypatch.setattr(adapter_config, "read_rank", watched)
    for name in ("render_cmpl", "render_chat"):
        monkeypatch.setattr(BaseRenderer, name, None)
    for prompt, params in (
        (text, ColdParams(amateur=Amateur(prompt=" w9"))),
        (text, ColdParams(amateur=TWO)),
        (text, SamplingParams(extra_args={"cold_part": [0, 3]})),
        (chat, SamplingParams(extra_args={"cold_without": "system"})),
        (chat, ColdParams(amateur=Amateur(prompt=[USER]))),
        (chat, SamplingParams()),
    ):
        before = dict(prompt)
        found = run(prompt, params)
        assert prompt == before, "another request may have the same prompt, with other parameters"
        assert (found is None) == (params == SamplingParams())
    assert readers == [False]
    for params, message in (
        (SamplingParams(extra_args={"cold_without": "assistant"}), "no such message"),
        (ColdParams(amateur=THREE), "rank 64"),
    ):
        with pytest.raises(ValueError, match=message):
            run(chat, params)


# ---- whatever a client sends ---------------------------------------------------------------------


@given(JUNK, st.booleans(), st.sampled_from([None, ONE]))
def test_junk_is_refused_or_makes_streams(
    front: Front, args: dict[str, Any], as_chat: bool, lora: Any
) -> None:
    """A sentence that begins with a key, or streams that can be scored; nothing else comes out."""
    prompt = front.chat(CHAT) if as_chat else front.text(" w1 w2")
    params = SamplingParams(extra_args={f"cold_{k}": v for k, v in args.items()})
    try:
        request = front.request(prompt, params, lora)
    except ValueError as error:
        assert type(error).__name__ == "ColdRequestError" and len(str(error)) < 1000
        assert str(error).startswith(("cold_", "CoLD ", "max_num"))
        return
    stream = from_extra_args(request.sampling_params.extra_args)
    if not args:
        assert stream is None
        return
    assert stream is not None and 1 <= len(stream.amateurs) <= 32
    assert (None in {one.weight for one in stream.amateurs}) == (stream.settings.rule is not None)
    for one in stream.amateurs:
        assert one.weight is None or abs(one.weight) <= 1e6
        assert one.prompt is None or all(0 <= i < 512 for i in one.prompt) and one.prompt
        own = one.prompt is not None and one.prompt != prompt["prompt_token_ids"]
        expert = None if lora is None else lora.lora_name
        assert own or (one.adapter and one.adapter["lora_name"]) != expert
