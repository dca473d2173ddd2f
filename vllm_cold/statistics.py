# SPDX-License-Identifier: Apache-2.0
"""Figures about CoLD on their way from workers to the scheduler and to /metrics. Imports no vLLM.

A worker knows of each pair that it scored how many candidates there were, whether CoLD changed the
token, and whether the logits were numbers at all (``Figures``); the scheduler knows requests,
tokens and pairs (``Counts``). Both hand over what is new since they were last asked, so that
whoever adds it up needs no history.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Figures(NamedTuple):
    """What was found of one pair in one step: a row of ``contrastive_scores``'s statistics.

    Attributes:
        candidates: How many candidates there were.
        changed: 1 if another token than the expert's best had the best score, else 0.
        not_finite: 1 if a row of the pair held NaN or +inf, else 0. The other two then say nothing.
    """

    candidates: int
    changed: int
    not_finite: int = 0


class Scored:
    """The pairs that were scored in one step.

    The host does not wait for the device while the step runs: on an accelerator the figures are
    copied in their turn, and whoever asks for them (or pickles them) waits for the copy. That is
    after the step's tokens have come, which were made later: so it is no wait at all.

    Args:
        pairs: Their ids.
        statistics: [P, 3] int64, which ``contrastive_scores`` has written or will write.
    """

    def __init__(self, pairs: tuple[str, ...], statistics: Tensor) -> None:
        self._pairs = pairs
        self._arrives: Any = None  # an event of the device; None for what is there already
        if statistics.device.type != "cpu":
            host = torch.empty(statistics.shape, dtype=statistics.dtype, pin_memory=True)
            host.copy_(statistics, non_blocking=True)
            self._arrives = torch.get_device_module(statistics.device).Event()
            self._arrives.record()
            statistics = host
        self._statistics = statistics

    def figures(self) -> dict[str, Figures]:
        """Of each pair, by its id."""
        if self._arrives is not None:
            self._arrives.synchronize()
        rows = self._statistics.tolist()
        return {pair: Figures(*row) for pair, row in zip(self._pairs, rows, strict=True)}

    @classmethod
    def of(cls, rows: dict[str, tuple[int, ...]]) -> "Scored":
        """What is known already: of each pair, by its id, a row of statistics."""
        return cls(tuple(rows), torch.tensor(list(rows.values()), dtype=torch.int64).view(-1, 3))

    def __reduce__(self) -> tuple[Any, ...]:
        # Numbers: a tensor may be sent as a handle, which somebody has to keep open.
        return Scored.of, ({pair: tuple(row) for pair, row in self.figures().items()},)


class _Step(threading.local):
    """What was scored in a model runner's step that has made no output yet.

    A step is one call in one thread, so that engines in a process do not see each other's. What an
    engine leaves behind that failed amid a step is of pairs that no other engine knows.
    """

    def __init__(self) -> None:
        self.scored: list[Scored] = []


_step = _Step()


def note(scored: Scored) -> None:
    """Leave it for the output that this step makes."""
    _step.scored.append(scored)


def take() -> list[Scored]:
    """What was noted in this thread since the last call; called for each output of a worker."""
    scored, _step.scored = _step.scored, []
    return scored


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

    def add(self, figures: Iterable[Figures]) -> None:
        """Add what a worker found of pairs that were given a token (others were amid their prompts,
        where vLLM has a row of logits too).
        """
        for found in figures:
            self.candidates.append(found.candidates)
            self.changed += found.changed

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
