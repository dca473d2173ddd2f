# SPDX-License-Identifier: Apache-2.0
"""The self-test's cases, and their tokens computed without vLLM.

transformers' Llama in float32 with the adapters merged into its weights, no KV cache, and the
plain formula of ``scoring_reference``. No choice in the cases is so close that rounding decides it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        cold: ``alpha``, ``beta`` (or the rule "acd") and ``expert_top_k`` of a CoLD request; None
            for a plain one.
        amateur: Adapter to contrast with, None for the base model.
    """

    name: str
    prompt: tuple[int, ...]
    adapter: str | None = None
    cold: tuple[float, float | str, int | None] | None = None
    amateur: str | None = None


CASES = (
    Case("base model", tuple(range(20, 37))),
    Case("adapter, greedy", tuple(range(20, 37)), "one"),
    Case("CoLD", tuple(range(20, 37)), "one", (0.1, 0.5, None)),
    Case("CoLD, strong contrast and a cap", tuple(range(60, 95)), "one", (0.01, 2.0, 8)),
    Case("CoLD against another adapter", tuple(range(120, 131)), "one", (0.05, 1.0, None), "two"),
    Case("CoLD, weights by a rule", tuple(range(120, 137)), "one", (0.02, "acd", None)),
)


def decode(folder: Path, cases: tuple[Case, ...] = CASES) -> list[list[int]]:
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


def _decode(models: Mapping[str | None, Any], case: Case) -> list[int]:
    import torch

    from vllm_cold.ops.scoring_reference import group_scores

    alpha, beta, cap = case.cold or (1.0, 0.0, None)
    streams = [case.adapter] if case.cold is None else [case.adapter, case.amateur]
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        ids = torch.tensor([[*case.prompt, *tokens]])
        expert, *amateurs = (models[name](input_ids=ids).logits[0, -1] for name in streams)
        weights = [_acd(expert, a) if isinstance(beta, str) else -beta for a in amateurs]
        scores = group_scores(expert, amateurs, math.log(alpha), weights, cap or 0)
        tokens.append(int(scores.argmax()))
    return tokens


def _acd(expert: Any, amateur: Any) -> float:
    """``H_p / (H_p + H_q)``: see ``vllm_cold.rules.built_in``."""
    p, q = (-(z.softmax(-1) * z.log_softmax(-1)).sum() for z in (expert, amateur))
    return float(p / (p + q))
