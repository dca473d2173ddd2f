# SPDX-License-Identifier: Apache-2.0
"""Whether verifying drafts pays for a group. Needs no vLLM.

Every draft adds a row to each of the group's streams, which takes time. Every right draft saves
the group a token's share of a step. A step's time is modelled as ``1 + cost * rows``.
A group whose drafts are too often wrong goes without them, but for tries. What tries lose is owed
by all requests like it, which work it off before the next one: so tries cost a fixed share of time.
"""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

# What a row adds to a step's time, as a share of a step's without rows. On two cores of an EPYC
# drafts are verified as often with it as with a line through the steps' times, and as fast
# (benchmarks/measured/speculation.md). GPUs, not measured: three times the arithmetic of a row
# over the time to read the weights, on an H100 in bfloat16.
ROW_COST_ON_CPU, ROW_COST = 0.05, 0.01
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
    """What an engine knows about drafts.

    Attributes:
        row_cost: What a row adds to a step's time, as a share of a step's without rows.
        kinds: How well drafts did, by kind of request.
    """

    row_cost: float = ROW_COST
    kinds: defaultdict[Hashable, AcceptanceStats] = field(
        default_factory=lambda: defaultdict(AcceptanceStats)
    )

    def break_even(self, rows: int, requests: int) -> float:
        """Return how many of a group's drafts must be right for drafts to pay, as a share and for
        each of its streams.

        Without drafts a step of ``rows`` gives one token to each of ``requests``, so a token costs
        ``1 / requests`` of it. A draft costs a row in each stream.
        """
        return requests * self.row_cost / (1 + self.row_cost * rows)


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

    def observe(self, drafted: int, accepted: int, break_even: float) -> None:
        """Learn from a step that gave the group a token, or several.

        Args:
            drafted: Drafts that were verified in each stream.
            accepted: How many were right.
            break_even: How many of them have to be, as a share, for drafts to pay.
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
        kind.pays, self._pays = kind.share >= break_even, share >= break_even
        if not self._pays:
            lost = drafted - (accepted + _PRICE) / break_even
            kind.owed = max(kind.owed + lost, 0.0)
