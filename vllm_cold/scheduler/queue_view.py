# SPDX-License-Identifier: Apache-2.0
"""What vLLM sees of its waiting queues during a pass: who may not start is held back, and a group's
streams come one after the other.

Between passes only a group's expert waits in ``waiting``, for all of its streams, so that lengths
and order are those of the clients' requests. For the time of a pass a ``QueueView`` stands in the
queues' places. It looks no further than vLLM does: one request at a time, until somebody stops it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import RequestStatus

from vllm_cold.scheduler.vllm_scheduler import Request, Scheduler


class Ruling(Enum):
    """To the question whether a request may start."""

    START = auto()
    SKIP = auto()
    """Not this one, but maybe the next."""
    STOP = auto()
    """Nobody."""


class QueueView:
    """Whom one pass admits.

    Args:
        scheduler: Whose queues it stands for.
        may_start: Asked of the head of ``waiting``. Who starts as a group is ``put`` by it, and
            taken out of the queue.
        may_go_on: Asked of the head of ``kv_holding_waiting``, which has no streams of groups.
        loaded: Puts, one after the other, the groups that wait with blocks and may go on. They come
            in front of everybody else.

    Attributes:
        front: Streams of groups, which come next.
        loads: Those of them that are to be loaded, and not to run.
        came: All that were in front.
        waiting: vLLM's queue.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        may_start: Callable[[Request], Ruling],
        may_go_on: Callable[[Request], Ruling],
        loaded: Iterator[None],
    ) -> None:
        self._scheduler: Any = scheduler
        self.front: deque[Request] = deque()
        self.loads: set[Request] = set()
        self.came: dict[Request, None] = {}
        self.places: dict[Request, int] = {}  # of those who were at the head of a queue
        self._last: Request | None = None
        self.is_over = False
        self._loaded = loaded
        self.deferred: set[Request] = getattr(scheduler, "deferred_waiting", set())
        self.waiting = scheduler.waiting
        self._asked = {
            "waiting": may_start, "kv_holding_waiting": may_go_on, "skipped_waiting": may_go_on
        }  # fmt: skip
        self._views: dict[str, View] = {}

    def stand_in(self) -> None:
        """The pass begins: take the queues' places."""
        skipped = getattr(self._scheduler, "skipped_waiting", None)
        if skipped is not None:  # who begins with these, must not wait for ever
            for request in reversed(list(skipped)):
                self.waiting.prepend_request(request)
            skipped.remove_requests(list(skipped))
        for name, ask in self._asked.items():
            if (queue := getattr(self._scheduler, name, None)) is not None:
                self._views[name] = View(self, queue, ask)
        vars(self._scheduler).update(self._views)

    def put(self, streams: Iterable[Request], to_load: bool = False) -> None:
        """These come next."""
        for each in streams:
            self.front.append(each)
            self.came[each] = None
            if to_load:
                self.loads.add(each)

    def take_next(self) -> Request:
        """The first one is admitted now, or passed over."""
        self._last = self.front.popleft()
        return self._last

    def has_next(self) -> bool:
        """Whether a group's stream comes next."""
        last = self._last
        if last is not None and last not in self.loads and last.status != RequestStatus.RUNNING:
            # vLLM has passed it over, so its group is split: nobody may find what is not written.
            self.front.clear()
            self.is_over = True
        if self.is_over:
            return False
        while not self.front and next(self._loaded, False) is None:
            pass
        return bool(self.front)

    def take(self) -> None:
        """Take the head of vLLM's queue out of it, whose streams come instead."""
        self.deferred.discard(self._views["waiting"].take())

    def restore(self) -> None:
        """The pass is over: put the queues back."""
        for name, view in self._views.items():
            setattr(self._scheduler, name, view.restored())


class View(RequestQueue):  # type: ignore[misc]
    """What vLLM sees of one queue."""

    def __init__(self, queues: QueueView, queue: Any, ask: Callable[[Request], Ruling]) -> None:
        self._queues, self._queue, self._ask = queues, queue, ask
        self._skipped: list[Request] = []

    def __bool__(self) -> bool:
        queues = self._queues
        if queues.has_next():
            return True
        while self._queue and not queues.is_over:
            answer = self._ask(self._queue.peek_request())
            if answer is not Ruling.SKIP:
                return answer is Ruling.START
            request = self.take()
            queues.deferred.add(request)
            self._skipped.append(request)
        return False

    def take(self) -> Request:
        """Take the head of vLLM's queue."""
        request: Request = self._queue.pop_request()
        self._queues.places[request] = len(self._queues.places)
        return request

    def peek_request(self) -> Request:
        front = self._queues.front
        head: Request = front[0] if front else self._queue.peek_request()
        return head

    def pop_request(self) -> Request:
        return self._queues.take_next() if self._queues.front else self.take()

    def prepend_request(self, request: Request) -> None:
        self._queue.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """These were skipped."""
        for request in requests:
            if request in self._queues.came:  # its group waits as a whole
                self._queues.deferred.discard(request)
            else:
                self._skipped.append(request)

    def restored(self) -> Any:
        """The queue after the pass."""
        places = self._queues.places
        for request in sorted(self._skipped, key=lambda r: places.get(r, -1), reverse=True):
            self._queue.prepend_request(request)
        return self._queue

    def __len__(self) -> int:
        return len(self._queue) + len(self._skipped)

    def __iter__(self) -> Iterator[Request]:
        yield from self._queue
        yield from self._skipped

    def add_request(self, request: Request) -> None:
        self._queue.add_request(request)

    def remove_request(self, request: Request) -> None:
        self._queue.remove_request(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        self._queue.remove_requests(requests)


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
