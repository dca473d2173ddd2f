# SPDX-License-Identifier: Apache-2.0
"""The self-test's cases, and their tokens computed without vLLM.

transformers' Llama in float32 with the adapters merged into its weights, no KV cache, and the
plain formula of ``scoring_reference``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold.tools.doctor import tiny

MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Case:
    """One request of the self-test, decoded greedily.

    Attributes:
        name: What it shows.
        prompt: Token ids.
        adapter: The request's adapter, None for the base model.
        cold: ``alpha``, ``beta`` and ``expert_top_k`` of a CoLD request; None for a plain one.
        amateur: Adapter to contrast with, None for the base model.
        adaptive: Whether beta is adaptive; the one in ``cold`` is the most that it reaches then.
    """

    name: str
    prompt: tuple[int, ...]
    adapter: str | None = None
    cold: tuple[float, float, int | None] | None = None
    amateur: str | None = None
    adaptive: bool = False


CASES = (
    Case("base model", tuple(range(20, 37))),
    Case("adapter, greedy", tuple(range(20, 37)), "one"),
    Case("CoLD", tuple(range(20, 37)), "one", (0.1, 0.5, None)),
    Case("CoLD, strong contrast and a cap", tuple(range(60, 95)), "one", (0.01, 2.0, 8)),
    Case("CoLD against another adapter", tuple(range(120, 131)), "one", (0.05, 1.0, None), "two"),
    Case("CoLD, adaptive beta", tuple(range(120, 137)), "one", (0.02, 4.0, None), adaptive=True),
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens of a case.

    Attributes:
        tokens: Token ids.
        margin: How far logits or scores must move, at least, for a token to change. What another
            order of float32 sums does has to stay far below.
    """

    tokens: list[int]
    margin: float


def decode(folder: Path, cases: tuple[Case, ...] = CASES) -> list[Decoded]:
    """The reference's tokens for each case; ``folder`` as ``tiny.write`` leaves it."""
    import torch

    models = {name: _model(folder, name) for name in (None, *tiny.ADAPTERS)}
    with torch.inference_mode():
        return [_decode(models, case) for case in cases]


def _model(folder: Path, adapter: str | None) -> Any:
    """The Llama of transformers with the weights of ``tiny``, an adapter's change added to them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder / tiny.MODEL, attn_implementation="eager")
    weights = tiny.model_weights()
    if adapter is not None:
        for key, (a, b) in tiny.adapter_weights(adapter).items():
            weights[key] += tiny.LORA_ALPHA / tiny.RANK * (b @ a)
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.to(torch.float32).load_state_dict(weights)
    return model.eval()


def _decode(models: dict[str | None, Any], case: Case) -> Decoded:
    import torch

    from vllm_cold.ops.scoring_reference import adaptive_weight, group_scores

    tokens: list[int] = []
    margin = math.inf
    while len(tokens) < MAX_TOKENS:
        ids = torch.tensor([[*case.prompt, *tokens]])
        scores = expert = models[case.adapter](input_ids=ids).logits[0, -1].double()
        if case.cold is not None:
            alpha, beta, expert_top_k = case.cold
            amateur = models[case.amateur](input_ids=ids).logits[0, -1].double()
            if case.adaptive:
                beta = -adaptive_weight(expert, amateur, math.log(alpha), -beta, expert_top_k or 0)
            scores = group_scores(expert, [amateur], math.log(alpha), [-beta], expert_top_k or 0)
            margin = min(margin, _edge(expert, amateur, scores, (alpha, beta, expert_top_k)))
            if case.adaptive:
                margin = min(margin, _gap(expert, scores, alpha))
        best, second = scores.topk(2).values.tolist()
        margin = min(margin, best - second)
        tokens.append(int(scores.argmax()))
    return Decoded(tokens, margin)


def _edge(expert: Any, amateur: Any, scores: Any, cold: tuple[float, float, int | None]) -> float:
    """How far logits must move for the set of candidates to change the token: the chosen one
    drops out, or one comes in that scores higher.
    """
    import torch

    alpha, beta, expert_top_k = cold

    def threshold(logits: Any) -> Any:
        bar = logits.max() + math.log(alpha)
        return bar if expert_top_k is None else torch.maximum(bar, logits.topk(expert_top_k)[0][-1])

    chosen = int(scores.argmax())
    others = torch.cat([expert[:chosen], expert[chosen + 1 :]])
    drops_out = float(expert[chosen] - threshold(others))
    gain = scores[chosen] - ((1 + beta) * expert - beta * amateur)
    comes_in = torch.maximum(threshold(expert) - expert, gain)[scores == -math.inf]
    return min(drops_out, float(comes_in.min()))


def _gap(expert: Any, scores: Any, alpha: float) -> float:
    """How far logits must move for the set of candidates to change at all, and an adaptive beta
    with it; there is no cap.
    """
    import torch

    distance = (expert - expert.max() - math.log(alpha)).abs()
    distance[expert.argmax()] = torch.inf  # whatever the others do, it stays in
    return float(distance.min())
