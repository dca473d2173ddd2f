# SPDX-License-Identifier: Apache-2.0
"""Whether verifying drafts pays for a group. Needs no vLLM.

Every draft is a row more in each of the group's streams, and takes time; every draft that is
right saves the group a token's share of a step. A step's time is taken as ``a + b * rows``, with
``a`` and ``b`` fitted to the last steps; where memory is the limit, ``b`` is nearly 0 and drafts
always pay. A group whose drafts are too often wrong goes without them, and tries again so seldom
that its tries cost a small, fixed share of the time.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

# Weight of what is older, with each step or each time that drafts were verified.
_STEP_DECAY, _DRAFT_DECAY = 0.98, 0.9
# Of the rows' variance, as a part of their mean squared: with less no line can be drawn.
_LEAST_SPREAD = 0.005
# So often two steps go without drafts, if nothing else tells what they cost.
_TRY_WITHOUT = 64
# Groups begin as if so many drafts had been verified, with the luck of others like them.
_PRIOR = 6.0
# A kind's share of right drafts is the mean of the first times that some were verified, with two
# believed to be right before them, and forgets in so many later ones.
_BELIEVED, _REMEMBERED = 2, 50
# Of the time of all steps, what the tries of groups may cost whose drafts do not pay: by their rows
# alone, and they were seen to cost up to twice as much.
_PRICE = 0.015
_LONGEST_PAUSE = 1024
# When a pause begins, what was seen before counts as so many drafts, at most.
_KEPT = 12.0
_GOLDEN = 0.6180339887  # its multiples are spread evenly over [0, 1), however many there are


@dataclass(slots=True)
class StepTimes:
    """How a step's time grows with its rows: a line through the last ones, weighted.

    Attributes:
        slope: Seconds that a row adds; None until steps of different sizes were seen.
        age: Steps since it was last found, with those that were not added: where all are as large,
            nothing can be told apart.
    """

    slope: float | None = None
    age: int = 0
    _weight: float = 0.0
    _rows: float = 0.0
    _seconds: float = 0.0
    _rows_squared: float = 0.0
    _rows_by_seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """A step with so many rows (tokens) took so long."""
        self._weight = self._weight * _STEP_DECAY + 1.0
        self._rows = self._rows * _STEP_DECAY + rows
        self._seconds = self._seconds * _STEP_DECAY + seconds
        self._rows_squared = self._rows_squared * _STEP_DECAY + rows * rows
        self._rows_by_seconds = self._rows_by_seconds * _STEP_DECAY + rows * seconds
        mean_rows, mean_seconds = self._means()
        spread = self._rows_squared / self._weight - mean_rows**2
        self.age += 1
        if self._weight > 7.0 and spread > _LEAST_SPREAD * mean_rows**2:
            slope = (self._rows_by_seconds / self._weight - mean_rows * mean_seconds) / spread
            self.slope, self.age = max(slope, 0.0), 0

    def cost_of_a_row(self, rows: int) -> float | None:
        """What a row adds to a step of ``rows`` others, as a part of that step's time; None if that
        is not known.
        """
        if self.slope is None:
            return None
        mean_rows, mean_seconds = self._means()
        time = mean_seconds + self.slope * (rows - mean_rows)
        return min(self.slope / time, 1.0) if time > 0 else 1.0

    def _means(self) -> tuple[float, float]:
        return self._rows / self._weight, self._seconds / self._weight


@dataclass(slots=True)
class AcceptanceStats:
    """How well drafts did for requests of one kind.

    Attributes:
        share: Of the last drafts, those that were right; at first all are believed to be.
        pays: Whether that was enough when it was last looked at.
        tried: Drafts that one had verified last.
        seen: Times that some were verified.
        begun: Parts of a pause that were given to new requests.
    """

    share: float = 1.0
    profitable: bool = True
    tried: int = 1
    seen: int = 0
    begun: int = 0

    def part_of_a_pause(self) -> float:
        """With which a new request begins, in [0, 1), or many short ones would try more often than
        few long ones.
        """
        self.begun += 1
        return self.begun * _GOLDEN % 1.0

    def observe(self, drafted: int, accepted: int, break_even: float | None) -> None:
        """Some request of the kind had drafts verified."""
        self.seen += 1
        self.tried = drafted
        weight = 1.0 / min(self.seen + _BELIEVED, _REMEMBERED)
        self.share += weight * (accepted / drafted - self.share)
        if break_even is not None:
            self.profitable = self.share >= break_even


@dataclass(slots=True)
class DraftController:
    """What an engine knows about drafts: times of steps, and experience by kind of request."""

    times: StepTimes = field(default_factory=StepTimes)
    kinds: defaultdict[Hashable, AcceptanceStats] = field(
        default_factory=lambda: defaultdict(AcceptanceStats)
    )
    _begun_at: deque[float] = field(default_factory=deque)  # of steps in flight
    _ended_at: float = 0.0

    def begin_step(self) -> None:
        """A step was scheduled."""
        self._begun_at.append(time.monotonic())

    def end_step(self, tokens: Collection[int], most: int) -> None:
        """The oldest step's results are there.

        Args:
            tokens: Of each of its requests.
            most: That a decoding request has in a step.
        """
        now = time.monotonic()
        begun = self._begun_at.popleft() if self._begun_at else now
        before, self._ended_at = self._ended_at, now
        if tokens and max(tokens) <= most:
            self.times.add(sum(tokens), now - max(begun, before))
        else:  # or a step without drafts, for its time, would be waited for while prompts come
            self.times.age += 1

    def may_draft(self) -> bool:
        """Whether drafts are verified in the next step. Where all steps are as large, some do
        without, to see what drafts cost.
        """
        return self.times.age < _TRY_WITHOUT or self.times.age % _TRY_WITHOUT >= 2

    def break_even(self, rows: int, requests: int) -> float | None:
        """How many of a group's drafts must be right for drafts to pay, as a share and for each of
        its streams; None if that is not known.

        Without drafts a step of ``rows`` gives one token to each of ``requests``, so a token costs
        ``1 / requests`` of it. A draft costs a row in each stream.
        """
        cost = self.times.cost_of_a_row(rows)
        return None if cost is None else cost * requests


@dataclass(slots=True)
class Drafting:
    """How well a group's drafts do.

    Attributes:
        experience: Of requests like it.
        possible: Whether there is room for drafts at all.
        seeded: Whether its tokens are drawn with a seed. They depend on which drafts are verified,
            and must not depend on time: so all are.
        pause: Steps for which none are verified.
        begun: Whether it has got a token; with a seed it does not matter.
    """

    acceptance: AcceptanceStats = field(default_factory=AcceptanceStats)
    possible: bool = True
    seeded: bool = False
    pause: int = field(init=False)
    begun: bool = field(init=False, default=False)
    _tries: int = field(init=False, default=1)
    _drafted: float = field(init=False, default=_PRIOR)
    _accepted: float = field(init=False, default=_PRIOR)

    def __post_init__(self) -> None:
        # Its first token tells under which load it is; a step may be planned before that is known.
        self.pause = 0 if self.seeded or self.acceptance.profitable else 1

    def observe(self, drafted: int, accepted: int, break_even: float | None) -> None:
        """A step that gave the group a token, or several, is over.

        Args:
            drafted: Drafts that were verified in each stream.
            accepted: How many were right.
            break_even: How many of them have to be, as a share, for drafts to pay; None if that is
                not known.
        """
        if self.seeded:
            return
        if not self.begun:
            self.begun = True
            self._accepted *= self.acceptance.share
            pause = 0 if break_even is None else self._costs(break_even)
            self.pause = int(pause * self.acceptance.part_of_a_pause())
            return
        if not drafted:
            self.pause = max(self.pause - 1, 0)
            if self.pause and break_even is not None:  # it may have fallen since
                self.pause = min(self.pause, self._tries * self._costs(break_even))
            return
        self.acceptance.observe(drafted, accepted, break_even)
        self._drafted = self._drafted * _DRAFT_DECAY + drafted
        self._accepted = self._accepted * _DRAFT_DECAY + accepted
        if break_even is None:
            return
        pause = self._costs(break_even)
        if not pause:
            self.pause = 0
            return
        # Another step with drafts may have been on its way already.
        self._tries = self._tries + 1 if self.pause else 1
        self.pause = self._tries * pause
        # What comes next counts for more than what was before.
        fading = min(_KEPT / self._drafted, 1.0)
        self._drafted, self._accepted = self._drafted * fading, self._accepted * fading

    def _costs(self, break_even: float) -> int:
        """After how many steps another try costs the price, by what is expected of it; 0: none."""
        wrong = break_even - self._accepted / self._drafted
        return min(math.ceil(self.acceptance.tried * max(wrong, 0.0) / _PRICE), _LONGEST_PAUSE)
