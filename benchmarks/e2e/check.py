# SPDX-License-Identifier: Apache-2.0
"""Whether systems that must give equal tokens do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from benchmarks.e2e.jobs import TIE, Cell, Job

Gap = Callable[[str, list[list[int]], list[int]], float]


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first position at which two outputs differ, None if they do not."""
    return next((i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y), None)


def agreement(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """The share of the tokens of ``a`` that ``b`` has, too, at the same position."""
    equal = sum(
        x == y
        for left, right in zip(a, b[: len(a)], strict=True)
        for x, y in zip(left, right, strict=False)
    )  # fmt: skip
    return equal / sum(map(len, a))


def check_equal(
    title: str, a: Job, b: Job, gap: Gap, tie: float = TIE
) -> tuple[list[str], list[str]]:
    """Compare the tokens of two systems, each up to the first that rounding decided.

    Args:
        title: What is compared, for messages.
        a: One system.
        b: Another, on the same prompts; maybe on more.
        gap: Gives for a mode, what its streams have read so far and two tokens, how far the worse
            one's score is behind the best score.
        tie: Up to this, rounding decided.

    Returns:
        What is wrong, and the ties.
    """
    problems: list[str] = []
    ties: list[str] = []
    for index, (left, right) in enumerate(zip(a.output, b.output[: len(a.output)], strict=True)):
        at = first_difference(left, right)
        if at is None:
            continue
        where = f"{title}: {b.label} and {a.label} part at token {at + 1} of request {index + 1}"
        if at == min(len(left), len(right)):
            problems.append(f"{where}, where one of them ends")
            continue
        texts = [[*prompt, *left[:at]] for prompt in a.texts(index)]
        behind = gap(a.system.mode, texts, [left[at], right[at]])
        text = f"{where}, {left[at]} or {right[at]}, {behind:.1e} apart"
        (ties if behind <= tie else problems).append(text)
    return problems, ties


def check_cell(cell: Cell, gap: Gap) -> tuple[list[str], list[str]]:
    """The pairs of a cell that must be equal: what is wrong, and what is worth telling."""
    problems, notes, shares = [], [], []
    for left, right, tie in cell.equal:
        a, b = cell.jobs.get(left), cell.jobs.get(right)
        if a is None or b is None:
            continue
        if cell.exact:
            wrong, ties = check_equal(cell.title, a, b, gap, tie)
            problems += wrong
            notes += [f"tie: {each}" for each in ties]
        shares.append(f"{agreement(a.output, b.output):.1%} of {b.label} and {a.label}")
    if shares:
        notes.append(f"{cell.title}: equal tokens: {', '.join(shares)}")
    return problems, notes
