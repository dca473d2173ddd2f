# SPDX-License-Identifier: Apache-2.0
"""The figures that a scheduler sent (``scheduler.stats``) become the metrics of ``prometheus``."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vllm_cold.vllm.frontend.config import is_configured
from vllm_cold.vllm.scheduler.stats import detach

if TYPE_CHECKING:
    from prometheus_client import Metric as Family
    from vllm.v1.metrics.reader import Histogram, Metric
    from vllm.v1.metrics.stats import SchedulerStats


def _make_manager_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        self.cold_metrics = None
        if is_configured(vllm_config):
            from vllm.v1.metrics.loggers import PrometheusStatLogger

            from vllm_cold.vllm.frontend.prometheus import ColdMetrics

            # Ray's logger has classes of its own.
            prometheus = next(x for x in self.stat_loggers if isinstance(x, PrometheusStatLogger))
            self.cold_metrics = ColdMetrics(
                vllm_config.model_config.served_model_name,
                self.engine_indexes,
                prometheus._counter_cls,
                prometheus._gauge_cls,
                prometheus._histogram_cls,
            )

    return __init__


def _make_record(original: Callable[..., None]) -> Callable[..., None]:
    def record(
        self: Any, scheduler_stats: "SchedulerStats | None", *args: Any, **kwargs: Any
    ) -> None:
        # Called by name in some places, so the signature is vLLM's as far as it is read here.
        payload = detach(scheduler_stats)
        if payload is not None and self.cold_metrics is not None:
            self.cold_metrics.record(payload, kwargs.get("engine_idx") or 0)
        original(self, scheduler_stats, *args, **kwargs)

    return record


def _make_get_metrics(original: Callable[[Any], "list[Metric]"]) -> Callable[..., "list[Metric]"]:
    def get_metrics(self: Any) -> "list[Metric]":
        return [*original(self), *_snapshot()]

    return get_metrics


def _snapshot() -> "Iterator[Metric]":
    """The metrics of contrastive decoding in this process, as vLLM's reader shows its own."""
    from prometheus_client import REGISTRY
    from vllm.v1.metrics.reader import Counter, Gauge

    from vllm_cold.vllm.frontend.prometheus import PREFIX

    for family in REGISTRY.collect():
        if not family.name.startswith(PREFIX):
            continue
        if family.type == "histogram":
            yield from _histograms(family)
            continue
        counts = family.type == "counter"
        for sample in family.samples:
            if sample.name == family.name + ("_total" if counts else ""):  # not when it was made
                value = int(sample.value) if counts else sample.value
                yield (Counter if counts else Gauge)(family.name, sample.labels, value)


def _histograms(family: "Family") -> "Iterable[Histogram]":
    """One for each set of labels, from the samples of its buckets, count and sum."""
    from vllm.v1.metrics.reader import Histogram

    found: dict[tuple[str, ...], Histogram] = {}
    for sample in family.samples:
        labels = dict(sample.labels)
        bucket = labels.pop("le", None)
        new = Histogram(family.name, labels, count=0, sum=0.0, buckets={})
        one = found.setdefault(tuple(labels.values()), new)
        if bucket is not None:
            one.buckets[bucket] = int(sample.value)
        elif sample.name.endswith("_count"):
            one.count = int(sample.value)
        elif sample.name.endswith("_sum"):
            one.sum = sample.value
    return found.values()
