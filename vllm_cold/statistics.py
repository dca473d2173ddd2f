# SPDX-License-Identifier: Apache-2.0
"""Figures about CoLD on their way from workers and scheduler to /metrics. Imports no vLLM.

A worker knows how many candidates each token had and whether CoLD changed it (``StepStatistics``);
the scheduler knows requests, tokens and pairs (``Counts``). Both hand over what is new since they
were last asked, so that whoever adds it up needs no history.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Steps that nobody asked about are forgotten from here on.
_MAX_STEPS = 256


@dataclass(slots=True)
class Scored:
    """Pairs that were scored.

    Attributes:
        candidates: The number of candidates of each.
        changed: How many of them had another best token than the expert.
    """

    candidates: list[int] = field(default_factory=list)
    changed: int = 0


class StepStatistics:
    """What a worker's scoring op found, until the worker's next output takes it along.

    There is one for each process, ``PENDING``, used by the model runner's main thread alone.
    Nothing waits for the device: on an accelerator a step's figures are copied beside the
    computation, and go with the first output after that.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[Any, Tensor]] = deque(maxlen=_MAX_STEPS)

    def room(self, num_pairs: int, device: torch.device) -> Tensor:
        """[num_pairs, 2] int64 on ``device``, for ``contrastive_scores(statistics=...)``."""
        return torch.empty(num_pairs, 2, dtype=torch.int64, device=device)

    def add(self, statistics: Tensor) -> None:
        """Note a step's figures, which ``contrastive_scores`` has written or will write."""
        if statistics.device.type == "cpu":
            self._steps.append((None, statistics))
            return
        host = torch.empty(statistics.shape, dtype=statistics.dtype, pin_memory=True)
        host.copy_(statistics, non_blocking=True)
        event = torch.get_device_module(statistics.device).Event()
        event.record()
        self._steps.append((event, host))

    def take(self) -> Scored | None:
        """What has arrived since the last call; None if nothing has."""
        scored = None
        while self._steps and (self._steps[0][0] is None or self._steps[0][0].query()):
            scored = scored or Scored()
            candidates, changed = self._steps.popleft()[1].t().tolist()
            scored.candidates += candidates
            scored.changed += sum(changed)
        return scored


PENDING = StepStatistics()


@dataclass(slots=True)
class Counts:
    """What the scheduler counted since the last ``take``.

    Attributes:
        requests: CoLD requests that arrived.
        tokens: Tokens that they were given.
        preemptions: Times that a pair lost its place.
        prompt_tokens: Of amateurs that began.
        cached_prompt_tokens: Of these, tokens found in the prefix cache.
        scored: See ``Scored``.
    """

    requests: int = 0
    tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    scored: Scored = field(default_factory=Scored)

    def add(self, scored: Scored) -> None:
        """Add what a worker found."""
        self.scored.candidates += scored.candidates
        self.scored.changed += scored.changed

    def take(self, running: int, waiting: int) -> dict[str, Any]:
        """The payload for ``metrics.ColdMetrics.record``: numbers and a list of them. Begins anew.

        Args:
            running: Pairs that run.
            waiting: Pairs that wait.
        """
        payload = {
            "requests": self.requests,
            "tokens": self.tokens,
            "preemptions": self.preemptions,
            "prompt_tokens": self.prompt_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "changed": self.scored.changed,
            "candidates": self.scored.candidates,
            "running": running,
            "waiting": waiting,
        }
        self.requests = self.tokens = self.preemptions = 0
        self.prompt_tokens = self.cached_prompt_tokens = 0
        self.scored = Scored()
        return payload
