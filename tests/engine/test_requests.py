# SPDX-License-Identifier: Apache-2.0
"""What a request may carry and what is refused, offline."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from tests.engine.conftest import lora, scheduler
from tests.naive import NaiveCold

pytestmark = pytest.mark.engine

PROMPT = list(range(20, 60))


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(o.token_ids) for output in outputs for o in output.outputs]


@pytest.fixture
def llm(shared_llm: Any) -> Any:
    return shared_llm()


def check_distribution(drawn: Sequence[int], expected: torch.Tensor) -> None:
    """Whether tokens may have been drawn from ``expected``, which is [V]."""
    counts = torch.bincount(torch.tensor(drawn), minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    likely = expected * len(drawn) >= 5
    observed = [*counts[likely].tolist(), counts[~likely].sum().item()]
    wanted = [*(expected[likely] * len(drawn)).tolist()]
    wanted.append((expected[~likely] * len(drawn)).sum().item())
    if wanted[-1] < 5:  # too rare for a cell of its own
        observed[0] += observed.pop()
        wanted[0] += wanted.pop()
    assert len(wanted) >= 3, "the distribution is too sharp to test"
    assert chisquare(observed, wanted).pvalue > 1e-4


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


def test_bad_requests(shared_llm: Any, tiny: Path) -> None:
    """What each field allows is fine, but not together, or not in this engine."""
    from vllm import SamplingParams

    from vllm_cold import ColdParams

    llm = shared_llm(num_gpu_blocks_override=14, max_loras=1)

    def run(params: Any, adapter: str | None = "one", length: int = 10) -> Any:
        request = lora(tiny, adapter) if adapter else None
        return llm.generate(
            {"prompt_token_ids": [5] * length}, params, lora_request=request, use_tqdm=False
        )

    with pytest.raises(ValueError, match=r"cold_alpha=-1: must be a number in \[0, 1\]"):
        run(SamplingParams(max_tokens=2, extra_args={"cold_alpha": -1}))
    with pytest.raises(ValueError, match="cold_gamma=1: unknown key, allowed are cold, cold_alp"):
        run(SamplingParams(max_tokens=2, extra_args={"cold_gamma": 1}))
    with pytest.raises(ValueError, match="needs an adapter as expert"):
        run(ColdParams(max_tokens=2), adapter=None)
    with pytest.raises(ValueError, match="amateur='one': must differ from the expert"):
        run(ColdParams(max_tokens=2, amateur=lora(tiny, "one")))
    with pytest.raises(ValueError, match="max_loras=1"):
        run(ColdParams(max_tokens=2, amateur=lora(tiny, "two")))
    with pytest.raises(ValueError, match=r"need 16 KV cache blocks of 32 tokens.*has 13"):
        run(ColdParams(max_tokens=246))
    missing = lora(tiny, "two")
    missing.lora_path = str(tiny / "nowhere")
    with pytest.raises(ValueError, match="max_loras=1"):
        run(ColdParams(max_tokens=2, amateur=missing))
    params = ColdParams(max_tokens=2)
    params.alpha = 7.0
    with pytest.raises(ValueError, match="alpha=7.0"):
        run(params)
    assert len(tokens(run(ColdParams(max_tokens=3, ignore_eos=True)))[0]) == 3
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"enable_lora": False}, "LoRA is off", id="no lora"),
        pytest.param({"max_num_seqs": 1}, "max_num_seqs=1", id="one sequence"),
        pytest.param(
            {
                "scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler",
                "async_scheduling": False,
            },
            "own scheduler class",
            id="own scheduler",
            marks=pytest.mark.full,
        ),
    ],
)
def test_engines_that_cannot(
    options: dict[str, Any], message: str, make_llm: Any, tiny: Path
) -> None:
    """A CoLD request is refused with the reason, others are served by stock classes, and an
    engine whose default is CoLD does not start.
    """
    from vllm import SamplingParams

    from vllm_cold import ColdParams
    from vllm_cold.vllm.scheduler.scheduler import GroupScheduler

    if options.get("enable_lora", True):  # without, an engine has CoLD where it asks
        with pytest.raises(ValueError, match=message):
            make_llm(additional_config={"cold": True}, **options)
    llm = make_llm(**options)
    assert not isinstance(scheduler(llm), GroupScheduler)
    assert type(scheduler(llm)).__module__.startswith("vllm.v1.core.sched.")
    assert "cold" not in str(llm.llm_engine.vllm_config.scheduler_config.scheduler_cls).lower()
    assert not llm.llm_engine.model_config.logits_processors
    prompt = {"prompt_token_ids": PROMPT}
    request = lora(tiny, "one") if options.get("enable_lora", True) else None
    with pytest.raises(ValueError, match=message):
        llm.generate(prompt, ColdParams(max_tokens=2), lora_request=request, use_tqdm=False)
    with pytest.raises(ValueError, match=message):
        llm.generate(
            prompt,
            SamplingParams(max_tokens=2, extra_args={"cold_alpha": 0.1}),
            lora_request=request,
            use_tqdm=False,
        )
    # Somebody else's key, which is none of ours, is nothing to us.
    foreign = SamplingParams(max_tokens=2, extra_args={"coldstart_id": 3})
    (output,) = llm.generate(prompt, foreign, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 2
