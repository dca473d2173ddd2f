# SPDX-License-Identifier: Apache-2.0
"""Pairs stay in step, end, and give back every block, whatever the scheduler goes through."""

from pathlib import Path
from typing import Any

import pytest

from tests.scheduler.harness import blast

pytestmark = pytest.mark.unit

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "roomy": {"num_blocks": 129, "budget": 64},
    "tight": {"num_blocks": 17},
    "async": {"is_async": True},
    "async tight": {"is_async": True, "num_blocks": 15},
    "budget 2": {"budget": 2, "max_num_seqs": 2},
    "budget 3 async": {"budget": 3, "max_num_seqs": 3, "is_async": True},
    "odd seats": {"max_num_seqs": 5, "budget": 7},
    "one adapter slot": {"max_loras": 1, "num_blocks": 25},
    "priority": {"policy": "priority", "num_blocks": 17},
    "priority async": {"policy": "priority", "num_blocks": 17, "is_async": True},
    "no caching": {"caching": False, "num_blocks": 17},
    "block 1": {"block_size": 1, "num_blocks": 41},
    "block 16": {"block_size": 16, "num_blocks": 9, "is_async": True},
    "long prefill": {"long_prefill": 3, "is_async": True},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_blast(name: str, tiny: Path) -> None:
    preemptions = 0
    for seed in range(4):
        preemptions += blast(tiny / "model", seed, 250, **CONFIGURATIONS[name]).preemptions
    assert preemptions > 0
