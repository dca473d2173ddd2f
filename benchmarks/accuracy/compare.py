# SPDX-License-Identifier: Apache-2.0
"""What the outcomes say: each method against greedy decoding with the same adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.choose import pick
from benchmarks.accuracy.methods import ADAPTIVE, DEFAULT, GREEDY
from benchmarks.accuracy.store import MEASURED, Cell, Outcome, Store
from vllm_cold.tools.tune.stats import bootstrap_interval, mcnemar, sign_flip

Bits = NDArray[np.float64]
CONFIDENCE = 0.95
LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """A method on the test problems of a cell; accuracies and differences in percent points.

    Attributes:
        method: its key.
        problems: how many.
        accuracy: in percent.
        difference: to greedy.
        low: lower end of its bootstrap interval.
        high: upper end.
        better: problems that only this method solves.
        worse: problems that only greedy solves.
        p: of McNemar's exact test.
        length: mean tokens of an answer.
        one_valid: percent of CoLD's steps with one candidate; None for other methods.
        changed: percent of CoLD's steps at which it took another token; None for other methods.
    """

    method: str
    problems: int
    accuracy: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    length: float
    one_valid: float | None
    changed: float | None

    @property
    def verdict(self) -> str:
        """ "better" or "worse" than greedy where that is significant, else "equal"."""
        if self.p >= LEVEL:
            return "equal"
        return "better" if self.difference > 0 else "worse"


def bits(right: str) -> Bits:
    """[problems] 1.0 for right answers, of an outcome's characters."""
    return np.array([float(letter) for letter in right])


def row(method: str, outcome: Outcome, greedy: Outcome) -> Row:
    """Compare two outcomes on the same problems."""
    mine, other = bits(outcome.right), bits(greedy.right)
    differences = mine - other
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    low, high = bootstrap_interval(differences, CONFIDENCE, seed=0)
    steps = outcome.steps
    return Row(
        method=method,
        problems=len(mine),
        accuracy=100 * mine.mean(),
        difference=100 * differences.mean(),
        low=100 * low,
        high=100 * high,
        better=better,
        worse=worse,
        p=mcnemar(better, worse),
        length=outcome.tokens / len(mine),
        one_valid=100 * outcome.one_valid / steps if steps else None,
        changed=100 * outcome.changed / steps if steps else None,
    )


@dataclass(frozen=True)
class Compared:
    """A cell's test problems.

    Attributes:
        cell: the cell.
        rows: method -> against greedy; greedy itself included.
        picked: key of the fixed setting that was best on dev.
        not_offered: methods that the installed libraries do not offer, and why.
        right: method -> [problems] 1.0 for right answers.
    """

    cell: Cell
    rows: dict[str, Row]
    picked: str
    not_offered: dict[str, str]
    right: dict[str, Bits]

    @property
    def default(self) -> Row:
        """CoLD as it is when nothing is said."""
        return self.rows[DEFAULT.key]

    @property
    def best_fixed(self) -> Row:
        """The fixed setting that was best on dev."""
        return self.rows[self.picked]

    @property
    def adaptive(self) -> Row:
        """The adaptive beta as it is when nothing else is said."""
        return self.rows[ADAPTIVE[0].key]


def compared(cells: list[Cell], root: Path = MEASURED) -> list[Compared]:
    """All cells whose test problems have been decoded with the methods that are always there."""
    found = []
    for cell in cells:
        store = Store(cell, "test", root=root)
        needed = {GREEDY.key, DEFAULT.key, ADAPTIVE[0].key}
        if not needed <= store.outcomes.keys():
            continue
        try:
            picked = pick("cold", cell, root).key
        except KeyError:  # dev is being measured anew
            continue
        if picked not in store.outcomes:
            continue
        greedy = store.outcomes[GREEDY.key]
        rows = {key: row(key, outcome, greedy) for key, outcome in store.outcomes.items()}
        right = {key: bits(outcome.right) for key, outcome in store.outcomes.items()}
        found.append(Compared(cell, rows, picked, store.not_offered, right))
    return found


def together(found: list[Compared], method: Callable[[Compared], str]) -> dict[str, float]:
    """All answers with one method each, against greedy.

    Several adapters are tested on the same problems, and their answers hang together: what is
    compared is the sum over the adapters of each problem, by a sign-flip permutation test.
    """
    sums: dict[tuple[str, str], Bits] = {}
    better = worse = 0
    for cell in found:
        differences = cell.right[method(cell)] - cell.right[GREEDY.key]
        better += int((differences > 0).sum())
        worse += int((differences < 0).sum())
        key = cell.cell.adapter.task, cell.cell.level
        # The problems of a smaller number are the first ones of a larger.
        so_far = sums.get(key, np.zeros(0))
        total = np.zeros(max(len(so_far), len(differences)))
        total[: len(so_far)] += so_far
        total[: len(differences)] += differences
        sums[key] = total
    p = sign_flip(np.concatenate(list(sums.values())), seed=0)
    return {"better": better, "worse": worse, "p": p}
