# SPDX-License-Identifier: Apache-2.0
"""What a scheduler counts of contrastive requests, and sends to the process that serves /metrics,
next to what a KV connector counted. vLLM sends a step's statistics to one front end, so with
several API servers each figure is added up once. Imports neither vLLM nor torch.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from vllm_cold.compat.hardware import Kernel

if TYPE_CHECKING:
    from vllm_cold.wire.step_stats import RowStats  # which needs torch

Kind: TypeAlias = tuple[str, str]
"""What a request is counted under: its method and its expert's adapter, "" for the base model."""
MAX_ADAPTERS = 100  # that an engine counts apart: a server may load new ones for ever
OTHER = "other"  # stands for further ones
_KEY = "cold"  # in kv_connector_stats


# Metrics by name, with their help: the fields of ``Counters`` and ``ColdStats``.
COUNTERS = {
    "requests": "Contrastive requests that the engine has taken on.",
    "generation_tokens": "Tokens that contrastive requests were given.",
    "draft_tokens": "Tokens that were drafted for contrastive requests and verified.",
    "accepted_draft_tokens": "Drafts of contrastive requests that were right.",
    "changed_tokens": "Tokens of contrastive requests at whose position the best token is not the "
    "expert's.",
    "idle_tokens": "Tokens of contrastive requests whose rule gave all amateurs the weight 0.",
    "retired_streams": "Amateurs that ended before their request, as its rule said.",
    "preemptions": "Times that a contrastive request was preempted.",
    "amateur_prompt_tokens": "Prompt tokens of amateurs.",
    "amateur_cached_prompt_tokens": "Prompt tokens of amateurs that were found in the prefix "
    "cache.",
}
SPENT = "What answers cost by their rule, of each amateur: bits, by the rule bound."
CANDIDATES = "Tokens that the expert finds plausible, for each token that was given."
GAUGES = {
    "requests_running": "Contrastive requests of which all streams are in the batch.",
    "requests_waiting": "Contrastive requests of which a stream, or all, wait.",
    "requests_waiting_for_share": "Contrastive requests that wait because others have the share of "
    "the sequence slots that the engine allows them.",
}
SLOTS = "Sequence slots: of the engine, and those that contrastive requests may have at a time."
KERNEL_INFO = "What is computed on a CPU, by which kernels, and why; always 1."


class Counters(msgspec.Struct, omit_defaults=True):
    """What the scheduler counted of one kind of requests since its last report."""

    requests: int = 0
    generation_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    changed_tokens: int = 0
    idle_tokens: int = 0
    retired_streams: int = 0
    preemptions: int = 0
    amateur_prompt_tokens: int = 0
    amateur_cached_prompt_tokens: int = 0
    candidates: list[int] = []
    spent: list[float] = []

    def give(self, tokens: int, figures: "Sequence[RowStats]") -> None:
        """Count the tokens that a request gets; ``figures``: a worker's, of where it sampled them,
        and maybe after them; empty if they do not matter.
        """
        self.generation_tokens += tokens
        for row in figures[:tokens]:
            self.candidates.append(row.candidates)
            self.changed_tokens += row.changed
            self.idle_tokens += row.idle


class ColdStats(msgspec.Struct, omit_defaults=True):
    """What a scheduler tells the front ends."""

    requests_running: int = 0
    requests_waiting: int = 0
    requests_waiting_for_share: int = 0
    sums: list[tuple[Kind, Counters]] = []
    kernels: list[Kernel] = []


class CountersByKind:
    """What a scheduler counts."""

    def __init__(self) -> None:
        self.sums: defaultdict[Kind, Counters] = defaultdict(Counters)  # since the last report
        self.kernels: list[Kernel] = []  # which no report has told yet
        self._adapters: set[str] = set()

    def kind(self, method: str, adapter: str) -> Kind:
        """Return what a request is counted under; ``adapter``: its expert's, "" for none."""
        if adapter and adapter not in self._adapters:
            if len(self._adapters) == MAX_ADAPTERS:
                return method, OTHER
            self._adapters.add(adapter)
        return method, adapter

    def take(self, *gauges: int) -> dict[str, Any]:
        """Return a ``ColdStats`` as plain data; begin new sums. ``gauges``: numbers of groups, in
        the order of ``GAUGES``.
        """
        numbers = dict(zip(GAUGES, gauges, strict=True))
        report = ColdStats(**numbers, sums=list(self.sums.items()), kernels=self.kernels)
        self.sums.clear()
        self.kernels = []
        payload: dict[str, Any] = msgspec.to_builtins(report)
        return payload


def attach(stats: Any, payload: dict[str, Any]) -> None:
    """Send ``payload`` to the front end along with these statistics."""
    stats.kv_connector_stats = {**(stats.kv_connector_stats or {}), _KEY: payload}


def detach(stats: Any) -> dict[str, Any] | None:
    """Take the payload out again, before vLLM sees it; None if there is none."""
    carried = stats.kv_connector_stats if stats is not None else None
    if stats is None or carried is None or _KEY not in carried:
        return None
    payload: dict[str, Any] = carried[_KEY]
    stats.kv_connector_stats = {k: v for k, v in carried.items() if k != _KEY} or None
    return payload
