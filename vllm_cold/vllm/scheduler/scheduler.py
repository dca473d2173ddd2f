# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the scheduler, as ``SchedulerConfig.scheduler_cls`` (public option).

Why: a CoLD request is two requests that must be scheduled in step. The rules are
``vllm_cold.group.lockstep``; this file only connects them to vLLM's scheduler, without a fork of
``schedule()``. What it relies on:

- ``_mamba_block_aligned_split(request, num_new_tokens, num_local_cached, ...)``: called for every
  request that is about to get tokens, in both loops of ``schedule()``, after the token budget and
  before block allocation, whenever ``need_mamba_block_aligned_split`` is true; a 0 passes the
  request over (running) or ends admission for this step (waiting). It is the one place where
  tokens can be capped *before* blocks are allocated and hashed. It is replaced during a pass with
  pairs only; Mamba models are refused, so the hook is free. In 0.23 to 0.33. Can go: when vLLM
  offers a per-request cap.
- ``_update_after_schedule(output)``: the end of ``schedule()``, before counts advance.
- ``_preempt_request``, ``add_request``, ``finish_requests``, ``update_from_output``,
  ``get_request_counts``: overridden, each calls super.
- The amateur is in ``self.requests`` but in no waiting queue, except inside a scheduling pass
  right behind (or, if the expert already runs, in front of) everything else; so waiting counts
  and queue order are those of the experts.

Since: 0.23 to 0.33. ``room`` looks at what there is, ``surgery`` takes out of a planned step,
``results`` meets the outputs, ``amateurs`` makes the twins.
"""

import inspect
import logging
import time
import uuid
from collections.abc import Iterable
from typing import Any

from msgspec import structs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from vllm_cold.group.lockstep import Pair, Room, Step, Verdict, tokens_left, torn
from vllm_cold.group.stream import from_extra_args
from vllm_cold.group.tally import Counts
from vllm_cold.vllm.scheduler.amateurs import make_amateur
from vllm_cold.vllm.scheduler.results import LAST_REPORTS, ReadsResults
from vllm_cold.vllm.scheduler.room import OffersRoom
from vllm_cold.vllm.scheduler.surgery import TakesOut

logger = logging.getLogger("vllm." + __name__)

# Torn this often in a row with nothing else running: the pair does not fit the KV cache.
_MAX_FAILED_ALONE = 3
_FIRST = -(2**62)

RequestPair = Pair[Request]


class PairScheduling(OffersRoom, TakesOut, ReadsResults):
    """What makes a vLLM scheduler schedule CoLD pairs; AsyncScheduler fits in behind it (MRO)."""

    running: list[Request]
    need_mamba_block_aligned_split: bool

    # What vLLM's methods need of us although __init__ never ran, as in some of its tests.
    _pairs: dict[str, RequestPair] = {}
    _steps_in_flight = 0
    _to_report = 0
    _tainted: set[int] = set()
    log_stats = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pairs = {}  # by the id of either stream
        self._step: Step[Request] = Step(budget=0)
        self._budget = 0
        self._in_pass = False
        self._throttled = False  # whether vLLM holds prompts back in this pass
        self._touched: dict[str, RequestPair] = {}  # pairs that this pass dealt with
        self._queued: list[RequestPair] = []  # amateurs put into the queue in this pass
        self._steps_in_flight = 0
        self._errors: dict[str, str] = {}  # expert id -> why it must end
        self._counts = Counts()
        # Amateurs that have not been in a step yet -> prompt tokens found in the prefix cache.
        self._beginners: dict[str, int] = {}
        self._to_report = 0  # steps for which the front ends must hear from us, pairs or not
        self._tainted = set()  # blocks to be cleared as soon as they are nobody's
        # In a pair's id, so that no two engines have the same one: see ``worker.outputs``.
        self._engine = uuid.uuid4().hex[:12]
        count = self.kv_cache_manager.coordinator.get_num_blocks_to_allocate
        self._counted_by = inspect.signature(count).parameters

    # ---- arrival and end ---------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        stream = from_extra_args(params.extra_args) if params is not None else None
        super().add_request(request)
        if stream is not None and request.request_id not in self._pairs:
            stream = structs.replace(stream, pair=self._pair_id(request))
            pair = Pair(request, make_amateur(request, stream))
            self.requests[pair.amateur.request_id] = pair.amateur
            self._pairs[request.request_id] = self._pairs[pair.amateur.request_id] = pair
            self._counts.requests += 1
            self._to_report = LAST_REPORTS
            self._beginners[pair.amateur.request_id] = 0

    def _pair_id(self, expert: Request) -> str:
        return f"{self._engine}:{expert.request_id}"

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Finish whole pairs; the amateurs are not reported."""
        if isinstance(request_ids, str):
            request_ids = (request_ids,)
        if self._pairs:
            if request_ids is None:
                request_ids = list(self.requests)
            ids = set(request_ids)
            for request_id in tuple(ids):
                if (pair := self._pairs.get(request_id)) is not None:
                    ids |= {pair.expert.request_id, pair.amateur.request_id}
            pairs = [p for i in ids if (p := self._pairs.get(i)) is not None]
            finished = super().finish_requests(ids, finished_status)
            amateurs = {p.amateur.request_id for p in pairs}
            for pair in pairs:
                self._forget(pair)
            # vLLM 0.23 reports (request id, client index), 0.32 the requests.
            return [
                r
                for r in finished or ()
                if (r[0] if isinstance(r, tuple) else r.request_id) not in amateurs
            ]
        return super().finish_requests(request_ids, finished_status)  # type: ignore[no-any-return]

    def _forget(self, pair: RequestPair) -> None:
        self._pairs.pop(pair.expert.request_id, None)
        self._pairs.pop(pair.amateur.request_id, None)
        self._errors.pop(pair.expert.request_id, None)
        self._beginners.pop(pair.amateur.request_id, None)

    def get_request_counts(self) -> tuple[int, int]:
        """(running, waiting), a CoLD request counted once."""
        running, waiting = super().get_request_counts()
        if self._pairs and not self._in_pass:
            running -= sum(p.amateur.status == RequestStatus.RUNNING for p in self._each_pair())
        return running, waiting

    def _each_pair(self) -> Iterable[RequestPair]:
        return (p for i, p in self._pairs.items() if i == p.amateur.request_id)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """A CoLD request counts once; vLLM 0.23 does not ask ``get_request_counts``."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self._pairs:
            stats.num_running_reqs = self.get_request_counts()[0]
        return stats

    # ---- one scheduling pass -----------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._tainted:
            return self._schedule(*args, **kwargs)
        # At the start of the step, before anybody computes with them.
        blocks = self._free_tainted()
        output = self._schedule(*args, **kwargs)
        output.new_block_ids_to_zero = [*(output.new_block_ids_to_zero or ()), *blocks]
        return output

    def _schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not self._pairs:
            return super().schedule(*args, **kwargs)
        self._budget = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        self._step = Step(budget=self._budget)
        self._throttled = (
            bool(args[0] if args else kwargs.get("throttle_prefills"))
            and not self.prefill_capacity_bound
            and any(not r.is_prefill_chunk for r in self.running)
        )
        self._order_running()
        self._in_pass = True
        before, self.need_mamba_block_aligned_split = self.need_mamba_block_aligned_split, True
        self._mamba_block_aligned_split = self._cap
        try:
            return super().schedule(*args, **kwargs)
        finally:
            del self._mamba_block_aligned_split  # the class's again
            self.need_mamba_block_aligned_split = before
            self._in_pass = False
            self._touched = {}

    def _order_running(self) -> None:
        """An expert whose amateur is not admitted yet runs last, so that nothing comes between
        the two within a pass. With admission paused it must not hold what it cannot use.
        """
        lonely = self._lonely()
        if not lonely:
            return
        self.running = [r for r in self.running if r not in lonely]
        if self.pause_state == PauseState.PAUSED_NEW:
            for request in lonely:
                self._preempt_request(request, time.monotonic())
        else:
            self.running += lonely

    def _cap(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_local_computed_tokens: int = 0,
        num_external_computed_tokens: int = 0,
        num_uncached_common_prefix_tokens: int = 0,
    ) -> int:
        """The cap on a request's tokens in this step; see the module docstring. The last argument
        is of 0.24 and 0.25, and 0 for models without state-space layers.
        """
        if num_new_tokens <= 0:
            return 0
        num_cached = self._restored(num_new_local_computed_tokens)
        waiting = request.status != RequestStatus.RUNNING
        pair = self._pairs.get(request.request_id)
        if pair is not None and request is pair.amateur:
            if waiting and request.request_id in self._beginners:
                self._beginners[request.request_id] = num_cached
            return self._step.clip_amateur(pair, num_new_tokens, num_cached)
        if waiting and not self._step.may_admit(self._urgency(request)):
            return 0
        if pair is None:
            if waiting and request.lora_request and not self._loras_fit(request):
                return 0
            return self._step.clip_plain(num_new_tokens)
        self._touched[request.request_id] = pair
        room = self._room(pair, waiting)
        granted = self._step.clip_expert(pair, num_new_tokens, num_cached, room, waiting)
        if granted == 0 and waiting:
            self._unblock(pair, num_cached, room)
            return 0
        if granted == 0 and not room.running:
            self._step.wanting = self._urgency(request)
        if self._step.admits_amateur(pair, room):
            self._enqueue_amateur(pair, behind_head=waiting)
        return granted

    def _urgency(self, request: Request) -> int:
        """Lower comes first; without the priority policy all are the same."""
        return request.priority if self.policy == SchedulingPolicy.PRIORITY else 0

    def _unblock(self, pair: RequestPair, num_cached: int, room: Room) -> None:
        """An expert whose prompt is cached up to the last token cannot wait for an amateur that
        needs several steps: it has no token to be admitted with. It gives up its cache hit.
        """
        # What the running requests leave in an ordinary step.
        most = min(self._budget - 1 - len(self.running), room.chunk or self._budget)
        if (
            tokens_left(pair.expert, num_cached) == 1
            and tokens_left(pair.amateur, room.num_cached) > most
        ):
            pair.expert.skip_reading_prefix_cache = True

    def _enqueue_amateur(self, pair: RequestPair, behind_head: bool) -> None:
        """Put the amateur where this pass looks next: behind its expert, which is the head of
        its queue, or in front of all.
        """
        queue = next((q for q in self._waiting_queues() if q), self.waiting)
        if behind_head:
            queue = next(q for q in self._waiting_queues() if q and q.peek_request() is pair.expert)
        if self.policy == SchedulingPolicy.PRIORITY:
            pair.amateur.priority = pair.expert.priority if behind_head else _FIRST
            queue.add_request(pair.amateur)
        else:
            queue.insert(1 if behind_head else 0, pair.amateur)
        self._queued.append(pair)

    def _waiting_queues(self) -> list[Any]:
        """In the order in which vLLM drains them (0.23 has ``skipped_waiting``, 0.32
        ``kv_holding_waiting``).
        """
        names = ("kv_holding_waiting", "skipped_waiting", "waiting")
        return [queue for n in names if (queue := getattr(self, n, None)) is not None]

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        pair = self._pairs.get(request.request_id)
        if self._in_pass:
            self._uncache_unwritten(request)
            self._step.preempt(pair)
            if pair is not None:
                self._touched[pair.expert.request_id] = pair
        super()._preempt_request(request, *args, **kwargs)
        if pair is not None and request is pair.expert:
            self._counts.preemptions += 1
        if pair is not None and request is pair.amateur:
            self.waiting.remove_request(request)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self._pairs:
            self._settle(scheduler_output)
        self._steps_in_flight += bool(scheduler_output.num_scheduled_tokens)
        super()._update_after_schedule(scheduler_output)

    def _settle(self, output: SchedulerOutput) -> None:
        """After the pass: take back amateurs that were not admitted, preempt torn pairs."""
        for pair in self._queued:
            if pair.amateur.status != RequestStatus.RUNNING:
                for queue in self._waiting_queues():
                    queue.remove_requests((pair.amateur,))
            pair.amateur.priority = pair.expert.priority
        self._queued.clear()
        failed: list[RequestPair] = []
        for pair in self._touched.values():
            if torn(pair, self._step, output.num_scheduled_tokens):
                self._tear(pair, output)
                failed.append(pair)
            elif self._step.verdicts.get(pair.expert.request_id) is Verdict.FINISH:
                pair.failed_alone = 0
        if not output.num_scheduled_tokens and not self._step.preempted and self._stalled():
            # An expert waits in vain for its amateur's blocks: the youngest pair gives way.
            pair = next(p for r in reversed(self.running) if (p := self._pairs.get(r.request_id)))
            self._tear(pair, output)
            failed.append(pair)
        for pair in failed:
            pair.failed_alone = 0 if output.num_scheduled_tokens else pair.failed_alone + 1
            if pair.failed_alone >= _MAX_FAILED_ALONE:
                self._errors[pair.expert.request_id] = (
                    f"CoLD: the two streams of this request ({pair.expert.num_tokens} tokens "
                    f"each) do not fit the KV cache of {self.cache_config.num_gpu_blocks} blocks "
                    f"of {self.block_size} tokens; shorten it or enlarge the KV cache."
                )

    def _stalled(self) -> bool:
        """Whether running pairs got nothing although nothing is under way."""
        return (
            self.pause_state == PauseState.UNPAUSED
            and any(r.request_id in self._pairs for r in self.running)
            and not self._steps_in_flight
        )


class ColdScheduler(PairScheduling):
    """vLLM's Scheduler with CoLD pairs."""


class ColdAsyncScheduler(PairScheduling, AsyncScheduler):  # type: ignore[misc]
    """vLLM's AsyncScheduler with CoLD pairs."""
