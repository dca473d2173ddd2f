# SPDX-License-Identifier: Apache-2.0
"""Where workers keep what a rule remembers of a group: rows of tables as small as what runs needs.
Needs no vLLM.

A group has its slot from its first tokens to its end, also while it is preempted: its rule goes on
from what it remembers then.
"""


class Slots:
    """The slots of one engine. The lowest that is free is taken, so that numbers stay small."""

    def __init__(self) -> None:
        self._taken = 0  # a bit for each

    def take(self) -> int:
        """A group gets its first tokens."""
        lowest = ~self._taken & (self._taken + 1)
        self._taken |= lowest
        return lowest.bit_length() - 1

    def give_back(self, slot: int) -> None:
        """Its group has ended."""
        self._taken &= ~(1 << slot)
