# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``StatLoggerManager.__init__`` and ``.record``.

Why: the figures that a scheduler sent (``scheduler.stats``) become the metrics of ``prometheus``.
(vLLM's entry point for such loggers would not do: a logger there switches statistics on in engines
that had them switched off, and in those without LoRA too.)
Since: 0.23 to 0.33. Can go: when vLLM has a channel for the figures of plugins.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_cold.vllm.frontend.config import is_configured
from vllm_cold.vllm.patching import Place
from vllm_cold.vllm.scheduler.stats import detach

if TYPE_CHECKING:
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


PLACES = (
    Place(
        "vllm.v1.metrics.loggers:StatLoggerManager.__init__", _make_manager_init, ("vllm_config",)
    ),
    Place("vllm.v1.metrics.loggers:StatLoggerManager.record", _make_record, ("scheduler_stats",)),
)
