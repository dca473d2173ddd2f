# SPDX-License-Identifier: Apache-2.0
"""A made-up report of ``vllm-cold explain`` with everything that a page can show; seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from vllm_cold.method.settings import ColdSettings, Weight
from vllm_cold.tools.contrast import Prompt
from vllm_cold.tools.explain.account import Contrasted, make_step
from vllm_cold.tools.explain.trace import (
    BASE,
    COLD,
    GREEDY,
    Amateur,
    Answer,
    Explanation,
    Logprob,
    Piece,
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


def weight_of(settings: ColdSettings) -> Weight:
    """The weight of an amateur that has none of its own."""
    return Weight(-settings.strength, settings.adaptive)


def _step(
    rng: random.Random, kind: str, wrong: bool, settings: ColdSettings, weights: Sequence[Weight]
) -> Step:
    spread = rng.choice([0.5, 1.0, 2.0, 4.0])
    e = [rng.gauss(0, spread) for _ in WORDS]
    amateurs = [
        Contrasted(
            _distribution([value + rng.gauss(0, rng.choice([0.0, 0.2, 1.0, 3.0])) for value in e]),
            weight,
        )
        for weight in weights
    ]
    expert = _distribution(e)
    order = sorted(expert, key=lambda token: -expert[token].value)

    def made(token: int, told: int | None = None) -> Step:
        return make_step(
            token,
            WORDS[token],
            expert,
            amateurs,
            known=KNOWN,
            vocab_size=None,
            settings=settings,
            listed=order[:6],
            told=told,
        )

    step = made(order[0])
    # As an engine would: it takes the best score, if a beta says what that is.
    cold = step.candidates[0].token if None not in step.weights else None
    right = step.greedy if kind == GREEDY or cold is None else cold
    token = next(t for t in order if t != right) if wrong else right
    return made(token, None if cold is None else cold if kind == GREEDY else token)


def _answer(
    rng: random.Random,
    kind: str,
    length: int,
    settings: ColdSettings,
    amateurs: Sequence[Amateur],
) -> Answer:
    weights = [one.weight for one in amateurs]
    steps = tuple(
        _step(rng, kind, kind == COLD and i == WRONG, settings, weights) for i in range(length)
    )
    return Answer(kind, "".join(step.text for step in steps), "length", steps)


def make_report(
    prompts: int = 2,
    length: int = 40,
    seed: int = 4,
    settings: ColdSettings = SETTINGS,
    amateurs: Sequence[Amateur] = (),
    prompt: Prompt | None = None,
) -> Report:
    """A report whose answers hold hostile text, bare white space and one mismatch; against the
    base model with the expert's prompt, if no ``amateurs`` are given.
    """
    rng = random.Random(seed)
    others = tuple(amateurs) or (Amateur(BASE, weight_of(settings), tokens=23),)
    return Report(
        model="model-" + "very-" * 12 + "long",
        adapter=f"adapter {HOSTILE}",
        source="made up",
        settings=settings,
        chat=False,
        explanations=tuple(
            Explanation(
                prompt or f"Prompt {number} {HOSTILE}\nsecond line " + "x" * 80,
                23,
                cold=_answer(rng, COLD, length, settings, others),
                greedy=_answer(rng, GREEDY, length, settings, others),
                amateurs=others,
            )
            for number in range(prompts)
        ),
    )


CHAT = (("system", f"Be brief. {HOSTILE}"), ("user", "Who wrote it?\nAnd when?"))
UNGUIDED = Amateur(
    BASE,
    Weight(-1.0, False),
    "the same conversation without system",
    tuple(Piece(text, role, role == "system") for role, text in CHAT),
    7,
)


def without_system() -> Report:
    """One amateur that reads a part of the prompt, and no mask."""
    settings = ColdSettings(alpha=0.0, beta=1.0)
    return make_report(1, settings=settings, amateurs=[UNGUIDED], prompt=CHAT)


def several(num: int = 3, settings: ColdSettings = SETTINGS) -> Report:
    """Amateurs of every kind."""
    adaptive = settings.adaptive
    kinds = [
        replace(UNGUIDED, weight=Weight(-6.0 if adaptive else -0.5, adaptive)),
        Amateur("sql", Weight(0.25, False), "a text of its own", (Piece(f"Who? {HOSTILE}"),), 3),
        Amateur(BASE, Weight(-1.0, False), tokens=23),
    ]
    amateurs = [kinds[i % 3] for i in range(num)]
    return make_report(1, settings=settings, amateurs=amateurs, prompt=CHAT)
