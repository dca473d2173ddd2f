# SPDX-License-Identifier: Apache-2.0
"""Models with states (Mamba, linear attention): how much of a prompt a stream computes in a step.

Where prefixes are cached (``mamba_cache_mode="align"``), a layer's state is kept for the end
of each block: a chunk that begins within a block must not pass its end, or a wrong state is cached.
And nobody is admitted who finds a state that is computed in the same step. Where nothing is cached
(mode "none") there is nothing to see to here.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

from vllm_cold.group.lockstep import Group, tokens_left
from vllm_cold.vllm.scheduler.interface import Request, Scheduler
from vllm_cold.vllm.scheduler.kv_blocks import Found, KVBlocks


class StateSplit:
    """The rule of one scheduler.

    Attributes:
        is_on: Whether vLLM splits prompts at all in this pass.
    """

    def __init__(self, scheduler: Scheduler, blocks: KVBlocks) -> None:
        self._scheduler = scheduler
        self._blocks = blocks
        self.is_on = False

    def split(self, request: Request, num_tokens: int, cached: tuple[int, ...]) -> int:
        """What vLLM lets any request compute of the tokens that there is room for, where ``is_on``.
        ``cached``: those found in the prefix cache, and those that a connector has.
        """
        rule: Any = type(self._scheduler)._mamba_block_aligned_split
        return int(rule(self._scheduler, request, num_tokens, *cached))

    def part(self, request: Request, num_tokens: int, cached: tuple[int, ...]) -> int:
        """What a group's stream may compute of so many tokens. Where that is less than a block vLLM
        waits for a step with more room, which for a group may never come: within a block any chunk
        is right.
        """
        return self.split(request, num_tokens, cached) or num_tokens

    def give_up_hits(self, group: Group[Request], found: MutableMapping[Request, Found]) -> None:
        """A follower that lacks its last token alone can only be admitted when all others get to
        theirs. If one of these leaves a state then that it would find, it never is: so it computes
        its prompt anew, and ``found``, of the followers that do not run, is changed accordingly.
        """
        if not self.is_on:
            return
        for follower, one in found.items():
            if tokens_left(follower, self._blocks.restored(one.num_tokens)) == 1 and any(
                self._leaves(other, other.num_tokens - 1, follower, one.num_tokens)
                for other in group.streams
                if other is not follower
            ):
                follower.skip_reading_prefix_cache = True
                found[follower] = self._blocks.look_up(follower)

    def can_finish(
        self, group: Group[Request], num_cached: int, found: Mapping[Request, Found]
    ) -> bool:
        """Whether each follower may get to its sampling position in the step in which the leader
        does. ``num_cached`` tokens of the leader are cached; ``found`` is of those that do not run.
        """
        if not self.is_on:
            return True
        leader = group.leader
        earlier = [(leader, _begins(leader, num_cached))]
        for follower in sorted(group.followers, key=found.__contains__):  # as they get their turns
            start = follower.num_computed_tokens
            if (one := found.get(follower)) is not None:
                start = self._blocks.restored(one.num_tokens)
                follower.shared_prefix_boundary = one.junction  # as vLLM sets it when it looks
                if any(self._leaves(*each, follower, one.num_tokens) for each in earlier):
                    return False
            left = tokens_left(follower, start)
            if self.split(follower, left, (start - follower.num_computed_tokens,)) < left:
                return False
            earlier.append((follower, _begins(follower, start)))
        return True

    def _leaves(self, stream: Request, start: int, later: Request, num_found: int) -> bool:
        """Whether a stream that gets from ``start`` to its sampling position leaves a block in the
        prefix cache that ``later`` would find behind, or in place of, what it finds now: then it
        would not be admitted in the same step, or not with all of its prompt. A state at the start
        counts as one of this step.
        """
        unit: int = getattr(self._scheduler, "hash_block_size", self._scheduler.block_size)
        first = max(-(-start // unit), num_found // unit, 1)
        last = min(stream.num_tokens, later.num_tokens - 1) // unit
        # A block's hash is one of all tokens up to its end.
        return (
            first <= last
            and not later.skip_reading_prefix_cache
            and stream.block_hashes[first - 1] == later.block_hashes[first - 1]
        )


def _begins(request: Request, num_cached: int) -> int:
    """Where the first of the steps begins that a request is in: until they are over, vLLM keeps the
    state at that position.
    """
    if not request.num_computed_tokens:
        return num_cached
    return request.num_computed_tokens - getattr(request, "num_in_flight_tokens", 0)
