# SPDX-License-Identifier: Apache-2.0
"""Whether verifying drafts pays for a group. Needs no vLLM.

Every draft adds a row to each of the group's streams, which takes time. Every right draft saves
the group a token's share of a step. A step's time is modelled as ``a + b * rows``, with ``a`` and
``b`` fitted to the last steps. Where memory is the limit, ``b`` is nearly 0 and drafts always pay.
A group whose drafts are too often wrong goes without them, but for tries. What tries lose is owed
by all requests like it, which work it off before the next one: so tries cost a fixed share of time.
"""

import time
from collections import defaultdict, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

import numpy as np

# Steps that the line goes through.
_STEPS = 64
# Of the rows' variance, as a part of their mean squared: less gives no line.
_LEAST_SPREAD = 0.005
# So often two steps go without drafts, if nothing else tells what they cost.
_TRY_WITHOUT = 64
# In so many steps with drafts a mean forgets: that of a kind of requests, and that of one.
_REMEMBERED, _REMEMBERED_OF_ONE = 32, 8
# The share of its time that a group without drafts spends on tries. It counts their rows alone;
# measured, they cost up to twice as much.
_PRICE = 0.015


@dataclass(slots=True)
class AcceptanceStats:
    """How well drafts did for requests of one kind.

    Attributes:
        share: Of the last drafts, those that were right; at first all are believed to be.
        pays: Whether that was enough when it was last looked at.
        owed: Drafts of tries that were wrong and whose time is not worked off yet.
    """

    share: float = 1.0
    pays: bool = True
    owed: float = 0.0


@dataclass(slots=True)
class DraftController:
    """What an engine knows about drafts: how a step's time grows with its rows, by a line through
    the last ones, and experience by kind of request.

    Attributes:
        kinds: How well drafts did, by kind of request.
        slope: Seconds that a row adds; None until steps of different sizes were seen.
        age: Steps since it was last found, with those that say nothing of it: where all are as
            large, nothing can be told apart.
    """

    kinds: defaultdict[Hashable, AcceptanceStats] = field(
        default_factory=lambda: defaultdict(AcceptanceStats)
    )
    slope: float | None = None
    age: int = 0
    _last: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_STEPS))
    _mean: tuple[float, float] = (0.0, 0.0)  # rows and seconds
    _begun_at: deque[float] = field(default_factory=deque)  # of steps in flight
    _ended_at: float = 0.0

    def begin_step(self) -> None:
        """Note that a step was scheduled."""
        self._begun_at.append(time.monotonic())

    def end_step(self, tokens: Collection[int], most: int) -> None:
        """Learn from the oldest step's time, now that its results are there. It gave each of its
        requests so many ``tokens``; one that decodes has ``most`` at most.
        """
        now = time.monotonic()
        begun = self._begun_at.popleft() if self._begun_at else now
        before, self._ended_at = self._ended_at, now
        # Also by others, or a step without drafts would be waited for while prompts come.
        self.age += 1
        if tokens and max(tokens) <= most:
            self.add(sum(tokens), now - max(begun, before))

    def add(self, rows: int, seconds: float) -> None:
        """Fit the line again, with a step of so many rows (tokens) that took so long."""
        self._last.append((rows, seconds))
        steps = np.array(self._last)
        mean_rows, mean_seconds = self._mean = tuple(steps.mean(axis=0))
        spread = steps[:, 0].var()
        if len(steps) > 7 and spread > _LEAST_SPREAD * mean_rows**2:
            together = steps.prod(axis=1).mean() - mean_rows * mean_seconds
            self.slope, self.age = max(float(together / spread), 0.0), 0

    def may_draft(self) -> bool:
        """Whether drafts are verified in the next step. Where all steps are as large, some do
        without, to see what drafts cost.
        """
        return self.age < _TRY_WITHOUT or self.age % _TRY_WITHOUT >= 2

    def break_even(self, rows: int, requests: int) -> float | None:
        """Return how many of a group's drafts must be right for drafts to pay, as a share and for
        each of its streams; None if that is not known.

        Without drafts a step of ``rows`` gives one token to each of ``requests``, so a token costs
        ``1 / requests`` of it. A draft costs a row in each stream.
        """
        if self.slope is None:
            return None
        mean_rows, mean_seconds = self._mean
        seconds = mean_seconds + self.slope * (rows - mean_rows)
        return requests * min(self.slope / seconds, 1.0) if seconds > 0 else float(requests)


@dataclass(slots=True)
class Drafting:
    """How well a group's drafts do.

    Attributes:
        acceptance: Of requests like it.
        possible: Whether there is room for drafts at all.
        seeded: Whether its tokens are sampled with a seed. They depend on which drafts are
            verified, and must not depend on time: so all are.
    """

    acceptance: AcceptanceStats = field(default_factory=AcceptanceStats)
    possible: bool = True
    seeded: bool = False
    # Its first token tells under which load it is; a step may be planned before that is known.
    _pays: bool = field(init=False)
    _share: float | None = field(init=False, default=None)  # None until it has tried

    def __post_init__(self) -> None:
        self._pays = self.acceptance.pays

    @property
    def is_on(self) -> bool:
        """Whether drafts are verified in the next step."""
        return self.possible and (self.seeded or self._pays or not self.acceptance.owed)

    def observe(self, drafted: int, accepted: int, break_even: float | None) -> None:
        """Learn from a step that gave the group a token, or several.

        Args:
            drafted: Drafts that were verified in each stream.
            accepted: How many were right.
            break_even: How many of them have to be, as a share, for drafts to pay; None if that is
                not known.
        """
        if self.seeded:
            return
        kind = self.acceptance
        share = kind.share if self._share is None else self._share
        if drafted:
            right = accepted / drafted
            kind.share += (right - kind.share) / _REMEMBERED
            share += (right - share) / _REMEMBERED_OF_ONE
            self._share = share
        if break_even is None:
            return
        kind.pays, self._pays = kind.share >= break_even, share >= break_even
        if not self._pays:
            lost = drafted - (accepted + _PRICE) / break_even
            kind.owed = max(kind.owed + lost, 0.0)
