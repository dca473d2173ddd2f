# SPDX-License-Identifier: Apache-2.0
"""How far it is: a line for each finished setting, and two bars below on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vllm_cold.tools.tune.decode import Job
from vllm_cold.tools.tune.grid import Setting

# Greedy (None) or a setting, on the "dev" or the held-out "test" problems.
Part = tuple[Setting | None, str]


def label(part: Part) -> str:
    """A part's name for people."""
    setting, split = part
    problems = "dev" if split == "dev" else "held-out"
    return f"{'greedy' if setting is None else setting}, {problems}"


class Watch:
    """Counts finished jobs by part, and shows it.

    Args:
        console: Where a line for each finished part goes.
        progress: The bars, or None for none.
        total: Outputs in all.
        found: Outputs of them that are there before anything is decoded.
        parts: Parts in all.
    """

    def __init__(
        self, console: Console, progress: Progress | None, total: int, found: int, parts: int
    ) -> None:
        self._console = console
        self._progress = progress
        self._left: Counter[Part] = Counter()
        self._sizes: Counter[Part] = Counter()
        self._done = 0
        self._total = total
        self._finished = 0
        self._parts = parts
        self._started = time.monotonic()
        self._bars: list[TaskID] = []
        if progress is not None:
            # From what was found on, so that the time left is reckoned from what is decoded now.
            self._bars.append(progress.add_task("passes", total=parts))
            self._bars.append(progress.add_task("outputs", total=total, completed=found))

    def expect(self, part: Part, jobs: Sequence[Job], found: int) -> None:
        """A part is coming, of which ``found`` outputs are there already."""
        self._left[part] = len(jobs)
        self._sizes[part] = len(jobs) + found
        self._done += found
        if not jobs:
            self._finish(part, "found")

    def count(self, part: Part) -> bool:
        """One more job of ``part`` is done; returns whether that was its last."""
        self._done += 1
        self._left[part] -= 1
        if not self._left[part]:
            self._finish(part, "done")
        self._draw()
        return not self._left[part]

    def _draw(self) -> None:
        if self._progress is not None:
            for bar, done in zip(self._bars, (self._finished, self._done), strict=True):
                self._progress.update(bar, completed=done)

    def _finish(self, part: Part, how: str) -> None:
        self._finished += 1
        self._console.print(
            f"[pass {self._finished}/{self._parts}] {label(part)}: "
            f"{self._sizes[part]} problems {how}; {self._done}/{self._total} outputs, "
            f"{time.monotonic() - self._started:.0f} s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@contextlib.contextmanager
def watch(console: Console, total: int, found: int, parts: int) -> Iterator[Watch]:
    """Show the progress while the block runs; the arguments are those of ``Watch``."""
    if not console.is_terminal:
        yield Watch(console, None, total, found, parts)
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        watcher = Watch(console, progress, total, found, parts)
        yield watcher
        watcher._draw()
