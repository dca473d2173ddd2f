# SPDX-License-Identifier: Apache-2.0
"""The self-test's cases, and their tokens computed without vLLM.

transformers' Llama in float32 with the adapters merged into its weights, no KV cache, and the
plain formula of ``scoring_reference``. ``step`` also says how clear a choice is; the tests' own
reference decodes with it, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_cold.tools.doctor import tiny

if TYPE_CHECKING:
    from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class Step:
    """A choice of a token.

    Attributes:
        scores: [V] float64, -inf for what is no candidate.
        margin: Best minus second-best score; inf with one candidate.
        edge: How far logits must move for a change of the candidates to change the token: the
            chosen one drops out, or one comes in that scores higher. An adaptive weight jumps
            whenever they change, so there any change counts.
    """

    scores: Tensor
    margin: float
    edge: float


def step(
    logits: Sequence[Tensor],
    weights: Sequence[float],
    alpha: float,
    expert_top_k: int | None = None,
    adaptive: Sequence[bool] = (),
) -> Step:
    """Score the last rows of a group's streams.

    Args:
        logits: Of each stream [V], of any float dtype; the expert's first.
        weights: Of each amateur; if it is adaptive, the farthest from 0 that it can be.
        alpha: The plausibility threshold, from 0 to 1.
        expert_top_k: Cap on the candidates.
        adaptive: Of each amateur, whether its weight adapts itself; none by default.

    Raises:
        RuntimeError: if a row holds NaN or +inf.
    """
    import torch

    from vllm_cold.ops.scoring_reference import adaptive_weight, group_scores

    expert, *amateurs = (z.double() for z in logits)
    log_alpha, cap = math.log(alpha) if alpha > 0.0 else -math.inf, expert_top_k or 0
    weights = [
        adaptive_weight(expert, amateur, log_alpha, weight, cap) if adapts else weight
        for amateur, weight, adapts in zip(
            amateurs, weights, adaptive or [False] * len(amateurs), strict=True
        )
    ]
    scores = group_scores(expert, amateurs, log_alpha, weights, cap)
    best, second = scores.topk(2).values.tolist()
    valid = scores > -math.inf
    if any(adaptive):
        edge = _change(expert, valid, log_alpha)
    else:
        chosen = int(scores.argmax())
        rest = torch.cat([expert[:chosen], expert[chosen + 1 :]])
        drops_out = expert[chosen] - _threshold(rest, log_alpha, cap)
        gain = scores[chosen] - group_scores(expert, amateurs, -math.inf, weights)
        comes_in = torch.maximum(_threshold(expert, log_alpha, cap) - expert, gain)
        never = valid | (expert == -math.inf)
        edge = float(torch.where(never, math.inf, comes_in).min().minimum(drops_out))
    return Step(scores, best - second, edge)


def _threshold(expert: Tensor, log_alpha: float, cap: int) -> Tensor:
    """The smallest of the expert's logits that is a candidate's."""
    bar = expert.max() + log_alpha
    return bar.maximum(expert.topk(cap).values[-1]) if 0 < cap <= expert.numel() else bar


def _change(expert: Tensor, valid: Tensor, log_alpha: float) -> float:
    """How far logits must move for the candidates to change at all; the best one stays."""
    bar = float(expert.max()) + log_alpha
    drops_out = float(expert[valid].min()) - bar if valid.sum() > 1 else math.inf
    if bool(valid.all()):
        return drops_out
    # What the cap keeps out comes in as soon as it passes the last that is in.
    most = float(expert[~valid].max())
    return min(drops_out, (bar if most < bar else float(expert[valid].min())) - most)


def decode(folder: Path, cases: tuple[Case, ...] = CASES) -> list[Decoded]:
    """The reference's tokens for each case; ``folder`` as ``tiny.write`` leaves it."""
    import torch

    models = {name: _model(folder, name) for name in (None, *tiny.ADAPTERS)}
    with torch.inference_mode():
        return [_decode(models, case) for case in cases]


def _model(folder: Path, adapter: str | None) -> Any:
    """The Llama of transformers with the weights of ``tiny``, an adapter's change added to them."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(
        folder / tiny.MODEL, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        halves = load_file(folder / adapter / "adapter_model.safetensors")
        with torch.no_grad():
            for name, a in halves.items():
                if name.endswith(".lora_A.weight"):
                    of = name.removesuffix(".lora_A.weight")
                    change = halves[f"{of}.lora_B.weight"] @ a
                    layer = model.get_submodule(of.removeprefix("base_model.model."))
                    layer.weight += tiny.LORA_ALPHA / tiny.RANK * change
    return model.eval()


def _decode(models: Mapping[str | None, Any], case: Case) -> Decoded:
    import torch

    alpha, beta, cap = case.cold or (0.0, 0.0, None)
    streams = [case.adapter] if case.cold is None else [case.adapter, case.amateur]
    tokens: list[int] = []
    margin = math.inf
    while len(tokens) < MAX_TOKENS:
        ids = torch.tensor([[*case.prompt, *tokens]])
        logits = [models[name](input_ids=ids).logits[0, -1] for name in streams]
        weights = [-beta] * (len(streams) - 1)
        done = step(logits, weights, alpha, cap, [case.adaptive] * len(weights))
        margin = min(margin, done.margin, done.edge)
        tokens.append(int(done.scores.argmax()))
    return Decoded(tokens, margin)
