# SPDX-License-Identifier: Apache-2.0
"""What is said of answers and tokens, on the page as in the terminal."""

from __future__ import annotations

import math
from typing import NamedTuple

from vllm_cold.tools.explain import visible
from vllm_cold.tools.explain.trace import Answer, Candidate, Explanation, Method, Report, Step


class Note(NamedTuple):
    """A sentence about an answer, and whether something is not as it should be."""

    text: str
    warns: bool = False


def summary(report: Report, explanation: Explanation, answer: Answer) -> str:
    """An answer in a line."""
    if not answer.steps:
        return "decoding"
    method = report.methods[answer.method]
    steps = answer.steps
    differing = sum(step.differs for step in steps)
    unknown = sum(step.winner is None for step in steps)
    mean = math.fsum(step.divergence for step in steps) / len(steps)
    said = [
        f"{len(steps)} tokens, "
        + ("ended by itself" if answer.finish_reason == "stop" else "cut at --max-tokens"),
        f"{method.name} and greedy differ at {differing or 'no token'}"
        + (f", which is not known at {unknown}" if unknown else ""),
        f"mean disagreement {mean:.3f} bits",
    ]
    if not answer.greedy:
        said.insert(0, method.facts)
    if (parting := explanation.parting(answer)) is not None:
        said.append(f"parts from greedy's at token {parting + 1}")
    return " · ".join(said)


def notes(method: Method, answer: Answer) -> list[Note]:
    """What a reader has to know of an answer's numbers."""
    steps = answer.steps
    if not steps:
        return []
    found = []
    if wrong := answer.mismatches:
        listed = ", ".join(f"token {m.step + 1} ({_behind(m.margin)})" for m in wrong[:5])
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
    if told := _numbers([step.told for step in steps]):
        found.append(
            Note(
                f"At {told} the choice of {method.name} is the engine's own word: a token that is "
                "not listed could have a better score, and no listed one has."
            )
        )
    if _numbers([not step.complete for step in steps]):
        found.append(
            Note(
                "Without a mask (alpha 0) every token is valid; listed are the most probable ones "
                "of each stream."
                if method.no_mask
                else "More tokens are valid than vLLM may list where their number is “at least”. A "
                "larger --max-logprobs of the server shows all."
            )
        )
    if unknown := _numbers([None in step.weights for step in steps]):
        found.append(
            Note(
                f"At {unknown} an adaptive weight is not known: it follows from all valid tokens "
                "under both streams, and vLLM did not list them all; no scores there.",
                True,
            )
        )
    return found


def _numbers(steps: list[bool]) -> str:
    """Which steps, in words; "" for none."""
    found = [str(i) for i, one in enumerate(steps, 1) if one]
    if len(found) == len(steps):
        return "all tokens"
    return ("token " if found else "") + ", ".join(found[:5]) + (", ..." if found[5:] else "")


def _behind(margin: float | None) -> str:
    return "not valid by these" if margin is None else f"behind by {margin:.2g}"


def verdict(method: Method, answer: Answer, index: int) -> str:
    """Who takes what at a step."""
    step = answer.steps[index]
    greedy = name(step, step.greedy)
    if step.winner is None:
        said = f"Greedy takes “{greedy}”; what {method.name} takes is not known."
    elif not step.differs:
        said = f"{method.name} and greedy both take “{greedy}”."
    else:
        said = f"{method.name} takes “{name(step, step.winner)}”, greedy would take “{greedy}”."
    if step.told:
        said += " So the engine says; not all tokens are listed."
    for wrong in answer.mismatches:
        if wrong.step == index:
            said += f" The engine took “{name(step, step.token)}” here, {_behind(wrong.margin)}."
    return said


def name(step: Step, token: int) -> str:
    """A candidate's text, its id where it has none."""
    found = step.find(token)
    return visible.alone(found.text if found else "", token)


def badges(method: Method, answer: Answer, step: Step, candidate: Candidate) -> list[str]:
    """Who takes a candidate, the method first."""
    token = candidate.token
    found = [method.name] if token == step.winner else []
    found += ["greedy"] if token == step.greedy else []
    expected = step.greedy if answer.greedy else step.winner
    return found + (["engine"] if token == step.token and expected not in (None, token) else [])


def size(method: Method, step: Step) -> str:
    """How many tokens are valid."""
    if method.no_mask:
        return "all, as alpha is 0"
    return str(step.valid_size) if step.complete else f"at least {step.valid_size}"


def weights(method: Method, step: Step) -> tuple[str, str] | None:
    """What weights are called, and those of a step; None where they are constant."""
    if not method.settings.adaptive:
        return None
    said = ", ".join("not known" if one is None else f"{one:.3f}" for one in step.weights)
    return ("weights" if len(step.weights) > 1 else "weight"), said
