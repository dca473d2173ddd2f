# SPDX-License-Identifier: Apache-2.0
"""The rules that keep the two streams of a CoLD request in step. Needs no vLLM.

A CoLD request is a pair of ordinary requests, the expert and the amateur, with the same tokens
and their own KV cache. One rule carries everything: **in a scheduler step either both reach
their sampling position or neither does.** Streams may prefill at their own pace (one may find
more of its prompt cached), so a stream that would get there alone stops one token short and
waits for the other.

The scheduler asks ``Step`` for every request that it is about to give tokens, in its own
order, experts before their amateurs. ``Step`` follows the token budget through these questions,
so that an expert is only allowed to finish when the amateur's tokens are left over; these are
then kept for it. What still goes wrong (block allocation fails for the second stream, one of the
two is preempted) is found by ``torn`` after the pass: such a pair is preempted whole.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar


class Tokens(Protocol):
    """What the rules need to know of a request."""

    request_id: str
    num_computed_tokens: int
    num_output_placeholders: int

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""


R = TypeVar("R", bound=Tokens)


@dataclass(eq=False, slots=True)
class Pair(Generic[R]):
    """The two streams of one CoLD request.

    Attributes:
        expert: The request that the client knows.
        amateur: Its twin, which never reaches the client.
        failed_alone: How often in a row the pair was torn while nothing else ran; a pair that
            does not fit an otherwise empty KV cache never will.
    """

    expert: R
    amateur: R
    failed_alone: int = 0


class Verdict(Enum):
    """What ``Step`` decided for a pair when its expert had its turn."""

    FINISH = auto()
    """Both streams sample in this step."""
    HOLD = auto()
    """Neither does; both may prefill up to one token short."""


def tokens_left(request: Tokens, num_cached: int = 0) -> int:
    """Tokens from here to the sampling position, which is after the last known token.

    Args:
        request: The stream.
        num_cached: Tokens found in the prefix cache, for a stream that holds no blocks yet.
    """
    computed = request.num_computed_tokens or num_cached
    return request.num_tokens + request.num_output_placeholders - computed


@dataclass(slots=True)
class Room:
    """What the scheduler can offer a pair's amateur in this step.

    Attributes:
        running: Whether the amateur is running already (then seats and cache are moot).
        num_cached: Tokens of the amateur found in the prefix cache.
        admissible: Whether it can be admitted: a seat, its adapter's slot, blocks.
        chunk: The most tokens that one prefilling request may take in a step, 0 for no limit.
    """

    running: bool
    num_cached: int = 0
    admissible: bool = True
    chunk: int = 0


@dataclass(slots=True)
class Step(Generic[R]):
    """One scheduler step: the budget as it is handed out, and each pair's verdict.

    Attributes:
        budget: Tokens that can still be scheduled.
        kept: Tokens of ``budget`` that are promised to amateurs of finishing pairs.
        verdicts: By the pair's expert id, for pairs whose expert had its turn.
        promised: Each finishing pair's share of ``kept``, by the pair's expert id.
        preempted: Whether this pass preempted a request; then it admits nobody.
        lost: Experts (ids) whose amateur this pass preempted.
    """

    budget: int
    kept: int = 0
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    promised: dict[str, int] = field(default_factory=dict)
    preempted: bool = False
    lost: set[str] = field(default_factory=set)

    def clip_plain(self, num_new_tokens: int) -> int:
        """Tokens for a request that is no pair's; never those promised to an amateur."""
        granted = max(min(num_new_tokens, self.budget - self.kept), 0)
        self.budget -= granted
        return granted

    def clip_expert(
        self, pair: Pair[R], num_new_tokens: int, num_cached: int, room: Room, waiting: bool
    ) -> int:
        """Tokens for the expert; decides whether the pair samples in this step.

        Args:
            pair: The pair.
            num_new_tokens: What the scheduler offers.
            num_cached: Tokens of the expert found in the prefix cache.
            room: What it can offer the amateur.
            waiting: Whether the expert is about to be admitted. It is admitted only with room
                for its amateur in the same step, so that no pair holds half of what it needs.
        """
        offered = min(num_new_tokens, self.budget - self.kept)
        if offered <= 0 or (waiting and not room.admissible):
            return 0
        expert_left = tokens_left(pair.expert, num_cached)
        amateur_left = tokens_left(pair.amateur, room.num_cached)
        spare = self.budget - self.kept - offered
        if (
            offered == expert_left
            and amateur_left <= spare
            and (room.chunk == 0 or amateur_left <= room.chunk)
            and (room.running or (room.admissible and not self.preempted))
        ):
            self.verdicts[pair.expert.request_id] = Verdict.FINISH
            self.promised[pair.expert.request_id] = amateur_left
            self.kept += amateur_left
            self.budget -= offered
            return offered
        granted = min(offered, expert_left - 1)
        if waiting:
            # At least one token for the amateur, so that both are admitted together.
            granted = min(granted, self.budget - self.kept - 1)
        granted = max(granted, 0)
        self.verdicts[pair.expert.request_id] = Verdict.HOLD
        self.budget -= granted
        return granted

    def admits_amateur(self, pair: Pair[R], room: Room) -> bool:
        """Whether an amateur that is not running yet should be admitted right after its expert:
        it must have room and at least one token to compute.
        """
        if room.running or not room.admissible:
            return False
        verdict = self.verdicts.get(pair.expert.request_id)
        return verdict is Verdict.FINISH or (
            verdict is Verdict.HOLD
            and not self.preempted
            and tokens_left(pair.amateur, room.num_cached) > 1
            and self.budget > self.kept
        )

    def clip_amateur(self, pair: Pair[R], num_new_tokens: int, num_cached: int) -> int:
        """Tokens for the amateur, after its expert had its turn."""
        left = tokens_left(pair.amateur, num_cached)
        verdict = self.verdicts.get(pair.expert.request_id)
        if verdict is Verdict.FINISH:
            granted = min(num_new_tokens, left)
            self.kept -= self.promised.pop(pair.expert.request_id, 0)
        elif verdict is Verdict.HOLD:
            granted = max(min(num_new_tokens, left - 1, self.budget - self.kept), 0)
        else:
            # The expert was passed over (preempted, or at its last token): so is the amateur.
            return 0
        self.budget -= granted
        return granted


def torn(
    pair: Pair[R], step: Step[R], num_scheduled: dict[str, int], running: tuple[bool, bool]
) -> bool:
    """Whether a pair must be preempted whole after a scheduling pass.

    Args:
        pair: The pair.
        step: The pass.
        num_scheduled: Tokens given in this step, by request id.
        running: Whether the expert and the amateur are running after the pass.

    Returns:
        True if one stream samples in this step and the other does not, or if one runs and the
        other was preempted. An expert whose amateur is not admitted yet may go on prefilling.
    """
    samples = [
        (n := num_scheduled.get(r.request_id, 0)) > 0 and n >= tokens_left(r)
        for r in (pair.expert, pair.amateur)
    ]
    return (
        samples[0] != samples[1]
        or (running[1] and not running[0])
        or (running[0] and pair.expert.request_id in step.lost)
    )
