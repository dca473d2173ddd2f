# SPDX-License-Identifier: Apache-2.0
"""KV connectors: what they bring in time, late, in vain or for nobody ends in the right tokens."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.scheduler import cases
from tests.scheduler.harness import IS_0_23, Asked, make_hasher, make_request
from tests.scheduler.storm import storm, with_connector
from vllm_cold.group.stream import from_extra_args
from vllm_cold.vllm.scheduler.amateurs import make_streams

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(IS_0_23, reason="CoLD has connectors since vLLM 0.31"),
]

STEPS = 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.full) for n in (20, 40, 60, 80, 100))]
)
def test_storm(first: int, tiny: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + 20):
        setup = with_connector(random.Random(seed))
        try:
            harness = storm(tiny / "model", seed, STEPS, setup)
        except AssertionError as error:
            raise AssertionError(f"seed={seed}: {setup}") from error
        assert harness.loads is not None
        counts.update(
            loads=harness.loads.loads,
            failed=harness.loads.failed,
            stores=harness.loads.stores,
            after_abort=harness.loads.after_abort,
            preemptions=harness.group_preemptions,
        )
    assert counts["loads"] > 100 and counts["stores"] > 1000
    assert counts["failed"] > 10 and counts["after_abort"] > 2
    assert counts["preemptions"] > 10


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("late", [0.0, 1.0], ids=["in time", "late"])
def test_a_group_is_loaded_at_once(late: float, is_async: bool, tiny: Path) -> None:
    cases.loaded_group(tiny / "model", is_async, late)


def test_a_load_that_brought_nothing_is_tried_again(tiny: Path) -> None:
    cases.lost_load(tiny / "model")


def test_workers_are_sent_the_tokens_of_a_group_that_begins_anew(tiny: Path) -> None:
    cases.lost_in_time(tiny / "model")


def test_a_group_waits_for_what_is_not_known_yet(tiny: Path) -> None:
    cases.not_known_yet(tiny / "model")


def test_a_step_that_was_emptied_keeps_no_blocks(tiny: Path) -> None:
    cases.emptied_step(tiny / "model")


def test_transfer_parameters_are_the_experts_alone() -> None:
    """They say where the KV of the client's prompt is."""
    request = make_request("r", Asked([1, 2, 3], 2, adapter=1, cold=True), make_hasher(4), 0.0)
    request.sampling_params.extra_args["kv_transfer_params"] = {"do_remote_prefill": True}
    stream = from_extra_args(request.sampling_params.extra_args)
    assert stream is not None
    expert, amateur = make_streams(request, stream)
    assert expert.sampling_params.extra_args["kv_transfer_params"]
    assert amateur.kv_transfer_params is None
    assert "kv_transfer_params" not in amateur.sampling_params.extra_args
