# SPDX-License-Identifier: Apache-2.0
"""The rule that keeps the streams of a contrastive request in lockstep. Needs no vLLM.

A contrastive request is a group of ordinary requests, the expert and its amateurs, each with its
own KV cache and maybe its own prompt. One rule carries everything: **in a scheduler step either all
streams reach their sampling position or none does.** So a group is in one of two states:

- *Hold*: its streams are scheduled as any request is, each when its turn comes, but at most up to
  one token short of the sampling position. One that lacks that token alone has nothing to compute:
  it waits, in the batch or in front of it.
- *Go*: all of them sample in this step, since the budget holds what all still need.

``Step`` decides at the turn of a group's first stream, for all of them, and sets their tokens
aside, so that nobody comes between. What still goes wrong (a stream is preempted for want of
blocks) is found after the pass: what is left of a group that was ``split`` is preempted too.

With speculative decoding a stream that samples also verifies drafts, tokens after its last known
one. All streams of a group verify the same number, so that every draft has a row in each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vllm_cold.scheduler.drafting import Drafting

if TYPE_CHECKING:  # which needs torch
    from vllm_cold.scheduler.budgets import Budget
    from vllm_cold.scheduler.explain_steps import StepExplainer


class Request(Protocol):
    """What is used of a ``vllm.v1.request.Request``; in this file, what comes first."""

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

    client_index: int
    priority: int
    arrival_time: float
    status: Any  # RequestStatus
    sampling_params: Any
    lora_request: Any
    num_preemptions: int
    num_prompt_tokens: int
    skip_reading_prefix_cache: bool  # before 0.34
    prefix_cache_hit_limit: int | None  # since 0.34
    skip_reading_external_kv: bool  # since 0.34
    is_prefill_chunk: bool
    trace_headers: Any
    block_hashes: Sequence[bytes]
    mm_features: Sequence[Any]
    shared_prefix_boundary: int  # not in 0.23

    def take_events(self) -> Any:
        """Return the events for whoever measures, and forget them."""


@dataclass(eq=False, slots=True)
class Group:
    """The streams of one contrastive request, and all that a scheduler knows of it.

    Attributes:
        streams: The expert, which is the request that the client knows, and the amateurs, which
            never reach the client.
        kind: What the request is counted under: see ``step_stats``.
        bits: Of each amateur there ever was, by request id, its bit in ``RowStats.done``.
        rule_keeps_state: Whether its rule does.
        slot: Where workers keep that; None until it gets its first tokens.
        retires: Whether its rule may end amateurs.
        explainer: Makes what its client is told of its tokens; None where it does not ask.
        budget: What its tokens have cost; None for a rule that does not charge.
        is_queued: Whether it waits as a whole: its expert stands in the queue for it.
        failed_alone: How often in a row the group was split while nothing else ran; one that does
            not fit an otherwise empty KV cache never will.
        drafting: How well its drafts do.
        passed_over: Passes that admitted others in front of it since it began to wait.
        overtaken: How many requests were let start before it, as there was too little room for it.
        is_urgent: Whether nobody may start before the streams that it lacks; who starts might take
            what they need, and the others would wait for nothing else.
        error: Why it must end, as its client is told.
        new_amateurs: Of each amateur that no step has had yet, by request id, its prompt tokens
            that were found in the prefix cache.
    """

    streams: tuple[Request, ...]
    kind: tuple[str, str] = ("", "")
    bits: dict[str, int] = field(init=False)
    rule_keeps_state: bool = False
    slot: int | None = None
    retires: bool = False
    explainer: "StepExplainer | None" = None
    budget: "Budget | None" = None
    is_queued: bool = True
    failed_alone: int = 0
    drafting: Drafting = field(default_factory=Drafting)
    passed_over: int = 0
    overtaken: int = 0
    is_urgent: bool = True
    error: str | None = None
    new_amateurs: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.bits = {amateur.request_id: 1 << i for i, amateur in enumerate(self.amateurs)}
        self.new_amateurs = {amateur.request_id: 0 for amateur in self.amateurs}

    def retire(self, amateurs: Sequence[Request]) -> None:
        """Remove amateurs that are not needed any more. A group without any is an expert alone,
        which is scheduled as a regular request.
        """
        self.streams = tuple(stream for stream in self.streams if stream not in amateurs)

    @property
    def expert(self) -> Request:
        """The request that the client knows."""
        return self.streams[0]

    @property
    def amateurs(self) -> tuple[Request, ...]:
        """What the expert is compared with."""
        return self.streams[1:]

    @property
    def request_id(self) -> str:
        """The expert's, which names the group."""
        return self.streams[0].request_id


def tokens_left(request: Request, num_cached: int = 0) -> int:
    """Return the tokens from here to the sampling position, which is after the last known token.

    Args:
        request: The stream.
        num_cached: Tokens found in the prefix cache, for a stream that holds no blocks yet.
    """
    computed = request.num_computed_tokens or num_cached
    return request.num_tokens + request.num_output_placeholders - computed


@dataclass(slots=True)
class Turn:
    """What one pass has decided for a group.

    Attributes:
        goes: Whether all streams sample in it; else the group holds.
        drafts: How many drafts each stream verifies.
        is_lost: Whether a stream was preempted; then the group gets nothing more.
        set_aside: Tokens for each stream that goes and had no turn yet, by request id.
    """

    goes: bool = False
    drafts: int = 0
    is_lost: bool = False
    set_aside: dict[str, int] = field(default_factory=dict)


def _all(num_tokens: int) -> int:
    return num_tokens


@dataclass(slots=True)
class Step:
    """One scheduler step: the budget as it is handed out.

    Attributes:
        budget: Tokens that can still be scheduled (at least: those of preempted requests are
            not added again).
        chunk: The most tokens that one prefilling request may take in a step, 0 for no limit.
        longest: The most tokens that a request may have.
        extra: Tokens that a drafter adds to each request which is scheduled.
        padding: Tokens that must be left over where a request with one token left is admitted.
        turns: The groups that this pass dealt with, and what it decided for each.
        preempted: Whether this pass preempted a request; then it admits nobody.
    """

    budget: int
    chunk: int = 0
    longest: int = 1 << 62
    extra: int = 0
    padding: int = 0
    turns: dict[Group, Turn] = field(default_factory=dict)
    preempted: bool = False

    def begin(self, group: Group) -> Turn:
        """Return the group's turn in this pass; a new one holds."""
        return self.turns.setdefault(group, Turn())

    def spare(self, left: Sequence[int]) -> int:
        """Return the tokens that remain if streams with so many ``left`` all sample; less than 0 if
        they do not fit the step.
        """
        if self.chunk and max(left) > self.chunk:
            return -1
        return self.budget - sum(left) - self.extra * len(left)

    def decide(self, group: Group, left: Sequence[int], admits: bool, fits: bool) -> None:
        """Decide whether a group goes, before any of its streams is given tokens in this pass.

        Args:
            group: The group.
            left: Of each stream, its tokens to the sampling position; less if some are cached.
            admits: Whether one of them does not run yet.
            fits: Whether, apart from the budget, nothing is known to keep them from going.
        """
        turn = self.begin(group)
        spare = self.spare(left)
        if admits:
            # Maybe one finds all but its last token in what another one is given now.
            spare -= self.padding
        # Less than 0 while drafts that may be wrong count as right: vLLM waits to hear of these.
        room = min(
            self.longest - 1 - s.num_tokens - s.num_output_placeholders for s in group.streams
        )
        if not fits or min(spare, room) < 0:
            return
        turn.goes = True
        # Who is admitted is offered none, though drafts of before a preemption may have come since.
        if not admits:
            most = [spare // len(left), room]
            if self.chunk:
                most.append(self.chunk - max(left))
            drafts = min(len(stream.spec_token_ids) for stream in group.streams)
            turn.drafts = min(drafts, *most) if group.drafting.is_on else 0
        for stream, tokens in zip(group.streams, left, strict=True):
            turn.set_aside[stream.request_id] = tokens + turn.drafts + self.extra
        self.budget -= sum(turn.set_aside.values())

    def clip(
        self,
        group: Group | None,
        request: Request,
        offered: int,
        left: int,
        part: Callable[[int], int] = _all,
    ) -> int:
        """Return how many of the tokens that the scheduler offers a request may take.

        Args:
            group: Its group, for which this pass has decided; None for a regular request.
            request: Whose turn it is.
            offered: At least one.
            left: Its tokens to the sampling position.
            part: How many of less than it is offered it may take, where it may stop anywhere.
        """
        aside, turn = 0, None if group is None else self.turns[group]
        if turn is None:
            granted = min(offered, self.budget - self.extra)
        elif turn.is_lost:
            return 0
        elif turn.goes:
            aside = turn.set_aside.pop(request.request_id, 0)
            granted = left + turn.drafts
            # More than set aside: others' blocks pushed this one's out of the prefix cache. A 0
            # ends the admission, so that nobody finds blocks of this group, which is split.
            if granted > offered or granted + self.extra > self.budget + aside:
                return 0
        else:
            granted = min(offered, left - 1, self.budget - self.extra)
        if granted > 0 and not (turn and turn.goes):
            granted = part(granted)
        if granted <= 0:
            return 0
        self.budget += aside - granted - self.extra
        return granted

    def preempt(self, group: Group | None) -> None:
        """Note that this pass preempted a request; if it is a group's, that gets nothing more."""
        self.preempted = True
        if group is not None:
            turn = self.begin(group)
            turn.is_lost = True
            self.budget += sum(turn.set_aside.values())
            turn.set_aside.clear()

    def take_back(self, granted: int, num_tokens: int) -> None:
        """Add to the budget what the scheduler gave a request less than it was granted."""
        self.budget += granted - num_tokens
        if granted and not num_tokens:
            self.budget += self.extra


def is_split(group: Group, num_scheduled: dict[str, int]) -> bool:
    """Whether one stream of a group samples in a step, or verifies a draft, and another does not.
    One that holds may go on prefilling.

    Args:
        group: The group.
        num_scheduled: Tokens given in this step, by request id.
    """
    rows = set()  # of logits that a stream has in this step
    for stream in group.streams:
        scheduled = num_scheduled.get(stream.request_id, 0)
        rows.add(max(scheduled - tokens_left(stream) + 1, 0) if scheduled else 0)
    return len(rows) > 1
