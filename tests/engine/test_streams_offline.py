# SPDX-License-Identifier: Apache-2.0
"""Amateurs with prompts, as Python programs give them: ``LLM.generate`` and ``LLM.chat``. (HTTP:
``tests/server/test_streams.py``.)
"""

from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from tests.docs.blocks import block
from tests.engine.conftest import lora
from tests.engine.streams import Texts
from tests.naive import Group, NaiveCold, assert_same_tokens
from tests.requests import CHAT, REQUESTS, SYSTEM, TEXT, TOOL, USER

pytestmark = pytest.mark.engine

OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
GUIDE = {"alpha": 0, "beta": 1, "without": "system"}


@pytest.fixture(scope="module")
def model(tiny: Path, naive: NaiveCold) -> Texts:
    return Texts(tiny, naive)


def check(outputs: Any, model: Texts, *groups: Group) -> None:
    expected = model.decode(*groups)
    tokens = [output.outputs[0].token_ids for output in outputs]
    assert_same_tokens(tokens, expected)
    assert len({tuple(trace.tokens) for trace in expected}) == len(expected)


def test_every_request(shared_llm: Any, tiny: Path, model: Texts) -> None:
    """In one batch, by an engine whose default is another contrast."""
    llm = shared_llm(additional_config={"cold": GUIDE})
    for one in REQUESTS.values():
        params = one.python(lambda name: lora(tiny, name), ignore_eos=True, **OPTIONS)
        enqueue = llm.enqueue_chat if isinstance(one.prompt[0], dict) else llm.enqueue
        enqueue(one.prompt, params, lora_request=lora(tiny, one.expert), use_tqdm=False)
    outputs = llm.wait_for_completion(use_tqdm=False)
    check(outputs, model, *map(model.asked, REQUESTS.values()))


def test_an_engine_that_guides_every_chat(shared_llm: Any, tiny: Path, model: Texts) -> None:
    llm = shared_llm(additional_config={"cold": GUIDE})
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
