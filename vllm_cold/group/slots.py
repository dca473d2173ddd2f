# SPDX-License-Identifier: Apache-2.0
"""Where workers keep what a rule remembers of a group: rows of tables as small as what runs needs.
Needs no vLLM.

A group has its slot from its first tokens to its end, also while it is preempted: its rule goes on
from what it remembers then. The scheduler alone knows which slots are in use; each new one says it.
"""

import msgspec


class Slot(msgspec.Struct, frozen=True):
    """A group's.

    Attributes:
        number: That no other group has at the same time.
        in_use: More than any number that a group has, this one included, when it gets its own.
        nth: How many groups got one before. Of the slots that a worker has seen, the latest says
            how many are in use: groups with a greater number have ended.
    """

    number: int
    in_use: int
    nth: int


class Slots:
    """Those of one engine. The lowest that is free is taken, so that numbers stay small."""

    def __init__(self) -> None:
        self._taken = 0  # a bit for each
        self._num_given = 0

    @property
    def num_taken(self) -> int:
        """How many groups have one."""
        return self._taken.bit_count()

    def take(self) -> Slot:
        """A group gets its first tokens."""
        lowest = ~self._taken & (self._taken + 1)
        self._taken |= lowest
        self._num_given += 1
        return Slot(lowest.bit_length() - 1, self._taken.bit_length(), self._num_given - 1)

    def give_back(self, slot: Slot) -> None:
        """Its group has ended."""
        self._taken &= ~(1 << slot.number)
