# SPDX-License-Identifier: Apache-2.0
"""The rules that keep the streams of a CoLD request in step. Needs no vLLM.

A CoLD request is a group of ordinary requests, the expert and its amateurs, each with its own KV
cache and maybe its own prompt. One rule carries everything: **in a scheduler step either all
streams reach their sampling position or none does.** Streams may prefill at their own pace (their
prompts differ, one may find more of its own cached), so a stream that would get there before the
others stops one token short and waits for them.

The scheduler asks ``Step`` for every request that it is about to give tokens, in its own order: of
a group the *leader* first, the stream with the longest prompt, and the *followers* right behind it.
(A stream is admitted with at least one token, and one short of its last: so the one that goes first
must not be the shortest.) ``Step`` follows the token budget through these questions, so that a
leader is only allowed to finish when the followers' tokens are left over. What still goes wrong (a
stream is preempted for want of blocks) is found after the pass: what is left of a group that was
``split`` is preempted too.

With speculative decoding a stream that samples also verifies drafts, tokens behind its last known
one. All streams of a group verify the same number, so that every draft has a row in each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from vllm_cold.group.drafting import Drafting
from vllm_cold.group.slots import Slot

if TYPE_CHECKING:  # which needs torch
    from vllm_cold.group.explained import Told


class Tokens(Protocol):
    """What is known here of a request."""

    request_id: str
    num_computed_tokens: int
    num_output_placeholders: int
    spec_token_ids: list[int]  # drafts that the next step can verify

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""

    @property
    def num_output_tokens(self) -> int:
        """Output tokens known so far."""

    @property
    def output_token_ids(self) -> Sequence[int]:
        """Output tokens known so far."""

    def is_finished(self) -> bool:
        """Whether it has ended."""


R = TypeVar("R", bound=Tokens)


class Verdict(Enum):
    """What ``Step`` decided for a group when its leader had its turn."""

    FINISH = auto()
    """All streams sample in this step."""
    HOLD = auto()
    """None does; all may prefill up to one token short."""


@dataclass(slots=True)
class Turn:
    """What one scheduling pass did with a group.

    Attributes:
        step: The pass; None before the first.
        verdict: None until the leader had its turn.
        drafts: How many drafts each stream verifies.
        preempted: Whether a stream was preempted; then the group gets nothing more.
        led_by_other: Whether a follower that waits in its leader's place was met in a queue.
    """

    step: "Step[Any] | None" = None
    verdict: Verdict | None = None
    drafts: int = 0
    preempted: bool = False
    led_by_other: bool = False


@dataclass(eq=False, slots=True)
class Group(Generic[R]):
    """The streams of one CoLD request, and all that a scheduler knows of it.

    Attributes:
        streams: The expert, which is the request that the client knows, and the amateurs, which
            never reach the client.
        kind: What the request is counted under: see ``step_stats``.
        leader: The one that the scheduler deals with first: it has the longest prompt.
        followers: The others.
        bits: Of each amateur there ever was, by request id, its bit in ``RowStats.done``.
        keeps_state: Whether its rule does.
        slot: Where workers keep that; None until it gets its first tokens.
        retires: Whether its rule may end amateurs.
        told: What its client is told of its tokens; None where it does not ask.
        failed_alone: How often in a row the group was split while nothing else ran; one that does
            not fit an otherwise empty KV cache never will.
        drafting: How well its drafts do.
        turn: What the last pass did that dealt with it.
        passed_over: Passes in a row that admitted others because its adapters found no slots, or
            its leader's media no room in the encoder's cache.
        error: Why it must end, as its client is told.
        new_amateurs: Of each amateur that no step has had yet, by request id, its prompt tokens
            that were found in the prefix cache.
    """

    streams: tuple[R, ...]
    kind: tuple[str, str] = ("", "")
    leader: R = field(init=False)
    followers: tuple[R, ...] = field(init=False)
    bits: dict[str, int] = field(init=False)
    keeps_state: bool = False
    slot: Slot | None = None
    retires: bool = False
    told: "Told | None" = None
    failed_alone: int = 0
    drafting: Drafting = field(default_factory=Drafting)
    turn: Turn = field(default_factory=Turn)
    passed_over: int = 0
    error: str | None = None
    new_amateurs: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._choose_leader()
        self.bits = {each.request_id: 1 << i for i, each in enumerate(self.amateurs)}
        self.new_amateurs = {amateur.request_id: 0 for amateur in self.amateurs}

    def _choose_leader(self) -> None:
        # Of several the first. All have as many output tokens: so it stays the longest.
        self.leader = max(self.streams, key=lambda stream: stream.num_tokens)
        self.followers = tuple(s for s in self.streams if s is not self.leader)

    def retire(self, amateurs: Sequence[R]) -> None:
        """These are not needed any more. What is left of a group without any is scheduled as a
        plain request.
        """
        self.streams = tuple(each for each in self.streams if each not in amateurs)
        self._choose_leader()

    @property
    def expert(self) -> R:
        """The request that the client knows."""
        return self.streams[0]

    @property
    def amateurs(self) -> tuple[R, ...]:
        """What the expert is compared with."""
        return self.streams[1:]

    @property
    def request_id(self) -> str:
        """The expert's, which names the group."""
        return self.streams[0].request_id


def tokens_left(request: Tokens, num_cached: int = 0) -> int:
    """Tokens from here to the sampling position, which is after the last known token.

    Args:
        request: The stream.
        num_cached: Tokens found in the prefix cache, for a stream that holds no blocks yet.
    """
    computed = request.num_computed_tokens or num_cached
    return request.num_tokens + request.num_output_placeholders - computed


@dataclass(slots=True)
class Capacity:
    """What the scheduler can offer a group's followers in this step.

    Attributes:
        num_cached: Of each follower, its tokens found in the prefix cache (moot if it runs).
        missing: Of each follower, whether it does not run yet.
        admissible: Whether all that are missing can be admitted: seats, slots of adapters, blocks.
        chunk: The most tokens that one prefilling request may take in a step, 0 for no limit.
        other_incomplete: Whether the leader of some other group runs without a follower.
        can_finish: Whether each follower may compute all that it has left in one step, together
            with its leader: where layers have states, a prompt may have to be split.
        encodable: Whether all media that the streams still need can be encoded in this step.
    """

    num_cached: Sequence[int]
    missing: Sequence[bool]
    admissible: bool = True
    chunk: int = 0
    other_incomplete: bool = False
    can_finish: bool = True
    encodable: bool = True


Part = Callable[[int], int]
"""How many of so many tokens a stream may take in a step; all, without states and media. At least
one, but for media that cannot be encoded.
"""


def whole(num_tokens: int) -> int:
    """All of them: a ``Part``."""
    return num_tokens


def both(first: Part, second: Part) -> Part:
    """What the second leaves of what the first leaves: a ``Part``."""
    return lambda num_tokens: second(first(num_tokens))


@dataclass(slots=True)
class Step(Generic[R]):
    """One scheduler step: the budget as it is handed out, and the groups' turns.

    Attributes:
        budget: Tokens that can still be scheduled (at least: those of preempted requests are
            not added again).
        extra: Tokens that a drafter adds to each request which is scheduled.
        padding: Tokens that must be left over where a request with one token left is admitted.
        drafting: Whether drafts are verified; those of requests with a seed are in any case.
        groups: Those that this pass dealt with.
        preempted: Whether this pass preempted a request; then it admits nobody.
        blocked_priority: The priority (lower is more urgent) of a leader that runs, has only its
            last token left and lacks anything for its followers; None if there is none.
        reserved: Followers that are about to be admitted, for each of which a token is kept.
        promised: Tokens of followers that are about to be admitted and to sample.
    """

    budget: int
    extra: int = 0
    padding: int = 0
    drafting: bool = True
    groups: list[Group[R]] = field(default_factory=list)
    preempted: bool = False
    blocked_priority: int | None = None
    reserved: int = 0
    promised: int = 0

    def turn_of(self, group: Group[R]) -> Turn:
        """What this pass did with a group; it is one of ``groups`` from now on."""
        if group.turn.step is not self:
            group.turn = Turn(self)
            self.groups.append(group)
        return group.turn

    def clip_plain(self, num_new_tokens: int) -> int:
        """Tokens for a request that is no group's: what the scheduler offers."""
        return self._grant(num_new_tokens)

    def clip_leader(
        self,
        group: Group[R],
        num_new_tokens: int,
        num_cached: int,
        capacity: Capacity,
        waiting: bool,
        part: Part = whole,
    ) -> int:
        """Tokens for the leader; decides whether the group samples in this step.

        Args:
            group: The group.
            num_new_tokens: What the scheduler offers.
            num_cached: Tokens of the leader found in the prefix cache.
            capacity: What it can offer the followers.
            waiting: Whether the leader is about to be admitted. It is admitted only with room
                for its followers in the same step, so that no group holds half of what it needs.
            part: What it may take of less than it is offered.
        """
        turn = self.turn_of(group)
        self.reserved = 0
        if turn.preempted or (waiting and not capacity.admissible):
            return 0
        left = tokens_left(group.leader, num_cached)
        others = followers_left(group, capacity)
        spare = self.budget - self.promised - left - sum(others) - self.extra * len(group.streams)
        if any(capacity.missing):
            # Maybe one finds all but its last token in what its leader is given now.
            spare -= self.padding
        if (
            num_new_tokens >= left
            and spare >= 0
            and capacity.can_finish
            and capacity.encodable
            and (capacity.chunk == 0 or max(others) <= capacity.chunk)
            and (not any(capacity.missing) or (capacity.admissible and not self.preempted))
        ):
            turn.verdict = Verdict.FINISH
            drafts = min(num_new_tokens - left, spare // len(group.streams))
            may_draft = self.drafting or group.drafting.seeded
            drafts = min(drafts, num_drafts(group) if may_draft else 0)
            if capacity.chunk:
                drafts = min(drafts, capacity.chunk - max(others))
            turn.drafts = max(drafts, 0)
            return self._grant(left + turn.drafts)
        granted = min(num_new_tokens, left - 1)
        if waiting:
            # With at least one token for each follower, so that all are admitted together.
            starting = sum(n > 1 for n in others)
            granted = min(granted, self.budget - starting - self.extra * (1 + starting))
            if capacity.other_incomplete:
                # Maybe one finds all but its last token in what its leader is given now, and waits.
                granted -= self.padding
            if starting < len(others) and capacity.other_incomplete:
                # A follower that has its whole prompt cached is admitted when its leader gets to
                # the last token; only one group waits for that.
                return 0
        turn.verdict = Verdict.HOLD
        granted = min(granted, self.budget - self.promised - self.extra)
        return self._grant(granted, num_new_tokens, part)

    def admits(self, group: Group[R], capacity: Capacity) -> tuple[R, ...]:
        """The followers that should be admitted right after their leader: those that do not run
        yet, have room and at least one token to compute.
        """
        verdict = self.turn_of(group).verdict
        if verdict is None or not capacity.admissible:
            return ()
        admitted = tuple(
            follower
            for follower, left, missing in zip(
                group.followers, followers_left(group, capacity), capacity.missing, strict=True
            )
            if missing and (verdict is Verdict.FINISH or (not self.preempted and left > 1))
        )
        if verdict is Verdict.HOLD:
            admitted = admitted[: max(self.budget, 0) // (1 + self.extra)]
            self.reserved = len(admitted)
        elif admitted:
            of = zip(group.followers, followers_left(group, capacity), strict=True)
            self.promised += sum(left + self.extra for follower, left in of if follower in admitted)
        return admitted

    def clip_follower(
        self,
        group: Group[R],
        follower: R,
        num_new_tokens: int,
        num_cached: int,
        waiting: bool,
        part: Part = whole,
    ) -> int:
        """Tokens for a follower, after its leader had its turn; see ``clip_leader``."""
        turn = self.turn_of(group)
        if turn.verdict is None or turn.preempted:
            # The leader was passed over (at its last token) or preempted: so is the follower.
            return 0
        left = tokens_left(follower, num_cached)
        if turn.verdict is Verdict.HOLD:
            if waiting and self.reserved:
                self.reserved -= 1
            kept = self.reserved * (1 + self.extra) + self.extra
            granted = min(num_new_tokens, left - 1, self.budget - kept)
            return self._grant(granted, num_new_tokens, part)
        if waiting:
            self.promised = max(self.promised - left - self.extra, 0)
        left += turn.drafts
        # Less than all that is left: other streams' blocks pushed this one's out of the prefix
        # cache. A 0 ends the admission, so that nobody finds blocks of this group, which is split.
        return self._grant(left if num_new_tokens >= left else 0)

    def preempt(self, group: Group[R] | None) -> None:
        """This pass preempted a request; if it is a group's, the group gets nothing more."""
        self.preempted = True
        if group is not None:
            self.turn_of(group).preempted = True

    def take_back(self, granted: int, num_tokens: int) -> None:
        """The scheduler gave a request fewer tokens than it was granted."""
        self.budget += granted - num_tokens
        if granted and not num_tokens:
            self.budget += self.extra

    def block(self, priority: int) -> None:
        """A leader of this priority waits for nothing but to have its followers admitted."""
        if self.blocked_priority is None or priority < self.blocked_priority:
            self.blocked_priority = priority

    def may_admit(self, priority: int) -> bool:
        """Whether a waiting request may be admitted: not in front of a leader that waits for its
        followers, or those that need little could keep it waiting for ever.
        """
        return self.blocked_priority is None or priority < self.blocked_priority

    def _grant(self, num_tokens: int, offered: int = 0, part: Part = whole) -> int:
        granted = max(num_tokens, 0)
        if 0 < granted < offered:
            granted = part(granted)
        if granted:
            self.budget -= granted + self.extra
        return granted


def num_drafts(group: Group[R]) -> int:
    """How many drafts of a group can be verified: so many as all of its streams have."""
    if group.drafting.pause or not group.drafting.possible:
        return 0
    return min(len(stream.spec_token_ids) for stream in group.streams)


def followers_left(group: Group[R], capacity: Capacity) -> list[int]:
    """Of each follower, the tokens to its sampling position."""
    return list(map(tokens_left, group.followers, capacity.num_cached))


def is_split(group: Group[R], num_scheduled: dict[str, int]) -> bool:
    """Whether what is left of a group must be preempted after a scheduling pass.

    Args:
        group: The group, which the pass dealt with.
        num_scheduled: Tokens given in this step, by request id.

    Returns:
        True if the pass preempted a stream, or if one samples in this step, or verifies a draft,
        and another does not. A leader whose followers are not admitted yet may go on prefilling.
    """
    rows = set()  # of logits that a stream has in this step
    for stream in group.streams:
        scheduled = num_scheduled.get(stream.request_id, 0)
        rows.add(max(scheduled - tokens_left(stream) + 1, 0) if scheduled else 0)
    return len(rows) > 1 or group.turn.preempted
