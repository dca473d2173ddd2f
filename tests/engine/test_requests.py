# SPDX-License-Identifier: Apache-2.0
"""What a request may carry and what is refused, offline."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lora, scheduler
from tests.naive import NaiveCold

pytestmark = pytest.mark.engine

PROMPT = list(range(20, 60))


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(o.token_ids) for output in outputs for o in output.outputs]


@pytest.fixture
def llm(shared_llm: Any) -> Any:
    return shared_llm()


def test_features_keep_their_meaning(llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """Stop strings and tokens, bad words, allowed tokens, bias, min_tokens, logprobs, grammar."""
    from vllm.sampling_params import StructuredOutputsParams

    from vllm_cold import ColdParams

    def run(**options: Any) -> Any:
        params = ColdParams(
            **{"alpha": 0.05, "beta": 0.5, "temperature": 0.0, "max_tokens": 16, **options}
        )
        (output,) = llm.generate(
            {"prompt_token_ids": PROMPT}, params, lora_request=lora(tiny, "one"), use_tqdm=False
        )
        return output.outputs[0]

    trace = naive.generate(PROMPT, expert="one", alpha=0.05, beta=0.5, max_tokens=16)
    plain = list(run().token_ids)
    assert plain == trace.tokens
    stop = plain[5]
    cut = plain.index(stop) + 1
    assert list(run(stop_token_ids=[stop]).token_ids) == plain[:cut]
    assert list(run(stop_token_ids=[stop], min_tokens=16).token_ids) != plain[:cut]
    banned = run(logit_bias={plain[0]: -100.0})
    assert plain[0] not in banned.token_ids
    allowed = run(allowed_token_ids=[100, 200, 300], alpha=1e-6)
    assert set(allowed.token_ids) <= {100, 200, 300}
    biased = run(logit_bias={77: 100.0})
    assert set(biased.token_ids) == {77}
    penalised = run(frequency_penalty=2.0, repetition_penalty=1.5, logit_bias={77: 30.0})
    assert len(penalised.token_ids) == 16
    with_logprobs = run(logprobs=3)
    expert = naive.step_distribution(PROMPT, expert="one", alpha=1e-9, beta=0.0, temperature=1.0)
    got = with_logprobs.logprobs[0][plain[0]].logprob
    assert got == pytest.approx(math.log(expert[plain[0]]), abs=1e-3)
    choice = run(structured_outputs=StructuredOutputsParams(choice=["yes", "no"]), max_tokens=8)
    assert choice.text in ("yes", "no")
    word = run(bad_words=[llm.get_tokenizer().decode([plain[0]])])
    assert word.token_ids[0] != plain[0]
    detok = run(stop=[llm.get_tokenizer().decode([plain[3]]).strip()])
    assert len(detok.token_ids) <= 16
    assert not scheduler(llm).requests


def test_engine_defaults(make_llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """additional_config makes CoLD the default for adapters; a request says otherwise."""
    from vllm import SamplingParams
    from vllm.sampling_params import BeamSearchParams

    default = {"alpha": 0.02, "rule": "adaptive", "beta_max": 500.0}
    llm = make_llm(additional_config={"cold": default})

    def run(adapter: str | None, **extra: Any) -> list[int]:
        params = SamplingParams(temperature=0.0, max_tokens=16, extra_args=extra or None)
        request = lora(tiny, adapter) if adapter else None
        return tokens(
            llm.generate({"prompt_token_ids": PROMPT}, params, lora_request=request, use_tqdm=False)
        )[0]

    def cold(beta: float, rule: str | None = None, **parameters: float) -> list[int]:
        asked = {"alpha": 0.02, "beta": beta, "rule": rule, "rule_parameters": parameters}
        return naive.generate(PROMPT, expert="one", max_tokens=16, **asked).tokens

    adaptive = partial(cold, 0.0, "adaptive")
    expected = [adaptive(beta_max=500.0), cold(0.5), adaptive(beta_max=8.0), cold(0.0, "acd")]
    assert len(set(map(tuple, expected))) == 4
    assert run("one") == run("one", cold_rule="adaptive") == expected[0]
    assert run("one", cold_beta=0.5) == expected[1]
    assert run("one", cold_beta_max=8.0) == expected[2]
    assert run("one", cold_rule="acd") == expected[3]
    assert run("one", cold=0) == naive.greedy(PROMPT, "one", 16).tokens
    assert run(None) == naive.greedy(PROMPT, None, 16).tokens
    with pytest.raises(ValueError, match="cold_beta_max=2.0: is for a rule, and beta is 0.5"):
        run("one", cold_beta=0.5, cold_beta_max=2.0)
    with pytest.raises(ValueError, match="beam search"):
        llm.beam_search(
            [{"prompt_token_ids": PROMPT}],
            BeamSearchParams(beam_width=2, max_tokens=4),
            lora_request=lora(tiny, "one"),
        )
