# SPDX-License-Identifier: Apache-2.0
"""The Prometheus metrics of CoLD. Imports no vLLM; docs/metrics.md says how to read them."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

PREFIX = "vllm_cold_"
LABELS = ("model_name", "engine")
# At alpha 0.1 most steps have a handful; a tiny alpha admits thousands.
CANDIDATE_BUCKETS = (1, 2, 3, 5, 10, 20, 50, 100, 1000, 10000)

# Payload key -> name without prefix (and without the "_total" that Prometheus adds), help.
COUNTERS = {
    "requests": ("requests", "CoLD requests that the engine has taken on."),
    "tokens": ("generation_tokens", "Tokens that CoLD requests were given."),
    "changed": (
        "changed_tokens",
        "Scored positions at which the best token is another one than the expert's.",
    ),
    "preemptions": ("pair_preemptions", "Times that a CoLD request lost its place in the batch."),
    "prompt_tokens": ("amateur_prompt_tokens", "Prompt tokens of amateurs."),
    "cached_prompt_tokens": (
        "amateur_cached_prompt_tokens",
        "Prompt tokens of amateurs that were found in the prefix cache.",
    ),
}
GAUGES = {
    "running": ("pairs_running", "CoLD requests of which all streams are in the batch."),
    "waiting": ("pairs_waiting", "CoLD requests that wait for a place in the batch."),
}
CANDIDATES = ("candidates", "Tokens that the expert finds plausible, at each scored position.")


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
        labels = {engine: (model_name, str(engine)) for engine in engines}

        def by_engine(metric: Any) -> dict[int, Any]:
            return {engine: metric.labels(*values) for engine, values in labels.items()}

        self._counters = {
            key: by_engine(counter(PREFIX + name, text, labelnames=LABELS))
            for key, (name, text) in COUNTERS.items()
        }
        self._gauges = {
            # Of several API servers the one that heard last knows.
            key: by_engine(
                gauge(PREFIX + name, text, labelnames=LABELS, multiprocess_mode="mostrecent")
            )
            for key, (name, text) in GAUGES.items()
        }
        for gauges in self._gauges.values():
            for child in gauges.values():
                child.set(0)  # with several API servers it is not on the page before
        name, text = CANDIDATES
        self._candidates = by_engine(
            histogram(PREFIX + name, text, labelnames=LABELS, buckets=CANDIDATE_BUCKETS)
        )

    def record(self, payload: Mapping[str, Any], engine: int) -> None:
        """Add what an engine reports.

        Args:
            payload: From ``group.tally.Counts.take``.
            engine: Which one.
        """
        for key, counters in self._counters.items():
            if payload[key]:
                counters[engine].inc(payload[key])
        for key, gauges in self._gauges.items():
            gauges[engine].set(payload[key])
        observe = self._candidates[engine].observe
        for candidates in payload["candidates"]:
            observe(candidates)


def _unregister() -> None:
    """Take out what an earlier engine in this process registered, as vLLM does with its own."""
    for collector in tuple(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith(PREFIX):
            REGISTRY.unregister(collector)
