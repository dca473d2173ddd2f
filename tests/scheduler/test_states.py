# SPDX-License-Identifier: Apache-2.0
"""Models with layers that have states: single situations. Storms are in ``test_storm``."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scheduler import state_cases as cases
from tests.scheduler.harness import cases_in
from tests.scheduler.states import supported

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not supported(), reason="vllm-cold takes models with states since vLLM 0.32"
    ),
]


@pytest.mark.parametrize("case", cases_in(cases))
def test_case(case: Callable[[Path], None], tiny: Path) -> None:
    case(tiny / "model")
