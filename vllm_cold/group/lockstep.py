# SPDX-License-Identifier: Apache-2.0
"""The rules that keep the two streams of a CoLD request in step. Needs no vLLM.

A CoLD request is a pair of ordinary requests, the expert and the amateur, with the same tokens
and their own KV cache. One rule carries everything: **in a scheduler step either both reach
their sampling position or neither does.** Streams may prefill at their own pace (one may find
more of its prompt cached), so a stream that would get there alone stops one token short and
waits for the other.

The scheduler asks ``Step`` for every request that it is about to give tokens, in its own order,
each amateur right behind its expert. ``Step`` follows the token budget through these questions,
so that an expert is only allowed to finish when the amateur's tokens are left over. What still
goes wrong (one of the two is preempted for want of blocks) is found after the pass: what is left
of a pair that is ``torn`` is preempted too.
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
        lonely: Whether some other expert runs without its amateur.
    """

    running: bool
    num_cached: int = 0
    admissible: bool = True
    chunk: int = 0
    lonely: bool = False


@dataclass(slots=True)
class Step(Generic[R]):
    """One scheduler step: the budget as it is handed out, and each pair's verdict.

    Attributes:
        budget: Tokens that can still be scheduled (at least: those of preempted requests are
            not added again).
        verdicts: By the pair's expert id, for pairs whose expert had its turn.
        preempted: Whether this pass preempted a request; then it admits nobody.
        lost: Pairs (expert ids) of which this pass preempted a stream; they get nothing more.
        wanting: The urgency (lower is more urgent) of an expert that has only its last token left
            and lacks anything for its amateur, None if there is none.
    """

    budget: int
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    preempted: bool = False
    lost: set[str] = field(default_factory=set)
    wanting: int | None = None

    def clip_plain(self, num_new_tokens: int) -> int:
        """Tokens for a request that is no pair's: what the scheduler offers."""
        return self._grant(num_new_tokens)

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
        key = pair.expert.request_id
        if key in self.lost or (waiting and not room.admissible):
            return 0
        expert_left = tokens_left(pair.expert, num_cached)
        amateur_left = tokens_left(pair.amateur, room.num_cached)
        if (
            num_new_tokens == expert_left
            and amateur_left <= self.budget - num_new_tokens
            and (room.chunk == 0 or amateur_left <= room.chunk)
            and (room.running or (room.admissible and not self.preempted))
        ):
            self.verdicts[key] = Verdict.FINISH
            return self._grant(num_new_tokens)
        granted = min(num_new_tokens, expert_left - 1)
        if waiting and amateur_left > 1:
            # With at least one token for the amateur, so that both are admitted together.
            granted = min(granted, self.budget - 1)
        elif waiting and room.lonely:
            # An amateur that has its whole prompt cached is admitted when its expert gets to the
            # last token; only one expert waits for that.
            return 0
        self.verdicts[key] = Verdict.HOLD
        return self._grant(granted)

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
        )

    def clip_amateur(self, pair: Pair[R], num_new_tokens: int, num_cached: int) -> int:
        """Tokens for the amateur, right after its expert had its turn."""
        verdict = self.verdicts.get(pair.expert.request_id)
        if verdict is None or pair.expert.request_id in self.lost:
            # The expert was passed over (at its last token) or preempted: so is the amateur.
            return 0
        left = tokens_left(pair.amateur, num_cached)
        if verdict is Verdict.HOLD:
            return self._grant(min(num_new_tokens, left - 1))
        # Less than all that is left: the expert's blocks pushed the amateur's out of the prefix
        # cache. A 0 ends the admission, so that nobody finds blocks of this pair, which is torn.
        return self._grant(num_new_tokens if num_new_tokens == left else 0)

    def preempt(self, pair: Pair[R] | None) -> None:
        """This pass preempted a request; if it is a pair's, the pair is lost."""
        self.preempted = True
        if pair is not None:
            self.lost.add(pair.expert.request_id)

    def may_admit(self, urgency: int) -> bool:
        """Whether a waiting request may be admitted: not in front of an expert that waits for its
        amateur, or those that need little could keep it waiting for ever.
        """
        return self.wanting is None or urgency < self.wanting

    def _grant(self, num_tokens: int) -> int:
        granted = max(num_tokens, 0)
        self.budget -= granted
        return granted


def torn(pair: Pair[R], step: Step[R], num_scheduled: dict[str, int]) -> bool:
    """Whether what is left of a pair must be preempted after a scheduling pass.

    Args:
        pair: The pair.
        step: The pass.
        num_scheduled: Tokens given in this step, by request id.

    Returns:
        True if the pass preempted a stream, or if one samples in this step and the other does
        not. An expert whose amateur is not admitted yet may go on prefilling.
    """
    expert, amateur = (
        (n := num_scheduled.get(r.request_id, 0)) > 0 and n >= tokens_left(r)
        for r in (pair.expert, pair.amateur)
    )
    return expert != amateur or pair.expert.request_id in step.lost
