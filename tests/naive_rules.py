# SPDX-License-Identifier: Apache-2.0
"""Rules that choose an amateur's weight at each step, written as their sources say, in float64.

The score is ``z_0 + w * (z_1 - z_0)`` with the expert's logits z_0 ("with the text", distribution
p) and the amateur's z_1 ("without", distribution q). Nothing here comes from ``vllm_cold``, so that
both can be wrong only apart. Distributions, entropies and divergences are over all tokens, but
where a rule says candidates; a logit of -inf is a probability of 0. Of several best tokens, the one
with the lowest id counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class Step:
    """What a rule may look at.

    Attributes:
        expert: The expert's logits, one a token.
        amateur: The amateur's.
        valid: Of each token, whether it is a candidate.
        number: How many tokens the request has got before.
        memory: This amateur's, kept from step to step.
    """

    expert: list[float]
    amateur: list[float]
    valid: list[bool]
    number: int
    memory: dict[str, Any]


def log_softmax(logits: Sequence[float]) -> list[float]:
    """-inf everywhere if no logit is finite."""
    most = max(logits, default=-math.inf)
    if most == -math.inf:
        return [-math.inf] * len(logits)
    total = math.fsum(math.exp(z - most) for z in logits)
    return [z - most - math.log(total) for z in logits]


def softmax(logits: Sequence[float]) -> list[float]:
    return [math.exp(x) for x in log_softmax(logits)]


def entropy(p: Sequence[float]) -> float:
    """In nats; 0 log 0 is 0."""
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon's, in bits: 0 to 1."""
    terms = []
    for x, y in zip(p, q, strict=True):
        middle = (x + y) / 2
        terms += [z * math.log2(z / middle) / 2 for z in (x, y) if z > 0]
    return min(max(math.fsum(terms), 0.0), 1.0)


def adaptive(step: Step, parameters: Parameters) -> float:
    """-beta_max * r * D: D between the distributions over the candidates, r the amateur's
    probability of its best candidate in parts of that of its best token.

    The project's own (``vllm_cold.ops.scoring``). Without a mask r is 1 and this is AdaCAD (Wang et
    al., arXiv 2409.07394), whose released code has D in nats: beta_max ln 2 here.
    """
    p = softmax([z for z, valid in zip(step.expert, step.valid, strict=True) if valid])
    candidates = [z for z, valid in zip(step.amateur, step.valid, strict=True) if valid]
    best = max(candidates, default=-math.inf)
    if best == -math.inf:
        return 0.0
    r = math.exp(best - max(step.amateur))
    return -parameters["beta_max"] * r * divergence(p, softmax(candidates))


def arr(step: Step, parameters: Parameters) -> float:
    """-beta_max * D where the expert is surer of its best token than the amateur of its own, else
    +beta_max * D.

    Adaptive Regime Routing: Jiang et al., arXiv 2606.10298v1, their methods/arr.py (no beta_max).
    """
    p, q = softmax(step.expert), softmax(step.amateur)
    strength = parameters["beta_max"] * divergence(p, q)
    return -strength if max(p) > max(q) else strength


def acd(step: Step, parameters: Parameters) -> float:
    """H_p / (H_p + H_q), 0 where neither has any entropy (less than 1e-20).

    Adaptive Contrastive Decoding: Kim et al., arXiv 2408.01084, which has the weight of
    the expert, H_q / (H_q + H_p).
    """
    h_p, h_q = entropy(softmax(step.expert)), entropy(softmax(step.amateur))
    return h_p / (h_p + h_q) if h_p + h_q > 1e-20 else 0.0


def cocoa(step: Step, parameters: Parameters) -> float:
    """The same, with alpha the sigmoid of gamma * (H_q - H_p + g), from .1 to .9; g is 1 where
    sum q / p is above 2, else 0.

    What CoCoA's released code computes before it sets alpha to .5: with D2 = 1 - sum q / p, which
    is never above 0, its g = clamp(D2 / (1 + D2), 0, 1) has these two values.
    """
    p, q = softmax(step.expert), softmax(step.amateur)
    ratio = math.fsum(y / x if x > 0 else math.inf for x, y in zip(p, q, strict=True) if y > 0)
    gap = entropy(q) - entropy(p) + (ratio > 2)
    alpha = 1 / (1 + math.exp(-parameters["gamma"] * gap))
    return 1 - min(max(alpha, 0.1), 0.9) - parameters["gamma"]


def mti(step: Step, parameters: Parameters) -> float:
    """-beta where the expert's entropy is above tau nats, else 0.

    Minimal Test-Time Intervention: Yang et al., arXiv 2510.13940, and their run_hf.py; its
    guidance scale is 1 + beta.
    """
    return -parameters["beta"] if entropy(softmax(step.expert)) > parameters["tau"] else 0.0


def m3id(step: Step, parameters: Parameters) -> float:
    """-(exp(gamma * t) - 1) where the expert's best token has less than the threshold, else 0; the
    first token has t = 1.

    Multi-Modal Mutual-Information Decoding: Favero et al., arXiv 2403.14003, section 4.1, where
    gamma is lambda and the threshold alpha.
    """
    if max(softmax(step.expert)) >= parameters["threshold"]:
        return 0.0
    return -(math.exp(parameters["gamma"] * (step.number + 1)) - 1)


def grd(step: Step, parameters: Parameters) -> float:
    """0 where both have the same best token. The first time that they have not, it is decided once
    which one is trusted: the amateur if its best token has more than .5 and its entropy is the
    smaller one. If it is the expert, 0 from then on. If not, 1 - (1 - lambda) * tau where the best
    tokens differ: at tau log p + (1 - tau) log q the scores of these two are equal.

    Gated Reversal Decoding: the later code of Jiang et al., arXiv 2606.10298, methods/grd.py, where
    a tau that is undefined is 1.
    """
    log_p, log_q = log_softmax(step.expert), log_softmax(step.amateur)
    best_p, best_q = log_p.index(max(log_p)), log_q.index(max(log_q))
    if best_p == best_q:
        return 0.0
    if "trusted" not in step.memory:
        p, q = softmax(step.expert), softmax(step.amateur)
        prior = q[best_q] > 0.5 and entropy(q) < entropy(p)
        step.memory["trusted"] = "amateur" if prior else "expert"
        step.memory["done"] = not prior
    if step.memory["trusted"] == "expert":
        return 0.0
    # What an amateur cannot say at all is in no source: it counts as e^-80 here.
    margin_p = log_p[best_p] - max(log_p[best_q], -80.0)
    margin_q = log_q[best_q] - max(log_q[best_p], -80.0)
    tau = 1.0 if margin_p + margin_q <= 1e-9 else margin_q / (margin_p + margin_q)
    return 1 - (1 - parameters["lam"]) * tau


def judge(
    parameters: Parameters, rows: Sequence[list[float]], memory: dict[str, Any]
) -> list[float]:
    """-beta for the first amateur if the second one's first word is ``token``, with at least the
    probability ``threshold``; a rule of the engines' tests (tests/engine/judge.py).
    """
    if "yes" not in memory:
        memory["yes"] = softmax(rows[2])[int(parameters["token"])] >= parameters["threshold"]
    return [-parameters["beta"] if memory["yes"] else 0.0, 0.0]


RULES: dict[str, tuple[Callable[[Step, Parameters], float], dict[str, float]]] = {
    "adaptive": (adaptive, {"beta_max": 1.0}),
    "arr": (arr, {"beta_max": 1.0}),
    "acd": (acd, {}),
    "cocoa": (cocoa, {"gamma": 1.0}),
    "mti": (mti, {"beta": 0.5, "tau": 1.0}),
    "m3id": (m3id, {"gamma": 0.02, "threshold": 0.3}),
    "grd": (grd, {"lam": 0.75}),
}
"""By name: the rule and its parameters' defaults."""


def weights(
    name: str,
    parameters: Mapping[str, float],
    logits: Sequence[Tensor],
    valid: Tensor,
    step: int,
    memory: dict[str, Any],
) -> list[float]:
    """The weight of each amateur; each one is judged by itself against the expert.

    Args:
        name: One of ``RULES``.
        parameters: Those that are not the defaults.
        logits: [V] of each stream, the expert's first. They may hold -inf; never NaN or +inf.
        valid: [V] bool, the expert's candidates.
        step: How many tokens the request has got before.
        memory: The request's, empty before its first step. A rule with a state keeps it here, and
            ``memory["done"]`` is True once no amateur is needed any more.
    """
    if name != "adaptive":  # what the expert may not say, nobody is asked about
        logits = [row.masked_fill(logits[0] == -math.inf, -math.inf) for row in logits]
    if name == "judge":
        return judge(parameters, [row.double().tolist() for row in logits], memory)
    rule, defaults = RULES[name]
    if unknown := parameters.keys() - defaults.keys():
        raise ValueError(f"{name} takes {sorted(defaults)}, not {sorted(unknown)}")
    expert, *amateurs = (row.double().tolist() for row in logits)
    memories = memory.setdefault("amateurs", [{} for _ in amateurs])
    found = [
        rule(Step(expert, amateur, valid.tolist(), step, own), {**defaults, **parameters})
        for amateur, own in zip(amateurs, memories, strict=True)
    ]
    if memories and all(own.get("done") for own in memories):
        memory["done"] = True
    return found
