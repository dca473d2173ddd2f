# SPDX-License-Identifier: Apache-2.0
"""Prompts of embeddings: vLLM's alone without a contrast, refused with one."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams

from tests.front_end import Front, Online
from tests.requests import chat, xargs
from vllm_cold import Amateur, ColdParams
from vllm_cold.frontend.intake import FRONT_END
from vllm_cold.wire.stream import from_extra_args

pytestmark = pytest.mark.unit

ROWS = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
USER = {"role": "user", "content": " w3"}
REFUSED = "prompt_embeds=[3, 64]: embeddings are not contrasted; send text, token ids or messages"


def encoded() -> str:
    """As clients send them."""
    file = io.BytesIO()
    torch.save(ROWS, file)
    return base64.b64encode(file.getvalue()).decode()


PART = {"type": "prompt_embeds", "data": encoded()}
SYSTEM = {"role": "system", "content": [{"type": "text", "text": " w1"}, PART]}


@pytest.fixture(scope="module")
def front(tiny: Path) -> Front:
    return Front(tiny / "model", enable_prompt_embeds=True, additional_config={"cold": True})


@pytest.fixture(autouse=True)
def serving(front: Front) -> None:
    front.serve()
    FRONT_END.begin()


def render(front: Front, **more: Any) -> Any:
    """What ``LLM.generate`` makes of embeddings."""
    (prompt,) = front.renderer.render_cmpl([{"prompt_embeds": ROWS, **more}])
    return prompt


def test_programs(front: Front) -> None:
    ids = {"prompt_token_ids": [5, 6, 7], "prompt_is_token_ids": [True, False, True]}
    for prompt in (render(front), render(front, **ids)):
        for params in (
            ColdParams(),
            ColdParams(amateur=Amateur(prompt=" w1")),
            SamplingParams(extra_args={"cold_part": "0:1"}),
        ):
            assert front.refusal(prompt, params).startswith(REFUSED)
        request = front.request(prompt, SamplingParams(repetition_penalty=1.5))
        assert from_extra_args(request.sampling_params.extra_args) is None
        assert request.prompt_embeds.equal(ROWS)
    for own in ({"prompt_embeds": ROWS}, {"prompt_embeds": ROWS, "multi_modal_data": {}}, ids):
        with pytest.raises(ValueError, match="^prompt=.*: must be a text, a list of token ids, a"):
            Amateur(prompt=own)


def test_a_server(front: Front) -> None:
    online = Online(front)
    expert = {"prompt": None, "prompt_embeds": encoded()}
    for body in (
        expert | xargs(beta=2),
        expert | xargs(amateur_prompt=" w9"),
        chat({**SYSTEM, "role": "user"}, **xargs(amateur_prompt=" w9")),
    ):
        with pytest.raises(ValueError, match="^prompt_embeds=.*: embeddings are not contrasted;"):
            online.answer(body)
    with pytest.raises(ValueError, match="^cold_amateur_prompt_embeds=.*: unknown key, allowed"):
        online.answer({"prompt": "w1"} | xargs(amateur_prompt_embeds=encoded()))
    with pytest.raises(ValueError, match="of text, images, videos or audio"):
        online.answer(chat(USER, **xargs(amateur_messages=json.dumps([SYSTEM]))))
    for body in (expert, expert | {"vllm_xargs": {"cold": 0}}):
        assert online.answer(body) == ({"cold": 0}, [None])


def test_what_only_a_default_contrasts_is_served_without(front: Front) -> None:
    """With an adapter it is told, as for anything else that stands in the way."""
    front.serve({"without": "system"})
    online = Online(front)
    for messages, is_contrasted in (([SYSTEM, USER], 0), ([{**SYSTEM, "content": "a"}, USER], 1)):
        header, [stream] = online.answer(chat(*messages))
        assert header["cold"] == is_contrasted == (stream is not None)
    front.serve(True)
    with pytest.raises(ValueError, match=r'"cold": 0 to decode without a contrast$'):
        Online(front).answer({"prompt": None, "prompt_embeds": encoded()})
