# SPDX-License-Identifier: Apache-2.0
"""Percentiles of two systems in the same rounds, and their quotient with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, norm, t

RESAMPLES, LEVEL = 5000, 0.95
Rounds = Sequence[Sequence[float]]  # of each round, of each request


class Estimate(NamedTuple):
    """A figure and its interval; the same number thrice where there is one round."""

    value: float
    low: float
    high: float


def pooled(rounds: Rounds, percentile: float) -> float:
    """Of all requests of all rounds."""
    return float(np.percentile(np.concatenate([np.asarray(each) for each in rounds]), percentile))


def over_rounds(rounds: int, figure: Callable[[Sequence[int]], float]) -> Estimate:
    """A figure of rounds, by their indices, and its interval: rounds are drawn anew as a whole,
    those of all systems together, because what slows a machine down lasts longer than a request.

    The bootstrap's percentiles lie farther out than ``LEVEL``, as an interval of Student's t does
    for a mean of so few (the expanded percentile interval, Hesterberg 2015, arXiv 1411.5279).
    """
    whole = figure(range(rounds))
    if rounds < 2:
        return Estimate(whole, whole, whole)
    known = cache(figure)  # few rounds can be drawn in few ways, if their order does not count
    found = bootstrap(
        (np.arange(rounds),),
        lambda drawn: known(tuple(sorted(map(int, drawn)))),
        vectorized=False,
        n_resamples=RESAMPLES,
        confidence_level=expanded(rounds),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(whole, float(found.low), float(found.high))


def expanded(rounds: int) -> float:
    """The level at which a bootstrap's percentiles are taken for an interval of ``LEVEL``."""
    reach = math.sqrt(rounds / (rounds - 1)) * t.ppf((1 + LEVEL) / 2, rounds - 1)
    return float(1 - 2 * norm.sf(reach))


def quotient(over: Rounds, under: Rounds, percentile: float) -> Estimate:
    """A percentile of one system over that of another in the same rounds."""
    return mean_quotient([(over, under)], percentile)


def mean_quotient(pairs: Sequence[tuple[Rounds, Rounds]], percentile: float) -> Estimate:
    """The geometric mean of such quotients, of pairs that have the same rounds."""
    rounds, *others = dict.fromkeys(len(each) for pair in pairs for each in pair)
    if others:
        raise ValueError(f"{rounds} rounds over {others[0]}: must be the same rounds")

    def figure(drawn: Sequence[int]) -> float:
        of = [[pooled([rounds[i] for i in drawn], percentile) for rounds in pair] for pair in pairs]
        return float(np.exp(np.mean([np.log(above / below) for above, below in of])))

    return over_rounds(rounds, figure)


def difference(over: Sequence[float], under: Sequence[float]) -> Estimate:
    """The median of one system less that of another in the same rounds, a figure each."""
    if len(over) != len(under):
        raise ValueError(f"{len(over)} rounds less {len(under)}: must be the same rounds")

    def figure(drawn: Sequence[int]) -> float:
        above, below = ([each[index] for index in drawn] for each in (over, under))
        return float(np.median(above) - np.median(below))

    return over_rounds(len(over), figure)
