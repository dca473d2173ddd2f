# SPDX-License-Identifier: Apache-2.0
"""Models with layers that have states: single situations. Storms are in ``test_storm``."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scheduler import state_cases as cases
from tests.scheduler.states import supported

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not supported(), reason="CoLD takes models with states since vLLM 0.32"),
]

CASES = [
    cases.block_as_wide_as_a_step,
    cases.cached_expert_beside_a_split_amateur,
    cases.amateur_that_finds_anothers_state,
    cases.amateur_that_needs_anothers_state,
    cases.junction,
    cases.room_for_two_states,
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_case(case: Callable[[Path], None], tiny: Path) -> None:
    case(tiny / "model")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_long_and_short(is_async: bool, tiny: Path) -> None:
    cases.long_and_short(tiny / "model", is_async)
