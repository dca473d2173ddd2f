# SPDX-License-Identifier: Apache-2.0
"""Whether verifying drafts pays for a group. Needs no vLLM.

Every draft adds a row to each of the group's streams, which takes time. Every right draft saves
the group a token's share of a step. A step's time is modelled as ``a + b * rows``, with ``a`` and
``b`` fitted to the last steps. Where memory is the limit, ``b`` is nearly 0 and drafts always pay.
A group whose drafts are too often wrong goes without them. It tries again so seldom that its tries
cost a small, fixed share of the time.
"""

import time
from collections import defaultdict, deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

# Weight of what is older, with each step.
_STEP_DECAY = 0.98
# Of the rows' variance, as a part of their mean squared: less gives no line.
_LEAST_SPREAD = 0.005
# So often two steps go without drafts, if nothing else tells what they cost.
_TRY_WITHOUT = 64
# A kind's share of right drafts is a mean over the times that some were verified. It starts as if
# two had been right, and later forgets in so many times. A group's share starts as its kind's, and
# forgets sooner.
_BELIEVED, _REMEMBERED, _REMEMBERED_OF_ONE = 2, 50, 8
# The share of all steps' time that tries of groups may cost whose drafts do not pay. It counts
# their rows alone; measured, they cost up to twice as much.
_PRICE = 0.015
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
    # Of 1, rows, seconds, rows squared, rows times seconds.
    _sums: Sequence[float] = (0.0,) * 5

    def add(self, rows: int, seconds: float) -> None:
        """A step with so many rows (tokens) took so long."""
        new = (1.0, rows, seconds, rows * rows, rows * seconds)
        pairs = zip(self._sums, new, strict=True)
        self._sums = [before * _STEP_DECAY + one for before, one in pairs]
        mean_rows, mean_seconds, squared, product = self._means()
        spread = squared - mean_rows**2
        self.age += 1
        if self._sums[0] > 7.0 and spread > _LEAST_SPREAD * mean_rows**2:
            self.slope, self.age = max((product - mean_rows * mean_seconds) / spread, 0.0), 0

    def cost_of_a_row(self, rows: int) -> float | None:
        """What a row adds to a step of ``rows`` others, as a part of that step's time; None if that
        is not known.
        """
        if self.slope is None:
            return None
        mean_rows, mean_seconds, *_ = self._means()
        time = mean_seconds + self.slope * (rows - mean_rows)
        return min(self.slope / time, 1.0) if time > 0 else 1.0

    def _means(self) -> list[float]:
        return [each / self._sums[0] for each in self._sums[1:]]


@dataclass(slots=True)
class AcceptanceStats:
    """How well drafts did for requests of one kind.

    Attributes:
        share: Of the last drafts, those that were right; at first all are believed to be.
        profitable: Whether that was enough when it was last looked at.
        tried: Drafts that one had verified last.
        seen: Times that some were verified.
        paused: Pauses that have begun.
    """

    share: float = 1.0
    profitable: bool = True
    tried: int = 1
    seen: int = 0
    paused: int = 0

    def part_of_a_pause(self) -> float:
        """The part of a pause with which a group begins, in (0, 1]. With whole pauses all would try
        at the same time, and many short requests more often than few long ones.
        """
        self.paused += 1
        return 1.0 - self.paused * _GOLDEN % 1.0

    def observe(self, drafted: int, accepted: int, break_even: float | None) -> None:
        """Some request of the kind had drafts verified; arguments as in ``Drafting.observe``."""
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
        """The oldest step's results are there, which gave each of its requests so many ``tokens``;
        a decoding one has ``most`` at most.
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
        acceptance: Of requests like it.
        possible: Whether there is room for drafts at all.
        seeded: Whether its tokens are sampled with a seed. They depend on which drafts are
            verified, and must not depend on time: so all are.
        pause: How much is left of the pause between two tries, as a part of it; with 0 drafts are
            verified.
    """

    acceptance: AcceptanceStats = field(default_factory=AcceptanceStats)
    possible: bool = True
    seeded: bool = False
    pause: float = field(init=False)
    _pays: bool = field(init=False, default=True)
    _share: float | None = field(init=False, default=None)  # None until it has tried

    def __post_init__(self) -> None:
        # Its first token tells under which load it is; a step may be planned before that is known.
        self.pause = 0.0 if self.seeded or self.acceptance.profitable else 1.0

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
        kind = self.acceptance
        share = kind.share if self._share is None else self._share
        if drafted:
            kind.observe(drafted, accepted, break_even)
            share += (accepted / drafted - share) / _REMEMBERED_OF_ONE
            self._share = share
        if break_even is None:
            return
        paid, self._pays = self._pays, share >= break_even
        if self._pays:
            self.pause = 0.0
        elif paid:
            self.pause = kind.part_of_a_pause()
        else:
            # A pause is as long as makes a try cost the price, by what is expected of it now; one
            # that paid needs none. (A second one may be planned already where steps overlap.)
            lost = accepted < drafted * break_even
            passed = _PRICE / (kind.tried * (break_even - share))
            self.pause = max(self.pause + lost - passed, 0.0)
