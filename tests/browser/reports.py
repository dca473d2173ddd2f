# SPDX-License-Identifier: Apache-2.0
"""A made-up report of ``vllm-cold explain`` with everything that a page can show; seeded."""

import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.formula import group_scores
from tests.questions import questions
from vllm_cold.settings.table import ColdSettings
from vllm_cold.tools.explain import account
from vllm_cold.tools.explain.record import Answer, Report

HOSTILE = "</script><img src=x onerror=window.hacked=1>"
WORDS = [
    " The", " quick", " brown", " fox", ",", " jumps", "\n", "\n\n", "   ", "\t", " over", " lazy",
    " dog", ".", HOSTILE, "\x1b[31m", "\u202e", "", " thought", " about", " contrast", " while",
    "é", "漢字", " everybody", " else", " went", " home",
]  # fmt: skip
CHAT = (("system", f"Be brief. {HOSTILE}"), ("user", "Who wrote it?\nAnd when?"))
SERVER: Any = SimpleNamespace(
    title="model-" + "very-" * 12 + "long",
    base="base",
    about="made up",
    expert=f"adapter {HOSTILE}",
)
SEVERAL: dict[str, Any] = {
    "amateur": ["base", "sql"],
    "without": ["system", ""],
    "amateur_prompt": ["", f"Who? {HOSTILE}"],
    "weights": ["adaptive", 0.25],
    "rule_parameters": {"beta_max": 6.0},
}
KNOWN = 12
ENDS = 29  # the step at which the rule's amateur ends


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


def tell_all(
    prompt: Any, settings: ColdSettings, weights: Sequence[float | None], length: int, k: int
) -> list[dict[str, Any]]:
    """What an engine tells of an answer's steps, by a model that is made of the prompt; with what
    a rule chooses in the place of None, until its amateur ends.
    """
    alpha, cap = settings.alpha, settings.expert_top_k
    log_alpha = math.log(alpha) if alpha else -math.inf
    steps = []
    for number in range(length):
        rng = random.Random(f"{prompt} {number}")
        chosen = None if number > ENDS else -0.3 * (number % 7)
        spread, away = rng.choice([0.5, 1.0, 2.0, 4.0]), rng.choice([0.0, 0.2, 1.0, 3.0])
        expert = [rng.gauss(0, spread) for _ in WORDS]
        rows = [expert, *([x + rng.gauss(0, away) for x in expert] for _ in weights)]
        given = [chosen if one is None else one for one in weights]
        steps.append(tell(torch.tensor(rows), given, log_alpha, cap, k))
    return steps


def end_of(
    tokens: Sequence[int], steps: Sequence[Any], finish_reason: str, num_prompt_tokens: int
) -> dict[str, Any]:
    """What an engine tells of an answer."""
    return {
        "token_ids": tokens,
        "finish_reason": finish_reason,
        "prompt_token_ids": range(num_prompt_tokens),
        "kv_transfer_params": {"cold": {"steps": steps}},
    }


def charge(steps: Sequence[dict[str, Any]], bits: Sequence[float]) -> dict[str, Any]:
    """Add to an answer's steps what a rule that limits its amateurs' parts charges for the first
    token of each; return what an engine tells of the whole answer.
    """
    spent, reached = [0.0] * len(bits), [False] * len(bits)
    left = [*bits]
    for number, step in enumerate(steps):
        rng = random.Random(number)
        cost = [min(one, rng.choice([-0.2, 0.0, 0.1, 0.4, 2.0])) for one in left]
        limited = [rng.random() < 0.2 or one == 0.0 for one in left]
        step |= {"cost": cost, "left": left, "limited": limited}
        step["weights"] = [0.0] * len(bits)  # as the engine says of a rule of scores
        left = [max(0.0, one - max(paid, 0.0)) for one, paid in zip(left, cost, strict=True)]
        spent = [one + paid for one, paid in zip(spent, cost, strict=True)]
        reached = [one or now for one, now in zip(reached, limited, strict=True)]
    return {"bits": [*bits], "bits_per_token": 0.0, "refund": 0.0,
            "spent": spent, "left": left, "reached": reached}  # fmt: skip


def make_report(several: bool = False, alpha: float = 0.1, bits: Any = None) -> Report:
    """A report whose answers of 40 tokens hold hostile text and bare white space.

    Args:
        several: Whether there are two amateurs of several kinds, one with a rule's weight.
        alpha: 0 for no mask: not all valid tokens are told.
        bits: The limits of as many amateurs, in place of the above.
    """
    if bits is None:
        [question] = questions([CHAT], alpha=alpha, **SEVERAL if several else {"beta": 1.0})
    else:
        texts = ["Be brief.", "when?"][: len(bits)]
        [question] = questions([CHAT], preset="bound", without_text=texts, bits=bits)
    weights = question.contrast.weights

    def answer(greedy: bool) -> Answer:
        counted = [0.0] * len(weights) if greedy else weights
        told = tell_all(CHAT, question.contrast.settings, counted, 40, KNOWN)
        tokens = [one["tokens"][0] for one in told]
        text = "".join(WORDS[token] for token in tokens)
        end = end_of(tokens, told, "length", 23)
        if bits is not None and not greedy:
            end["kv_transfer_params"]["cold"]["budget"] = charge(told, bits)
        return account.make_answer(question, greedy, text, end)

    return account.make_report(SERVER, [question], [(answer(False), answer(True))])
