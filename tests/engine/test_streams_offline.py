# SPDX-License-Identifier: Apache-2.0
"""Amateurs with prompts, as Python programs give them: ``LLM.generate`` and ``LLM.chat``."""

import json
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from tests.docs.blocks import block
from tests.engine.conftest import lora, scheduler
from tests.engine.streams import Texts
from tests.naive import Group, NaiveCold, assert_same_tokens
from vllm_cold import Amateur, ColdParams

pytestmark = pytest.mark.engine

SYSTEM = {"role": "system", "content": " w11 w12 w13 w14"}
USER = {"role": "user", "content": " w21 w22"}
TOOL = {"role": "tool", "content": " w31 w32 w33"}
CHAT = [SYSTEM, USER, TOOL]
TEXT = " w1 w2 w3 w4 w5 w6"
OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tiny: Path, naive: NaiveCold) -> Texts:
    return Texts(tiny, naive)


def check(outputs: Any, model: Texts, *groups: Group) -> None:
    expected = model.decode(*groups)
    tokens = [output.outputs[0].token_ids for output in outputs]
    assert_same_tokens(tokens, expected)
    assert len({tuple(trace.tokens) for trace in expected}) == len(expected)


def test_generate(shared_llm: Any, tiny: Path, model: Texts) -> None:
    """Text, ids and messages, beside plain requests; one amateur or several."""
    llm = shared_llm()
    one, two = lora(tiny, "one"), lora(tiny, "two")

    def cold(*amateurs: Amateur, **more: Any) -> ColdParams:
        return ColdParams(alpha=0, amateurs=amateurs, **{**OPTIONS, **more})

    asked = [
        cold(Amateur(prompt=" w9"), beta=1.0),
        cold(Amateur(prompt=[300] * 40), beta=1.0),
        cold(Amateur(prompt=[USER]), beta=1.0),
        cold(Amateur(prompt=" w9", lora_request=None, weight=-2.0)),
        cold(Amateur(lora_request=two, weight=0.5), Amateur(prompt=TEXT[:6], weight=-1.5)),
        SamplingParams(extra_args={"cold_part": "0:9", "cold_alpha": 0, "cold_beta": 1}, **OPTIONS),
        SamplingParams(**OPTIONS),
    ]
    outputs = llm.generate(
        [TEXT] * len(asked), asked, lora_request=[one] * len(asked), use_tqdm=False
    )
    check(
        outputs,
        model,
        model.group(TEXT, "one", (-1.0, "one", " w9")),
        model.group(TEXT, "one", (-1.0, "one", [300] * 40)),
        model.group(TEXT, "one", (-1.0, "one", [USER])),
        model.group(TEXT, "one", (-2.0, None, " w9")),
        model.group(TEXT, "one", (0.5, "two", None), (-1.5, "one", TEXT[:6])),
        model.group(TEXT, "one", (-1.0, "one", TEXT[9:])),
        model.group(TEXT, "one"),
    )
    with pytest.raises(ValueError, match="the amateur is the expert, prompt and adapter"):
        llm.generate(TEXT, cold(Amateur(prompt=TEXT)), lora_request=one, use_tqdm=False)
    with pytest.raises(ValueError, match="amateurs.0.='.*the amateur's prompt has 240 tokens"):
        long = Amateur(prompt=" w1" * 240)
        llm.generate(TEXT, cold(long, max_tokens=20), lora_request=one, use_tqdm=False)
    assert not scheduler(llm).requests


def test_chat(make_llm: Any, tiny: Path, model: Texts) -> None:
    """With the base model and with an adapter, in an engine whose default guides every chat."""
    llm = make_llm(additional_config={"cold": {"alpha": 0, "beta": 1, "without": "system"}})
    one = lora(tiny, "one")
    plain = SamplingParams(**OPTIONS)
    for request, name in ((one, "one"), (None, None)):
        asked: list[Any] = [
            plain,
            SamplingParams(extra_args={"cold_without": "tool"}, **OPTIONS),
            SamplingParams(extra_args={"cold_amateur_messages": json.dumps([TOOL])}, **OPTIONS),
            ColdParams.preset("cfg", amateur=Amateur(prompt=[USER]), **OPTIONS),
            SamplingParams(extra_args={"cold": 0}, **OPTIONS),
        ]
        outputs = llm.chat([CHAT] * len(asked), asked, lora_request=request, use_tqdm=False)
        check(
            outputs,
            model,
            model.group(CHAT, name, (-1.0, name, [USER, TOOL])),
            model.group(CHAT, name, (-1.0, name, [SYSTEM, USER])),
            model.group(CHAT, name, (-1.0, name, [TOOL])),
            model.group(CHAT, name, (-0.5, name, [USER])),
            model.group(CHAT, name),
        )
        # Nothing to leave out.
        outputs = llm.chat([USER, TOOL], plain, lora_request=request, use_tqdm=False)
        outputs += llm.generate(TEXT, plain, lora_request=request, use_tqdm=False)
        check(outputs, model, model.group([USER, TOOL], name), model.group(TEXT, name))


def test_the_page(tiny: Path, make_llm: Any, model: Texts, capsys: Any) -> None:
    """An engine without LoRA that asks for CoLD."""
    text = block("docs/parameters.md", "prompts").replace("path/to/model", str(tiny / "model"))
    names: dict[str, Any] = {"LLM": lambda **options: make_llm(enable_lora=False, **options)}
    exec(compile(text.replace("from vllm import LLM\n", ""), "block", "exec"), names)
    engine = names["llm"].llm_engine.vllm_config
    assert engine.lora_config is None and "Cold" in str(engine.scheduler_config.scheduler_cls)
    asked, alone = names["asked"], names["alone"].prompt
    first, second = capsys.readouterr().out.splitlines()[-2:]
    [trace] = model.decode(model.group(asked, None, (-0.5, None, alone)))
    assert first.startswith(model.tokenizer.decode(trace.tokens[:8]).rstrip())
    chat = [{"role": "system", "content": "Answer in French."}, names["user"]]
    [trace] = model.decode(model.group(chat, None, (-0.5, None, [names["user"]])))
    assert second.startswith(model.tokenizer.decode(trace.tokens[:8]).rstrip())
