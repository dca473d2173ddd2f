# SPDX-License-Identifier: Apache-2.0
"""Figures about CoLD on their way from workers and scheduler to /metrics. Imports no vLLM.

A worker knows how many candidates each token had and whether CoLD changed it (``StepStatistics``);
the scheduler knows requests, tokens and pairs (``Counts``). Both hand over what is new since they
were last asked, so that whoever adds it up needs no history.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Steps that nobody asked about are forgotten from here on.
_MAX_STEPS = 256


@dataclass(slots=True)
class Scored:
    """The pairs that were scored in one step.

    Attributes:
        pairs: Their ids.
        candidates: How many candidates each had.
        changed: For each, 1 if it had another best token than the expert, else 0.
        lag: With the output of which step this goes: 0 for its own, 1 for the next, and so on.
    """

    pairs: tuple[str, ...]
    candidates: list[int]
    changed: list[int]
    lag: int = 0


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    pairs: tuple[str, ...]
    figures: Tensor
    arrives: Any  # an event of the device; None for what is there already


class StepStatistics:
    """What a worker's scoring op found, until the worker's next output takes it along.

    There is one for each process, ``PENDING``, used by the model runner's main thread alone.
    Nothing waits for the device: on an accelerator a step's figures are copied beside the
    computation, and go with the first output after that.
    """

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque(maxlen=_MAX_STEPS)
        self._outputs = 0

    def room(self, num_pairs: int, device: torch.device) -> Tensor:
        """[num_pairs, 2] int64 on ``device``, for ``contrastive_scores(statistics=...)``."""
        return torch.empty(num_pairs, 2, dtype=torch.int64, device=device)

    def add(self, pairs: tuple[str, ...], figures: Tensor) -> None:
        """Note a step.

        Args:
            pairs: Ids of its pairs.
            figures: [P, 2] int64, which ``contrastive_scores`` has written or will write.
        """
        event = None
        if figures.device.type != "cpu":
            host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
            host.copy_(figures, non_blocking=True)
            event = torch.get_device_module(figures.device).Event()
            event.record()
            figures = host
        self._steps.append(_Step(self._outputs, pairs, figures, event))

    def take(self) -> list[Scored]:
        """What has arrived since the last output; called for each output of the worker."""
        found = []
        while self._steps and ((event := self._steps[0].arrives) is None or event.query()):
            step = self._steps.popleft()
            candidates, changed = step.figures.t().tolist()
            found.append(Scored(step.pairs, candidates, changed, self._outputs - step.number))
        self._outputs += 1
        return found


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

    def add(self, scored: Scored, sampled: Collection[str]) -> None:
        """Add what a worker found.

        Args:
            scored: A step.
            sampled: Ids of the pairs that got a token in it. Others were amid their prompts, where
                vLLM has a row of logits too.
        """
        for pair, count, changed in zip(
            scored.pairs, scored.candidates, scored.changed, strict=True
        ):
            if pair in sampled:
                self.candidates.append(count)
                self.changed += changed

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
            "changed": self.changed,
            "candidates": self.candidates,
            "running": running,
            "waiting": waiting,
        }
        self.requests = self.tokens = self.preemptions = 0
        self.prompt_tokens = self.cached_prompt_tokens = self.changed = 0
        self.candidates = []
        return payload
