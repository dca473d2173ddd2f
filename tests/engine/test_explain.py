# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` with an engine in this process, against the naive reference."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.naive import NaiveCold, adapted, score
from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect
from vllm_cold.tools.explain.offline import OfflineSource
from vllm_cold.tools.explain.trace import Answer

pytestmark = pytest.mark.engine

SETTINGS = ColdSettings(alpha=0.05, beta=2.0)
PROMPTS = ["w12 w7 w300 w45", " w5 w6 hello"]


@pytest.fixture(scope="module")
def sources(tiny: Path) -> Iterator[dict[str | None, OfflineSource]]:
    """Against the base model (None) and against the adapter "two", made when it is asked for."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    made: dict[str | None, OfflineSource] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        made["two"] = OfflineSource(
            str(tiny / "model"),
            f"one={tiny / 'one'}",
            f"two={tiny / 'two'}",
            dtype="float32",
            max_model_len=128,
        )
        # One engine serves both: the base model as amateur needs no other.
        base = object.__new__(OfflineSource)
        base.__dict__.update(made["two"].__dict__)
        base._amateur = None
        made[None] = base
        yield made
        made["two"].close()
        cleanup_dist_env_and_memory()


def check_numbers(
    answer: Answer, prompt: list[int], naive: NaiveCold, amateur: str | None, settings: ColdSettings
) -> None:
    """Probabilities, scores and valid sets are those of the two models."""
    ids = list(prompt)
    for step in answer.steps:
        e, _ = naive._forward("one", [ids], None)
        a, _ = naive._forward(amateur, [ids], None)
        e, a = e[0].double(), a[0].double()
        knobs = settings.alpha, settings.strength, settings.expert_top_k
        scores = score(e, a, *knobs, settings.adaptive)
        beta = settings.strength
        if settings.adaptive:
            beta = adapted(e, a, scores > -math.inf, beta)
        bar = e.max() + math.log(settings.alpha)
        if settings.adaptive and (e - bar).abs().min() < 1e-3:
            ids.append(step.token)
            continue
        assert step.beta == pytest.approx(beta, rel=1e-3, abs=1e-4)
        constant = -(1 + beta) * e.logsumexp(0) + beta * a.logsumexp(0)
        if (e - bar).abs().min() > 1e-3:  # no token at the edge
            assert step.valid_size == int((scores > -math.inf).sum())
        assert step.valid_complete
        for c in step.candidates:
            assert c.expert == pytest.approx(float(e.log_softmax(0)[c.token]), abs=1e-4)
            assert c.amateur == pytest.approx(float(a.log_softmax(0)[c.token]), abs=1e-4)
            assert not c.amateur_is_bound
            if c.valid and scores[c.token] > -math.inf:
                expected = float(scores[c.token] + constant)
                assert c.score == pytest.approx(expected, abs=1e-3, rel=1e-3)
        p, q = e.softmax(0), a.softmax(0)
        middle = (p + q) / 2
        whole = (p * (p / middle).log2() + q * (q / middle).log2()).sum() / 2
        assert step.divergence <= float(whole) + 1e-6
        ids.append(step.token)


@pytest.mark.parametrize("amateur", [None, "two"])
def test_both_answers_are_accounted_for(
    amateur: str | None, sources: dict[str | None, OfflineSource], naive: NaiveCold
) -> None:
    source = sources[amateur]
    report = collect.explain(source, PROMPTS, SETTINGS, max_tokens=24)
    differing = 0
    for text, explanation in zip(PROMPTS, report.explanations, strict=True):
        [prompt] = source.encode([text], chat=False)
        assert explanation.prompt_tokens == len(prompt)
        greedy = naive.greedy(prompt, "one", 24)
        cold = naive.generate(
            prompt, expert="one", amateur=amateur, alpha=0.05, beta=2.0, max_tokens=24
        )
        assert [s.token for s in explanation.greedy.steps] == greedy.tokens
        assert [s.token for s in explanation.cold.steps] == cold.tokens
        for answer in (explanation.cold, explanation.greedy):
            assert answer.mismatches == ()
            assert "".join(step.text for step in answer.steps) == answer.text
            check_numbers(answer, prompt, naive, amateur, SETTINGS)
        differing += sum(step.differs for step in explanation.cold.steps)
        assert explanation.parting is not None
    assert differing > 0


@torch.no_grad()
def test_a_cap_and_wide_valid_sets(
    sources: dict[str | None, OfflineSource], naive: NaiveCold
) -> None:
    source = sources[None]
    [prompt] = source.encode(PROMPTS[:1], chat=False)
    for settings in (ColdSettings(1e-6, 0.5), ColdSettings(1e-6, 0.5, expert_top_k=7)):
        report = collect.explain(source, PROMPTS[:1], settings, max_tokens=8)
        answer = report.explanations[0].cold
        assert answer.mismatches == ()
        check_numbers(answer, prompt, naive, None, settings)
        sizes = [step.valid_size for step in answer.steps]
        assert max(sizes) == 7 if settings.expert_top_k else max(sizes) > 20


@torch.no_grad()
def test_an_adaptive_beta(sources: dict[str | None, OfflineSource], naive: NaiveCold) -> None:
    source, settings = sources[None], ColdSettings(0.05, "adaptive", beta_max=300.0)
    report = collect.explain(source, PROMPTS, settings, max_tokens=20)
    betas = []
    for text, explanation in zip(PROMPTS, report.explanations, strict=True):
        [prompt] = source.encode([text], chat=False)
        cold = naive.generate(
            prompt, expert="one", alpha=0.05, beta=300.0, adaptive=True, max_tokens=20
        )
        assert cold.settled() == 20
        assert [s.token for s in explanation.cold.steps] == cold.tokens
        for answer in (explanation.cold, explanation.greedy):
            assert answer.mismatches == () and answer.unknown_betas == ()
            check_numbers(answer, prompt, naive, None, settings)
            betas += [step.beta for step in answer.steps if step.beta is not None]
        assert explanation.parting is not None
    assert min(betas) < 0.5 and max(betas) > 5.0


def test_the_chat_template(sources: dict[str | None, OfflineSource]) -> None:
    source = sources[None]
    [plain] = source.encode(["w1"], chat=False)
    [chat] = source.encode(["w1"], chat=True)
    assert source._llm.get_tokenizer().decode(chat) == "user: w1\nassistant:"
    assert plain != chat


def test_refused_requests_are_sentences(sources: dict[str | None, OfflineSource]) -> None:
    with pytest.raises(ToolError, match="--max-tokens=127: the prompt"):
        collect.explain(sources[None], ["w1"], SETTINGS, max_tokens=127)


def test_what_cannot_start(tiny: Path, tmp_path: Path) -> None:
    model, one = str(tiny / "model"), str(tiny / "one")
    with pytest.raises(ToolError, match="--amateur=.*is the adapter itself"):
        OfflineSource(model, one, one)
    with pytest.raises(ToolError, match="no config.json there"):
        OfflineSource(str(tmp_path), one)
    config = json.loads((tiny / "one" / "adapter_config.json").read_text())
    large = tmp_path / "large"
    large.mkdir()
    (large / "adapter_config.json").write_text(json.dumps({**config, "r": 1024}))
    with pytest.raises(ToolError, match="rank 1024, and vLLM serves ranks up to 512"):
        OfflineSource(model, str(large))
    with pytest.raises(ToolError) as error:
        OfflineSource(model, one, max_model_len=100_000)
    start = (
        f"--model={model!r}: the engine does not start: User-specified max_model_len (100000) is"
    )
    assert str(error.value).startswith(start)
    assert "pydantic" not in str(error.value)
