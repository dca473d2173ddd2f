# SPDX-License-Identifier: Apache-2.0
"""What vLLM's two model runners have in common, and what docs/how-it-works.md says of both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import lora
from tests.naive import NaiveCold, score
from vllm_cold.cpu import linear_ops

pytestmark = pytest.mark.engine

PROMPT = list(range(20, 60))
ALPHA, BETA, MAX_TOKENS = 0.1, 2.0, 24

Penalise = Callable[[torch.Tensor, list[int], list[int]], torch.Tensor]


def penalise(*, frequency: float = 0.0, presence: float = 0.0, repetition: float = 1.0) -> Penalise:
    """vLLM's penalties of logits or scores [V], float64, after a prompt and the tokens so far."""

    def penalised(values: torch.Tensor, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        counts = torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=len(values))
        seen = counts > 0
        seen[prompt] = True
        scaled = torch.where(values > 0, values / repetition, values * repetition)
        return torch.where(seen, scaled, values) - frequency * counts - presence * (counts > 0)

    return penalised


def decode(
    naive: NaiveCold, penalised: Penalise, own: list[int] | None = None, *, of_rows: bool = False
) -> list[int]:
    """Greedy contrastive decoding with penalties on the scores, by the tokens that the expert has.

    Args:
        naive: The reference.
        penalised: The penalties.
        own: The prompt of an amateur with the expert's adapter; None for the base model after the
            expert's prompt.
        of_rows: Penalties on both rows of logits instead, each by its own tokens.
    """
    of_amateur = PROMPT if own is None else own
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        e, a = (
            naive._forward(adapter, [[*prompt, *tokens]], None)[0][0].double()
            for adapter, prompt in (("one", PROMPT), (None if own is None else "one", of_amateur))
        )
        if of_rows:
            e, a = penalised(e, PROMPT, tokens), penalised(a, of_amateur, tokens)
            scores = score(e, a, ALPHA, BETA)
        else:
            scores = penalised(score(e, a, ALPHA, BETA), PROMPT, tokens)
        best, second = scores.topk(2).values.tolist()
        assert best - second > 1e-4, "rounding could decide: take another prompt"
        tokens.append(int(scores.argmax()))
    return tokens


PENALTIES: list[dict[str, float]] = [{"frequency": 1.0}, {"presence": 1.5}, {"repetition": 1.3}]
penalties_of_all_kinds = pytest.mark.parametrize(
    "penalties", PENALTIES, ids=lambda penalties: next(iter(penalties))
)


@penalties_of_all_kinds
@pytest.mark.parametrize("own", [None, PROMPT[20:]], ids=["base model", "without a part"])
def test_penalties_change_the_scores(
    penalties: dict[str, float],
    own: list[int] | None,
    shared_llm: Any,
    tiny: Path,
    naive: NaiveCold,
) -> None:
    """By the expert's tokens, whatever the amateur reads; with both runners."""
    from vllm_cold import Amateur, ColdParams

    params = ColdParams(
        alpha=ALPHA,
        beta=BETA,
        amateur=None if own is None else Amateur(prompt=own),
        temperature=0.0,
        max_tokens=MAX_TOKENS,
        ignore_eos=True,
        **{f"{name}_penalty": value for name, value in penalties.items()},
    )
    (output,) = shared_llm().generate(
        {"prompt_token_ids": PROMPT}, params, lora_request=lora(tiny, "one"), use_tqdm=False
    )
    expected = decode(naive, penalise(**penalties), own)
    assert expected != decode(naive, penalise(**penalties), own, of_rows=True), "no difference"
    assert list(output.outputs[0].token_ids) == expected


def test_the_repetition_penalty_of_a_generation_config(
    shared_llm: Any, tiny: Path, naive: NaiveCold
) -> None:
    """vLLM's servers take it from the model without being asked (Qwen2.5's is 1.1)."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    request = CompletionRequest(
        prompt="nobody reads it",
        temperature=0.0,
        ignore_eos=True,
        vllm_xargs={"cold_alpha": ALPHA, "cold_beta": BETA},
    )
    params = request.to_sampling_params(MAX_TOKENS, {"repetition_penalty": 1.3})
    (output,) = shared_llm().generate(
        {"prompt_token_ids": PROMPT}, params, lora_request=lora(tiny, "one"), use_tqdm=False
    )
    assert list(output.outputs[0].token_ids) == decode(naive, penalise(repetition=1.3))


def test_products_are_computed_by_the_kernels_for_cpus(shared_llm: Any) -> None:
    """They are there before a model is loaded, whichever runner loads it."""
    core = shared_llm().llm_engine.engine_core.engine_core
    modules = list(core.model_executor.driver_worker.worker.model_runner.model.modules())
    ours = any(hasattr(module, "_vllm_cold_linears") for module in modules)
    assert ours == (linear_ops.missing() is None)
