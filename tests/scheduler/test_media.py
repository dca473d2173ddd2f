# SPDX-License-Identifier: Apache-2.0
"""Engines whose model reads images, beside the cases and the storms."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from tests.scheduler.harness import (
    Asked,
    Setup,
    WithoutModel,
    make_scheduler,
)
from tests.scheduler.media import Media, random_media
from vllm_cold.compat import versions
from vllm_cold.scheduler import group_planning
from vllm_cold.scheduler.encoder_inputs import EncoderInputs
from vllm_cold.settings.encoder_room import EncoderRoom, room_of

pytestmark = pytest.mark.unit


def decisions(output: Any, leave_out: frozenset[str] = frozenset()) -> tuple[Any, ...]:
    """What a step does with requests, but for some."""
    cached = output.scheduled_cached_reqs
    return (
        [(i, n) for i, n in output.num_scheduled_tokens.items() if i not in leave_out],
        [r.req_id for r in output.scheduled_new_reqs if r.req_id not in leave_out],
        [[f.data for f in r.mm_features] for r in output.scheduled_new_reqs
         if r.req_id not in leave_out],
        sorted(set(getattr(cached, "resumed_req_ids", ())) - leave_out),
        {i: sorted(of) for i, of in output.scheduled_encoder_inputs.items()
         if i not in leave_out},
        sorted(output.free_encoder_mm_hashes),
    )  # fmt: skip


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_regular_requests_are_scheduled_as_by_vllm(is_async: bool, tiny: Path) -> None:
    """Text only and with images; without contrastive requests, and next to one whose streams are
    scheduled as two regular requests would be.
    """
    encoded = 0
    for seed in range(30):
        rng = random.Random(seed)
        media = random_media(rng, one_in=rng.choice((2, 5)))
        beside = seed % 2 == 1
        setup = Setup(
            num_blocks=400 if beside else rng.randint(17, 65),
            budget=rng.choice((8, 16, 33)),
            max_num_seqs=8,
            is_async=is_async,
            long_prefill=rng.choice((0, 0, 5)),
            media=media,
        )
        theirs = WithoutModel(tiny / "model", setup, (Scheduler, AsyncScheduler))
        mine = WithoutModel(tiny / "model", setup)
        leave_out = frozenset[str]()
        if beside:
            expert = Asked([3, 4], 55)
            theirs.add(expert, "cold")
            theirs.add(Asked([3, 4], 55, adapter=1), "cold-amateur-1")
            mine.add(Asked([3, 4], 55, cold=True, amateur=1), "cold")
            leave_out = frozenset({"cold", "cold-amateur-1"})
            for each in (theirs, mine):
                while each.sched.requests["cold"].num_output_tokens < 2:
                    each.step()
        for number in range(40):
            if rng.random() < 0.5:
                length = rng.randint(1, 40)
                prompt = [rng.randrange(3, 500) for _ in range(length)]
                of = media if rng.random() < 0.7 else None
                asked = Asked(prompt, rng.randint(1, 8), media=of)
                theirs.add(asked, f"p{number}")
                mine.add(asked, f"p{number}")
            outputs = theirs.step(), mine.step()
            left, right = (decisions(each, leave_out) for each in outputs)
            assert left == right, f"seed {seed}"
            encoded += len(outputs[1].scheduled_encoder_inputs)
    assert encoded > 100


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("encoder-cache connectors", {"ec_connector": object()}),
        ("other managers of the encoder's cache", {"encoder_cache_manager": object()}),
    ],
)
def test_what_is_not_followed_ends_at_the_start(
    what: str, changed: dict[str, Any], tiny: Path
) -> None:
    scheduler = make_scheduler(tiny / "model", Setup())
    for name, value in changed.items():
        setattr(scheduler, name, value)
    with pytest.raises(ValueError, match=what):
        EncoderInputs(scheduler)


def test_what_an_engine_encodes(tiny: Path) -> None:
    setup = Setup(media=Media(cache=40, budget=8, is_whole=True), long_prefill=9)
    scheduler = make_scheduler(tiny / "model", setup)
    assert scheduler._encoder.room == EncoderRoom(40, 8, 16, chunk=9, is_whole=True)
    # What front ends know: a greater cache than the configuration's is the longest medium's.
    config = SimpleNamespace(
        max_num_scheduled_tokens=None,
        max_num_batched_tokens=32,
        max_num_encoder_input_tokens=32,
        encoder_cache_size=32,
        long_prefill_token_threshold=0,
        disable_chunked_mm_input=False,
    )
    drafter = SimpleNamespace(num_speculative_tokens=4)
    of_engine = SimpleNamespace(scheduler_config=config, speculative_config=drafter)
    room = EncoderRoom(32, 32, tokens=28)
    assert room_of(of_engine, 32) == room
    assert room_of(of_engine, 50) == replace(room, cache=50, budget=50)


def test_a_request_that_leaves_a_step_leaves_its_media() -> None:
    """Also what vLLM 0.33 sends its workers of them."""
    output = SimpleNamespace(
        num_scheduled_tokens={"a": 2, "b": 1},
        total_num_scheduled_tokens=3,
        scheduled_spec_decode_tokens={},
        scheduled_encoder_inputs={"a": [0], "b": [1]},
        encoder_input_updates={"a": {0: None}},
        kv_connector_block_state=None,
        scheduled_cached_reqs=None,
        scheduled_new_reqs=[SimpleNamespace(req_id="a")],
    )
    assert group_planning.strip(output, "a")  # type: ignore[arg-type]
    assert output.scheduled_encoder_inputs == {"b": [1]}
    assert versions.is_before("0.33") or not output.encoder_input_updates
