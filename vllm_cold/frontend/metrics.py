# SPDX-License-Identifier: Apache-2.0
"""The figures that a scheduler sent become Prometheus metrics, in the registry that vLLM's are in;
docs/metrics.md says how to read them. What is counted, and what it is called, ``wire.counters``
says. Names begin as vLLM's do: so vLLM removes them before the process has another engine, and
``LLM.get_metrics`` shows them.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vllm_cold.compat.engine import is_configured, slots_of
from vllm_cold.compat.patching import Original
from vllm_cold.wire.counters import (
    CANDIDATES,
    COUNTERS,
    GAUGES,
    KERNEL_INFO,
    SLOTS,
    SPENT,
    ColdStats,
    detach,
)

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats

PREFIX = "vllm:cold_"
LABELS = ("model_name", "engine")
KIND = ("method", "adapter")  # further labels of the sums
KERNEL = ("kernel", "path", "reason")  # of what computes
# At alpha 0.1 most steps have a handful; a tiny alpha admits thousands.
CANDIDATE_BUCKETS = (1, 2, 3, 5, 10, 20, 50, 100, 1000, 10000)
SPENT_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class ColdMetrics:
    """The metrics of some engines in this process.

    Args:
        model_name: Label of all metrics, as in vLLM's own.
        engines: The engines' numbers, a label.
        classes: vLLM's PrometheusStatLogger, or one of its subclasses: Ray's has classes of its own
            in place of prometheus_client's.
        slots: Of sequences, by whose they are: ``engine`` and ``contrastive``.
    """

    def __init__(
        self, model_name: str, engines: Iterable[int], classes: Any, slots: Mapping[str, int]
    ) -> None:
        self._model_name = model_name
        labels = (*LABELS, *KIND)
        self._counters = {
            name: classes._counter_cls(PREFIX + name, text, labelnames=labels)
            for name, text in COUNTERS.items()
        }
        self._candidates = classes._histogram_cls(
            PREFIX + "candidates", CANDIDATES, labelnames=labels, buckets=CANDIDATE_BUCKETS
        )
        self._spent = classes._histogram_cls(
            PREFIX + "bits", SPENT, labelnames=labels, buckets=SPENT_BUCKETS
        )
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
        of_slots = classes._gauge_cls(
            PREFIX + "sequence_slots",
            SLOTS,
            labelnames=(*LABELS, "of"),
            multiprocess_mode="mostrecent",
        )
        for engine in engines:
            for of, count in slots.items():
                of_slots.labels(model_name, str(engine), of).set(count)
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
            for histogram, values in (
                (self._candidates, sums.candidates),
                (self._spent, sums.spent),
            ):
                of_kind = histogram.labels(*labels)
                for value in values:
                    of_kind.observe(value)

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
        slots = slots_of(vllm_config)
        of = {"engine": slots.engine, "contrastive": slots.contrastive}
        self.cold_metrics = ColdMetrics(name, self.engine_indexes, logger, of)


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
