# SPDX-License-Identifier: Apache-2.0
"""The Prometheus metrics of contrastive decoding. Imports no vLLM; docs/metrics.md says how to read
them.

What is counted, and how it is called, is ``group.step_stats``'s.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from vllm_cold.group.step_stats import COUNTERS, GAUGES, HISTOGRAMS, ColdStats

PREFIX = "vllm_cold_"
LABELS = ("model_name", "engine")
KIND = ("method", "adapter")  # further labels of the sums
# At alpha 0.1 most steps have a handful; a tiny alpha admits thousands.
CANDIDATE_BUCKETS = (1, 2, 3, 5, 10, 20, 50, 100, 1000, 10000)


class ColdMetrics:
    """The metrics of some engines in this process, in the registry that vLLM's metrics are in.

    Args:
        model_name: Label of all metrics, as in vLLM's own.
        engines: The engines' numbers, a label.
        counter: ``prometheus_client``'s class, or one that is used like it; so are the others.
        gauge: See there.
        histogram: See there.
    """

    def __init__(
        self,
        model_name: str,
        engines: Iterable[int],
        counter: Any = Counter,
        gauge: Any = Gauge,
        histogram: Any = Histogram,
    ) -> None:
        _unregister()
        self._model_name = model_name
        self._counters = {
            name: counter(PREFIX + name, text, labelnames=(*LABELS, *KIND))
            for name, text in COUNTERS.items()
        }
        self._histograms = {
            name: histogram(
                PREFIX + name, text, labelnames=(*LABELS, *KIND), buckets=CANDIDATE_BUCKETS
            )
            for name, text in HISTOGRAMS.items()
        }
        self._gauges = {
            # Of several API servers the one that heard last knows.
            name: gauge(PREFIX + name, text, labelnames=LABELS, multiprocess_mode="mostrecent")
            for name, text in GAUGES.items()
        }
        for engine in engines:
            self._set_gauges(ColdStats(), engine)  # with several API servers not on the page before

    def record(self, payload: Mapping[str, Any], engine: int) -> None:
        """Add what an engine reports.

        Args:
            payload: From ``group.step_stats.CountersByKind.take``.
            engine: Which one.
        """
        report = msgspec.convert(payload, ColdStats)
        self._set_gauges(report, engine)
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


def _unregister() -> None:
    """Take out what an earlier engine in this process registered, as vLLM does with its own."""
    for collector in tuple(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith(PREFIX):
            REGISTRY.unregister(collector)
