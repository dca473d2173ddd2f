# SPDX-License-Identifier: Apache-2.0
"""What is said of answers, on the page as in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vllm_cold.tools.explain.record import Answer, Explanation, Report


def summary(report: Report, explanation: Explanation, answer: Answer) -> str:
    """An answer in a line."""
    steps = answer.steps
    if not steps:
        return "decoding"
    differing = sum(step.differs for step in steps)
    mean = math.fsum(step.divergence for step in steps) / len(steps)
    ended = "finished (EOS or stop)" if answer.finish_reason == "stop" else "cut at --max-tokens"
    said = [f"{len(steps)} tokens, {ended}"]
    if not answer.greedy:
        said.append(f"{differing} of them are not greedy's choice")
    said.append(f"mean disagreement {mean:.3f} bits")
    cold, greedy = ([step.token for step in one.steps] for one in explanation.answers)
    if not answer.greedy and cold != greedy:
        # One of them may only be longer.
        same = [a == b for a, b in zip(cold, greedy, strict=False)]
        said.append(f"leaves greedy's answer at token {(*same, False).index(False) + 1}")
    return " · ".join(said)


def notes(answer: Answer) -> Iterator[str]:
    """What a reader has to know of an answer's numbers."""
    for number, step in enumerate(answer.steps, 1):
        if step.ends:
            which = ", ".join(map(str, step.ends))
            yield f"⊣ At token {number} the rule ended amateur {which}."
