# SPDX-License-Identifier: Apache-2.0
"""Sentences about answers, for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vllm_cold.tools.explain.record import Answer, Explanation


def summary(explanation: Explanation, answer: Answer) -> str:
    """One line about an answer."""
    steps = answer.steps
    if not steps:
        return "decoding"
    differing = sum(step.differs for step in steps)
    mean = math.fsum(step.divergence for step in steps) / len(steps)
    ended = "finished (EOS or stop)" if answer.finish_reason == "stop" else "cut at --max-tokens"
    said = [f"{len(steps)} tokens, {ended}"]
    if not answer.greedy:
        said.append(f"{differing} differ from greedy's choice")
    said.append(f"mean disagreement {mean:.3f} bits")
    cold, greedy = ([step.token for step in one.steps] for one in explanation.answers)
    if not answer.greedy and cold != greedy:
        # One of them may only be longer.
        same = [a == b for a, b in zip(cold, greedy, strict=False)]
        first = (*same, False).index(False) + 1
        said.append(f"first differs from the greedy answer at token {first}")
    return " · ".join(said)


def notes(answer: Answer) -> Iterator[str]:
    """Remarks on single tokens of an answer."""
    for number, step in enumerate(answer.steps, 1):
        if step.ends:
            which = ", ".join(map(str, step.ends))
            yield f"⊣ At token {number} the rule ended amateur {which}."
