# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the scheduler, as ``SchedulerConfig.scheduler_cls`` (public option).

Why: a CoLD request is two requests that must be scheduled in step. The rules are
``vllm_cold.pairing``; this file only connects them to vLLM's scheduler, without a fork of
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
"""

import copy
import inspect
import logging
import random
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from vllm_cold.bindings import block_zeroer, metrics
from vllm_cold.ops.registry import NOT_FINITE
from vllm_cold.pairing import Pair, Room, Step, Verdict, tokens_left, torn
from vllm_cold.statistics import Counts, Figures
from vllm_cold.stream import Stream, from_extra_args

logger = logging.getLogger("vllm." + __name__)

# Torn this often in a row with nothing else running: the pair does not fit the KV cache.
_MAX_FAILED_ALONE = 3
_FIRST = -(2**62)
# For so many steps after the last pair the front ends hear from us.
_LAST_REPORTS = 32
_NOT_SCORED = (
    "CoLD: a token was sampled from rows that nobody scored; the result would be wrong. Please "
    "report this with the engine's log."
)

RequestPair = Pair[Request]


class PairScheduling(Scheduler):  # type: ignore[misc]
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
        # In a pair's id, so that no two engines have the same one: see ``statistics``.
        self._engine = uuid.uuid4().hex[:12]
        count = self.kv_cache_manager.coordinator.get_num_blocks_to_allocate
        self._counted_by = inspect.signature(count).parameters
        # Data-parallel engines share the seed, but must not draw alike.
        engine = self.vllm_config.parallel_config.data_parallel_index
        self._seeds = random.Random(self.vllm_config.model_config.seed + (engine << 32))

    # ---- arrival and end ---------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        stream = from_extra_args(params.extra_args) if params is not None else None
        super().add_request(request)
        if stream is not None and request.request_id not in self._pairs:
            pair = Pair(request, self._make_amateur(request, stream))
            self.requests[pair.amateur.request_id] = pair.amateur
            self._pairs[request.request_id] = self._pairs[pair.amateur.request_id] = pair
            self._counts.requests += 1
            self._to_report = _LAST_REPORTS
            self._beginners[pair.amateur.request_id] = 0

    def _make_amateur(self, expert: Request, stream: Stream) -> Request:
        """The twin of ``expert``; also gives the expert its half of the pair's description."""
        params: SamplingParams = copy.copy(expert.sampling_params)
        if params.temperature > 0 and params.seed is None:
            # The streams must draw the same token: same scores and same seed do it in both
            # model runners.
            params.seed = self._seeds.getrandbits(62)
        twin = copy.copy(params)
        args, pair = params.extra_args, self._pair_id(expert)
        stream = replace(stream, pair=pair)
        params.extra_args = replace(stream, role="expert").to_extra_args(args)
        twin.extra_args = replace(stream, role="amateur").to_extra_args(args)
        expert.sampling_params = params
        # What would be done twice or for nobody: the amateur's row is overwritten with the
        # scores, its outputs are dropped and its end is the expert's.
        twin.logprobs = twin.prompt_logprobs = None
        twin.structured_outputs = None
        twin.stop_token_ids = []
        twin.repetition_detection = None
        twin._eos_token_id = None
        twin.min_tokens = 0
        twin.bad_words = []
        twin._bad_words_token_ids = None
        twin.allowed_token_ids = None
        for optional in ("prompt_logprob_token_ids", "logprob_token_ids"):
            if hasattr(twin, optional):
                setattr(twin, optional, None)
        for changed in (params, twin):
            changed.__dict__.pop("sampling_type", None)  # cached, depends on the seed
        return Request(
            request_id=f"{expert.request_id}-amateur",
            client_index=expert.client_index,
            prompt_token_ids=expert.prompt_token_ids,
            prompt_embeds=expert.prompt_embeds,
            prompt_is_token_ids=expert.prompt_is_token_ids,
            sampling_params=twin,
            pooling_params=None,
            arrival_time=expert.arrival_time,
            lora_request=LoRARequest(**stream.amateur) if stream.amateur else None,
            cache_salt=expert.cache_salt,
            priority=expert.priority,
            block_hasher=expert._block_hasher,
        )

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

    def _free_tainted(self) -> list[int]:
        """Blocks that hold NaN and are nobody's now; they leave the prefix cache."""
        pool = self.kv_cache_manager.block_pool
        blocks = {block for block in self._tainted if pool.blocks[block].ref_cnt == 0}
        self._tainted -= blocks
        self.kv_cache_manager.evict_blocks(blocks)
        return sorted(blocks)

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

    def _room(self, pair: RequestPair, waiting: bool) -> Room:
        """What this step can offer the pair's amateur."""
        chunk = max(self.scheduler_config.long_prefill_token_threshold, 0)
        if pair.amateur.status == RequestStatus.RUNNING:
            return Room(running=True, chunk=chunk)
        max_active = getattr(self, "max_num_active_reqs", self.max_num_running_reqs)
        seats = len(self.running) + self.num_waiting_for_streaming_input + 1 + waiting
        num_cached = self._restored(self.kv_cache_manager.get_computed_blocks(pair.amateur)[1])
        late = (
            getattr(pair.amateur, "num_stale_output_tokens", 0) > 0
            and not pair.amateur.drop_stale_output
        )
        throttled = self._throttled and tokens_left(pair.amateur, num_cached) > 1
        admissible = (
            seats <= max_active
            and not late
            and not throttled
            and self._loras_fit(pair.expert, pair.amateur)
            and self._blocks_fit(pair)
        )
        return Room(False, num_cached, admissible, chunk, bool(self._lonely()))

    def _restored(self, num_cached: int) -> int:
        """Cached tokens that are not computed again: some models replay a window of the hit."""
        return max(num_cached - getattr(self, "prefix_replay_tokens", 0), 0)

    def _lonely(self) -> list[Request]:
        """Experts that run without their amateur."""
        return [
            r
            for r in self.running
            if (pair := self._pairs.get(r.request_id)) is not None
            and pair.amateur.status != RequestStatus.RUNNING
        ]

    def _loras_fit(self, *requests: Request) -> bool:
        """Whether the requests' adapters fit beside those of all running requests. Stock counts
        the scheduled ones only, but a stream that is held in this step needs its slot again.
        """
        if self.lora_config is None:
            return True
        users = (*self.running, *requests)
        adapters = {r.lora_request.lora_int_id for r in users if r.lora_request}
        return bool(len(adapters) <= self.lora_config.max_loras)

    def _blocks_fit(self, pair: RequestPair) -> bool:
        """Whether both streams' known tokens fit the free blocks."""
        if not self.running and not self.num_waiting_for_streaming_input:
            return True  # allocation itself decides; see _MAX_FAILED_ALONE
        needed = self._blocks_to_come(pair.expert) + self._blocks_to_come(pair.amateur)
        free: int = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return needed <= free - getattr(self.kv_cache_manager, "watermark_blocks", 0)

    def _blocks_to_come(self, request: Request) -> int:
        """Blocks that the request's known tokens still take from the free ones, as vLLM counts."""
        manager = self.kv_cache_manager
        if request.status == RequestStatus.RUNNING:
            found, num_computed = manager.empty_kv_cache_blocks, request.num_computed_tokens
        else:
            found, num_computed = manager.get_computed_blocks(request)[:2]
        terms: dict[str, Any] = {
            "request_id": request.request_id,
            "num_tokens": request.num_tokens,
            "new_computed_blocks": found.blocks,
            "num_encoder_tokens": 0,
            "total_computed_tokens": num_computed,
            "num_tokens_main_model": request.num_tokens,
            "apply_admission_cap": True,
        }
        later = {  # since 0.26 and 0.31
            "num_local_computed_tokens": num_computed,
            "prefill_end": max(request.num_prompt_tokens, request.num_tokens - 1),
        }
        terms |= {name: value for name, value in later.items() if name in self._counted_by}
        return int(manager.coordinator.get_num_blocks_to_allocate(**terms))

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

    def _uncache_unwritten(self, request: Request) -> None:
        """Blocks that were hashed for tokens of this pass are not written if the request does
        not run in it: nobody may find them in the prefix cache. Nobody has found them yet: a
        pass admits nobody after a preemption, or after an amateur that could not be admitted.
        """
        unwritten: set[int] = set()
        managers = self.kv_cache_manager.coordinator.single_type_managers
        block_ids = self.kv_cache_manager.get_block_ids(request.request_id)
        for manager, ids in zip(managers, block_ids, strict=True):
            unwritten.update(ids[request.num_computed_tokens // manager.block_size :])
        unwritten.discard(0)  # the null block
        if unwritten:
            self.kv_cache_manager.evict_blocks(unwritten)

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

    def _tear(self, pair: RequestPair, output: SchedulerOutput) -> None:
        """Take both streams out of this step and preempt them."""
        for request in (pair.amateur, pair.expert):
            never_sent = self._strip(output, request)
            if request.status != RequestStatus.RUNNING:
                continue
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())
            if never_sent:
                # The workers have not heard of it: it must be sent as new again.
                request.status = RequestStatus.WAITING
                request.num_preemptions -= 1
                if request is pair.expert:
                    self._counts.preemptions -= 1

    def _strip(self, output: SchedulerOutput, request: Request) -> bool:
        """Remove a request from the step; True if the step would have introduced it."""
        request_id = request.request_id
        num_tokens = output.num_scheduled_tokens.pop(request_id, 0)
        if not num_tokens:
            return False
        output.total_num_scheduled_tokens -= num_tokens
        self.prev_step_scheduled_req_ids.discard(request_id)
        new = [r for r in output.scheduled_new_reqs if r.req_id != request_id]
        if len(new) < len(output.scheduled_new_reqs):
            output.scheduled_new_reqs[:] = new
            return True
        cached = output.scheduled_cached_reqs
        index = cached.req_ids.index(request_id)
        for column in (
            cached.req_ids,
            cached.new_token_ids,
            cached.new_block_ids,
            cached.num_computed_tokens,
            cached.num_output_tokens,
        ):
            if column:  # new_token_ids is filled under pipeline parallelism only
                del column[index]
        cached.resumed_req_ids.discard(request_id)
        cached.all_token_ids.pop(request_id, None)
        return False

    # ---- results -------------------------------------------------------------------------------

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[int, EngineCoreOutputs]:
        scored: dict[str, Figures] = {}
        ended: list[tuple[Request, EngineCoreOutput]] = []
        if self._pairs:
            scored = self._scored(scheduler_output, model_runner_output)
            # Before vLLM sees their tokens. It passes over requests that ended meanwhile.
            ended = self._end_failed()
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        self._steps_in_flight -= bool(scheduler_output.num_scheduled_tokens)
        if self._pairs:
            ended += self._after_output(scheduler_output, outputs)
        for expert, output in ended:
            outputs.setdefault(expert.client_index, EngineCoreOutputs()).outputs.append(output)
        if self.log_stats and self._to_report > 0:
            self._counts.add(scored.values())
            self._report(outputs)
        return outputs

    def _scored(
        self, scheduler_output: SchedulerOutput, model_runner_output: Any
    ) -> dict[str, Figures]:
        """The figures of each pair that got a token in this step, by its expert's id. A pair whose
        token is none must end.
        """
        row, tokens = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        found = metrics.from_worker(model_runner_output)
        scored = {}
        for request_id in scheduler_output.num_scheduled_tokens:
            pair = self._pairs.get(request_id)
            if pair is None or request_id != pair.expert.request_id:
                continue
            figures = found.get(self._pair_id(pair.expert))
            if figures is not None and figures[2]:
                self._taint(pair)
            at = row.get(request_id)
            if at is None or not tokens or not len(tokens[at]):
                continue
            if figures is None:
                self._errors[request_id] = _NOT_SCORED
            elif figures[2]:
                self._errors[request_id] = NOT_FINITE
            else:
                scored[request_id] = figures
        return scored

    def _taint(self, pair: RequestPair) -> None:
        """The pair's blocks may hold NaN. vLLM's attention on CPU reads a sequence's last block to
        its end and weighs what stands behind the sequence with 0, which makes NaN of NaN.
        """
        if not block_zeroer.can_clear(v2=getattr(self, "use_v2_model_runner", False)):
            return
        for request in (pair.expert, pair.amateur):
            for blocks in self.kv_cache_manager.get_block_ids(request.request_id):
                self._tainted.update(blocks)

    def _report(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Send what was counted along with the statistics that vLLM made in this step.

        Also for some steps after the last pair: of several front ends, each of which gets a part of
        the messages, one that is slow must not have the last word on how many pairs there are.
        """
        running = waiting = 0
        for pair in self._each_pair():
            both = pair.expert.status == pair.amateur.status == RequestStatus.RUNNING
            running += both
            waiting += not both
        for client in outputs.values():
            if client.scheduler_stats is not None:  # of one client in each step
                metrics.attach(client.scheduler_stats, self._counts.take(running, waiting))
                self._to_report = _LAST_REPORTS if running or waiting else self._to_report - 1
                break

    def _after_output(
        self, scheduler_output: SchedulerOutput, outputs: dict[int, EngineCoreOutputs]
    ) -> list[tuple[Request, EngineCoreOutput]]:
        """Check that the streams agree, drop the amateurs' outputs, end them with the expert.

        Returns:
            The experts that ended with an error, and what their clients are told.
        """
        hidden: set[str] = set()
        over: list[RequestPair] = []
        for request_id in scheduler_output.num_scheduled_tokens:
            pair = self._pairs.get(request_id)
            if pair is None or request_id != pair.amateur.request_id:
                continue
            hidden.add(request_id)
            expert, amateur = pair.expert, pair.amateur
            num_cached = self._beginners.pop(request_id, None)
            if num_cached is not None:
                self._counts.prompt_tokens += amateur.num_prompt_tokens
                self._counts.cached_prompt_tokens += num_cached
            if (
                expert.num_tokens != amateur.num_tokens
                or expert.all_token_ids[-1] != amateur.all_token_ids[-1]
                or (amateur.is_finished() and not expert.is_finished())
            ):
                self._errors[expert.request_id] = (
                    f"CoLD: expert and amateur fell out of step at token {expert.num_tokens}; "
                    "the result would be wrong. Please report this with the engine's log."
                )
            elif expert.is_finished():
                over.append(pair)
        hidden |= self._errors.keys()
        for client in outputs.values():
            if client.outputs and hidden:
                client.outputs = [o for o in client.outputs if o.request_id not in hidden]
            self._counts.tokens += sum(
                len(o.new_token_ids) for o in client.outputs if o.request_id in self._pairs
            )
        for pair in over:
            super().finish_requests(pair.amateur.request_id, RequestStatus.FINISHED_ABORTED)
            self._forget(pair)
        return self._end_failed()

    def _end_failed(self) -> list[tuple[Request, EngineCoreOutput]]:
        """End the pairs that must, with an error: their experts, and what the clients are told."""
        return [self._end(self._pairs[i], why) for i, why in tuple(self._errors.items())]

    def _end(self, pair: RequestPair, message: str) -> tuple[Request, EngineCoreOutput]:
        expert = pair.expert
        logger.error("%s (request %s)", message, expert.request_id)
        self.finish_requests(expert.request_id, RequestStatus.FINISHED_ERROR)
        return expert, EngineCoreOutput(
            request_id=expert.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.ERROR,
            stop_reason=message,
            events=expert.take_events(),
            trace_headers=expert.trace_headers,
        )


class ColdScheduler(PairScheduling):
    """vLLM's Scheduler with CoLD pairs."""


class ColdAsyncScheduler(PairScheduling, AsyncScheduler):  # type: ignore[misc]
    """vLLM's AsyncScheduler with CoLD pairs."""
