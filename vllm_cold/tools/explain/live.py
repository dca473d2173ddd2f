# SPDX-License-Identifier: Apache-2.0
"""Answers of a server while they are decoded: what has come, and soon after what is known of it.

A first look at a token has the most probable candidates of each stream; when an answer has ended,
the whole account takes its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, page, trace, visible
from vllm_cold.tools.explain.methods import Methods
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.server import ServerSource
from vllm_cold.tools.explain.sources import Decoded, Read
from vllm_cold.tools.explain.trace import Answer, Column, Report, Step

Event = dict[str, Any]
THREADS = "vllm-cold explain"  # how the threads' names begin


class _Growing:
    """An answer that one thread decodes and another looks at."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ended = False
        self.decoded = Decoded((), "", "")

    def add(self, more: Decoded) -> None:
        with self._changed:
            had = self.decoded
            self.decoded = Decoded(
                had.tokens + more.tokens, had.text + more.text, more.finish_reason
            )
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, seconds)

    def after(self, seen: int) -> Decoded | None:
        """The answer once it has more tokens than ``seen``; None at its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self.decoded.tokens) > seen)
            return None if self._ended else self.decoded


class Live:
    """One prompt's answers.

    Args:
        source: The server.
        methods: What is compared.
        asked: The prompt, by the method's name.
        max_tokens: The length of answers.
        listed: As for ``collect.compare``.
    """

    def __init__(
        self,
        source: ServerSource,
        methods: Methods,
        asked: Mapping[str, Asked],
        max_tokens: int,
        listed: int,
    ) -> None:
        self._source = source
        self._columns = methods.columns
        self._asked = asked
        self._max_tokens = max_tokens
        self._listed = listed
        self._events: SimpleQueue[Event | Future[None]] = SimpleQueue()
        self._stop = threading.Event()

    def events(self) -> Iterator[Event]:
        """What a page is told, in order: "start" with empty answers, "tokens" and "steps" of them,
        "status" in words, and "report" with all that is known.

        Raises:
            ToolError: the prompt does not fit, or the server cannot answer.
        """
        reads = {
            name: collect.read_all(self._source, [one], self._max_tokens)
            for name, one in self._asked.items()
        }
        empty = [self._empty(name, those) for name, those in reads.items()]
        yield self._shown("start", empty, finished=False)
        # The greedy answer is decoded in any case: each method is compared with it.
        columns = self._columns
        greedy = Column(0, trace.GREEDY)
        if greedy not in columns:
            columns = (*columns, greedy)
        answers = yield from self._decode([those[0] for those in reads.values()], columns)
        found = dict(zip(columns, answers, strict=True))
        reports = []
        for number, (name, those) in enumerate(reads.items()):
            yield {"event": "status", "text": f"Scoring the answers of {name} …"}
            cold = found[Column(number, trace.COLD)]
            reports.append(
                collect.account_for(
                    self._source, name, those, [found[greedy]], [cold], self._listed
                )
            )
        yield self._shown("report", reports)

    def _decode(
        self, reads: Sequence[Read], columns: Sequence[Column]
    ) -> Generator[Event, None, list[Decoded]]:
        """Decode all answers side by side; returns them. An error is told at once, and ends the
        others.
        """
        growing = [_Growing() for _ in columns]
        pool = ThreadPoolExecutor(2 * len(columns), thread_name_prefix=THREADS)
        try:
            jobs = []
            for place, (column, grown) in enumerate(zip(columns, growing, strict=True)):
                jobs.append(pool.submit(self._follow, place, column, reads, grown))
                if place < len(self._columns):
                    jobs.append(pool.submit(self._look, place, column, reads, grown))
            for job in jobs:
                job.add_done_callback(self._events.put)
            left = len(jobs)
            while left:
                event = self._events.get()
                if isinstance(event, Future):
                    event.result()
                    left -= 1
                else:
                    yield event
        except BaseException:  # also where the page is closed
            self._stop.set()
            self._source.connections.close()  # where a thread may wait for the server
            raise
        finally:
            pool.shutdown(wait=False)
        return [grown.decoded for grown in growing]

    def _follow(self, place: int, column: Column, reads: Sequence[Read], grown: _Growing) -> None:
        shown = place < len(self._columns)
        try:
            for more in self._source.stream(reads[column.method], column.kind, self._max_tokens):
                if self._stop.is_set():
                    return
                grown.add(more)
                if not shown or not (more.tokens or more.text):
                    continue
                text = visible.in_text(more.text, 0) if more.text else ""
                count = len(more.tokens)
                # Of several tokens the first has the text of all, until they are looked at.
                texts = [text, *[""] * (count - 1)] if count else []
                event = {"event": "tokens", "place": place, "texts": texts}
                self._events.put(event if count else {**event, "tail": text})
        except BaseException:
            self._stop.set()
            raise
        finally:
            grown.end()

    def _look(self, place: int, column: Column, reads: Sequence[Read], grown: _Growing) -> None:
        seen, read = 0, reads[column.method]
        while (decoded := grown.after(seen)) is not None and not self._stop.is_set():
            began = time.monotonic()
            try:
                steps = collect.first_look(self._source, column.kind, read, decoded, self._listed)
            except ToolError:  # the answer can do without
                return
            self._events.put(
                {
                    "event": "steps",
                    "place": place,
                    "from": seen,
                    "steps": [_looked(step) for step in steps[seen:]],
                }
            )
            seen = len(decoded.tokens)
            # A look reads the whole prompt, which the server has better things to do than.
            grown.pause(2 * (time.monotonic() - began))

    def _empty(self, name: str, reads: Sequence[Read]) -> Report:
        """A report whose answers have not begun."""
        greedy, cold = ([Answer(kind, "", "", ())] for kind in (trace.GREEDY, trace.COLD))
        return collect.put_together(self._source, name, reads, greedy, cold)

    def _shown(self, event: str, reports: Sequence[Report], finished: bool = True) -> Event:
        return {
            "event": event,
            "html": page.fragment(*reports, columns=self._columns, finished=finished),
            "methods": [page.data(report) for report in reports],
        }


def _looked(step: Step) -> Event:
    return {
        "text": visible.in_text(step.text, step.token),
        "level": step.level,
        "differs": step.differs,
        "step": page.step_data(step),
    }
