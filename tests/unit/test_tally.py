# SPDX-License-Identifier: Apache-2.0
"""Figures for /metrics: gathered, handed over once, and shown under proper names."""

from __future__ import annotations

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
import torch

from vllm_cold.group.tally import Counts, Figures, Tally
from vllm_cold.vllm.frontend import metrics
from vllm_cold.vllm.frontend.prometheus import (
    CANDIDATE_BUCKETS,
    COUNTERS,
    GAUGES,
    PREFIX,
    ColdMetrics,
)
from vllm_cold.vllm.scheduler.stats import attach
from vllm_cold.vllm.worker import outputs

pytestmark = pytest.mark.unit

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"


def sample(name: str, engine: int = 0, **labels: str) -> float | None:
    labels = {"model_name": "m", "engine": str(engine), **labels}
    return prometheus_client.REGISTRY.get_sample_value(PREFIX + name, labels)


class Output:
    """As vLLM makes it, with what this thread carries."""

    __init__ = outputs._make_output_init(lambda self: None)


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    """What other tests of this process have left."""
    Output()


def test_an_output_takes_the_figures_of_its_step_along() -> None:
    room = torch.empty(2, 3, dtype=torch.int64)
    outputs.hand_over(Tally(("a", "b"), room))
    room.copy_(torch.tensor([[3, 1, 0], [1, 0, 1]]))  # on a device, the figures come later
    first, second = Output(), Output()
    assert outputs.from_worker(first) == {"a": Figures(3, 1, 0), "b": Figures(1, 0, 1)}
    (tally,) = first.cold  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(tally)).figures() == tally.figures()
    assert outputs.from_worker(second) == {}


def test_threads_do_not_see_each_others_steps() -> None:
    """An engine in a thread of its own."""
    outputs.hand_over(Tally(("a",), [[1], [0], [0]]))
    with ThreadPoolExecutor() as other:
        assert outputs.from_worker(other.submit(Output).result()) == {}
    assert outputs.from_worker(Output()) == {"a": (1, 0, 0)}


def test_figures_on_a_device_are_waited_for_when_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copied to pinned memory without waiting while the step runs."""
    calls: list[str] = []

    class Event:
        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

    class OnDevice:
        """As much of a tensor on a device as is needed."""

        device, dtype = SimpleNamespace(type="cuda"), torch.int64

        def __init__(self, rows: list[list[int]]) -> None:
            self.rows = torch.tensor(rows)
            self.shape = self.rows.shape

    class Host(torch.Tensor):
        def copy_(self, source: Any, non_blocking: bool = False) -> Any:
            assert non_blocking
            return super().copy_(source.rows)

    def empty(*shape: Any, pin_memory: bool, **options: Any) -> Any:
        assert pin_memory
        return torch.zeros(*shape, **options).as_subclass(Host)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=Event))
        late = Tally(("a",), OnDevice([[2, 0, 1]]))  # type: ignore[arg-type]
    assert calls == ["record"]
    assert late.figures() == {"a": (2, 0, 1)}
    assert calls == ["record", "synchronize"]


def test_counts_are_taken_once() -> None:
    counts = Counts(requests=2, tokens=5, preemptions=1, prompt_tokens=40, cached_prompt_tokens=32)
    counts.add([Figures(1, 0, 0), Figures(4, 1, 0)])
    counts.add([Figures(2, 1, 0)])
    taken = counts.take(running=3, waiting=1)
    assert taken == {
        "requests": 2, "tokens": 5, "preemptions": 1, "prompt_tokens": 40,
        "cached_prompt_tokens": 32, "changed": 2, "candidates": [1, 4, 2], "running": 3,
        "waiting": 1,
    }  # fmt: skip
    assert counts == Counts()
    assert json.loads(json.dumps(taken)) == taken


def test_metrics_add_up() -> None:
    ColdMetrics("m", [0])  # an engine that was here before
    metrics = ColdMetrics("m", [0, 1])
    counts = Counts(requests=1, tokens=2)
    counts.add([Figures(1, 0, 0), Figures(4, 1, 0)])
    metrics.record(counts.take(1, 2), 1)
    counts.tokens = 3
    metrics.record(counts.take(0, 0), 1)
    assert sample("requests_total", 1) == 1
    assert sample("generation_tokens_total", 1) == 5
    assert sample("changed_tokens_total", 1) == 1
    assert sample("candidates_count", 1) == 2 and sample("candidates_sum", 1) == 5
    assert sample("candidates_bucket", 1, le="1.0") == 1
    assert sample("pairs_running", 1) == sample("pairs_waiting", 1) == 0
    assert sample("requests_total", 0) == 0


def test_names_follow_prometheus() -> None:
    """Its naming practices: one prefix, no colons, base units, _total for counters and nothing
    else, and a help text that is a sentence.
    """
    ColdMetrics("m", [0])
    families = [f for f in prometheus_client.REGISTRY.collect() if f.name.startswith(PREFIX)]
    assert len(families) == len(COUNTERS) + len(GAUGES) + 1
    for family in families:
        assert re.fullmatch(r"vllm_cold_[a-z]+(_[a-z]+)*", family.name)
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        assert family.documentation.endswith(".")
        samples = {s.name for s in family.samples if not s.name.endswith("_created")}
        if family.type == "counter":
            assert samples == {family.name + "_total"}
    assert list(CANDIDATE_BUCKETS) == sorted(CANDIDATE_BUCKETS)


def test_the_front_end_takes_the_figures_out() -> None:
    """vLLM's loggers would look for a KV connector."""
    seen: list[Any] = []
    record = metrics._make_record(lambda self, stats, **_: seen.append(stats.kv_connector_stats))
    stats = SimpleNamespace(kv_connector_stats=None)
    manager = SimpleNamespace(cold_metrics=ColdMetrics("m", [0, 1]))
    attach(stats, Counts(requests=4).take(0, 0))
    record(manager, scheduler_stats=stats, engine_idx=1)
    assert sample("requests_total", 1) == 4
    stats.kv_connector_stats = {"other": 1}
    record(manager, stats)
    assert seen == [None, {"other": 1}]


def test_the_dashboard_shows_metrics_that_exist() -> None:
    """And all of them."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    asked = {name for query in queries for name in re.findall(r"\bvllm_cold_\w+", query)}
    assert queries and asked
    there = {PREFIX + name + "_total" for name, _ in COUNTERS.values()}
    there |= {PREFIX + name for name, _ in GAUGES.values()}
    parts = {PREFIX + "candidates" + end for end in ("_bucket", "_sum", "_count")}
    assert asked <= there | parts, asked - there - parts
    assert there <= asked and asked & parts
    # vLLM's own that it shows beside, as its source has them.
    from vllm.v1.metrics import loggers

    source = Path(loggers.__file__).read_text()
    for name in {name for query in queries for name in re.findall(r"\bvllm:\w+", query)}:
        stem = re.sub(r"_(total|bucket|sum|count)$", "", name)
        assert f'"{stem}"' in source or f'"{name}"' in source, name
