# SPDX-License-Identifier: Apache-2.0
"""From a request to its streams, by vLLM's own input processor and renderer; no engine runs."""

import json
import logging
import pickle
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.renderers.base import BaseRenderer

from tests.front_end import MAX_LEN, ONE, THREE, TWO, Front
from tests.requests import CHAT, MISTAKES, REQUESTS, SYSTEM, USER, xargs
from tests.tiny import BOS_ID
from vllm_cold import Amateur, ColdParams
from vllm_cold.compat.patching import bind
from vllm_cold.frontend import adapter_config, intake
from vllm_cold.frontend.admission import Admission
from vllm_cold.frontend.intake import FRONT_END
from vllm_cold.rules import Rule, registry
from vllm_cold.rules.statistics import Statistics
from vllm_cold.settings.table import ColdSettings, combine
from vllm_cold.wire.stream import from_extra_args

pytestmark = pytest.mark.unit


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


def test_every_way_of_saying_it(front: Front) -> None:
    """In Python, and by flat arguments; each prompt is what vLLM makes of it alone."""
    for asked in REQUESTS.values():
        made, lora = front.render(asked.prompt), front.adapters.get(asked.model)
        front.check(front.streams(made, asked.python(front.adapters.get), lora), asked)
        for said in asked.said:
            front.check(front.streams(made, lora=lora, **said), asked)
    # As vLLM has not made it yet, and with parts in a message.
    for whole, prompt in ((" w1 w2", " w9"), (front.chat(CHAT), [in_parts(USER)])):
        [one] = front.streams(whole, ColdParams(amateur=Amateur(prompt=prompt))).amateurs
        alone = front.text(" w9") if prompt == " w9" else front.chat([USER])
        assert one.prompt == alone["prompt_token_ids"]


def in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


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
    assert front.tokenizer.decode(chat["prompt_token_ids"]).endswith("user:  w3\nassistant:")
    assert front.prompts(chat, without="system") == ["user:  w3\nassistant:"]


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
        ColdParams(
            rule_parameters={"beta_max": 1.0}, amateur=Amateur(prompt=" w1", weight="adaptive")
        ),
        ColdParams(amateur=Amateur(prompt=" w1", weight=-1)),
        ColdParams(rule="adaptive", rule_parameters={"beta_max": 2.0}),
        ColdParams(rule="mti", rule_parameters={"tau": 2.0}),
    ):
        found = front.request(front.text(" w2"), params).sampling_params
        assert pickle.loads(pickle.dumps(found)).extra_args == found.extra_args


def refused(front: Front, prompt: Any, lora: Any = ONE, params: Any = None, **args: Any) -> str:
    params = params or SamplingParams(extra_args=xargs(**args)["vllm_xargs"])
    return front.refusal(prompt, params, lora)


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
    assert front.streams(text, ColdParams(amateur=ONE), lora=None).amateurs[0].adapter


def test_wrong_requests(front: Front) -> None:
    for prompt, said, message in MISTAKES:
        params = SamplingParams(extra_args=said)
        assert message in refused(front, front.render(prompt), params=params)
    assert "token 512 is none of the model's 512" in refused(
        front, front.text(" w1"), params=ColdParams(amateur=Amateur(prompt=[100, 512]))
    )
    strict = "{% for m in messages %}{{ raise_exception('no ' + m['role']) }}{% endfor %}"
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
    """The request's replaces the engine's; none keeps state that drafts would confuse."""
    text = front.text(" w1 w2")
    front.serve(default={"rule": "adaptive", "rule_parameters": {"beta_max": 3}})
    own = ColdSettings(rule="adaptive", rule_parameters={"beta_max": 3.0})
    assert front.streams(text).settings == own
    assert front.streams(text, rule="acd").settings == combine({"rule": "acd"})[0]
    stream = front.streams(text, weights=["mti", 0.5], amateur_prompt=[" w8", " w9"])
    assert stream.settings == combine({"rule": "mti"})[0]
    assert [a.weight for a in stream.amateurs] == [None, 0.5]
    drafts = SimpleNamespace(num_speculative_tokens=1, max_num_new_slots_for_drafting=0)
    monkeypatch.setattr(front.config, "speculative_config", drafts)
    front.streams(text, rule="mti")
    said = "'grd': this rule keeps state from step to step, or computes what is sampled from, which"
    for name, args in (
        ("cold_rule", {"rule": "grd"}),
        ("cold_weights", {"weights": "grd"}),
        ("rule", {"params": ColdParams(rule="grd")}),
    ):
        assert refused(front, text, **args).startswith(f"{name}={said}")
    # One that keeps no state, and computes what is sampled from.
    monkeypatch.setitem(registry._added, "drawn", Drawn())
    said = refused(front, text, rule="drawn")
    assert said.startswith("cold_rule='drawn': this rule keeps state from step to step, or comp")


def test_whose_steps_are_told(front: Front) -> None:
    """Of requests that ask."""
    text = front.text(" w1 w2")
    assert not front.streams(text, rule="mti").explain
    assert front.streams(text, rule="mti", explain=20).explain == 20
    assert front.streams(text, ColdParams(rule="mti", explain=20)).explain == 20
    many = ColdParams(rule="mti", explain=1, n=2, temperature=1.0)
    assert front.streams(text, many).explain == 1
    # What is told is kept until the end, by the API server: there is a limit.
    many.explain, many.n, many.max_tokens = 64, 100, 40
    assert "cold_explain=64: would tell of 40 tokens by some" in refused(front, text, params=many)


def same_but(change: Any) -> Any:
    """``render_cmpl``, with what it makes changed."""
    return lambda self, *args, _render=BaseRenderer.render_cmpl, **kwargs: change(
        _render(self, *args, **kwargs)
    )


@pytest.mark.parametrize("error", [None, KeyError("x"), TypeError("x")])
def test_messages_that_templates_fail_with_are_a_clients(
    error: Exception | None,
    front: Front,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[logging.LogRecord],
) -> None:
    """No client fills the log with tracebacks."""
    deep = {"function": {"name": "f", "arguments": "[" * 5000}, "id": "1", "type": "function"}
    own = json.dumps([USER, {"role": "assistant", "tool_calls": [deep]}])
    chat = front.chat(CHAT)
    if error is not None:
        monkeypatch.setattr(BaseRenderer, "render_chat", Mock(side_effect=error))
    message = refused(front, chat, amateur_messages=own)
    assert message.startswith("cold_amateur_messages=") and "no prompt can be made of" in message
    assert not [record for record in logged if record.exc_info]


def test_messages_that_are_too_long_are_not_read(front: Front) -> None:
    part = {"type": "text", "text": ""}
    own = json.dumps([{"role": "user", "content": [part] * 2 * MAX_LEN}])
    message = refused(front, front.text(" w1"), amateur_messages=own)
    assert f"is more than max_model_len={MAX_LEN} tokens" in message


@pytest.mark.parametrize(
    "render",
    [
        lambda self, prompts: None,
        same_but(lambda made: [{"type": "token", "ids": one} for one in made]),
        same_but(lambda made: [{**one, "prompt_token_ids": ["a"]} for one in made]),
        None,
    ],
    ids=["other arguments", "other keys", "no ids", "gone"],
)
def test_a_changed_vllm(
    render: Any, front: Front, monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord]
) -> None:
    """The log has the traceback and what to install; the next request is served."""
    text, asked = front.text(" w1 w2"), ColdParams(amateur=Amateur(prompt=" w9"))
    with monkeypatch.context() as patch:
        patch.setattr(BaseRenderer, "render_cmpl", render)
        assert "no prompt can be made of it: " in refused(front, text, params=asked)
    (record,) = (r for r in logged if r.levelname == "ERROR")
    assert record.exc_info is not None and "install vLLM" in record.getMessage()
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
    text, left = front.text([100] * 10), MAX_LEN - 40
    # What is asked for, the lengths of the amateurs' prompts, and what the request gets.
    for max_tokens, lengths, wanted in (
        (left, [40], left),
        (None, [5, 40], left),
        (1000, [40], left),
        (1000, [10], 1000),  # the expert stops first
    ):
        amateurs = [Amateur(prompt=[101] * length) for length in lengths]
        params = ColdParams(amateurs=amateurs, max_tokens=max_tokens)
        assert front.request(text, params).sampling_params.max_tokens == wanted
    for max_tokens, length, told in ((left + 1, 40, left + 1), (None, MAX_LEN, 1)):
        amateurs = [Amateur(), Amateur(prompt=[101] * length)]
        params = ColdParams(amateurs=amateurs, max_tokens=max_tokens)
        said = refused(front, text, params=params)
        assert said.startswith("amateurs[1]=[101, ")
        assert f"the amateur's prompt has {length} tokens, which with max_tokens={told} is" in said


def test_sessions(front: Front) -> None:
    params = ColdParams(amateur=Amateur(prompt=" w9"))
    request = front.request(front.text(" w1"), SamplingParams())
    request.sampling_params, request.resumable = params.clone(), True
    with pytest.raises(ValueError, match="does not support streaming-input sessions"):
        FRONT_END.of(front.processor).admit(front.text(" w1"), params, request)


# ---- the engine's defaults -----------------------------------------------------------------------


def test_what_an_operator_allows(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default no request may drain the engine: a quarter of its sequences, at least two."""
    for slots, most in ((4, 2), (8, 2), (20, 5), (128, 32), (1000, 32)):
        with monkeypatch.context() as patch:
            patch.setattr(front.config.scheduler_config, "max_num_seqs", slots)
            assert Admission(front.processor).most_amateurs == most
    front.serve(default={"enabled": False, "max_amateurs": 1})
    text, amateurs = front.text(" w1"), [Amateur(prompt=" w9", weight=-0.5)] * 2
    front.streams(text, weights=[-0.5], amateur_prompt=" w9")
    front.streams(text, ColdParams(amateurs=amateurs[1:]))
    for field, args in (
        ("cold_weights", {"weights": [-0.5] * 2, "amateur_prompt": " w9"}),
        ("amateurs", {"params": ColdParams(amateurs=amateurs)}),
    ):
        assert refused(front, text, **args) == (
            f"{field}=2: is how many amateurs the request has, and this engine allows 1; name "
            "fewer, or start it with max_amateurs (--cold-max-amateurs) 2"
        )
    assert refused(front, front.chat(CHAT), preset="grounded").startswith("cold_preset=2: is how")


def test_an_engine_without_lora(tiny: Path) -> None:
    """It has contrastive decoding where it asks, and is otherwise left alone."""
    stock = Front(tiny / "model", enable_lora=False)
    assert stock.config.scheduler_config.scheduler_cls is None
    assert not stock.config.model_config.logits_processors
    assert "cold_prompt_source" not in stock.text(" w1")
    own = ColdParams(amateur=Amateur(prompt=" w9"))
    assert "LoRA is off, and the engine was not asked for contrastive decoding" in refused(
        stock, stock.text(" w1"), None, own
    )
    for asks in (True, {"enabled": False}):
        front = Front(tiny / "model", enable_lora=False, additional_config={"cold": asks})
        scheduler = str(front.config.scheduler_config.scheduler_cls)
        assert re.search("Cold(Async)?Scheduler", scheduler)
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


class Drawn(Rule):
    """A rule of scores that promises something of tokens that are drawn."""

    name = "drawn"
    draws = True

    def scores(self, s: Statistics, p: Any) -> Tensor:
        return s.logits(0)


VOIDS = [
    {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}, {"logit_bias": {7: 1.0}},
    {"logprobs": 0}, {"prompt_logprobs": 1},
    {"logprobs": 1, "logprob_token_ids": [3]},
]  # fmt: skip


def test_what_a_rule_of_scores_does_not_allow(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may change what it gives, or tell of the expert alone; its field is named."""
    text = front.text(" w1 w2")
    fine = {"temperature": 0.7, "min_tokens": 2, "bad_words": ["w7"], "allowed_token_ids": [5, 6]}
    stream = front.streams(text, ColdParams(rule="bound", bits=2, **fine))
    assert (stream.charges, stream.rule_keeps_state, stream.temperature) == (True, True, 0.7)
    assert stream.settings.rule_parameters["bits"] == 2  # type: ignore[index]
    assert front.streams(text, ColdParams(rule="bound", temperature=0.0)).temperature == 1.0
    for voids in VOIDS:
        params = ColdParams(rule="bound", temperature=1.0, **voids)
        assert refused(front, text, params=params).startswith(f"{next(iter(voids))}=")
    monkeypatch.setitem(registry._added, "drawn", Drawn())
    front.streams(text, ColdParams(rule="drawn", temperature=1.0))
    said = refused(front, text, params=ColdParams(rule="drawn", temperature=0.0))
    assert said.startswith("temperature=0.0: must be above 0")
    models = front.config.model_config
    other = "vllm.v1.sample.logits_processor.builtin:MinPLogitsProcessor"
    others = [*models.logits_processors, other]
    monkeypatch.setattr(models, "logits_processors", others)
    assert "logits processors of its own" in refused(front, text, params=ColdParams(rule="bound"))


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

    add_request = bind(intake.wrap_add_request, original)

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
