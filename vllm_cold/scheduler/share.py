# SPDX-License-Identifier: Apache-2.0
"""The share of the sequence slots that contrastive requests may have at a time (``max_share``).

Those beyond it wait among themselves: they stand in a queue of their own, beside the regular
requests', so that a pass looks at the first of them alone, however many wait.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import merge
from typing import Any

from vllm.v1.core.sched.request_queue import (
    RequestQueue,
    SchedulingPolicy,
    create_request_queue,
)

from vllm_cold.scheduler import releases
from vllm_cold.scheduler.lockstep import Group, Request
from vllm_cold.wire.stream import is_contrastive


class SharedQueue(RequestQueue):  # type: ignore[misc]
    """A waiting queue of vLLM's in two: regular requests, and contrastive ones. Each is in vLLM's
    order. Of the two that are first, the one comes first that came first, or is more urgent.

    Args:
        policy: The engine's.

    Attributes:
        contrastive: The contrastive ones.
        is_open: Whether these are offered, too.
    """

    def __init__(self, policy: SchedulingPolicy) -> None:
        self._regular = create_request_queue(policy)
        self.contrastive = create_request_queue(policy)
        self._by_priority = policy == SchedulingPolicy.PRIORITY
        self.is_open = True

    def _of(self, request: Request) -> Any:
        extra_args = getattr(request.sampling_params, "extra_args", None)  # None: it is for pooling
        return self.contrastive if is_contrastive(extra_args) else self._regular

    def _first(self) -> Any:
        """Return the queue whose head comes next."""
        if not (self.is_open and self.contrastive):
            return self._regular
        if not self._regular:
            return self.contrastive
        regular, contrastive = self._regular.peek_request(), self.contrastive.peek_request()
        return (
            self._regular if self._order(regular) < self._order(contrastive) else self.contrastive
        )

    def _order(self, request: Request) -> Any:
        return request if self._by_priority else request.arrival_time

    def __bool__(self) -> bool:
        """Whether a request is offered."""
        return bool(self._regular) or (self.is_open and bool(self.contrastive))

    def peek_request(self) -> Request:
        head: Request = self._first().peek_request()
        return head

    def pop_request(self) -> Request:
        head: Request = self._first().pop_request()
        return head

    def add_request(self, request: Request) -> None:
        self._of(request).add_request(request)

    def prepend_request(self, request: Request) -> None:
        self._of(request).prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        self._of(request).remove_request(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        requests = set(requests)
        self._regular.remove_requests(requests)
        self.contrastive.remove_requests(requests)

    def __len__(self) -> int:
        """All that wait, offered or not."""
        return len(self._regular) + len(self.contrastive)

    def __iter__(self) -> Iterator[Request]:
        return merge(self._regular, self.contrastive, key=self._order)


class Share:
    """How much of its share contrastive requests have. A request has slots for all of its streams
    from when it starts until it waits as a whole again, or ends.

    Args:
        scheduler: The engine's. Its waiting queue becomes a ``SharedQueue``.
        groups: Its groups, by the id of each stream.
        partial: Returns those that have started and of which not all streams run.
        slots: The most sequence slots that their streams have at a time.
    """

    def __init__(
        self,
        scheduler: Any,
        groups: Mapping[str, Group],
        partial: Callable[[], Iterable[Group]],
        slots: int,
    ) -> None:
        self._scheduler, self._groups, self._partial = scheduler, groups, partial
        self._slots = slots
        self._queue = scheduler.waiting = SharedQueue(scheduler.policy)
        self._taken: int | None = None  # in this pass, once it was asked for
        self._starting = set[str]()  # in this pass; vLLM may ask twice before it takes one

    def admits(self, group: Group) -> bool:
        """Whether the first group that waits may start. If not, those after it wait, too: the queue
        offers regular requests alone until the pass is over.
        """
        if group.expert.request_id in self._starting:
            return True
        if self._taken is None:
            self._taken = self._count()
        self._queue.is_open = self._taken + len(group.streams) <= self._slots
        return self._queue.is_open

    def start(self, group: Group) -> None:
        """Note that a group starts."""
        if self._taken is not None and group.expert.request_id not in self._starting:
            self._taken += len(group.streams)
            self._starting.add(group.expert.request_id)

    def end_pass(self) -> None:
        """Offer all that wait again."""
        self._queue.is_open, self._taken = True, None
        self._starting.clear()

    def num_waiting(self) -> int:
        """Return how many requests wait for the share, between passes."""
        if not (waiting := self._queue.contrastive):
            return 0
        group = self._groups[waiting.peek_request().request_id]
        return 0 if self._count() + len(group.streams) <= self._slots else len(waiting)

    def _count(self) -> int:
        """Return how many slots are taken."""
        # Of groups whose amateurs have all ended, experts may be loaded in vLLM's own queue.
        holding = releases.holding_queue(self._scheduler)
        streams = {r for r in (*self._scheduler.running, *holding) if r.request_id in self._groups}
        return len(streams.union(*(group.streams for group in self._partial())))
