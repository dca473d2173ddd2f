# SPDX-License-Identifier: Apache-2.0
"""Regular requests in an engine with LoRA and speculative decoding, where contrastive decoding is
refused: bugs of vLLM on CPU that the package works around.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lora

pytestmark = [pytest.mark.engine, pytest.mark.full]

ALLOWED = list(range(20, 29))  # few tokens: text repeats itself, so that drafts come up
PROMPTS = [[(7 * i + j) % 9 + 20 for j in range(24 + 10 * i)] for i in range(4)]
TOKENS = 24


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are as in a process that has had no engine yet."""
    from vllm_cold.compat import places
    from vllm_cold.compat.patching import original_of

    for hook in places.rows(places.CPU_WORKAROUNDS):
        for place in hook.wraps:
            owner, name, method = place.find()
            monkeypatch.setattr(owner, name, original_of(method))


def test_speculation_with_random_requests_and_chunked_prompts(
    stock: None, make_llm: Any, tiny: Path
) -> None:
    """Greedy requests, base and adapter, get the same tokens next to random ones with seeds, whose
    prompts are split over steps; the random ones get the same tokens each time.
    """
    from vllm import SamplingParams

    common: dict[str, Any] = {
        "max_tokens": TOKENS, "ignore_eos": True, "allowed_token_ids": ALLOWED
    }  # fmt: skip
    greedy = SamplingParams(temperature=0.0, **common)
    seeded = SamplingParams(temperature=0.7, top_p=0.95, seed=1, **common)
    options = {"max_num_batched_tokens": 32, "max_num_seqs": 8}
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    adapters = [None, lora(tiny, "one")] * 2

    def run(llm: Any, params: list[Any]) -> list[list[int]]:
        outputs = llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    # No n-grams: they import numba, after which no engine starts in this process
    # (tests/upstream/reports).
    llm = make_llm(
        speculative_config={
            "method": "draft_model",
            "model": str(tiny / "model"),
            "num_speculative_tokens": 3,
        },
        **options,
    )
    alone = run(llm, [greedy] * 4)
    mixed = run(llm, [greedy, greedy, greedy, seeded])
    assert mixed[:3] == alone[:3]
    assert set(mixed[3]) <= set(ALLOWED)
    assert mixed == run(llm, [greedy, greedy, greedy, seeded])
    llm.llm_engine.engine_core.shutdown()
    assert run(make_llm(**options), [greedy] * 4) == alone
