# SPDX-License-Identifier: Apache-2.0
"""The figures that a scheduler sent (``wire.stats_channel``) become Prometheus metrics, in the
registry that vLLM's are in; docs/metrics.md says how to read them. What is counted, and how it is
called, is ``wire.counters``'s.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import REGISTRY
from prometheus_client import Metric as Family

from vllm_cold.compat.engine import is_configured
from vllm_cold.compat.patching import Original
from vllm_cold.wire.counters import COUNTERS, GAUGES, HISTOGRAMS, KERNEL_INFO, ColdStats
from vllm_cold.wire.stats_channel import detach

if TYPE_CHECKING:
    from vllm.v1.metrics.reader import Metric
    from vllm.v1.metrics.stats import SchedulerStats

PREFIX = "vllm_cold_"
LABELS = ("model_name", "engine")
KIND = ("method", "adapter")  # further labels of the sums
KERNEL = ("kernel", "path", "reason")  # of what computes
# At alpha 0.1 most steps have a handful; a tiny alpha admits thousands.
CANDIDATE_BUCKETS = (1, 2, 3, 5, 10, 20, 50, 100, 1000, 10000)


class ColdMetrics:
    """The metrics of some engines in this process.

    Args:
        model_name: Label of all metrics, as in vLLM's own.
        engines: The engines' numbers, a label.
        classes: vLLM's PrometheusStatLogger, or one of its subclasses: Ray's has classes of its own
            in place of prometheus_client's.
    """

    def __init__(self, model_name: str, engines: Iterable[int], classes: Any) -> None:
        # What an earlier engine in this process registered goes, as vLLM's own does.
        for collector in tuple(REGISTRY._collector_to_names):
            # Those of other packages may have no name.
            if getattr(collector, "_name", "").startswith(PREFIX):
                REGISTRY.unregister(collector)
        self._model_name = model_name
        labels = (*LABELS, *KIND)
        self._counters = {
            name: classes._counter_cls(PREFIX + name, text, labelnames=labels)
            for name, text in COUNTERS.items()
        }
        self._histograms = {
            name: classes._histogram_cls(
                PREFIX + name, text, labelnames=labels, buckets=CANDIDATE_BUCKETS
            )
            for name, text in HISTOGRAMS.items()
        }
        self._gauges = {
            # Of several API servers the one that heard last knows.
            name: classes._gauge_cls(
                PREFIX + name, text, labelnames=LABELS, multiprocess_mode="mostrecent"
            )
            for name, text in GAUGES.items()
        }
        self._kernels = classes._gauge_cls(
            PREFIX + "kernel_info",
            KERNEL_INFO,
            labelnames=(*LABELS, *KERNEL),
            multiprocess_mode="mostrecent",
        )
        for engine in engines:
            self._set_gauges(ColdStats(), engine)  # with several API servers not on the page before

    def record(self, payload: Mapping[str, Any], engine: int) -> None:
        """Add what an engine reports.

        Args:
            payload: From ``wire.counters.CountersByKind.take``.
            engine: Which one.
        """
        report = msgspec.convert(payload, ColdStats)
        self._set_gauges(report, engine)
        for kernel in report.kernels:
            self._kernels.labels(self._model_name, str(engine), *kernel).set(1)
        for kind, sums in report.sums:
            labels = (self._model_name, str(engine), *kind)
            for name, counter in self._counters.items():
                counter.labels(*labels).inc(getattr(sums, name))  # 0 too: then it is on the page
            for name, histogram in self._histograms.items():
                child = histogram.labels(*labels)
                for value in getattr(sums, name):
                    child.observe(value)

    def _set_gauges(self, report: ColdStats, engine: int) -> None:
        for name, gauge in self._gauges.items():
            gauge.labels(self._model_name, str(engine)).set(getattr(report, name))


def wrap_logger_manager_init(
    original: Original, self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    """Wrap ``StatLoggerManager.__init__``."""
    original(self, vllm_config, *args, **kwargs)
    self.cold_metrics = None
    if is_configured(vllm_config):
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        logger = next(x for x in self.stat_loggers if isinstance(x, PrometheusStatLogger))
        name = vllm_config.model_config.served_model_name
        self.cold_metrics = ColdMetrics(name, self.engine_indexes, logger)


def wrap_record(
    original: Original,
    self: Any,
    scheduler_stats: "SchedulerStats | None",
    *args: Any,
    **kwargs: Any,
) -> None:
    """Wrap ``StatLoggerManager.record``."""
    # Called by name in some places, so the signature is vLLM's as far as it is read here.
    payload = detach(scheduler_stats)
    if payload is not None and self.cold_metrics is not None:
        self.cold_metrics.record(payload, kwargs.get("engine_idx") or 0)
    original(self, scheduler_stats, *args, **kwargs)


def wrap_get_metrics(original: Callable[[Any], "list[Metric]"], self: Any) -> "list[Metric]":
    """Wrap ``LLMEngine.get_metrics``."""
    families = (f for f in REGISTRY.collect() if f.name.startswith(PREFIX))
    ours = (metric for family in families for metric in _as_vllms(family))
    return [*original(self), *ours]


def _as_vllms(family: Family) -> "Iterator[Metric]":
    """Yield a family of metrics as vLLM's reader shows its own: one for each set of labels."""
    from vllm.v1.metrics.reader import Counter, Gauge, Histogram

    name, histogram = family.name, Histogram(family.name, {}, count=0, sum=0.0, buckets={})
    for sample in family.samples:
        match family.type, sample.name.removeprefix(name):
            case "gauge", "":
                yield Gauge(name, sample.labels, sample.value)
            case "counter", "_total":
                yield Counter(name, sample.labels, int(sample.value))
            # Those of one set of labels follow each other: its buckets, the count and the sum.
            case "histogram", "_bucket":
                histogram.buckets[sample.labels["le"]] = int(sample.value)
            case "histogram", "_count":
                histogram.labels, histogram.count = sample.labels, int(sample.value)
            case "histogram", "_sum":
                histogram.sum = sample.value
                yield histogram
                histogram = Histogram(name, {}, count=0, sum=0.0, buckets={})
