# SPDX-License-Identifier: Apache-2.0
"""What is said of answers, on the page as in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from vllm_cold.tools.explain.record import Answer, Explanation, Report


class Note(NamedTuple):
    """A sentence about an answer, and whether something is not as it should be."""

    text: str
    warns: bool = False


def summary(report: Report, explanation: Explanation, answer: Answer) -> str:
    """An answer in a line."""
    steps = answer.steps
    if not steps:
        return "decoding"
    differing = sum(step.differs for step in steps)
    unknown = sum(step.winner is None for step in steps)
    mean = math.fsum(step.divergence for step in steps) / len(steps)
    ended = "ended by itself" if answer.finish_reason == "stop" else "cut at --max-tokens"
    said = [
        f"{len(steps)} tokens, {ended}",
        f"{report.method} and greedy differ at {differing or 'no token'}"
        + (f", which is not known at {unknown}" if unknown else ""),
        f"mean disagreement {mean:.3f} bits",
    ]
    cold, greedy = ([step.token for step in one.steps] for one in explanation.answers)
    if not answer.greedy and cold != greedy:
        # One of them may only be longer.
        same = [a == b for a, b in zip(cold, greedy, strict=False)]
        said.append(f"parts from greedy's at token {(*same, False).index(False) + 1}")
    return " · ".join(said)


def notes(report: Report, answer: Answer) -> Iterator[Note]:
    """What a reader has to know of an answer's numbers."""
    steps = answer.steps
    if not steps:
        return
    if any(step.wrong for step in steps):
        wrong = [
            f"token {i} ("
            + ("not valid by these" if step.margin is None else f"behind by {step.margin:.2g}")
            + ")"
            for i, step in enumerate(steps, 1)
            if step.wrong
        ]
        yield Note(
            f"⚠ The engine took another token than follows from the numbers here at {_few(wrong)}: "
            "it computes token by token, these numbers come from one pass over the text, and the "
            "two round differently, which decides between near equals; a large distance has "
            "another cause.",
            True,
        )
    else:
        best = "the expert's most probable one" if answer.greedy else "the one with the best score"
        yield Note(f"Checked: each token is {best}.")
    if open_at := _places([not step.complete for step in steps]):
        takes = "not known" if answer.greedy else "the engine's own word"
        yield Note(
            f"At {open_at} more tokens may be valid than vLLM lists: a larger alpha, or a larger "
            f"--max-logprobs of the server, shows all. What {report.method} takes there is {takes}."
        )
    for number, step in enumerate(steps, 1):
        if step.ends:
            which = ", ".join(map(str, step.ends))
            yield Note(f"⊣ At token {number} the rule ended amateur {which}.")
    if unknown := _places([step.weights is None for step in steps]):
        yield Note(
            f"At {unknown} the weights are not known, and so no scores: the rule chose them "
            f"for {report.method}'s own answer, which is another one there."
        )


def _places(which: list[bool]) -> str:
    """Steps, in words; "" for none."""
    if all(which):
        return "all tokens"
    found = [str(i) for i, one in enumerate(which, 1) if one]
    return f"token {_few(found)}" if found else ""


def _few(found: list[str]) -> str:
    return ", ".join([*found[:5], *["..."] * (len(found) > 5)])
