# SPDX-License-Identifier: Apache-2.0
"""A made-up report of ``vllm-cold explain`` with everything that a page can show; seeded."""

from __future__ import annotations

import math
import random

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.explain.account import make_step
from vllm_cold.tools.explain.trace import (
    COLD,
    GREEDY,
    Answer,
    Explanation,
    Logprob,
    Report,
    Step,
)

HOSTILE = "</script><img src=x onerror=window.hacked=1>"
WORDS = [
    " The", " quick", " brown", " fox", ",", " jumps", "\n", "\n\n", "   ", "\t", " over", " lazy",
    " dog", ".", HOSTILE, "\x1b[31m", "\u202e", "", " thought", " about", " contrast", " while",
    "é", "漢字", " everybody", " else", " went", " home",
]  # fmt: skip
SETTINGS = ColdSettings(alpha=0.1, beta=1.0)
ADAPTIVE = ColdSettings(alpha=0.1, beta="adaptive", beta_max=6.0)  # not known at some steps
KNOWN = 12
WRONG = 9  # the step at which the engine took another token


def _distribution(logits: list[float]) -> dict[int, Logprob]:
    total = math.log(math.fsum(map(math.exp, logits)))
    return {
        token: Logprob(value - total, WORDS[token % len(WORDS)])
        for token, value in enumerate(logits)
    }


def _step(rng: random.Random, kind: str, wrong: bool, settings: ColdSettings) -> Step:
    spread = rng.choice([0.5, 1.0, 2.0, 4.0])
    e = [rng.gauss(0, spread) for _ in WORDS]
    a = [value + rng.gauss(0, rng.choice([0.0, 0.2, 1.0, 3.0])) for value in e]
    expert, amateur = _distribution(e), _distribution(a)
    order = sorted(expert, key=lambda token: -expert[token].value)

    def made(token: int) -> Step:
        return make_step(
            token,
            WORDS[token],
            expert,
            amateur,
            known=KNOWN,
            amateur_limit=None,
            vocab_size=None,
            settings=settings,
            listed=order[:6],
        )

    step = made(order[0])
    right = step.greedy if kind == GREEDY or step.winner is None else step.winner
    return made(next(t for t in order if t != right) if wrong else right)


def _answer(rng: random.Random, kind: str, length: int, settings: ColdSettings) -> Answer:
    steps = tuple(_step(rng, kind, kind == COLD and i == WRONG, settings) for i in range(length))
    return Answer(kind, "".join(step.text for step in steps), "length", steps)


def make_report(
    prompts: int = 2, length: int = 40, seed: int = 4, settings: ColdSettings = SETTINGS
) -> Report:
    """A report whose answers hold hostile text, bare white space and one mismatch."""
    rng = random.Random(seed)
    return Report(
        model="model-" + "very-" * 12 + "long",
        adapter=f"adapter {HOSTILE}",
        amateur="base model",
        source="made up",
        settings=settings,
        chat=False,
        explanations=tuple(
            Explanation(
                f"Prompt {number} {HOSTILE}\nsecond line " + "x" * 80,
                23,
                cold=_answer(rng, COLD, length, settings),
                greedy=_answer(rng, GREEDY, length, settings),
            )
            for number in range(prompts)
        ),
    )
