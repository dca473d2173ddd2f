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
from tests.naive import NaiveCold
from vllm_cold.frontend.metrics import CANDIDATE_BUCKETS, COUNTERS, GAUGES, PREFIX

ADAPTERS = {"sql": "one", "chat": "two"}  # of the pages, and of the tiny model


def fill_in(text: str, tiny: Path) -> str:
    """A block with the tiny model's paths in place of the page's."""
    text = text.replace("path/to/model", str(tiny / "model"))
    for name, own in ADAPTERS.items():
        text = text.replace(f"/path/to/{name}-adapter", str(tiny / own))
    assert "path/to" not in text
    return text


def end(llm: Any) -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What blocks make of ``vllm.LLM``: small ones in this process, of which the last one runs;
    their ``outputs`` are all that they generated.
    """
    import vllm

    made: list[Any] = []

    class Small(vllm.LLM):  # type: ignore[misc]
        def __init__(self, model: str, **options: Any) -> None:
            if made:
                end(made[-1])
            super().__init__(
                model, dtype="float32", enforce_eager=True, max_model_len=256, **options
            )
            self.outputs: list[Any] = []
            made.append(self)

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().generate(*args, **kwargs)
            self.outputs += outputs
            return outputs

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(vllm, "LLM", Small)
    yield made
    end(made[-1])


@pytest.mark.engine
def test_generated_texts(
    engines: list[Any], tiny: Path, naive: NaiveCold, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {}
    for text in story("docs/parameters.md", "offline"):
        exec(compile(fill_in(text, tiny), "block", "exec"), namespace)
    outputs = [output for llm in engines for output in llm.outputs]
    cold: dict[str, Any] = {"expert": "one", "alpha": 0.1, "beta": 0.5}
    wanted: list[dict[str, Any]] = [
        cold,
        {**cold, "amateur": "two"},
        {**cold, "rule": "adaptive", "rule_parameters": {"beta_max": 2.0}},
        {"adapter": "one"},
        cold,
        {"adapter": None},
        {"adapter": "one"},
    ]
    seen = set()
    for output, asked in zip(outputs, wanted, strict=True):
        decode = naive.greedy if "adapter" in asked else naive.generate
        ids, tokens = output.prompt_token_ids, list(output.outputs[0].token_ids)
        right = decode(ids, max_tokens=len(tokens), **asked)
        assert right.settled() >= 8
        assert tokens[: right.settled()] == right.tokens[: right.settled()]
        seen.add((tuple(ids), tuple(right.tokens)))
    # Requests with the same prompt differ, so that none can pass for another.
    assert len(seen) == len(wanted)
    printed = capsys.readouterr().out
    assert all(output.outputs[0].text in printed for output in outputs[:4])


@pytest.mark.engine
def test_metrics_offline(
    engines: list[Any], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm.v1.metrics import reader

    exec(compile(fill_in(block("docs/metrics.md", "offline"), tiny), "block", "exec"), {})
    printed = capsys.readouterr().out
    [llm] = engines
    metrics = {m.name: m for m in llm.get_metrics() if m.name.startswith(PREFIX)}
    names = (*COUNTERS, "candidates", "bits", *GAUGES, "kernel_info", "sequence_slots")
    assert metrics.keys() == {PREFIX + name for name in names}
    assert all(repr(metric) in printed for metric in metrics.values())
    for name in (*COUNTERS, "candidates"):
        kind = {"method": "cold", "adapter": "sql"}
        assert metrics[PREFIX + name].labels.items() >= kind.items(), name
    requests, tokens = (metrics[PREFIX + name] for name in ("requests", "generation_tokens"))
    assert (type(requests), requests.value, tokens.value) == (reader.Counter, 1, 16)
    candidates = metrics[PREFIX + "candidates"]
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
