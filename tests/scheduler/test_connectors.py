# SPDX-License-Identifier: Apache-2.0
"""KV connectors: what they bring in time, late, in vain or for nobody ends in the right tokens."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.scheduler import cases
from tests.scheduler.connector import Ways
from tests.scheduler.harness import (
    IS_0_23,
    Asked,
    Harness,
    Setup,
    make_hasher,
    make_request,
)
from tests.scheduler.storm import storm, with_connector
from vllm_cold.group import results
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


def test_nobody_runs_on_shared_kv_that_did_not_come(tiny: Path) -> None:
    cases.shared_and_lost(tiny / "model")


def test_nobody_runs_on_kv_of_a_group_that_was_taken_out(tiny: Path) -> None:
    cases.late_behind_its_leader(tiny / "model")


def test_kv_that_did_not_come_for_an_aborted_group_is_not_found(tiny: Path) -> None:
    cases.aborted_amid_a_lost_load(tiny / "model")


def test_a_blocked_queue_is_not_walked(tiny: Path) -> None:
    cases.blocked_queue(tiny / "model")


def test_a_group_waits_for_what_is_not_known_yet(tiny: Path) -> None:
    cases.not_known_yet(tiny / "model")


def test_a_step_that_was_emptied_keeps_no_blocks(tiny: Path) -> None:
    cases.emptied_step(tiny / "model")


@pytest.mark.parametrize(
    ("told", "amateurs"),
    [
        # An engine that decodes: where the client's KV is says nothing of an amateur's.
        ({"do_remote_prefill": True, "remote_request_id": "r"}, None),
        ({"cold": {"amateurs": [{"remote_request_id": "r-1"}]}}, {"remote_request_id": "r-1"}),
        *(
            ({"cold": ours}, None)
            for ours in (7, {"amateurs": 7}, {"amateurs": []}, {"amateurs": [7]})
        ),
        # One that prefills: all are wanted.
        ({"do_remote_decode": True}, {"do_remote_decode": True}),
    ],
    ids=str,
)
def test_transfer_parameters_of_amateurs(told: Any, amateurs: Any) -> None:
    request = make_request("r", Asked([1, 2, 3], 2, adapter=1, cold=True), make_hasher(4), 0.0)
    request.sampling_params.extra_args["kv_transfer_params"] = told
    stream = from_extra_args(request.sampling_params.extra_args)
    assert stream is not None
    expert, amateur = make_streams(request, stream)
    assert expert.sampling_params.extra_args["kv_transfer_params"] == told
    assert amateur.kv_transfer_params == amateurs
    assert amateur.kv_transfer_params is not told


def test_what_another_engine_needs_of_amateurs_goes_with_their_experts(tiny: Path) -> None:
    harness = Harness(tiny / "model", Setup(budget=64, connector=Ways()))
    connector, seen = harness.sched.connector, []
    finish = connector.request_finished

    def tell(request: Any, block_ids: list[int]) -> Any:
        return finish(request, block_ids)[0], {"of": request.request_id}

    connector.request_finished = tell
    harness._check_weights = lambda name, told, ends: seen.append(told)  # type: ignore
    own = cases.prompt(5, 200)
    cold = harness.add(cases.prompt(9), 1, adapter=1, cold=True, amateurs=[(0, None), (0, own)])
    harness.add(cases.prompt(7, 300), 1, adapter=1)
    harness.drain()
    amateurs = [{"of": f"{cold}-amateur-{index}"} for index in (1, 2)]
    assert seen == [{"of": cold, "cold": {"amateurs": amateurs}}, {"of": "r2"}]
    assert results.weights_in(seen[0]) is None
