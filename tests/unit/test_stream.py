# SPDX-License-Identifier: Apache-2.0
"""A stream's description survives vLLM's process boundaries."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from vllm_cold.rules.registry import BUILT_IN
from vllm_cold.settings.table import ColdSettings
from vllm_cold.wire.stream import KEY, AmateurStream, Stream, from_extra_args, without_cold

pytestmark = pytest.mark.unit

SETTINGS = st.builds(
    ColdSettings,
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1e6),
    rule=st.none() | st.sampled_from(BUILT_IN),
    expert_top_k=st.none() | st.integers(1, 2**31 - 1),
)
AMATEURS = st.builds(
    AmateurStream,
    weight=st.none() | st.floats(-1e6, 1e6),
    adapter=st.none()
    | st.fixed_dictionaries(
        {"lora_name": st.text(), "lora_int_id": st.integers(1, 2**31), "lora_path": st.text()}
    ),
    prompt=st.none() | st.lists(st.integers(0, 2**31)),
)
STREAMS = st.builds(
    Stream,
    settings=SETTINGS,
    amateurs=st.lists(AMATEURS, min_size=1, max_size=4).map(tuple),
    group=st.text(),
    index=st.none() | st.integers(0, 4),
    method=st.text(),
    rule_keeps_state=st.booleans(),
    retires=st.booleans(),
    slot=st.none() | st.integers(0, 2**31),
)


@settings(deadline=None)
@given(STREAMS)
def test_round_trip(stream: Stream) -> None:
    params = SamplingParams(extra_args=stream.to_extra_args({"kv": [1, {"a": None}]}))
    data = msgspec.msgpack.encode(params)
    arrived = msgspec.msgpack.decode(data, type=SamplingParams)
    assert from_extra_args(arrived.extra_args) == stream
    assert without_cold(arrived.extra_args) == {"kv": [1, {"a": None}]}


@pytest.mark.parametrize("extra_args", [None, {}, {"x": 1}, {"cold": 1, "cold_alpha": 0.2}])
def test_a_regular_request_is_no_stream(extra_args: dict[str, Any] | None) -> None:
    assert from_extra_args(extra_args) is None


def test_foreign_arguments_survive_and_ours_do_not() -> None:
    given_args = {"x": 1, "cold": 1, "cold_alpha": 0.2, "scold": 3, "Cold": 4, KEY: {"stale": 1}}
    before = dict(given_args)
    stream = Stream(ColdSettings(0.2, 0.5), (AmateurStream(-0.5),))
    args = stream.to_extra_args(given_args)
    assert given_args == before, "the caller's own dict was changed"
    assert from_extra_args(args) == stream
    assert without_cold(args) == {"x": 1, "scold": 3, "Cold": 4}
    assert set(args) == {"x", "scold", "Cold", KEY}
