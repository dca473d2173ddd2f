# SPDX-License-Identifier: Apache-2.0
"""Amateurs with prompts, as Python programs give them: ``LLM.generate`` and ``LLM.chat``."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from tests.docs.blocks import block
from tests.engine.conftest import lora, scheduler
from tests.engine.streams import Texts
from tests.naive import Group, NaiveCold, assert_same_tokens
from tests.requests import CHAT, REQUESTS, SYSTEM, TEXT, TOOL, USER
from vllm_cold import Amateur, ColdParams

pytestmark = pytest.mark.engine

OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tiny: Path, naive: NaiveCold) -> Texts:
    return Texts(tiny, naive)


def check(outputs: Any, model: Texts, *groups: Group) -> None:
    expected = model.decode(*groups)
    tokens = [output.outputs[0].token_ids for output in outputs]
    assert_same_tokens(tokens, expected)
    assert len({tuple(trace.tokens) for trace in expected}) == len(expected)


def test_every_way_of_saying_it(shared_llm: Any, tiny: Path, model: Texts) -> None:
    """Texts, ids and messages, one amateur or several, next to regular requests."""
    llm, by_name = shared_llm(), partial(lora, tiny)
    for is_chat, run in ((True, llm.chat), (False, llm.generate)):
        chosen = [each for each in REQUESTS.values() if isinstance(each.prompt[0], dict) == is_chat]
        regular = chosen[0].prompt
        prompts = [
            {"prompt_token_ids": p} if isinstance(p[0], int) else p
            for p in [regular, *(each.prompt for each in chosen)]
        ]
        params = [each.python(by_name, **OPTIONS) for each in chosen]
        adapters = [by_name(each.expert) for each in chosen]
        outputs = run(
            prompts,
            [SamplingParams(**OPTIONS), *params],
            lora_request=[None, *adapters],
            use_tqdm=False,
        )
        groups = [model.group(regular, None), *map(model.asked, chosen)]
        check(outputs, model, *groups)
    with pytest.raises(ValueError, match="the amateur is the expert, prompt and adapter"):
        same = ColdParams(amateur=Amateur(prompt=TEXT))
        llm.generate(TEXT, same, lora_request=by_name("one"), use_tqdm=False)
    assert not scheduler(llm).requests


def test_an_engine_that_guides_every_chat(make_llm: Any, tiny: Path, model: Texts) -> None:
    llm = make_llm(additional_config={"cold": {"alpha": 0, "beta": 1, "without": "system"}})
    regular = SamplingParams(**OPTIONS)
    asked = [
        regular,
        SamplingParams(extra_args={"cold_without": "tool"}, **OPTIONS),
        SamplingParams(extra_args={"cold": 0}, **OPTIONS),
    ]
    outputs = llm.chat([CHAT] * 3, asked, lora_request=lora(tiny, "one"), use_tqdm=False)
    # Nothing to leave out.
    outputs += llm.chat([USER, TOOL], regular, use_tqdm=False)
    outputs += llm.generate(TEXT, regular, use_tqdm=False)
    check(
        outputs,
        model,
        model.group(CHAT, "one", (-1.0, "one", [USER, TOOL])),
        model.group(CHAT, "one", (-1.0, "one", [SYSTEM, USER])),
        model.group(CHAT, "one"),
        model.group([USER, TOOL], None),
        model.group(TEXT, None),
    )


def test_the_page(tiny: Path, make_llm: Any, model: Texts, capsys: Any) -> None:
    """An engine without LoRA that asks for contrastive decoding."""
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
