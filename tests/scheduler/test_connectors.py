# SPDX-License-Identifier: Apache-2.0
"""KV connectors: what they bring in time, late, in vain or for nobody ends in the right tokens."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.scheduler.cases import prompt
from tests.scheduler.connector import Ways
from tests.scheduler.harness import (
    IS_0_23,
    Asked,
    Harness,
    Setup,
    make_hasher,
    make_request,
)
from tests.scheduler.storm import storms, with_connector
from vllm_cold.compat import versions
from vllm_cold.scheduler.amateur_requests import make_streams
from vllm_cold.scheduler.kv_loads import Loads
from vllm_cold.wire import transfer_params
from vllm_cold.wire.stream import from_extra_args

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(IS_0_23, reason="vllm-cold has connectors since vLLM 0.31"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.full) for n in (20, 40, 60, 80, 100))]
)
def test_storm(first: int, tiny: Path) -> None:
    counts: Counter[str] = Counter()
    for harness in storms(tiny / "model", range(first, first + 20), with_connector):
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
        # The same, which may load its client's request's from where that was decoded before.
        (
            {"do_remote_decode": True, "remote_request_id": "r", "remote_block_ids": [[1]]},
            {"do_remote_decode": True},
        ),
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
    harness._check_told = lambda name, told, num: seen.append(told)  # type: ignore
    own = prompt(5, 200)
    cold = harness.add(prompt(9), 1, adapter=1, cold=True, amateurs=[(0, None), (0, own)])
    harness.add(prompt(7, 300), 1, adapter=1)
    harness.drain()
    amateurs = [{"of": f"{cold}-amateur-{index}"} for index in (1, 2)]
    assert seen == [{"of": cold, "cold": {"amateurs": amateurs}}, {"of": "r2"}]
    assert transfer_params.told_in(seen[0]) == {}


def test_older_vllm_has_connectors_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever builds the scheduler without asking the front end first."""
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.23.0")
    scheduler: Any = SimpleNamespace(connector=object())
    nothing: Any = None
    with pytest.raises(ValueError, match="KV connectors with vLLM before 0.31"):
        Loads(scheduler, nothing, nothing)
