# SPDX-License-Identifier: Apache-2.0
"""What is said of answers, on the page as in the terminal."""

from __future__ import annotations

import math
from typing import NamedTuple

from vllm_cold.tools.explain.record import Answer, Explanation, Report, Step


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


def notes(report: Report, answer: Answer) -> list[Note]:
    """What a reader has to know of an answer's numbers."""
    steps = answer.steps
    if not steps:
        return []
    found = []
    if wrong := [(i, step) for i, step in enumerate(steps, 1) if step.wrong]:
        listed = ", ".join(f"token {i} ({behind(step)})" for i, step in wrong[:5])
        found.append(
            Note(
                f"⚠ The engine took another token than follows from the numbers here at {listed}"
                f"{', ...' if wrong[5:] else ''}: it computes token by token, these numbers come "
                "from one pass over the text, and the two round differently, which decides between "
                "near equals; a large distance has another cause.",
                True,
            )
        )
    elif answer.greedy:
        found.append(Note("Checked: each token is the expert's most probable one."))
    else:
        found.append(
            Note("Checked: each token is the one with the best score of those that have one.")
        )
    if open_at := _numbers([not step.complete for step in steps]):
        said = (
            f"At {open_at} more tokens may be valid than vLLM lists: a larger alpha, or a larger "
            "--max-logprobs of the server, shows all. "
        )
        if answer.greedy:
            said += f"What {report.method} takes there is not known."
        else:
            said += f"What {report.method} takes there is the engine's own word."
        found.append(Note(said))
    for number, step in enumerate(steps, 1):
        if step.ends:
            which = ", ".join(map(str, step.ends))
            found.append(Note(f"⊣ At token {number} the rule ended amateur {which}."))
    if unknown := _numbers([step.weights is None for step in steps]):
        found.append(
            Note(
                f"At {unknown} the weights are not known, and so no scores: the rule chose them "
                f"for {report.method}'s own answer, which is another one there."
            )
        )
    return found


def _numbers(steps: list[bool]) -> str:
    """Which steps, in words; "" for none."""
    found = [str(i) for i, one in enumerate(steps, 1) if one]
    if len(found) == len(steps):
        return "all tokens"
    return ("token " if found else "") + ", ".join(found[:5]) + (", ..." if found[5:] else "")


def behind(step: Step) -> str:
    """By how much a token of the engine's does not follow from the numbers."""
    return "not valid by these" if step.margin is None else f"behind by {step.margin:.2g}"
