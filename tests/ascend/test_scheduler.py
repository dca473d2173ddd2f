# SPDX-License-Identifier: Apache-2.0
"""Our scheduler on vllm-ascend's, which has a ``schedule`` of its own for balance scheduling.

The tests of tests/scheduler run on it too, with and without balance scheduling.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_ascend.patch.platform.patch_balance_schedule import BalanceScheduler

from tests.scheduler.harness import Harness, Setup
from vllm_cold.scheduler.scheduler import ColdAsyncScheduler, ColdScheduler

both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def test_ours_is_built_on_vllm_ascends() -> None:
    for ours in (ColdScheduler, ColdAsyncScheduler):
        assert BalanceScheduler in ours.__mro__


@both
def test_what_is_asked_for_is_on(tiny: Path, is_async: bool) -> None:
    sched: Any = Harness(tiny / "model", Setup(is_async=is_async)).sched
    assert sched._balance_enabled == (os.environ.get("VLLM_ASCEND_BALANCE_SCHEDULING") == "1")


@both
def test_groups_wait_while_a_rank_is_full(tiny: Path, is_async: bool) -> None:
    harness = Harness(tiny / "model", Setup(is_async=is_async))
    sched = harness.sched
    full = torch.tensor([sched.max_num_running_reqs], dtype=torch.int)
    sched._balance_enabled, sched.balance_queue = True, [full]
    harness.before = harness._sizes()
    for _ in range(2):
        harness.add(range(100, 110), 4, adapter=1, cold=True)
    assert [harness.step() for _ in range(3)] == [0] * 3 and not sched.running
    full.zero_()
    harness.drain()
    assert [len(tokens) for tokens in harness.got.values()] == [4, 4]
