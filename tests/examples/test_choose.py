# SPDX-License-Identifier: Apache-2.0
"""The example that chooses between two answers learns when memory is right, and measures."""

from typing import Any

import numpy as np
import pytest

from examples import choose

pytestmark = pytest.mark.unit

DRAW = np.random.default_rng(3)


def rows(num: int, noise: float) -> tuple[Any, Any]:
    """Memory is right where its answer is likely and the other one is not, noise aside."""
    numbers = -DRAW.random((num, 4)) * 3
    better = numbers[:, 3] - numbers[:, 0] + noise * DRAW.standard_normal(num) > 0.5
    gains = np.where(better, 1, -1) * (DRAW.random(num) < 0.7)
    return numbers, gains


def test_a_judge_learns_when_memory_is_right() -> None:
    numbers, gains = rows(200, 0.1)
    judge = choose.fit(numbers, gains)
    chosen = [choose.Pair("text", "memory", tuple(each)) for each in numbers]  # type: ignore[arg-type]
    trusted = np.array([judge.choose(pair) == "memory" for pair in chosen])
    assert (trusted == (gains > 0))[gains != 0].mean() > 0.9
    won, lost = choose.unseen(numbers, gains)
    assert won > 0.8 * (gains > 0).sum()
    assert lost < 0.1 * (gains < 0).sum()


def test_what_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="of some only memory must be right"):
        choose.fit(np.zeros((3, 4)), np.array([1, 0, 1]))
    with pytest.raises(SystemExit):
        choose.main(["ask", "rows.jsonl", "--model", "m"])
