# SPDX-License-Identifier: Apache-2.0
"""A made-up report of ``vllm-cold explain`` with everything that a page can show; seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from vllm_cold.method.settings import ColdSettings, Weight
from vllm_cold.tools.explain.account import make_step
from vllm_cold.tools.explain.trace import (
    BASE,
    Amateur,
    Answer,
    Explanation,
    Logprob,
    Method,
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
CHAT = (
    Piece(f"Be brief. {HOSTILE}", "system"),
    Piece("Who wrote it?\nAnd when?", "user"),
)
KNOWN = 12
WRONG = 9  # the step at which the engine took another token

# Greedy beside one amateur, several of every kind with an adaptive weight, and no mask.
PLAIN = Method("CoLD", ColdSettings(alpha=0.1, beta=1.0))
SEVERAL = Method("two, at most", ColdSettings(alpha=0.1, beta="adaptive", beta_max=6.0))
NO_MASK = Method("cfg", ColdSettings(alpha=0.0, beta=1.0))
UNGUIDED = (Piece(CHAT[0].text, "system", gone=True), CHAT[1])
AMATEURS = (
    (Amateur(BASE, Weight(-1.0, False), tokens=23),),
    (
        Amateur(BASE, Weight(-6.0, True), "the same conversation without system", UNGUIDED, 7),
        Amateur("sql", Weight(0.25, False), "a text of its own", (Piece(f"Who? {HOSTILE}"),), 3),
    ),
    (Amateur(BASE, Weight(-1.0, False), "the same conversation without system", UNGUIDED, 7),),
)


def _distribution(logits: list[float]) -> dict[int, Logprob]:
    total = math.log(math.fsum(map(math.exp, logits)))
    words = enumerate(zip(logits, WORDS, strict=True))
    return {token: Logprob(value - total, word) for token, (value, word) in words}


def _step(
    rng: random.Random, method: Method, amateurs: Sequence[Amateur], greedy: bool, wrong: bool
) -> Step:
    spread = rng.choice([0.5, 1.0, 2.0, 4.0])
    e = [rng.gauss(0, spread) for _ in WORDS]
    rows = [_distribution(e)]
    for _ in amateurs:
        away = rng.choice([0.0, 0.2, 1.0, 3.0])
        rows.append(_distribution([value + rng.gauss(0, away) for value in e]))
    order = sorted(rows[0], key=lambda token: -rows[0][token].value)

    def made(token: int, told: int | None = None) -> Step:
        return make_step(
            token, WORDS[token], rows, [one.weight for one in amateurs], known=KNOWN,
            vocab_size=None, settings=method.settings, listed=order[:6], told=told,
        )  # fmt: skip

    step = made(order[0])
    # As an engine would: it takes the best score, if a weight says what that is.
    cold = step.candidates[0].token
    right = step.greedy if greedy else cold
    token = next(t for t in order if t != right) if wrong else right
    return made(token, token if not greedy else cold)


def make_report(prompts: int = 1, methods: Sequence[Method] = (PLAIN,), length: int = 40) -> Report:
    """A report with a column for each method and one for greedy, whose answers hold hostile text,
    bare white space and one mismatch, at ``WRONG`` of the first method's.
    """
    rng = random.Random(4)
    kinds = {PLAIN.name: AMATEURS[0], SEVERAL.name: AMATEURS[1], NO_MASK.name: AMATEURS[2]}
    amateurs = tuple(kinds[method.name] for method in methods)

    def answer(number: int, greedy: bool) -> Answer:
        steps = tuple(
            _step(
                rng, methods[number], amateurs[number], greedy, i == WRONG and not greedy + number
            )
            for i in range(length)
        )
        return Answer(number, greedy, "".join(step.text for step in steps), "length", steps)

    return Report(
        model="model-" + "very-" * 12 + "long",
        adapter=f"adapter {HOSTILE}",
        source="made up",
        methods=tuple(methods),
        explanations=tuple(
            Explanation(
                CHAT,
                23,
                amateurs,
                (*(answer(i, False) for i in range(len(methods))), answer(0, True)),
            )
            for _ in range(prompts)
        ),
    )


def everything() -> Report:
    """All kinds of methods, side by side."""
    return make_report(methods=(PLAIN, SEVERAL, NO_MASK))
