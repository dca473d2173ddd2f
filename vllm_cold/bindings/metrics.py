# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``StatLoggerManager.__init__`` and ``.record``, ``ModelRunnerOutput.__init__``, and
``SchedulerStats.kv_connector_stats``.

Why: the figures of ``vllm_cold.statistics`` have to get from a worker to the scheduler, and from
there to the process that serves /metrics, which may be three processes. They travel in messages
that vLLM sends anyway:

- worker to scheduler: as the attribute ``cold`` of ``ModelRunnerOutput``, an ordinary object that
  is pickled with its attributes;
- scheduler to front end: in ``kv_connector_stats``, a dictionary that only engines with a KV
  connector use, which cannot have CoLD. vLLM sends a step's statistics to one front end, so with
  several API servers each figure is added up once. It is taken out before vLLM's loggers see it.

(vLLM's entry point for such loggers would not do: a logger there switches statistics on in engines
that had them switched off, and in those without LoRA too.)
Since: 0.23 to 0.33. Can go: when vLLM has a channel for the figures of plugins.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_cold.bindings.engine_config import is_configured
from vllm_cold.bindings.patching import Place
from vllm_cold.statistics import Figures, take

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats

KEY = "cold"  # in kv_connector_stats


def _make_output_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if scored := take():
            self.cold = scored

    return __init__


WORKER = (Place("vllm.v1.outputs:ModelRunnerOutput.__init__", _make_output_init),)


def from_worker(output: Any) -> dict[str, Figures]:
    """What came with a ``ModelRunnerOutput``, by the pair's id."""
    found: dict[str, Figures] = {}
    for scored in getattr(output, "cold", ()):
        found.update(scored.figures())
    return found


def attach(stats: "SchedulerStats", payload: dict[str, Any]) -> None:
    """Send ``payload`` to the front end along with these statistics."""
    stats.kv_connector_stats = {KEY: payload}


def _make_manager_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        self.cold_metrics = None
        if is_configured(vllm_config):
            from vllm.v1.metrics.loggers import PrometheusStatLogger

            from vllm_cold.metrics import ColdMetrics

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
        carried = scheduler_stats.kv_connector_stats if scheduler_stats is not None else None
        if carried is not None and KEY in carried:
            assert scheduler_stats is not None
            scheduler_stats.kv_connector_stats = None
            if self.cold_metrics is not None:
                self.cold_metrics.record(carried[KEY], kwargs.get("engine_idx") or 0)
        original(self, scheduler_stats, *args, **kwargs)

    return record


FRONT_END = (
    Place(
        "vllm.v1.metrics.loggers:StatLoggerManager.__init__", _make_manager_init, ("vllm_config",)
    ),
    Place("vllm.v1.metrics.loggers:StatLoggerManager.record", _make_record, ("scheduler_stats",)),
)
