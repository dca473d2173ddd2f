# SPDX-License-Identifier: Apache-2.0
"""The Python blocks that need no server: each page's in order, in one namespace, with the tiny
model in place of the reader's. What they generate is what their comments say: compared with the
reference.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import block, story
from tests.naive import NaiveCold, Trace
from vllm_cold import ColdParams
from vllm_cold.method.settings import DEFAULT_ALPHA, DEFAULT_BETA
from vllm_cold.vllm.frontend.prometheus import (
    CANDIDATE_BUCKETS,
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    PREFIX,
)

ADAPTERS = {"sql": "one", "chat": "two"}  # of the pages, and of the tiny model

# What of each token the reference must be sure, or the comparison would say nothing.
SETTLED = 8


def fill_in(text: str, tiny: Path) -> str:
    """A block with the tiny model's paths in place of the page's."""
    text = text.replace("path/to/model", str(tiny / "model"))
    for name, own in ADAPTERS.items():
        text = text.replace(f"/path/to/{name}-adapter", str(tiny / own))
    assert "path/to" not in text
    return text


class Recorder:
    """Stands for ``vllm.LLM``: small engines, one at a time, and all that they generated."""

    def __init__(self) -> None:
        self.generated: list[tuple[Any, Any, Any]] = []
        """Output, parameters and adapter of each prompt."""
        self.defaults: list[dict[str, float] | None] = []
        """For each of them, what CoLD is in its engine by default."""
        self.llm: Any = None

    def end(self) -> None:
        """End the engine that runs."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            gc.collect()
            cleanup_dist_env_and_memory()

    def make(self) -> type[Any]:
        """The class that a block imports."""
        from vllm import LLM

        recorder = self

        class Tiny(LLM):  # type: ignore[misc]
            def __init__(self, model: str, **options: Any) -> None:
                recorder.end()
                self.default = options.get("additional_config", {}).get("cold")
                small = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
                super().__init__(model, **small, **options)
                recorder.llm = self

            def generate(self, prompts: Any, params: Any, lora_request: Any = None) -> Any:
                outputs = super().generate(prompts, params, lora_request=lora_request)
                for index, output in enumerate(outputs):
                    given = (params, lora_request)
                    own = (x[index] if isinstance(x, list) else x for x in given)
                    recorder.generated.append((output, *own))
                    recorder.defaults.append(self.default)
                return outputs

        return Tiny


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """``vllm.LLM`` is the recorder's, and the engine runs in this process."""
    import vllm

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    recorder = Recorder()
    monkeypatch.setattr(vllm, "LLM", recorder.make())
    yield recorder
    recorder.end()


def reference(naive: NaiveCold, output: Any, params: Any, lora: Any, default: Any) -> Trace:
    """What the documentation promises for a request."""
    ids, length = output.prompt_token_ids, params.max_tokens
    if lora is None:
        return naive.greedy(ids, None, length)
    expert = ADAPTERS[lora.lora_name]
    cold: dict[str, Any] | None = None
    if isinstance(params, ColdParams):
        settings = params.settings()
        cold = {
            "alpha": settings.alpha,
            "beta": 0.0 if settings.rule else settings.beta,
            "rule": settings.rule,
            "rule_parameters": settings.rule_parameters or {},
        }
        if params.amateur is not None:
            cold["amateur"] = ADAPTERS[params.amateur.lora_name]
    elif default and not (params.extra_args and params.extra_args["cold"] == 0):
        cold = {"alpha": DEFAULT_ALPHA, "beta": DEFAULT_BETA, **default}
    if cold is None:
        return naive.greedy(ids, expert, length)
    return naive.generate(ids, expert=expert, max_tokens=length, **cold)


@pytest.mark.engine
def test_generated_texts(
    recorder: Recorder, tiny: Path, naive: NaiveCold, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {}
    for text in story("docs/parameters.md", "offline"):
        exec(compile(fill_in(text, tiny), "block", "exec"), namespace)
    assert len(recorder.generated) == 7
    seen = []
    for (output, params, lora), default in zip(recorder.generated, recorder.defaults, strict=True):
        right = reference(naive, output, params, lora, default)
        sure = right.settled()
        assert sure >= min(SETTLED, params.max_tokens)
        assert list(output.outputs[0].token_ids[:sure]) == right.tokens[:sure]
        seen.append((tuple(output.prompt_token_ids), tuple(right.tokens)))
    # Requests with the same prompt differ, so that none can pass for another.
    assert len(set(seen)) == len(seen)
    printed = capsys.readouterr().out
    for output, *_ in recorder.generated[:2]:
        assert output.outputs[0].text in printed


@pytest.mark.engine
def test_metrics_offline(
    recorder: Recorder, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm.v1.metrics import reader

    exec(compile(fill_in(block("docs/metrics.md", "offline"), tiny), "block", "exec"), {})
    printed = capsys.readouterr().out
    own = {m.name: m for m in recorder.llm.get_metrics() if m.name.startswith(PREFIX)}
    assert own.keys() == {PREFIX + name for name in (*COUNTERS, *HISTOGRAMS, *GAUGES)}
    assert all(repr(metric) in printed for metric in own.values())
    for name in (*COUNTERS, *HISTOGRAMS):
        kind = {"method": "cold", "adapter": "sql"}
        assert own[PREFIX + name].labels.items() >= kind.items(), name
    requests, tokens = (own[PREFIX + name] for name in ("requests", "generation_tokens"))
    assert (type(requests), requests.value, tokens.value) == (reader.Counter, 1, 16)
    assert type(own[PREFIX + "requests_running"]) is reader.Gauge
    candidates = own[PREFIX + "candidates"]
    assert type(candidates) is reader.Histogram
    assert candidates.count == candidates.buckets["+Inf"] == 16 and candidates.sum >= 16
    assert list(candidates.buckets) == [*(str(float(n)) for n in CANDIDATE_BUCKETS), "+Inf"]


@pytest.mark.unit
def test_scoring_op() -> None:
    import torch

    from vllm_cold.ops import Groups, contrastive_scores, contrastive_topk

    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    groups = {
        "rows": torch.tensor([[0, 2, -1], [3, 1, 4]]),
        "weights": torch.tensor([[-0.5, 0.0], [-1.0, 0.5]]),
        "log_alpha": torch.tensor([0.1, 0.01]).log(),
    }
    exec(block("docs/reference/scoring.md", "scoring"), {"logits": logits, **groups})
    # The second call wrote the scores over the experts' rows.
    scores = contrastive_scores(before, Groups(**groups))
    assert torch.equal(logits[[0, 3]], scores)
    assert torch.equal(logits[[2, 1, 4]], before[[2, 1, 4]])
    assert contrastive_topk(before, Groups(**groups), k=20)[0].shape == (2, 20)
