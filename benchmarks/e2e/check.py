# SPDX-License-Identifier: Apache-2.0
"""Whether systems that must give equal tokens do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.e2e.jobs import EQUAL, Job, Jobs

Gap = Callable[[str, list[list[int]], list[int]], float]
TIE = 1e-3  # logits


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first position at which two outputs of equal length differ, None if they do not."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def agreement(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """The share of positions at which two batches of outputs have the same token."""
    pairs = [
        pair for left, right in zip(a, b, strict=True) for pair in zip(left, right, strict=True)
    ]
    return sum(x == y for x, y in pairs) / len(pairs)


def check_equal(
    title: str, a: Job, b: Job, gap: Gap, tie: float = TIE
) -> tuple[list[str], list[str]]:
    """Compare the tokens of two systems, each up to the first that rounding decided.

    Args:
        title: What is compared, for messages.
        a: One system.
        b: Another, on the same prompts.
        gap: Gives for a mode, what its streams have read so far and two tokens, how far the worse
            one's score is behind the best score.
        tie: Up to this, rounding decided.

    Returns:
        What is wrong, and the ties.
    """
    problems: list[str] = []
    ties: list[str] = []
    for index, (left, right) in enumerate(zip(a.output, b.output, strict=True)):
        at = first_difference(left, right)
        if at is None:
            continue
        texts = [[*prompt, *left[:at]] for prompt in a.texts(index)]
        behind = gap(a.system.mode, texts, [left[at], right[at]])
        text = (
            f"{title}: {b.label} and {a.label} part at token {at + 1} of request {index + 1}, "
            f"{left[at]} or {right[at]}, {behind:.1e} apart"
        )
        (ties if behind <= tie else problems).append(text)
    return problems, ties


def check_batch(
    dtype: str,
    batch: int,
    jobs: Jobs,
    gap: Gap,
    equal: Iterable[tuple[str, str]] = EQUAL,
    tie: float = TIE,
) -> tuple[list[str], list[str]]:
    """The pairs of ``equal`` at one batch size: what is wrong, and what is worth telling."""
    problems, notes, shares = [], [], []
    title = f"{dtype}, batch {batch}"
    for left, right in equal:
        a, b = jobs.get(left), jobs.get(right)
        if a is None or b is None:
            continue
        if dtype == "float32":
            wrong, ties = check_equal(title, a, b, gap, tie)
            problems += wrong
            notes += [f"tie: {tie}" for tie in ties]
        shares.append(f"{agreement(a.output, b.output):.1%} of {b.label} and {a.label}")
    if shares:
        notes.append(f"{title}: equal tokens: {', '.join(shares)}")
    return problems, notes
