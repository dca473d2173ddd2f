# SPDX-License-Identifier: Apache-2.0
"""What differs between vLLM's two model runners: each row of the table in docs/method.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import lora
from tests.naive import NaiveCold, score

pytestmark = pytest.mark.engine

PROMPT = list(range(20, 60))
ALPHA, BETA, MAX_TOKENS = 0.1, 2.0, 24

Penalise = Callable[[torch.Tensor, list[int]], torch.Tensor]


def penalise(*, frequency: float = 0.0, presence: float = 0.0, repetition: float = 1.0) -> Penalise:
    """vLLM's penalties of logits or scores [V], float64, after the tokens so far."""

    def penalised(values: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        counts = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=len(values))
        seen = counts > 0
        seen[PROMPT] = True
        scaled = torch.where(values > 0, values / repetition, values * repetition)
        return torch.where(seen, scaled, values) - frequency * counts - presence * (counts > 0)

    return penalised


def decode(naive: NaiveCold, penalised: Penalise, *, on_scores: bool) -> list[int]:
    """Greedy CoLD with penalties on the scores, or on the logits of both rows."""
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        e, a = (
            naive._forward(adapter, [[*PROMPT, *tokens]], None)[0][0].double()
            for adapter in ("one", None)
        )
        if on_scores:
            scores = penalised(score(e, a, ALPHA, BETA), tokens)
        else:
            scores = score(penalised(e, tokens), penalised(a, tokens), ALPHA, BETA)
        best, second = scores.topk(2).values.tolist()
        assert best - second > 1e-4, "rounding could decide: take another prompt"
        tokens.append(int(scores.argmax()))
    return tokens


@pytest.mark.parametrize(
    "penalties",
    [{"frequency": 1.0}, {"presence": 1.5}, {"repetition": 1.3}],
    ids=lambda penalties: next(iter(penalties)),
)
def test_what_penalties_are_applied_to(
    penalties: dict[str, float], runner: str, shared_llm: Any, tiny: Path, naive: NaiveCold
) -> None:
    from vllm_cold import ColdParams

    params = ColdParams(
        alpha=ALPHA,
        beta=BETA,
        temperature=0.0,
        max_tokens=MAX_TOKENS,
        ignore_eos=True,
        **{f"{name}_penalty": value for name, value in penalties.items()},
    )
    (output,) = shared_llm().generate(
        {"prompt_token_ids": PROMPT}, params, lora_request=lora(tiny, "one"), use_tqdm=False
    )
    expected = {
        order: decode(naive, penalise(**penalties), on_scores=order == "v1")
        for order in ("v1", "v2")
    }
    assert expected["v1"] != expected["v2"]
    assert list(output.outputs[0].token_ids) == expected[runner]


@pytest.mark.parametrize("kind", ["CoLD", "plain"])
def test_what_a_draw_depends_on(kind: str, runner: str, shared_llm: Any, tiny: Path) -> None:
    """V1's on the seed and how many draws came before it; V2's on the seed and the position."""
    from vllm import SamplingParams

    from vllm_cold import ColdParams

    llm = shared_llm()

    def run(prompt: list[int], max_tokens: int) -> list[int]:
        options: dict[str, Any] = {"temperature": 1.5, "seed": 11, "ignore_eos": True}
        options["max_tokens"] = max_tokens
        params = ColdParams(alpha=0.01, **options) if kind == "CoLD" else SamplingParams(**options)
        (output,) = llm.generate(
            {"prompt_token_ids": prompt}, params, lora_request=lora(tiny, "one"), use_tqdm=False
        )
        return list(output.outputs[0].token_ids)

    whole = run(PROMPT, 16)
    rest = run([*PROMPT, *whole[:6]], 10)
    assert (rest == whole[6:]) == (runner == "v2")
