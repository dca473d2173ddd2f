# SPDX-License-Identifier: Apache-2.0
"""One pass of ``schedule()``: who starts, which groups go, and how many tokens each request gets.

``lockstep`` has the rule. Here it is asked where vLLM's pass asks: at each request that is about to
get tokens (``cap``), at the head of a waiting queue (``_may_start``, ``_may_go_on``), and before
these for groups that wait with blocks (``_put_loaded``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import RequestStatus

from vllm_cold.scheduler import releases
from vllm_cold.scheduler.encoder_inputs import EncoderInputs
from vllm_cold.scheduler.kv_blocks import CachedPrefix, KVBlocks
from vllm_cold.scheduler.kv_loads import Loads
from vllm_cold.scheduler.lockstep import Group, Request, Step, tokens_left
from vllm_cold.scheduler.queue_view import QueueView, Ruling
from vllm_cold.scheduler.share import Share

# So many passes admit others in front of a group of whose adapters some find slots and others none,
# or that would wait while another group does. Then nobody passes it any more.
_MAX_PASSED_OVER = 64
# What is free is too little for a group, and would stand idle until more is: so many requests after
# it may have it, and a pass looks past so many groups (docs/design.md has what that does).
_MAX_OVERTAKEN, _MAX_LOOK_PAST = 16, 4


def runs(request: Request) -> bool:
    """Whether a request is in the batch."""
    return bool(request.status == RequestStatus.RUNNING)


class Partial(dict[Group, None]):
    """Groups that have started and of which not all streams run, and maybe, until ``prune``, some
    of which all run or that wait as a whole again.
    """

    def prune(self) -> None:
        """Forget those that are not partial any more."""
        for group in [group for group in self if not _is_partial(group)]:
            del self[group]

    def groups(self) -> list[Group]:
        """Return those that are partial now."""
        return list(filter(_is_partial, self))

    def begun(self) -> list[Group]:
        """Return those of which some streams run: slots (for sequences and adapters) are kept for
        the others.
        """
        return [group for group in self.groups() if any(map(runs, group.streams))]


def _is_partial(group: Group) -> bool:
    return not (group.is_queued or all(map(runs, group.streams)))


class Pass:
    """What one pass decides.

    Args:
        scheduler: Whose pass it is.
        groups: Its groups, by the id of each stream.
        partial: Those that have started and of which not all streams run.
        blocks: Its KV cache.
        loads: What its KV connector brings.
        encoder: What its encoder is asked for.
        share: Of its sequence slots, that groups may have; None for no limit.
        step: The pass's budget.
        throttled: Whether vLLM holds prompts back.
        promote: Says whether a request's grammar and KV let it start.

    Attributes:
        view: What vLLM sees of its queues where groups take part.
    """

    def __init__(
        self,
        scheduler: Any,
        groups: Mapping[str, Group],
        partial: Partial,
        blocks: KVBlocks,
        loads: Loads,
        encoder: EncoderInputs,
        share: Share | None,
        step: Step,
        throttled: bool,
        promote: Callable[[Request], bool],
    ) -> None:
        self._scheduler, self._groups, self._partial = scheduler, groups, partial
        self._blocks, self._loads, self._encoder = blocks, loads, encoder
        self._share = share
        self.step, self._throttled, self._promote = step, throttled, promote
        # vLLM's own rule of where a chunk of a prompt ends, for models with SSM layers.
        splits = scheduler.need_mamba_block_aligned_split
        self._split = scheduler._mamba_block_aligned_split if splits else None
        self._capped: Request | None = None
        # One that may not start, as it would wait while another one does. It keeps its slots.
        self._passed: Group | None = None
        self._overtaken: list[Group] = []  # those with too little room, which keep nothing
        self._adapters: set[int] = set()  # of the first requests that run
        self._num_seen = 0  # how many these are
        # Sequence slots, also where vLLM has no name for those in use.
        self._max_active = releases.most_active(scheduler)
        self._undecided: Iterator[Group] | None = None  # see _put_loaded
        self.view = QueueView(scheduler, self._may_start, self._may_go_on, self._put_loaded)

    def takes_part(self) -> bool:
        """Whether a group may get tokens: not where regular requests have all sequence slots, as a
        pass that preempts one of them admits nobody.
        """
        running = self._scheduler.running
        return len(running) < self._max_active or any(r.request_id in self._groups for r in running)

    def may_go(self, group: Group) -> bool:
        """Whether a group of which not all streams run may go, as far as is known before."""
        left = [tokens_left(stream) if runs(stream) else 1 for stream in group.streams]
        if self.step.spare(left) < 0:
            return False
        # A connector is asked once, at the group's turn.
        return self._loads.possible or self._blocks.has_room(group, self._look_up(group))

    # ---- tokens ------------------------------------------------------------------------------

    def cap(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_local_computed_tokens: int = 0,
        num_external_computed_tokens: int = 0,
    ) -> int:
        """Return how many of ``num_new_tokens`` a request gets. ``group_planning`` puts it in the
        place of vLLM's ``_mamba_block_aligned_split``; ``scheduler_places`` says why.
        """
        if num_new_tokens <= 0:
            return 0
        self._capped = request
        group = self._groups.get(request.request_id)
        is_admitted = not runs(request)
        if group is None and not is_admitted and self._split is None:
            return self.step.clip(None, request, num_new_tokens, 0)
        cached, num_cached = (num_new_local_computed_tokens, num_external_computed_tokens), 0
        if is_admitted:
            if request in self.view.loads:
                return 0  # the connector has nothing for it any more
            self._loads.admitted(request, *cached)
            num_cached = self._blocks.restored(sum(cached))
        if group is not None:
            if is_admitted and request.request_id in group.new_amateurs:
                group.new_amateurs[request.request_id] = request.num_computed_tokens or num_cached
            if not group.amateurs:
                group = None  # the others have ended
            elif group not in self.step.turns:
                self._decide(group)

        def part(num_tokens: int) -> int:
            if self._split is not None:
                # Where no block's end is within reach vLLM waits for a step with more room, which
                # for a group may never come: within a block any chunk is right.
                within = num_tokens if group else 0
                num_tokens = self._split(request, num_tokens, *cached) or within
            if group is not None and request.mm_features:
                start = request.num_computed_tokens or num_cached
                num_tokens = self._encoder.unsplit(request, start, num_tokens)
            return num_tokens

        left = tokens_left(request, num_cached)
        return self.step.clip(group, request, num_new_tokens, left, part)

    def encoded(self, request: Request, num_new_tokens: int, plan: tuple[Any, ...]) -> None:
        """Note what vLLM's ``_try_schedule_encoder_inputs`` plans for a request's new tokens."""
        inputs, num_tokens, budget = plan[:3]
        self._encoder.note(request, inputs, budget)
        if request is self._capped:
            # vLLM 0.23 caps after this, and has no groups with media
            self.step.take_back(num_new_tokens, num_tokens)
            self._capped = None

    def _decide(self, group: Group) -> None:
        """Decide for a group at the turn of its first stream that runs."""
        if all(map(runs, group.streams)):
            self._go_or_hold(group, {})
            return
        may_admit = (
            not self.step.preempted
            and not self.view.front
            and not any(map(self._loads.is_under_way, group.streams))
            and not any(map(releases.is_late, group.streams))
            and self._sequences_fit(0)
            and self._adapters_fit(group.streams)
        )
        cached = self._look_up(group)
        if may_admit and not self._load(group, cached):
            # Those partial groups that have their turns later take blocks before anybody starts.
            others = (o for o in self._partial.groups() if o not in self.step.turns)
            later = (s for o in others if o is not group for s in o.streams if runs(s))
            if self._has_room(group, cached, sum(map(self._blocks.still_needed, later))):
                self._go_or_hold(group, cached)
                return
        self._go_or_hold(group, cached, may_admit=False)
        if not _all_known(cached):
            group.is_urgent = False  # the connector's answer may take long

    def _go_or_hold(
        self, group: Group, cached: Mapping[Request, CachedPrefix], may_admit: bool = True
    ) -> Sequence[Request]:
        """Decide whether a group goes, and put those of its streams in front that do not run and
        get tokens.

        Returns:
            The streams that were put in front.
        """
        left = [
            tokens_left(s, self._blocks.restored(cached[s].total) if s in cached else 0)
            for s in group.streams
        ]
        of_running = [n for n, s in zip(left, group.streams, strict=True) if runs(s)]
        absent = [(n, s) for n, s in zip(left, group.streams, strict=True) if not runs(s)]
        needed = self._encoder.needed(group, left)
        fits = may_admit and (not needed or needed <= self._encoder.left)
        fits = fits and self._can_end(group, left, cached)
        self.step.decide(group, left, bool(absent), fits)
        if not absent:
            return ()
        most = max(n for n, _ in absent)
        group.is_urgent = most > 1 or (bool(of_running) and max(of_running) == 1)
        if not may_admit:
            return ()
        # First who finds most: then the others do not push that out of the prefix cache.
        absent.sort(key=lambda pair: pair[0])
        goes = self.step.turns[group].goes
        admitted = [stream for n, stream in absent if goes or n > 1]
        self.view.put(admitted)
        return admitted

    def _can_end(
        self, group: Group, left: Sequence[int], cached: Mapping[Request, CachedPrefix]
    ) -> bool:
        """Whether vLLM lets all streams get to their sampling positions in one step: it splits
        prompts for their SSM states, and admits nobody who finds one that another leaves.
        """
        if self._split is None or max(left) == 1:
            return True
        for stream, tokens in zip(group.streams, left, strict=True):
            start = stream.num_tokens + stream.num_output_placeholders - tokens
            if self._split(stream, tokens, start - stream.num_computed_tokens) < tokens:
                return False
            start -= releases.num_in_flight_tokens(stream)
            if any(self._blocks.leaves(stream, start, *other) for other in cached.items()):
                return False
        return True

    def _look_up(self, group: Group) -> dict[Request, CachedPrefix]:
        """Return what the prefix cache, or a connector, has of the streams without blocks."""
        cached = {
            stream: self._loads.look_up(stream)
            for stream in group.streams
            if not runs(stream) and not stream.num_computed_tokens
        }
        for stream, prefix in cached.items() if self._split is not None else ():
            if tokens_left(stream, self._blocks.restored(prefix.num_tokens)) == 1 and any(
                self._blocks.leaves(s, s.num_tokens - 1, stream, prefix) for s in group.streams
            ):
                # It is admitted in the step in which all sample, but not if it finds an SSM state
                # there that another one leaves.
                releases.ignore_prefix_cache(stream)
                cached[stream] = self._loads.look_up(stream)
        return cached

    def _load(self, group: Group, cached: Mapping[Request, CachedPrefix]) -> bool:
        """Have streams loaded whose KV is brought between steps, if there is room for all of the
        group; whether there are any, or nobody knows.
        """
        late = [stream for stream, prefix in cached.items() if prefix.takes_steps]
        if late and self._loads.has_room(group, cached):
            self.view.put(late, to_load=True)
        return bool(late) or not _all_known(cached)

    # ---- who starts --------------------------------------------------------------------------

    def _may_start(self, request: Request) -> Ruling:
        """Whether the head of the queue may start: nobody while a group is there in part, but those
        that are more urgent; a group if there is room for all of it.
        """
        if self._partial and any(self._holds_up(g, request) for g in self._partial.groups()):
            return Ruling.STOP
        ahead = self._overtaken[0] if self._overtaken else self._passed
        if ahead is not None and self._priority(request) > self._priority(ahead.expert):
            return Ruling.STOP
        if any(group.overtaken >= _MAX_OVERTAKEN for group in self._overtaken):
            return Ruling.STOP
        self._loads.forget_promise(request)
        group = self._groups.get(request.request_id)
        if group is not None and self._share is not None and not self._share.admits(group):
            return Ruling.PASS_ALIKE
        if group is None or not group.amateurs:
            ruling = self._start_regular(request)
        else:
            ruling = self._start_group(group)
        if group is not None and self._share is not None and ruling is Ruling.START:
            self._share.start(group)
        if ruling is Ruling.START:
            for other in self._overtaken:
                other.overtaken += 1
        return ruling

    def _start_regular(self, request: Request) -> Ruling:
        if not self._sequences_fit(1):
            return Ruling.STOP
        return Ruling.START if self._adapters_fit([request]) else Ruling.SKIP

    def _start_group(self, group: Group) -> Ruling:
        if not self._promote(group.expert):
            return Ruling.SKIP
        ruling = self._start_if_room(group)
        if ruling is Ruling.NO_ROOM:
            return self._let_others_overtake(group)
        if ruling is Ruling.START:
            self.view.take()
            group.is_queued, group.passed_over = False, 0
            self._partial.pop(group, None)  # it comes last now
            self._partial[group] = None  # until all of its streams run
        return ruling

    def _may_go_on(self, request: Request) -> Ruling:
        """Whether a regular request with blocks may: others may wait for these."""
        loads = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        if not loads and not request.num_computed_tokens:
            self._loads.forget_promise(request)
        fits = self._adapters_fit([request], beside_partial=False)
        return Ruling.START if fits else Ruling.SKIP

    def _put_loaded(self) -> bool:
        """Decide about the next group of which no stream runs and some have blocks; False if there
        is none left.
        """
        if self._undecided is None:
            self._undecided = iter(self._partial.groups())
        for group in self._undecided:
            if any(runs(s) or self._loads.is_under_way(s) for s in group.streams):
                continue
            # Who starts might take what it waits for. ``_start_if_room`` may know better.
            group.is_urgent = True
            if self._start_if_room(group) is Ruling.SKIP:
                group.is_urgent = False
            return True
        return False

    def _start_if_room(self, group: Group) -> Ruling:
        """Start a group of which no stream runs if all streams have room: put them in front."""
        if self.step.preempted:
            return Ruling.STOP
        if any(map(releases.is_late, group.streams)):
            return Ruling.SKIP
        if not self._sequences_fit(len(group.streams)):
            return Ruling.NO_ROOM
        lacking, free = self._adapters_left(group.streams)
        if len(lacking) > free:
            # Where one of them had a slot, those after it may keep the others taken for ever: in
            # the end it stops the queue. Else it waits as any request without a slot does.
            some = free > 0 or len(lacking) < len(_adapters_of(group.streams))
            return self._pass_over(group) if some else Ruling.SKIP
        cached = self._look_up(group)
        if not _all_known(cached):
            return Ruling.SKIP
        if self._load(group, cached):
            return Ruling.START if self.view.front else Ruling.STOP
        if not self._has_room(group, cached):
            return Ruling.STOP if self._throttled else Ruling.NO_ROOM
        admitted = self._go_or_hold(group, cached)
        if not admitted:
            return Ruling.STOP
        if self._partial.begun() and len(admitted) < len(group.streams):
            # Only one group waits for others to get to their last token. The next one lets requests
            # pass that can start whole; to ask all groups after it would take long.
            self.view.front.clear()
            if self._passed is not None:
                return Ruling.STOP
            self._passed = group
            return self._pass_over(group)
        return Ruling.START

    def _let_others_overtake(self, group: Group) -> Ruling:
        """Let those after a group that has too little room start, but not for ever."""
        # A preempted one would be preempted for them again: they have started before it.
        was_preempted = group.expert.status == RequestStatus.PREEMPTED
        if was_preempted or self._passed is not None or len(self._overtaken) == _MAX_LOOK_PAST:
            return Ruling.STOP
        self._overtaken.append(group)
        return Ruling.NO_ROOM

    def _pass_over(self, group: Group) -> Ruling:
        """Let those after the group start, but not for ever."""
        group.passed_over += 1
        return Ruling.SKIP if group.passed_over <= _MAX_PASSED_OVER else Ruling.STOP

    def _holds_up(self, group: Group, request: Request) -> bool:
        """Whether a request may not start because that might take what a group waits for."""
        return (
            group.is_urgent
            and self._priority(request) >= self._priority(group.expert)
            and not any(map(self._loads.is_under_way, group.streams))
        )

    def _priority(self, request: Request) -> int:
        """Return the priority: lower comes first; without the priority policy all are the same."""
        by_priority = self._scheduler.policy == SchedulingPolicy.PRIORITY
        return request.priority if by_priority else 0

    # ---- room --------------------------------------------------------------------------------

    def _has_room(
        self, group: Group, cached: Mapping[Request, CachedPrefix], promised: int = 0
    ) -> bool:
        """Whether vLLM would admit those streams, as far as is known."""
        if self._throttled:
            known = {s: self._blocks.restored(prefix.total) for s, prefix in cached.items()}
            if any(tokens_left(s, known.get(s, 0)) > 1 for s in group.streams if not runs(s)):
                return False
        return self._blocks.has_room(group, cached, promised)

    def _begun(self) -> list[Group]:
        """Return the groups for which slots are kept: they have begun, or others pass them."""
        begun = self._partial.begun() if self._partial else []
        return begun if self._passed is None else [*begun, self._passed]

    def _sequences_fit(self, more: int) -> bool:
        """Whether so many more streams find sequence slots, besides those that are kept."""
        for other in self._begun():
            more += sum(not runs(stream) for stream in other.streams)
        scheduler = self._scheduler
        taken: int = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        return taken + more <= self._max_active

    def _adapters_left(
        self, streams: Sequence[Request], beside_partial: bool = True
    ) -> tuple[set[int], int]:
        """Return which adapters of these have no slot yet, besides those of all running requests,
        and how many slots are free. vLLM counts the scheduled ones only, but a stream that is held
        in this step needs its slot again.
        """
        adapters = _adapters_of(streams)
        running, lora = self._scheduler.running, self._scheduler.lora_config
        if not adapters or lora is None:
            return set(), 0
        if self._num_seen < len(running):
            self._adapters |= _adapters_of(running[self._num_seen :])
            self._num_seen = len(running)
        taken = self._adapters
        for other in self._begun() if beside_partial else ():
            taken = taken | _adapters_of(other.streams)
        return adapters - taken, lora.max_loras - len(taken)

    def _adapters_fit(self, streams: Sequence[Request], beside_partial: bool = True) -> bool:
        lacking, free = self._adapters_left(streams, beside_partial)
        return len(lacking) <= free

    # ---- what vLLM does meanwhile --------------------------------------------------------------

    def preempt(self, request: Request, group: Group | None) -> None:
        """Note that a request is preempted, a stream of this group if of any."""
        unwritten = self._blocks.uncache_unwritten(request, self._loads.num_written(request))
        if self._loads.possible:
            self._loads.cut(unwritten)
        self.step.preempt(group)
        # Somebody runs no more, so what was seen of those who run holds no more.
        self._adapters.clear()
        self._num_seen = 0


def _all_known(cached: Mapping[Request, CachedPrefix]) -> bool:
    """Whether the connector knows already what it has of these streams."""
    return all(prefix.is_known for prefix in cached.values())


def _adapters_of(streams: Iterable[Request]) -> set[int]:
    return {stream.lora_request.lora_int_id for stream in streams if stream.lora_request}
