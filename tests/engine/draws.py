# SPDX-License-Identifier: Apache-2.0
"""Whether an engine's samples follow a distribution."""

from collections.abc import Sequence

import torch
from scipy.stats import chisquare


def check_distribution(drawn: Sequence[int], expected: torch.Tensor) -> None:
    """Whether tokens may have been sampled from ``expected``, which is [V]."""
    counts = torch.bincount(torch.tensor(drawn), minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    likely = expected * len(drawn) >= 5
    observed = [*counts[likely].tolist(), counts[~likely].sum().item()]
    wanted = [*(expected[likely] * len(drawn)).tolist()]
    wanted.append((expected[~likely] * len(drawn)).sum().item())
    if wanted[-1] < 5:  # too rare for a cell of its own
        observed[0] += observed.pop()
        wanted[0] += wanted.pop()
    assert len(wanted) >= 3, "the distribution is too sharp to test"
    assert chisquare(observed, wanted).pvalue > 1e-4
