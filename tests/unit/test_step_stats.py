# SPDX-License-Identifier: Apache-2.0
"""Figures for /metrics: gathered, handed over once, and shown under proper names."""

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import msgspec
import numpy as np
import prometheus_client
import pytest
import torch
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.reader import get_metrics_snapshot
from vllm.v1.metrics.stats import SchedulerStats

from tests.engine_config import config
from tests.front_end import ONE, Front
from vllm_cold import Amateur, ColdParams
from vllm_cold.compat import hardware
from vllm_cold.compat.patching import bind
from vllm_cold.frontend import metrics
from vllm_cold.frontend.engine_config import configure
from vllm_cold.frontend.metrics import PREFIX, ColdMetrics
from vllm_cold.ops.interface import NOT_FINITE, OUT_OF_RANGE
from vllm_cold.scheduler import output_checks
from vllm_cold.wire import transfer_params, worker_output
from vllm_cold.wire.counters import (
    COUNTERS,
    GAUGES,
    MAX_ADAPTERS,
    OTHER,
    ColdStats,
    Counters,
    CountersByKind,
    attach,
    detach,
)
from vllm_cold.wire.step_stats import (
    ENDS,
    OTHER_DRAFTS,
    RULE_FAILED,
    Explained,
    RowStats,
    StepStats,
)

pytestmark = pytest.mark.unit

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"


KIND = {"method": "cold", "adapter": "a"}


def make_metrics() -> ColdMetrics:
    """Those of two engines, made when vLLM has made its own."""
    unregister_vllm_metrics()
    return ColdMetrics("m", [0, 1], PrometheusStatLogger, {"engine": 32, "contrastive": 8})


def sample(name: str, engine: int = 0, **labels: str) -> float | None:
    labels = {"model_name": "m", "engine": str(engine), **labels}
    return prometheus_client.REGISTRY.get_sample_value(PREFIX + name, labels)


def counts_of(**sums: Any) -> CountersByKind:
    """Of one adapter's requests."""
    counts = CountersByKind()
    counts.sums["cold", "a"] = Counters(**sums)
    return counts


class Output:
    """As vLLM makes it, with what this thread carries."""

    __init__ = worker_output.attach


@pytest.fixture(autouse=True)
def _nothing_left() -> None:
    """What other tests of this process have left."""
    Output()


def explained(weight: float) -> Explained:
    return Explained([1, 1], [0.5, 0.5], [[0.5, 0.5]] * 2, [1.0, 1.0], [weight], [0.1])


def array(*rows: Any) -> np.ndarray:
    return np.array(rows)


@pytest.mark.parametrize(("share", "of_share"), [(None, 32.0), (0.25, 8.0)])
def test_a_share_of_the_slots_is_on_the_page(share: float | None, of_share: float) -> None:
    unregister_vllm_metrics()
    engine = config(served_model_name="m")
    engine.scheduler_config.max_num_seqs = 32
    engine.additional_config = {"cold": {} if share is None else {"max_share": share}}
    configure(engine)
    manager = SimpleNamespace(engine_indexes=[1])

    def original(manager: Any, vllm_config: Any) -> None:
        manager.stat_loggers = [PrometheusStatLogger.__new__(PrometheusStatLogger)]

    metrics.wrap_logger_manager_init(original, manager, engine)
    assert sample("sequence_slots", engine=1, of="engine") == 32.0
    assert sample("sequence_slots", engine=1, of="contrastive") == of_share


def test_figures_are_in_the_order_of_the_tokens() -> None:
    """Where drafts are verified a group has several, and V1 asks about the last row first."""
    # Where a rule chooses, with what it said.
    worker_output.hand_over(StepStats(("b", "a"), array([5, 0, 0, 2, 0], [3, 1, 0, 0, 1]), (3, 1)))
    details = [explained(0.5), explained(1.0)]  # somebody asks for them
    columns = list(map(array, *details))
    first = StepStats(("a", "a"), array([1, 0, 0], [2, 1, 0]), (1, 1), (0, 1), columns)
    worker_output.hand_over(first, in_front=True)
    last = StepStats(("c",), array([9, 0, 1]), (0,))
    last.charge(torch.tensor([[[0.5, 8.0, 1.0]]]), [0])  # once the tokens are known
    worker_output.hand_over(last)
    carried: Any = Output()
    for output in (carried, pickle.loads(pickle.dumps(SimpleNamespace(cold=carried.cold)))):
        assert worker_output.from_worker(output) == {
            "a": [
                RowStats(1, 0, 0, 0, 0, 1, details[0]), RowStats(2, 1, 0, 0, 0, 1, details[1]),
                RowStats(3, 1, 0, 0, 1, 1),
            ],
            "b": [RowStats(5, 0, 0, 2, 0, 3)],
            "c": [RowStats(9, 0, 1, 0, 1, 0, None, [[0.5, 8.0, 1.0]])],
        }  # fmt: skip
    worker_output.hand_over(StepStats(("a",), array([4, 0, 0]), (1,)), in_front=True)
    assert worker_output.from_worker(Output()) == {"a": [RowStats(4, 0, 0, 0, 0, 1)]}


def test_figures_on_a_device_are_waited_for_when_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copied to pinned memory without waiting while the step runs."""
    event = Mock()

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
        patch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(Event=lambda: event))
        rows: list[Any] = [OnDevice([[2, 0, 1]]), *(OnDevice([[i]]) for i in range(6))]
        late = StepStats(("a",), rows[0], (1,), (0,), Explained(*rows[1:]))
    assert event.method_calls == [call.record()] * 7
    details = Explained(*([i] for i in range(6)))
    assert list(late.figures()) == [("a", RowStats(2, 0, 1, present=1, explained=details))]
    assert event.method_calls[7:] == [call.synchronize()]  # the later one comes last


def test_steps_stand_beside_what_a_connector_says() -> None:
    rows = [{"weights": [-0.5, 0.0]}, {"weights": [None, 0.5]}]
    theirs = {"remote_block_ids": [1]}
    both = transfer_params.with_ours(theirs, steps=rows)
    assert both == {**theirs, "cold": {"steps": rows}} and "cold" not in theirs
    assert transfer_params.told_in(both) == {"steps": rows}
    assert transfer_params.told_in(theirs) == transfer_params.told_in(None) == {}
    assert transfer_params.without_told(both) == theirs
    assert transfer_params.without_told(transfer_params.with_ours(None, steps=rows)) is None
    more = transfer_params.with_ours(both, budget={"spent": [0.5]})
    assert transfer_params.told_in(more) == {"steps": rows, "budget": {"spent": [0.5]}}
    assert transfer_params.without_told(more) == theirs
    of_all = transfer_params.with_ours(theirs, amateurs=[{"remote_block_ids": [2]}])
    assert transfer_params.without_told(transfer_params.with_ours(of_all, steps=rows)) == of_all


def test_counts_are_taken_once() -> None:
    counts = counts_of(requests=2, preemptions=1, amateur_prompt_tokens=40)
    a, other = counts.sums["cold", "a"], counts.sums["cfg", ""]
    a.give(1, [RowStats(4, 1, 0)])
    a.give(1, [RowStats(2, 0, 0, done=1, idle=1)])
    a.give(1, ())  # nobody asks for figures
    a.give(0, [RowStats(9, 1, 0)])  # an end without a token
    other.give(1, [RowStats(7, 1, 0)])
    taken = counts.take(3, 1, 1)
    sums = Counters(
        requests=2, generation_tokens=3, changed_tokens=1, preemptions=1, amateur_prompt_tokens=40,
        candidates=[4, 2], idle_tokens=1,
    )  # fmt: skip
    of_other = Counters(generation_tokens=1, changed_tokens=1, candidates=[7])
    report = ColdStats(3, 1, 1, [(("cold", "a"), sums), (("cfg", ""), of_other)])
    # As plain data, which any serializer takes; vLLM sends its statistics by msgpack.
    assert msgspec.convert(json.loads(json.dumps(taken)), ColdStats) == report
    stats = SchedulerStats()
    attach(stats, taken)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(stats), type=SchedulerStats)
    assert msgspec.convert(detach(sent), ColdStats) == report
    assert counts.take(0, 0, 0) == {}
    assert sums.candidates == [4, 2] and Counters().candidates == []


def test_kernels_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the worker, by what it has loaded by then, to a metric for each."""
    loaded: list[hardware.Kernel] = []
    monkeypatch.setattr(hardware, "kernels", loaded)
    worker_output.tell_kernels()  # when the logits processor is made, before the model is loaded
    loaded += [("products", "kernel", "fast"), ("lora", "inside", "one call")]
    first: Any = pickle.loads(pickle.dumps(SimpleNamespace(**vars(Output()))))
    assert worker_output.kernels_of(first) == loaded
    assert worker_output.kernels_of(Output()) == []
    counts = CountersByKind()
    counts.kernels = worker_output.kernels_of(first)
    make_metrics().record(json.loads(json.dumps(counts.take(0, 0, 0))), 1)
    assert counts.take(0, 0, 0) == {}
    kernel = {"kernel": "lora", "path": "inside", "reason": "one call"}
    assert sample("kernel_info", 1, **kernel) == 1 and sample("kernel_info", 0, **kernel) is None


def test_what_a_request_is_counted_under(tiny: Path) -> None:
    front = Front(tiny / "model")
    messages = [{"role": role, "content": " w3"} for role in ("system", "user")]
    text, chat = front.text(" w1 w2"), front.chat(messages)

    def method(prompt: Any = text, params: Any = None, lora: Any = ONE, **args: Any) -> str:
        return front.streams(prompt, params, lora, **args).method

    assert method(beta=1) == method(amateur="two") == method(params=ColdParams()) == "cold"
    own = Amateur(prompt=" w9")
    assert method(part="0:1") == method(params=ColdParams(amateurs=[own, Amateur()])) == "custom"
    assert method(part="0:1", preset="cad") == method(part="0:1", preset="cad", beta=2) == "cad"
    assert method(rule="mti") == method(part="0:1", weights="mti") == "mti"
    assert method(part="0:1", preset="cad", rule="mti") == "mti"
    # A preset whose rule a number or another rule replaces is not in force.
    own_prompt = {"preset": "acd", "amateur_prompt": " w1"}
    replaced = (method(**own_prompt, beta=0.7), method(**own_prompt, rule="mti"))
    assert (method(**own_prompt), *replaced) == ("acd", "custom", "mti")
    assert method(params=ColdParams.preset("cad", amateur=own, beta=1.0)) == "cad"
    assert method(lora=None, amateur=["one", "two"], preset="dexperts") == "dexperts"
    front.serve(default={"preset": "cfg", "without": "system"})
    assert method(chat) == "cfg" and method(chat, preset="adacad") == "adacad"


def test_adapters_are_counted_apart_up_to_a_number() -> None:
    """A server may load new ones for ever; known ones, and the base model, keep their names."""
    counts = CountersByKind()
    names = [f"a{i}" for i in range(MAX_ADAPTERS + 3)]
    assert counts.kind("cad", "") == ("cad", "")
    for _ in range(2):
        kept = [counts.kind("cad", name) for name in names]
        assert kept[:-3] == [("cad", name) for name in names[:-3]]
        assert kept[-3:] == [("cad", OTHER)] * 3
        assert counts.kind("cfg", names[0]) == ("cfg", names[0])


@pytest.mark.parametrize(
    ("nonfinite", "said"),
    [
        (0, None),
        (1, NOT_FINITE),
        (OTHER_DRAFTS, output_checks.NOT_THE_SAME_DRAFTS),
        (OUT_OF_RANGE, output_checks.NOT_SCORED),
        (RULE_FAILED, output_checks.RULE_HAS_NO_WEIGHTS),
        (ENDS, output_checks.ENDED_BY_RULE),
    ],
)
def test_what_is_told_of_tokens_that_must_not_be_given(nonfinite: int, said: str | None) -> None:
    """Of the tokens that were given, not of drafts that were wrong."""
    good, bad = RowStats(3, 0, 0, present=1), RowStats(3, 0, nonfinite, present=1)
    assert (
        output_checks.problem([good, bad], 2, 1, 1)
        == output_checks.problem([bad, good], 1, 1, 1)
        == said
    )
    assert output_checks.problem([good, bad], 1, 1, 1) is None
    charged = good._replace(charges=[(0.5, 8.0, 0.0)])
    assert output_checks.problem([charged], 1, 0, 1, charges=True) is None
    assert output_checks.problem([good], 1, 0, 1, charges=True) == output_checks.NOT_CHARGED
    # A row that nobody scored, and one without an amateur that was in the step.
    assert (
        output_checks.problem([good], 1, 1, 1)
        == output_checks.problem([good], 1, 0, 3)
        == output_checks.NOT_SCORED
    )


def test_metrics_add_up() -> None:
    assert [*COUNTERS, "candidates", "spent"] == [*Counters.__struct_fields__]
    assert [*GAUGES, "sums", "kernels"] == [*ColdStats.__struct_fields__]
    make_metrics()  # an engine that was here before
    counting = make_metrics()
    assert sample("requests_running", 1) == sample("requests_waiting", 0) == 0
    counts = counts_of(requests=1)
    counts.sums["cold", "a"].give(2, [RowStats(1, 0, 0), RowStats(4, 1, 0), RowStats(9, 1, 0)])
    counts.sums["cold", "a"].spent += [8.0, -0.5]
    counts.sums["cfg", "a"].requests = 5
    counting.record(counts.take(1, 2, 1), 1)
    assert sample("requests_running", 1) == 1 and sample("requests_waiting", 1) == 2
    assert sample("requests_waiting_for_share", 1) == 1
    counting.record(counts_of(generation_tokens=3).take(0, 0, 0), 1)
    some = {"requests": 1, "generation_tokens": 5, "changed_tokens": 1}
    for name in COUNTERS:
        assert sample(f"{name}_total", 1, **KIND) == some.get(name, 0)
    assert sample("candidates_count", 1, **KIND) == 2
    assert sample("candidates_sum", 1, **KIND) == 5
    assert sample("candidates_bucket", 1, **KIND, le="1.0") == 1
    assert (sample("bits_count", 1, **KIND), sample("bits_sum", 1, **KIND)) == (2, 7.5)
    assert sample("bits_bucket", 1, **KIND, le="8.0") == 2
    assert sample("requests_running", 1) == sample("requests_waiting", 1) == 0
    # Each kind has all of its figures from the first one on, so that shares can be computed.
    assert sample("requests_total", 1, method="cfg", adapter="a") == 5
    assert sample("changed_tokens_total", 1, method="cfg", adapter="a") == 0
    assert sample("candidates_count", 1, method="cfg", adapter="a") == 0
    assert sample("requests_total", 0, **KIND) is None
    # Offline, as vLLM's reader shows its own: one of each kind.
    shown = get_metrics_snapshot()
    found = {(one.name, one.labels.get("method")): one for one in shown}
    assert found[PREFIX + "requests", "cfg"].value == 5
    candidates = found[PREFIX + "candidates", "cold"]
    assert (candidates.count, candidates.sum, candidates.buckets["1.0"]) == (2, 5, 1)
    assert found[PREFIX + "candidates", "cfg"].count == 0
    assert found[PREFIX + "requests_running", None].value == 0


def test_the_front_end_takes_the_figures_out() -> None:
    """vLLM's loggers would look for a KV connector."""
    seen: list[Any] = []
    record = bind(
        metrics.wrap_record, lambda self, stats, **_: seen.append(stats.kv_connector_stats)
    )
    stats = SimpleNamespace(kv_connector_stats=None)
    manager = SimpleNamespace(cold_metrics=make_metrics())
    attach(stats, counts_of(requests=4).take(0, 0, 0))
    record(manager, scheduler_stats=stats, engine_idx=1)
    assert sample("requests_total", 1, **KIND) == 4
    stats.kv_connector_stats = {"other": 1}
    record(manager, stats)
    # Those of a connector stay.
    attach(stats, counts_of(requests=3).take(0, 0, 0))
    record(manager, stats)
    assert seen == [None, {"other": 1}, {"other": 1}]
    assert sample("requests_total", 0, **KIND) == 3


def test_the_dashboard_shows_metrics_that_exist() -> None:
    """And all of them."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    asked = {name for query in queries for name in re.findall(r"\bvllm:cold_\w+", query)}
    assert queries and asked
    there = {PREFIX + name + "_total" for name in COUNTERS} | {PREFIX + name for name in GAUGES}
    histograms = [
        {PREFIX + name + end for end in ("_bucket", "_sum", "_count")}
        for name in ("candidates", "bits")
    ]
    parts = set().union(*histograms)
    assert asked <= there | parts, asked - there - parts
    assert there <= asked and all(asked & ends for ends in histograms)
    # vLLM's own that it shows besides, as its source has them.
    from vllm.v1.metrics import loggers

    source = Path(loggers.__file__).read_text()
    found = {name for query in queries for name in re.findall(r"\bvllm:\w+", query)}
    for name in found - asked:
        stem = re.sub(r"_(total|bucket|sum|count)$", "", name)
        assert f'"{stem}"' in source or f'"{name}"' in source, name


def test_threads_do_not_see_each_others_steps() -> None:
    """An engine in a thread of its own."""
    worker_output.hand_over(StepStats(("a",), array([1, 0, 0]), (1,)))
    with ThreadPoolExecutor() as other:
        assert worker_output.from_worker(other.submit(Output).result()) == {}
    assert worker_output.from_worker(Output()) == {"a": [RowStats(1, 0, 0, present=1)]}
