# SPDX-License-Identifier: Apache-2.0
"""Puts followers into vLLM's waiting queues for the time of a pass, right behind their leaders.

Touched in vLLM: ``RequestQueue`` and the scheduler's queues (see ``scheduler``). vLLM's queues know
no quick way to tell whether a request is in them, or to take it out if it is not their head: who is
not to wait is not put there (``aside``). And when prompts are held
back there: ``prefill_capacity_bound``; since 0.33 ``local_prefill_interval``,
``num_executed_steps`` and ``last_prefill_step``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import RequestStatus

from vllm_cold.group.lockstep import Group
from vllm_cold.vllm.scheduler.interface import Request, Scheduler

# In the order in which vLLM drains them; 0.23 has the second, later releases the first.
_NAMES = ("kv_holding_waiting", "skipped_waiting", "waiting")
# Priorities within a pass, in front of all that clients can ask for.
_LEADS, _FOLLOWS = -(2**62) - 1, -(2**62)


def holds_prompts(scheduler: Scheduler, throttle: bool) -> bool:
    """Whether vLLM gives no tokens of prompts in this pass, but their last ones.

    Args:
        scheduler: Of which nobody was given tokens yet in this pass.
        throttle: Whether the engine says so, for the balance of data parallelism.
    """
    if not throttle:  # 0.33 does so between prompts
        since_0_33: Any = scheduler
        interval = getattr(since_0_33, "local_prefill_interval", 1)
        if interval == 1:
            return False
        steps: int = since_0_33.num_executed_steps + 1 - since_0_33.last_prefill_step
        throttle = steps < interval
    bound = getattr(scheduler, "prefill_capacity_bound", False)
    return throttle and not bound and any(not r.is_prefill_chunk for r in scheduler.running)


class WaitingQueues:
    """The queues of one scheduler, which replaces neither them nor their order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._by_priority = scheduler.policy == SchedulingPolicy.PRIORITY
        self._queued: list[Request] = []  # followers, in this pass
        self._asked_priority: dict[Request, int] = {}  # of streams that go first in this pass
        # vLLM counts these apart; not in 0.23.
        self._deferred: set[Request] = getattr(scheduler, "deferred_waiting", set())

    def priority(self, request: Request) -> int:
        """Lower comes first; without the priority policy all are the same."""
        return request.priority if self._by_priority else 0

    @property
    def has_followers(self) -> bool:
        """Whether this pass has put any there."""
        return bool(self._queued)

    def put_followers(
        self, group: Group[Request], followers: Sequence[Request], behind_head: bool
    ) -> None:
        """Put followers where this pass looks next: behind their leader, which is the head of its
        queue, or in front of all.
        """
        leader = group.leader
        followers = [each for each in followers if each not in self._queued]
        queue: Any = next((q for q in self._queues() if q), self._scheduler.waiting)
        if behind_head:
            queue = next(q for q in self._queues() if q and q.peek_request() is leader)
        if self._by_priority and behind_head and leader not in self._asked_priority:
            # It is first already; now nobody who came at the same time gets between them.
            self._asked_priority[leader], leader.priority = leader.priority, _LEADS
        for at, follower in enumerate(followers, behind_head):
            if self._by_priority:
                self._asked_priority[follower], follower.priority = follower.priority, _FOLLOWS
                queue.add_request(follower)
            else:
                queue.insert(at, follower)
        self._queued += followers

    def take_back(self) -> list[Request]:
        """After the pass: followers that were not admitted leave the queues, and all have the
        priority again that was asked for. Those whose KV is under way stay: vLLM looks for them.

        Returns:
            All that were queued.
        """
        if not (self._queued or self._asked_priority):
            return []
        stay = (RequestStatus.RUNNING, RequestStatus.WAITING_FOR_REMOTE_KVS)
        waiting = [f for f in self._queued if f.status not in stay]
        if waiting:
            self.remove(*waiting)
        for stream, priority in self._asked_priority.items():
            # A leader that was not admitted is in the order of a priority that it has no more.
            queue, was_deferred = None, stream in self._deferred
            if stream.status != RequestStatus.RUNNING and stream not in waiting:
                queue = self.remove(stream)
            stream.priority = priority
            if queue is not None:
                queue.add_request(stream)
                if was_deferred:
                    self._deferred.add(stream)
        queued, self._queued = self._queued, []
        self._asked_priority.clear()
        return queued

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Who begins to wait meanwhile, waits in no queue: to take somebody out of one again costs
        time for each who waits there.
        """
        queue = self._scheduler.waiting
        self._scheduler.waiting = create_request_queue(SchedulingPolicy.FCFS)
        try:
            yield
        finally:
            self._scheduler.waiting = queue

    def lead(self, group: Group[Request]) -> None:
        """The leader waits at the head from now on, in the expert's place."""
        self.remove(group.expert)
        self._scheduler.waiting.prepend_request(group.leader)

    def remove(self, *requests: Request) -> Any:
        """Take requests out of whatever queues they are in; the last one that had any, or None."""
        found, wanted, left = None, set(requests), len(requests)
        for queue in self._queues():
            before = len(queue)
            while queue and queue.peek_request() in wanted:
                queue.pop_request()
            if left > before - len(queue) and queue:
                queue.remove_requests(wanted)
            if len(queue) < before:
                found = queue
                left -= before - len(queue)
            if not left:
                break
        self._deferred.difference_update(requests)
        return found

    def _queues(self) -> list[Any]:
        found = (getattr(self._scheduler, name, None) for name in _NAMES)
        return [queue for queue in found if queue is not None]
