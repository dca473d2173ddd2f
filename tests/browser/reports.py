# SPDX-License-Identifier: Apache-2.0
"""A made-up report of ``vllm-cold explain`` with everything that a page can show; seeded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.formula import group_scores
from vllm_cold.tools.explain.account import ToldStep, ending, make_step
from vllm_cold.tools.explain.record import (
    BASE,
    Answer,
    Explanation,
    Piece,
    Report,
    ShownAmateur,
)

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
ENDS = 29  # the step at which the rule's amateur ends

RULE = {"rule": "adaptive", "rule_parameters": {"beta_max": 6.0}}
PLAIN = ((-1.0, ShownAmateur(label=f"{BASE}, weight -1", pieces=())),)
SEVERAL = (
    (
        None,
        ShownAmateur(label=f"{BASE} without system, weight adaptive", pieces=CHAT[1:]),
    ),
    (
        0.25,
        ShownAmateur(
            label="sql, text of its own, weight +0.25",
            pieces=(Piece(text=f"Who? {HOSTILE}"),),
        ),
    ),
)


def tell(
    logits: Tensor, weights: Sequence[float | None], log_alpha: float, cap: int | None, k: int
) -> dict[str, Any]:
    """What an engine tells of k tokens, from logits [S, V] and the amateurs' weights; None for one
    that has ended.
    """
    logits = logits.double()
    strengths = [one or 0.0 for one in weights]
    scores = group_scores(logits[0], [*logits[1:]], log_alpha, strengths, cap or 0)
    valid, k = int((scores > -math.inf).sum()), min(k, logits.shape[1])
    best = scores.topk(min(k, valid)).indices.tolist()
    tokens = list(dict.fromkeys([*best, *logits[0].topk(k).indices.tolist()]))
    p = logits.softmax(1)
    middle = (p[:1] + p) / 2
    bits = (torch.special.xlogy(p[:1], p[:1] / middle) + torch.special.xlogy(p, p / middle)).sum(1)

    def lives(values: Sequence[Any]) -> list[Any]:
        return [v if w is not None else None for v, w in zip(values, weights, strict=True)]

    expert, *others = logits[:, tokens].tolist()
    total, *totals = logits.logsumexp(1).tolist()
    return {
        "candidates": valid,
        "tokens": tokens,
        "texts": [WORDS[token] for token in tokens],
        "scores": [None if x == -math.inf else x for x in scores[tokens].tolist()],
        "logits": [expert, *lives(others)],
        "log_sums": [total, *lives(totals)],
        "weights": list(weights),
        "divergences": lives((bits / 2 / math.log(2)).tolist()[1:]),
    }


def _step(rng: random.Random, number: int, fixed: Sequence[float | None], alpha: float) -> ToldStep:
    """With what a rule chooses in the place of None, until its amateur ends."""
    chosen = None if number > ENDS else -0.3 * (number % 7)
    weights = [chosen if one is None else one for one in fixed]
    spread = rng.choice([0.5, 1.0, 2.0, 4.0])
    rows = [[rng.gauss(0, spread) for _ in WORDS]]
    for _ in fixed:
        away = rng.choice([0.0, 0.2, 1.0, 3.0])
        rows.append([value + rng.gauss(0, away) for value in rows[0]])
    log_alpha = math.log(alpha) if alpha else -math.inf
    return ToldStep(**tell(torch.tensor(rows), weights, log_alpha, None, KNOWN))


def make_report(several: bool = False, alpha: float = 0.1, length: int = 40) -> Report:
    """A report whose answers hold hostile text and bare white space.

    Args:
        several: Whether there are two amateurs of several kinds, one with a rule's weight.
        alpha: 0 for no mask: not all valid tokens are told.
        length: Of the answers.
    """
    rng = random.Random(4)
    weights, amateurs = zip(*(SEVERAL if several else PLAIN), strict=True)

    def answer(greedy: bool) -> Answer:
        counted = [0.0] * len(weights) if greedy else weights
        told = [_step(rng, i, counted, alpha) for i in range(length)]
        steps = tuple(
            make_step(
                now,
                now.tokens[0],
                now.text(now.tokens[0]),
                None if greedy else "contrastive",
                ruled=None in counted,
                ends=ending(now, then),
            )
            for now, then in pairwise([*told, None])
            if now is not None
        )
        title = "Greedy" if greedy else "Contrastive"
        return Answer(title=title, greedy=greedy, finish_reason="length", steps=steps)

    one = Explanation(
        pieces=CHAT, tokens=23, amateurs=amateurs, answers=(answer(False), answer(True))
    )
    return Report(
        model="model-" + "very-" * 12 + "long",
        adapter=f"adapter {HOSTILE}",
        source="made up",
        method="contrastive",
        settings=f"alpha {alpha:g}",
        explanations=(one,),
    )
