# SPDX-License-Identifier: Apache-2.0
"""A made-up report of ``vllm-cold explain`` with everything that a page can show; seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.explain.account import make_step, valid_tokens
from vllm_cold.tools.explain.record import (
    BASE,
    Amateur,
    Answer,
    Explanation,
    Piece,
    Report,
    Step,
)
from vllm_cold.tools.explain.source import Logprob

HOSTILE = "</script><img src=x onerror=window.hacked=1>"
WORDS = [
    " The", " quick", " brown", " fox", ",", " jumps", "\n", "\n\n", "   ", "\t", " over", " lazy",
    " dog", ".", HOSTILE, "\x1b[31m", "\u202e", "", " thought", " about", " contrast", " while",
    "é", "漢字", " everybody", " else", " went", " home",
]  # fmt: skip
CHAT = (
    Piece(text=f"Be brief. {HOSTILE}", role="system"),
    Piece(text="Who wrote it?\nAnd when?", role="user"),
)
KNOWN = 12
WRONG = 9  # the step at which the engine took another token
ENDS = 29  # the step at which the rule's amateur ends
PARTS = 5  # the step at which the answers part

RULE = {"rule": "adaptive", "rule_parameters": {"beta_max": 6.0}}
PLAIN = ((-1.0, Amateur(label=f"{BASE}, weight -1", pieces=(), tokens=23)),)
SEVERAL = (
    (
        None,
        Amateur(label=f"{BASE} without system, weight adaptive", pieces=CHAT[1:], tokens=7),
    ),
    (
        0.25,
        Amateur(
            label="sql, text of its own, weight +0.25",
            pieces=(Piece(text=f"Who? {HOSTILE}"),),
            tokens=3,
        ),
    ),
)


def _distribution(logits: list[float]) -> dict[int, Logprob]:
    total = math.log(math.fsum(map(math.exp, logits)))
    words = enumerate(zip(logits, WORDS, strict=True))
    return {token: Logprob(value - total, word) for token, (value, word) in words}


def _weights(
    fixed: Sequence[float | None], greedy: bool, number: int
) -> Sequence[float | None] | None:
    """What a rule chooses in the place of None, until its amateur ends; of the greedy answer it is
    known to where that parts.
    """
    if None not in fixed:
        return fixed
    if greedy and number > PARTS:
        return None
    chosen = None if number > ENDS else -0.3 * (number % 7)
    return [chosen if one is None else one for one in fixed]


def _step(
    rng: random.Random, number: int, fixed: Sequence[float | None], alpha: float, greedy: bool
) -> Step:
    weights = _weights(fixed, greedy, number)
    spread = rng.choice([0.5, 1.0, 2.0, 4.0])
    e = [rng.gauss(0, spread) for _ in WORDS]
    rows = [_distribution(e)]
    for _ in fixed:
        away = rng.choice([0.0, 0.2, 1.0, 3.0])
        rows.append(_distribution([value + rng.gauss(0, away) for value in e]))
    order = sorted(rows[0], key=lambda token: -rows[0][token].value)

    settings = ColdSettings(alpha, **(RULE if None in fixed else {}))  # type: ignore[arg-type]

    ends = (1,) if None in fixed and number == ENDS and not greedy else ()
    valid = valid_tokens(rows[0], KNOWN, None, settings)

    def made(token: int) -> Step:
        return make_step(
            token, WORDS[token], rows, weights, valid,
            ruled=None in fixed, greedy_answer=greedy, ends=ends,
        )  # fmt: skip

    step = made(order[0])
    # As an engine would: it takes the best score, if a weight says what that is.
    right = step.greedy if greedy else step.candidates[0].token
    is_wrong = number == WRONG and not greedy
    return made(next(t for t in order if t != right) if is_wrong else right)


def make_report(several: bool = False, alpha: float = 0.1, length: int = 40) -> Report:
    """A report whose answers hold hostile text, bare white space and one mismatch, at ``WRONG``.

    Args:
        several: Whether there are two amateurs of several kinds, one with a rule's weight.
        alpha: 0 for no mask: not all valid tokens are listed.
        length: Of the answers.
    """
    rng = random.Random(4)
    weights, amateurs = zip(*(SEVERAL if several else PLAIN), strict=True)

    def answer(greedy: bool) -> Answer:
        steps = tuple(_step(rng, i, weights, alpha, greedy) for i in range(length))
        return Answer(
            title="Greedy" if greedy else "CoLD",
            greedy=greedy,
            finish_reason="length",
            steps=steps,
        )

    one = Explanation(
        pieces=CHAT, tokens=23, amateurs=amateurs, answers=(answer(False), answer(True))
    )
    return Report(
        model="model-" + "very-" * 12 + "long",
        adapter=f"adapter {HOSTILE}",
        source="made up",
        method="CoLD",
        settings=f"alpha {alpha:g}",
        explanations=(one,),
    )
