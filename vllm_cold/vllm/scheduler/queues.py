# SPDX-License-Identifier: Apache-2.0
"""Puts followers into vLLM's waiting queues for the time of a pass, right behind their leaders.

Touched in vLLM: ``RequestQueue`` and the scheduler's queues (see ``scheduler``).
"""

from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vllm_cold.group.lockstep import Group

RequestGroup = Group[Request]

# Priorities within a pass, in front of all that clients can ask for.
_LEADS, _FOLLOWS = -(2**62) - 1, -(2**62)


class QueueScheduling(Scheduler):  # type: ignore[misc]
    """The part of the scheduler that orders what waits."""

    _queued: list[Request]
    _asked_priority: dict[Request, int]

    def _enqueue(
        self, group: RequestGroup, followers: tuple[Request, ...], behind_head: bool
    ) -> None:
        """Put followers where this pass looks next: behind their leader, which is the head of its
        queue, or in front of all.
        """
        leader = group.leader
        queue = next((q for q in self._waiting_queues() if q), self.waiting)
        if behind_head:
            queue = next(q for q in self._waiting_queues() if q and q.peek_request() is leader)
        by_priority = self.policy == SchedulingPolicy.PRIORITY
        if by_priority and behind_head:
            # It is first already; now nobody who came at the same time gets between them.
            self._asked_priority[leader], leader.priority = leader.priority, _LEADS
        for at, follower in enumerate(followers, behind_head):
            if by_priority:
                self._asked_priority[follower], follower.priority = follower.priority, _FOLLOWS
                queue.add_request(follower)
            else:
                queue.insert(at, follower)
        self._queued += followers

    def _waiting_queues(self) -> list[Any]:
        """In the order in which vLLM drains them (0.23 has ``skipped_waiting``, 0.32
        ``kv_holding_waiting``).
        """
        names = ("kv_holding_waiting", "skipped_waiting", "waiting")
        return [queue for n in names if (queue := getattr(self, n, None)) is not None]

    def _take_back(self) -> None:
        """After the pass: followers that were not admitted leave the queues, and all have the
        priority again that was asked for.
        """
        for follower in self._queued:
            if follower.status != RequestStatus.RUNNING:
                self._dequeue(follower)
        self._queued.clear()
        for stream, priority in self._asked_priority.items():
            queues = [queue for queue in self._waiting_queues() if stream in queue]
            for queue in queues:  # a leader that was not admitted
                queue.remove_requests((stream,))
            stream.priority = priority
            for queue in queues:
                queue.add_request(stream)
        self._asked_priority.clear()

    def _dequeue(self, request: Request) -> None:
        for queue in self._waiting_queues():
            queue.remove_requests((request,))
        getattr(self, "deferred_waiting", set()).discard(request)
