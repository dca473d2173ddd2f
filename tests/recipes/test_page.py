# SPDX-License-Identifier: Apache-2.0
"""What the page states about its own files."""

import pytest

from examples.lm_eval import make_sorting

pytestmark = pytest.mark.unit


def test_the_problems_are_those_of_the_seeds() -> None:
    assert make_sorting.FILE.read_text() == make_sorting.lines()
