# SPDX-License-Identifier: Apache-2.0
"""What a part may add, written as its definition says, in float64 and without tensors.

With the next token's distributions p (with the part) and q_1, q_2, ... (each without one of the
parts), and of each part B bits left:

    r = min(c p, 2^B_1 q_1, 2^B_2 q_2, ...), c >= 1 such that r sums to 1; all 0 where none does

A token costs log2(r / q). Nothing here comes from ``vllm_cold``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tests.naive_rules import log_softmax

NONE = 1e6  # of bits: no limit


def closest(p: Sequence[float], most: Sequence[float]) -> list[float]:
    """min(c p, most) that sums to 1, by the order in which tokens reach their limit."""
    if math.fsum(most) < 1 - 1e-4:
        return [0.0] * len(p)
    order = sorted((i for i, x in enumerate(p) if x > 0), key=lambda i: most[i] / p[i])
    c = 1.0
    for n, i in enumerate(order):
        fixed, free = (
            math.fsum(x[j] for j in part) for x, part in ((most, order[:n]), (p, order[n:]))
        )
        c = max(1.0, (1 - fixed) / free)
        if c * p[i] <= most[i]:
            break
    else:
        c = math.inf  # all are at their limits
    return [min(c * x, m) if x > 0 else 0.0 for x, m in zip(p, most, strict=True)]


class Bits(float):
    """A number of bits, equal to others that rounding tells apart."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(float(self) - float(other)) < 0.05

    __hash__ = float.__hash__


def of_each(value: float | Sequence[float], amateurs: int) -> list[float]:
    """A parameter's values of the amateurs."""
    return [*value] if isinstance(value, Sequence) else [value] * amateurs


def distribution(
    logits: Sequence[Sequence[float]],
    parameters: Mapping[str, Any],
    memory: dict[str, Any],
    temperature: float = 1.0,
) -> tuple[list[float], list[list[float]]]:
    """r, and of each amateur what each token costs. ``memory`` has what is used up after the last
    token; see ``take``.
    """
    expert, *amateurs = logits
    p_log = log_softmax([z / temperature for z in expert])
    q_logs = [
        log_softmax(
            [
                z / temperature if e > -math.inf else -math.inf
                for z, e in zip(q, expert, strict=True)
            ]
        )
        for q in amateurs
    ]
    num = len(amateurs)
    bits = of_each(parameters.get("bits", NONE), num)
    rates = of_each(parameters.get("bits_per_token", 0.0), num)
    before = memory.get("used", [0.0] * num)
    used = [max(u - rate, 0.0) for u, rate in zip(before, rates, strict=True)]
    left = [math.inf if b >= NONE else b - u for b, u in zip(bits, used, strict=True)]
    most = [
        min(math.exp(min(q + b * math.log(2), 1.0)) for q, b in zip(at, left, strict=True))
        if all(q > -math.inf or b == math.inf for q, b in zip(at, left, strict=True))
        else 0.0
        for at in zip(*q_logs, strict=True)
    ]
    r = closest([math.exp(x) for x in p_log], most)
    costs = [
        [
            math.log2(x) - q / math.log(2) if x > 0 and q > -math.inf else 0.0
            for x, q in zip(r, of_tokens, strict=True)
        ]
        for of_tokens in q_logs
    ]
    memory["used"] = [Bits(u) for u in used]
    return r, costs


def take(
    costs: Sequence[Sequence[float]], token: int, parameters: Mapping[str, Any], memory: Any
) -> None:
    """Charge for the token that was taken."""
    used, refund = memory["used"], parameters.get("refund", 0.0)
    costs = [
        [max(x, -refund * float(u)) for x in cost] for cost, u in zip(costs, used, strict=True)
    ]
    before = memory.get("spent", [0.0] * len(costs))
    memory["spent"] = [Bits(x + cost[token]) for x, cost in zip(before, costs, strict=True)]
    memory["used"] = [Bits(u + cost[token]) for u, cost in zip(used, costs, strict=True)]
