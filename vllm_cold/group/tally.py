# SPDX-License-Identifier: Apache-2.0
"""Figures about CoLD on their way from workers to the scheduler and to /metrics. Imports no vLLM.

Three stages: a worker's processor makes a ``Tally`` of each step, which knows of each group that
was scored how many candidates there were, whether CoLD changed the token, and whether the logits
were numbers at all (``Figures``); the scheduler adds requests, tokens and groups (``Counts``); the
front end makes metrics of these (``prometheus``). Each hands over what is new since it was last
asked, so that whoever adds it up needs no history.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Figures(NamedTuple):
    """What was found of one group in one step: a row of ``contrastive_scores``'s statistics.

    Attributes:
        candidates: How many tokens the expert finds plausible.
        changed: 1 if another token than the expert's best had the best score.
        nonfinite: 1 if a row of the group held NaN or +inf; then the other two say nothing.
    """

    candidates: int
    changed: int
    nonfinite: int


class Tally:
    """What a worker found of the groups that it scored in one step.

    The host does not wait for the device while the step runs: on an accelerator the figures are
    copied in their turn, and whoever asks for them (or pickles them) waits for the copy. That is
    after the step's tokens have come, which were made later: so it is no wait at all.

    Args:
        ids: Theirs.
        statistics: [G, 3] int64, which ``contrastive_scores`` has written or will write; or its
            three columns.
    """

    def __init__(self, ids: tuple[str, ...], statistics: Tensor | Sequence[Sequence[int]]) -> None:
        self._ids = ids
        self._arrives: Any = None  # an event of the device; None for what is there already
        if not isinstance(statistics, Sequence) and statistics.device.type != "cpu":
            host = torch.empty(statistics.shape, dtype=statistics.dtype, pin_memory=True)
            host.copy_(statistics, non_blocking=True)
            self._arrives = torch.get_device_module(statistics.device).Event()
            self._arrives.record()
            statistics = host
        self._statistics = statistics

    def figures(self) -> dict[str, Figures]:
        """Of each group, by its id."""
        columns: Any = self._columns()
        return dict(zip(self._ids, map(Figures, *columns), strict=True))

    def _columns(self) -> Sequence[Sequence[int]]:
        if isinstance(self._statistics, Sequence):
            return self._statistics
        if self._arrives is not None:
            self._arrives.synchronize()
        columns: list[list[int]] = self._statistics.t().tolist()
        return columns

    def __reduce__(self) -> tuple[Any, ...]:
        # Numbers: a tensor may be sent as a handle, which somebody has to keep open.
        return Tally, (self._ids, self._columns())


@dataclass(slots=True)
class Counts:
    """What the scheduler counted since the last ``take``.

    Attributes:
        requests: CoLD requests that arrived.
        tokens: Tokens that they were given.
        preemptions: Times that a group lost its place.
        prompt_tokens: Of amateurs that began.
        cached_prompt_tokens: Of these, tokens found in the prefix cache.
        changed: Of these tokens, those that are not the expert's best.
        candidates: The number of candidates of each token.
    """

    requests: int = 0
    tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    changed: int = 0
    candidates: list[int] = field(default_factory=list)

    def add(self, figures: Iterable[Figures]) -> None:
        """Add what a worker found of groups that were given a token (others were amid their
        prompts, where vLLM has a row of logits too).
        """
        for each in figures:
            self.candidates.append(each.candidates)
            self.changed += each.changed

    def take(self, running: int, waiting: int) -> dict[str, Any]:
        """The payload for ``prometheus.ColdMetrics``: numbers and a list of them. Begins anew.

        Args:
            running: Groups that run.
            waiting: Groups that wait.
        """
        payload = {
            "requests": self.requests,
            "tokens": self.tokens,
            "preemptions": self.preemptions,
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "changed": self.changed,
            "candidates": self.candidates,
            "running": running,
            "waiting": waiting,
        }
        self.requests = self.tokens = self.preemptions = 0
        self.prompt_tokens = self.cached_prompt_tokens = self.changed = 0
        self.candidates = []
        return payload
