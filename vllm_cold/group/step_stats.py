# SPDX-License-Identifier: Apache-2.0
"""Figures about contrastive decoding on their way from workers to the scheduler and to /metrics.
Imports no vLLM.

There are three stages. A worker's processor makes ``StepStats`` of each step. They hold of each
scored group how many candidates there were, whether contrastive decoding changed the token, and
whether the logits were numbers at all (``RowStats``). The scheduler adds requests, tokens and
groups (``CountersByKind``) and sends them as a ``ColdStats``. The front end makes metrics of these
(``metrics``). Each stage hands over only what is new, so that the next one can add it up. What
clients that ask are told of their tokens goes with them (``explained``).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import torch

Kind: TypeAlias = tuple[str, str]
"""What a request is counted under: its method and its expert's adapter, "" for the base model."""
MAX_ADAPTERS = 100  # that an engine counts apart: a server may load new ones for ever
OTHER = "other"  # stands for further ones
OTHER_DRAFTS, RULE_FAILED = 2, 4  # in ``RowStats.nonfinite``, besides 1 and ``OUT_OF_RANGE``


class Explained(NamedTuple):
    """What is told of E groups of up to S streams at one position: tensors, or the same as lists.
    In both amateurs that have ended leave no gap, as in ``Groups``.

    Attributes:
        tokens: [E, 2k] int64: the k best by score, then the k that the expert finds most probable,
            each the best first, ties to the lower id; -1 where there are fewer.
        scores: [E, 2k] float32, theirs; -inf for what is no candidate.
        logits: [E, S, 2k] float32, theirs in each stream; -inf where a token is not allowed.
        log_sums: [E, S] float32: ln of the sum of a stream's exp(logit), over the tokens that the
            expert may take.
        weights: [E, S - 1] float32, the amateurs'.
        divergences: [E, S - 1] float32: see ``Statistics.divergence``.
    """

    tokens: Any
    scores: Any
    logits: Any
    log_sums: Any
    weights: Any
    divergences: Any


class RowStats(NamedTuple):
    """What was found of one group at one position: a row of the op's statistics, and
    what its rule said.

    Attributes:
        candidates: How many tokens the expert finds plausible.
        changed: 1 if another token than the expert's best had the best score.
        nonfinite: 1 if a row of the group held NaN or +inf; then the other two say nothing. 2 if
            the rows follow different drafts. ``OUT_OF_RANGE`` if a row number was, so that
            nobody scored. 4 if the group's rule had no weights for it.
        done: Amateurs that its rule needs no more: bit i for the i-th.
        idle: 1 if its rule gave each amateur the weight 0, or has ended them all.
        present: Amateurs that were there, in bits as ``done``.
        explained: What the group's client is told, as lists; None where it does not ask.
    """

    candidates: int
    changed: int
    nonfinite: int
    done: int = 0
    idle: int = 0
    present: int = 0
    explained: Explained | None = None


class StepStats:
    """What a worker found of the groups that it scored in one step.

    The host does not wait for the device while the step runs. On an accelerator the figures are
    copied asynchronously, and whoever reads or pickles them waits for the copy. That happens after
    the step's tokens have arrived, which were made later, so the copy is done by then.

    Args:
        ids: The group's id of each row of figures. Where drafts are verified, a group has several
            rows, in the order of its tokens.
        statistics: [rows, 3 or 5] int64, the columns of ``RowStats`` up to ``idle``, which the
            device has written or will write; a tensor, or an array as all below when unpickled.
        present: The amateurs that were there, of each row of figures.
        asked: The rows whose clients ask for explanations.
        explained: These explanations; empty if nobody asks.
    """

    def __init__(
        self,
        ids: tuple[str, ...],
        statistics: Any,
        present: tuple[int, ...],
        asked: Sequence[int] = (),
        explained: Sequence[Any] = (),
    ) -> None:
        self._ids = ids
        self._present = present
        self._asked = asked
        self._arrives: Any = None  # an event of the device; None for what is there already
        self._found = [self._to_host(each) for each in (statistics, *explained)]

    def _to_host(self, found: Any) -> Any:
        if isinstance(found, np.ndarray) or found.device.type == "cpu":
            return found
        host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        host.copy_(found, non_blocking=True)
        self._arrives = torch.get_device_module(found.device).Event()
        self._arrives.record()
        return host

    def _arrived(self) -> list[Any]:
        if self._arrives is not None:
            self._arrives.synchronize()
        return self._found

    def figures(self) -> Iterator[tuple[str, RowStats]]:
        """Each row's group and figures."""
        rows, *explained = (each.tolist() for each in self._arrived())
        told = dict(zip(self._asked, map(Explained, *explained), strict=True)) if explained else {}
        for at, (group, row) in enumerate(zip(self._ids, rows, strict=True)):
            present = self._present[at]
            found = RowStats(*row)._replace(present=present, explained=told.get(at))
            yield group, found if present else found._replace(idle=1)

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays: a tensor may be sent as a handle, which somebody has to keep open.
        statistics, *explained = map(np.asarray, self._arrived())
        return StepStats, (self._ids, statistics, self._present, self._asked, explained)


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
HISTOGRAMS = {
    "candidates": "Tokens that the expert finds plausible, for each token that was given."
}
GAUGES = {
    "requests_running": "Contrastive requests of which all streams are in the batch.",
    "requests_waiting": "Contrastive requests of which a stream, or all, wait.",
}


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

    def give(self, tokens: int, figures: Sequence[RowStats]) -> None:
        """A request is given so many tokens; ``figures``: what a worker found where it sampled
        them, and maybe after them; empty if they do not matter.
        """
        self.generation_tokens += tokens
        for each in figures[:tokens]:
            self.candidates.append(each.candidates)
            self.changed_tokens += each.changed
            self.idle_tokens += each.idle


class ColdStats(msgspec.Struct, omit_defaults=True):
    """What a scheduler tells the front ends."""

    requests_running: int = 0
    requests_waiting: int = 0
    sums: list[tuple[Kind, Counters]] = []


class CountersByKind:
    """What a scheduler counts."""

    def __init__(self) -> None:
        self.sums: defaultdict[Kind, Counters] = defaultdict(Counters)  # since the last report
        self._adapters: set[str] = set()

    def kind(self, method: str, adapter: str) -> Kind:
        """What a request is counted under; ``adapter``: its expert's, "" for the base model."""
        if adapter and adapter not in self._adapters:
            if len(self._adapters) == MAX_ADAPTERS:
                return method, OTHER
            self._adapters.add(adapter)
        return method, adapter

    def take(self, running: int, waiting: int) -> dict[str, Any]:
        """A ``ColdStats`` with these numbers of groups, as plain data; the sums begin anew."""
        report = ColdStats(running, waiting, list(self.sums.items()))
        self.sums.clear()
        payload: dict[str, Any] = msgspec.to_builtins(report)
        return payload
