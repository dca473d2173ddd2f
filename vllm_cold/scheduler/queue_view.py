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

from vllm_cold.scheduler import releases
from vllm_cold.scheduler.lockstep import Request


class Ruling(Enum):
    """To the question whether a request may start."""

    START = auto()
    SKIP = auto()
    """Not this one, but maybe the next."""
    PASS_ALIKE = auto()
    """Neither this one nor its like, which the queue does not offer any more; maybe the next."""
    NO_ROOM = auto()
    """Not this one: it needs more sequence slots or blocks than are free."""
    STOP = auto()
    """Nobody."""


class QueueView:
    """vLLM's waiting queues as one pass shows them to vLLM, with streams of groups in front.

    Args:
        scheduler: Whose queues it stands for.
        may_start: Decides about the head of ``waiting``. For a group that starts it ``put``s the
            streams in front, and takes the expert out of the queue (``take``).
        may_go_on: Decides about the head of ``kv_holding_waiting``, which has no streams of groups.
        put_loaded: Decides about the next group that waits with blocks, and ``put``s its streams in
            front if it may go on; False when all have been decided about. These groups come before
            everybody else.

    Attributes:
        front: The streams of groups that come next. If it is emptied, those do not come in this
            pass.
        loads: Those put in front that are to be loaded, and not to run.
        came: All that were put in front.
        waiting: vLLM's queue.
    """

    def __init__(
        self,
        scheduler: Any,
        may_start: Callable[[Request], Ruling],
        may_go_on: Callable[[Request], Ruling],
        put_loaded: Callable[[], bool],
    ) -> None:
        self._scheduler = scheduler
        self.front: deque[Request] = deque()
        self.loads: set[Request] = set()
        self.came: dict[Request, None] = {}
        self.positions: dict[Request, int] = {}  # of those who were at the head of a queue
        self._last: Request | None = None
        self.is_over = False
        self._put_loaded = put_loaded
        self.deferred: set[Request] = releases.deferred(scheduler)
        self.waiting = scheduler.waiting
        self._deciders = {
            "waiting": may_start,
            "kv_holding_waiting": may_go_on,  # since 0.31
            "skipped_waiting": may_go_on,  # before 0.31
        }
        self._views: dict[str, View] = {}

    def stand_in(self) -> None:
        """Take the queues' places for the time of the pass."""
        for request in reversed(releases.take_skipped(self._scheduler)):
            self.waiting.prepend_request(request)  # who begins with these, must not wait for ever
        for name, decide_head in self._deciders.items():
            if (queue := getattr(self._scheduler, name, None)) is not None:  # as _deciders says
                self._views[name] = View(self, queue, decide_head)
        vars(self._scheduler).update(self._views)

    def put(self, streams: Iterable[Request], to_load: bool = False) -> None:
        """Put streams of a group in front: they come next."""
        for stream in streams:
            self.front.append(stream)
            self.came[stream] = None
            if to_load:
                self.loads.add(stream)

    def take_next(self) -> Request:
        """Take the first one from the front: vLLM admits it now, or passes it over."""
        self._last = self.front.popleft()
        return self._last

    def fill_front(self) -> bool:
        """Have a stream of a group in front if one may come next; whether there is one.

        If vLLM passed the last one over, it gets none: the pass admits nobody more. Else, if nobody
        is in front, groups that wait with blocks are put there.
        """
        last = self._last
        if last is not None and last not in self.loads and last.status != RequestStatus.RUNNING:
            # vLLM has passed it over, so its group is split: nobody may find what is not written.
            self.front.clear()
            self.is_over = True
        if self.is_over:
            return False
        while not self.front:
            if not self._put_loaded():
                return False
        return True

    def take(self) -> None:
        """Take the head out of vLLM's queue: its streams come instead."""
        self.deferred.discard(self._views["waiting"].take())

    def restore(self) -> None:
        """Put the queues back after the pass."""
        for name, view in self._views.items():
            setattr(self._scheduler, name, view.restored())


class View(RequestQueue):  # type: ignore[misc]
    """What vLLM sees of one queue.

    Args:
        queues: All of the pass.
        queue: vLLM's.
        decide_head: Decides whether its head may start.
    """

    def __init__(
        self, queues: QueueView, queue: Any, decide_head: Callable[[Request], Ruling]
    ) -> None:
        self._queues, self._queue, self._decide_head = queues, queue, decide_head
        self._skipped: list[Request] = []

    def __bool__(self) -> bool:
        """Whether somebody may come next. vLLM asks before it looks at each head, and looks at none
        of whom the answer is not true: so here the decisions of the pass are made. Groups are put
        in front, and heads that must wait are taken out until the pass is over.
        """
        queues = self._queues
        if queues.fill_front():
            return True
        while self._queue and not queues.is_over:
            ruling = self._decide_head(self._queue.peek_request())
            if ruling is Ruling.PASS_ALIKE:
                continue
            if ruling not in (Ruling.SKIP, Ruling.NO_ROOM):
                return ruling is Ruling.START
            request = self.take()
            if ruling is Ruling.SKIP:
                queues.deferred.add(request)
            else:  # it waits for capacity, as vLLM calls that
                queues.deferred.discard(request)
            self._skipped.append(request)
        return False

    def take(self) -> Request:
        """Take the head out of vLLM's queue, and remember its position."""
        request: Request = self._queue.pop_request()
        self._queues.positions[request] = len(self._queues.positions)
        return request

    def peek_request(self) -> Request:
        head: Request = self._queues.front[0] if self._queues.front else self._queue.peek_request()
        return head

    def pop_request(self) -> Request:
        return self._queues.take_next() if self._queues.front else self.take()

    def prepend_request(self, request: Request) -> None:
        self._queue.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Keep those that vLLM skipped until the pass is over."""
        for request in requests:
            if request in self._queues.came:  # its group waits as a whole
                self._queues.deferred.discard(request)
            else:
                self._skipped.append(request)

    def restored(self) -> Any:
        """Return vLLM's queue, with the skipped ones where they were."""
        positions = self._queues.positions
        for request in sorted(self._skipped, key=lambda r: positions.get(r, -1), reverse=True):
            self._queue.prepend_request(request)
        return self._queue

    def __len__(self) -> int:
        return len(self._queue) + len(self._skipped)

    def __iter__(self) -> Iterator[Request]:
        yield from self._queue
        yield from self._skipped

    def add_request(self, request: Request) -> None:
        """Take one whose load has started; vLLM before 0.34 prepends it."""
        if request in self._queues.came:
            self._queues.deferred.discard(request)
        else:
            self._queue.add_request(request)

    def remove_request(self, request: Request) -> None:
        self._queue.remove_request(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        self._queue.remove_requests(requests)


def holds_prompts(scheduler: Any, throttle: bool) -> bool:
    """Whether vLLM gives no tokens of prompts in this pass, but their last ones.

    Args:
        scheduler: Of which nobody was given tokens yet in this pass.
        throttle: Whether the engine says so, for the balance of data parallelism.
    """
    if not throttle:  # 0.33 does so between prompts
        interval = releases.prefill_interval(scheduler)
        if interval == 1:
            return False
        steps = scheduler.num_executed_steps + 1 - scheduler.last_prefill_step
        throttle = steps < interval
    bound = releases.has_capacity_bound(scheduler)
    return throttle and not bound and any(not r.is_prefill_chunk for r in scheduler.running)
