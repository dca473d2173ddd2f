# SPDX-License-Identifier: Apache-2.0
"""Prompts of embeddings, from a request to its streams; ``tests/engine/test_embeds.py`` decodes
with them.
"""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import vllm.renderers.base
from safetensors.torch import load
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.front_end import MAX_LEN, Front, Online
from tests.requests import chat, xargs
from vllm_cold import Amateur, ColdParams
from vllm_cold.frontend import admission, contrast
from vllm_cold.frontend.intake import FRONT_END
from vllm_cold.scheduler.amateur_requests import make_streams
from vllm_cold.wire.stream import AmateurStream, from_extra_args

pytestmark = pytest.mark.unit

HIDDEN = 64
USER = {"role": "user", "content": " w3"}


def rows(num: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def encoded(tensor: Any) -> str:
    """As clients send it."""
    file = io.BytesIO()
    torch.save(tensor, file)
    return base64.b64encode(file.getvalue()).decode()


SHAPE = "must be float16 or bfloat16 or float32 or float64 of shape [1 or more tokens, 64]"
MASK = [True, False, True, False, False]
IDS = {"prompt_token_ids": [5, 6], "prompt_is_token_ids": [True, False]}
BOTH = {"prompt_embeds": rows(2), **IDS}


@pytest.fixture(scope="module")
def front(tiny: Path) -> Front:
    return Front(tiny / "model", enable_prompt_embeds=True, additional_config={"cold": True})


@pytest.fixture(autouse=True)
def serving(front: Front) -> None:
    front.serve()
    FRONT_END.begin()


def streams_of(asked: EngineCoreRequest) -> tuple[Request, ...]:
    """What the scheduler makes of a request that came to it from another process."""
    sent = MsgpackDecoder(EngineCoreRequest).decode(MsgpackEncoder().encode(asked))
    init_none_hash(sha256)
    request = Request.from_engine_core_request(sent, get_request_block_hasher(4, sha256))
    stream = from_extra_args(request.sampling_params.extra_args)
    assert stream is not None
    return make_streams(request, stream)


def embeds_of(amateur: AmateurStream) -> torch.Tensor:
    assert amateur.embeds is not None
    return load(amateur.embeds)["embeds"]


def render(front: Front, tensor: Any, **more: Any) -> Any:
    """What ``LLM.generate`` makes of embeddings."""
    (prompt,) = front.renderer.render_cmpl([{"prompt_embeds": tensor, **more}])
    return prompt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_embeddings_survive_the_way_to_the_scheduler(front: Front, dtype: torch.dtype) -> None:
    for tensor in (
        rows(5, dtype=dtype),
        rows(10, dtype=dtype)[::2],  # not contiguous
        rows(5, dtype=dtype).requires_grad_(),
    ):
        prompt = {"prompt_embeds": tensor, "prompt_token_ids": [7] * 5, "prompt_is_token_ids": MASK}
        asked = front.request(front.text(" w1"), ColdParams(amateur=Amateur(prompt=prompt)))
        _, amateur = streams_of(asked)
        found = amateur.prompt_embeds
        assert found.equal(tensor) and found.dtype == dtype and not found.requires_grad
        assert amateur.prompt_is_token_ids == MASK


def test_amateurs_with_embeddings(front: Front) -> None:
    expert, own = front.text(" w1 w2"), rows(7)
    for tensor in (own, own[None]):
        for stream in (
            front.streams(expert, ColdParams(amateur=Amateur(prompt={"prompt_embeds": tensor}))),
            front.streams(expert, amateur_prompt_embeds=encoded(tensor)),
        ):
            [one] = stream.amateurs
            assert one.prompt is None and one.adapter is not None  # the expert's
            assert embeds_of(one).equal(own)
    # What is said once is made once, and a list has one for each.
    stream = front.streams(
        expert, weights=[-1, -2, -3], amateur_prompt_embeds=["", encoded(own), encoded(rows(3))],
        amateur=["base", "", ""],
    )  # fmt: skip
    assert [one.embeds and len(embeds_of(one)) for one in stream.amateurs] == [None, 7, 3]
    assert stream.method == "custom"


def test_workers_get_no_prompts(front: Front) -> None:
    """Only the scheduler needs them. (``tests/engine/test_embeds.py`` has what streams read.)"""
    amateurs = [
        Amateur(lora_request=None),
        Amateur(prompt={"prompt_embeds": rows(6, 1)}),
        Amateur(prompt=[5, 6, 7]),
    ]
    asked = front.request(render(front, rows(9)), ColdParams(amateurs=amateurs, max_tokens=4))
    streams = streams_of(asked)
    assert [one.num_prompt_tokens for one in streams] == [9, 9, 6, 3]
    for one in streams:
        sent = from_extra_args(one.sampling_params.extra_args)
        assert sent is not None
        assert not any(a.prompt or a.embeds or a.adapter for a in sent.amateurs)


def test_a_server(front: Front) -> None:
    """Embeddings of expert and amateur as vLLM's completions take them."""
    online = Online(front)

    expert = {"prompt": None, "prompt_embeds": encoded(rows(9))}
    _, [default] = online.answer(expert | xargs(beta=2))
    assert default.amateurs[0].embeds is default.amateurs[0].prompt is None
    both = expert | {"prompt": "w1"} | xargs(amateur_prompt_embeds=encoded(rows(5)))
    told, [stream, text] = online.answer(both)
    assert told["prompt"] == "embeddings"
    for each in (stream, text):
        assert embeds_of(each.amateurs[0]).equal(rows(5))
    _, [stream] = online.answer(expert | xargs(amateur_prompt=" w9"))
    assert stream.amateurs[0].prompt and stream.amateurs[0].embeds is None
    # vLLM casts what clients send.
    double = encoded(rows(5, dtype=torch.float64))
    _, [stream] = online.answer(expert | xargs(amateur_prompt_embeds=double))
    assert embeds_of(stream.amateurs[0]).dtype == torch.float32
    for wrong, message in (
        (encoded(torch.zeros(5, HIDDEN - 1)), "hidden_size 63 does not match"),
        (encoded({"a": 1}), "no prompt can be made of it"),
        ("AAAA", "no prompt can be made of it"),
        ("", "must not be empty"),
        (encoded(torch.zeros(MAX_LEN, HIDDEN)), "prompt (has|contains) 64 (input )?tokens"),
        (encoded(rows(9)), "the amateur is the expert"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            online.answer(expert | xargs(amateur_prompt_embeds=wrong))
        assert str(caught.value).startswith("cold_amateur_prompt_embeds=")
        assert len(str(caught.value)) < 500


def test_what_torch_says_of_a_clients_bytes(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no change of vLLM's."""
    fails = Mock(side_effect=RuntimeError("can't allocate " + 999 * "x"))
    args = {"cold_amateur_prompt_embeds": encoded(rows(2))}
    monkeypatch.setattr(vllm.renderers.base, "safe_load_prompt_embeds", fails)
    said = front.refusal(front.text(" w1"), SamplingParams(extra_args=args))
    assert said.startswith("cold_amateur_prompt_embeds=") and len(said) < 700
    assert "no prompt can be made of it: can't allocate xxx" in said


def test_chats_with_embeddings_in_them(front: Front) -> None:
    part = {"type": "prompt_embeds", "data": encoded(rows(4))}
    system = {"role": "system", "content": [{"type": "text", "text": " w1"}, part]}
    user = {"role": "user", "content": [{"type": "text", "text": " w3"}, part]}
    online = Online(front)
    for messages, is_embeds in (([system, USER], False), ([system, user], True)):
        _, [stream] = online.answer(chat(*messages, **xargs(without="system")))
        [one] = stream.amateurs
        assert (one.embeds is not None) == is_embeds
        if is_embeds:
            is_embedded = [not each for each in one.is_token_ids]
            assert sum(is_embedded) == 4
            assert embeds_of(one)[torch.tensor(is_embedded)].equal(rows(4))
            assert len(one.prompt) == len(embeds_of(one))
    # Its default amateur reads the same.
    _, [stream] = online.answer(chat(system, USER, **xargs(beta=1)))
    assert stream.amateurs[0].embeds is stream.amateurs[0].prompt is None
    ids = {"prompt_token_ids": [5, 6, 7], "prompt_is_token_ids": [True, False, True]}
    for prompt in (render(front, rows(3)), render(front, rows(3), **ids)):  # ids for a part of it
        said = front.refusal(prompt, SamplingParams(extra_args={"cold_part": "0:1"}))
        assert said.startswith("cold_part='0:1': is for completions, whose prompt is one text or a")
    with pytest.raises(ValueError, match="of text, images, videos or audio"):
        online.answer(chat(USER, **xargs(amateur_messages=json.dumps([system]))))


@pytest.mark.parametrize(
    ("tensor", "more", "message"),
    [
        (torch.zeros(2, 63), {}, f"'torch.float32[2, 63]': {SHAPE}"),
        (torch.zeros(2, 64, dtype=torch.int64), {}, f"'torch.int64[2, 64]': {SHAPE}"),
        (rows(2).to(torch.float8_e4m3fn), {}, f"'torch.float8_e4m3fn[2, 64]': {SHAPE}"),
        (torch.zeros(0, 64), {}, f"'torch.float32[0, 64]': {SHAPE}"),
        (rows(3), IDS, "must have prompt_token_ids and prompt_is_token_ids of its 3 tokens"),
        (rows(2), {"prompt_token_ids": [5, 6]}, "of its 2 tokens, or neither"),
        (rows(2), {**IDS, "prompt_token_ids": [512, 6]}, "token 512 is none of the model's 512"),
        (rows(2), {**IDS, "prompt_token_ids": [-1, 6]}, "token -1 is none of the model's 512"),
    ],
)
def test_wrong_embeddings_of_programs(
    tensor: torch.Tensor, more: dict[str, Any], message: str, front: Front
) -> None:
    """vLLM looks at the number of dimensions, and its workers end with the others."""
    if "-1" not in message:  # an amateur's are looked at before
        own = ColdParams(amateur=Amateur(prompt={"prompt_embeds": tensor, **more}))
        said = front.refusal(front.text(" w1"), own)
        assert said.startswith("amateur=") and message in said
    if len(tensor) == 2:  # vLLM checks the others of an expert
        said = front.refusal(render(front, tensor, **more), ColdParams())
        assert said.startswith("prompt_embeds=") and message in said


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "missing required field `prompt_embeds`"),
        ({"prompt_embeds": [[1.0]]}, "prompt_embeds is no tensor"),
        ({"prompt_token_ids": [1]}, "missing required field `prompt_embeds`"),
        ({"prompt_embeds": rows(1), "multi_modal_data": {}}, "unknown field `multi_modal_data`"),
        ({**BOTH, "prompt_token_ids": [5, -1]}, "at `..prompt_token_ids"),
        ({**BOTH, "prompt_token_ids": torch.tensor([5, 6])}, "at `..prompt_token_ids"),
        ({**BOTH, "prompt_is_token_ids": [1, 0]}, "at `..prompt_is_token_ids"),
    ],
)
def test_what_is_no_prompt(wrong: dict[str, Any], message: str) -> None:
    """An id that is none ends the engine."""
    with pytest.raises(ValueError, match=message):
        Amateur(prompt=wrong)


def test_equal_prompts(front: Front) -> None:
    for more in ({}, IDS):
        prompt = render(front, rows(2), **more)
        same = ColdParams(amateur=Amateur(prompt={"prompt_embeds": rows(2) + 0, **more}))
        assert "the amateur is the expert" in front.refusal(prompt, same)
        if more:  # vLLM's prefix cache before 0.31 takes it for the same
            moved = {**same.amateur.prompt, "prompt_is_token_ids": [False, True]}
            asked = ColdParams(amateur=Amateur(prompt=moved))
            assert "the amateur is the expert" in front.refusal(prompt, asked)
        for other in ({"prompt_embeds": rows(2, 1), **more}, [5, 6]):
            assert front.streams(prompt, ColdParams(amateur=Amateur(prompt=other))).amateurs
        # With another adapter it is another one.
        base = Amateur(prompt={"prompt_embeds": rows(2), **more}, lora_request=None)
        assert front.streams(prompt, ColdParams(amateur=base)).amateurs


def test_copies_are_made_once_and_of_what_has_room(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small tensor may stand for a huge one."""
    save, text = Mock(wraps=contrast.save), front.text(" w1")
    monkeypatch.setattr(contrast, "save", save)
    huge = {"prompt_embeds": rows(1).expand(2**24, HIDDEN)}
    assert "16777216" in front.refusal(text, ColdParams(amateur=Amateur(prompt=huge)))
    assert not save.called
    own = rows(2)
    one, same = {"prompt_embeds": own}, {"prompt_embeds": own, **IDS}
    amateurs = [Amateur(prompt=each, weight=-1) for each in (one, one, same, same)]
    stream = front.streams(text, ColdParams(amateurs=amateurs))
    copied = [tensor for call in save.call_args_list for tensor in call.args[0].values()]
    assert len(copied) == 2 and copied[0] is copied[1]
    masks = [each.is_token_ids for each in stream.amateurs if each.embeds is not None]
    assert masks == [None, None, [True, False], [True, False]]


def test_what_asks_for_the_tokens_of_a_prompt(front: Front) -> None:
    """vLLM takes some for those that embeddings do not have."""
    penalty = {"repetition_penalty": 1.5}
    prompt = render(front, rows(3))
    assert "repetition_penalty=1.5: is for the tokens of a prompt" in front.refusal(
        prompt, ColdParams(**penalty)
    )
    assert front.request(prompt, SamplingParams(**penalty))
    own = Amateur(prompt={"prompt_embeds": rows(3)})
    assert front.streams(front.text(" w1"), ColdParams(amateur=own, **penalty)).amateurs
    assert front.streams(prompt, ColdParams(presence_penalty=1.0, frequency_penalty=0.5)).amateurs


def test_an_engine_without_them(tiny: Path) -> None:
    stock = Front(tiny / "model")
    own = Amateur(prompt={"prompt_embeds": rows(3)})
    said = stock.refusal(stock.text(" w1"), ColdParams(amateur=own))
    assert said.startswith("amateur='torch.float32[3, 64]': no prompt can be made of it: You must")
    assert "--enable-prompt-embeds" in said


def test_with_a_drafter_that_is_a_model(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """On V1 it asks for the token ids of a prompt, and the engine ends."""
    text = front.text(" w1")
    own = ColdParams(amateur=Amateur(prompt={"prompt_embeds": rows(2)}))

    def speculate(method: str, v2: bool = False) -> None:
        drafts = SimpleNamespace(
            method=method, num_speculative_tokens=1, max_num_new_slots_for_drafting=0
        )
        monkeypatch.setattr(front.config, "speculative_config", drafts)
        monkeypatch.setattr(admission, "uses_v2_runner", lambda config: v2)

    speculate("eagle")
    message = "speculative decoding is on (eagle) with the V1 model runner"
    said = front.refusal(text, own)
    assert said.startswith("amateur='torch.float32[2, 64]'") and message in said
    for more in ({}, IDS):
        said = front.refusal(render(front, rows(2), **more), ColdParams())
        assert said.startswith("prompt_embeds='torch.float32[2, 64]'") and message in said
    assert front.streams(text, ColdParams(amateur=Amateur(prompt=[5]))).amateurs
    for method, v2 in (("ngram", False), ("suffix", False), ("eagle", True)):
        speculate(method, v2)
        assert front.streams(text, own).amateurs
        assert front.streams(render(front, rows(2)), ColdParams()).amateurs
