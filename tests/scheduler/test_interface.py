# SPDX-License-Identifier: Apache-2.0
"""What ``vllm_cold.vllm.scheduler.interface`` says of vLLM's scheduler is so."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from tests.scheduler.harness import IS_0_23, Asked, Setup, make_hasher, make_request, make_scheduler
from tests.scheduler.workers import RELEASE
from vllm_cold.vllm.scheduler import interface

pytestmark = pytest.mark.unit


NOT_IN_0_23 = {
    "_handle_blocked_waiting_request",
    "_free_request_blocks",
    "defer_block_free",
    "deferred_frees",
    "failed_recving_kv_req_ids",
    "kv_holding_waiting",
    "max_num_active_reqs",
    "sched_step_seq",
}


SINCE_0_32 = {"_set_kv_fetch_stage"}


def names(stated: type) -> set[str]:
    """Attributes and methods that are stated."""
    methods = {
        n for n, m in vars(stated).items() if inspect.isfunction(m) or isinstance(m, property)
    }
    methods = {n for n in methods if not n.startswith("__") and n != "_no_init_or_replace_init"}
    stated_names = methods | set(stated.__annotations__)
    if RELEASE < (0, 32):
        stated_names -= SINCE_0_32
    # There a group without slots ends a step's admission, and no connector is supported.
    return stated_names - NOT_IN_0_23 if IS_0_23 else stated_names


@pytest.fixture(scope="module")
def scheduler(tiny: Path) -> Any:
    return make_scheduler(tiny / "model", Setup(), (Scheduler, AsyncScheduler))


def test_the_scheduler(scheduler: Any) -> None:
    for name in names(interface.Scheduler):
        assert hasattr(scheduler, name), name


@pytest.mark.parametrize(
    "name",
    [n for n in sorted(names(interface.Scheduler)) if callable(vars(interface.Scheduler).get(n))],
)
def test_the_parameters_of_its_methods(name: str) -> None:
    stated = [
        p.name
        for p in inspect.signature(vars(interface.Scheduler)[name]).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    found = list(inspect.signature(getattr(Scheduler, name)).parameters)
    assert found[: len(stated)] == stated


def test_requests(tiny: Path) -> None:
    request = make_request("r", Asked([1, 2], 3), make_hasher(4), 0.0)
    stated = names(interface.Request) | set(interface.Request.__mro__[1].__annotations__)
    if IS_0_23:  # without models with states
        stated.discard("shared_prefix_boundary")
    for name in stated | {"num_tokens"}:
        assert hasattr(request, name), name
