# SPDX-License-Identifier: Apache-2.0
"""Brings what a worker found of the groups that it scored (``group.step_stats``) to the scheduler,
which may be another process: as the attribute ``cold`` of a step's own output, an ordinary object
that is pickled with its attributes.
"""

import threading
from collections.abc import Callable
from typing import Any

from vllm_cold.wire.step_stats import RowStats, StepStats

# ``step_stats`` of a thread: what was found in a step that has made no output yet. The model runner
# does not tell its logits processors when it makes an output. But a step is one call in one thread,
# so that engines in a process do not see each other's. What a failed engine leaves is of groups
# that no other engine knows.
_pending = threading.local()


def hand_over(stats: StepStats | None, *, in_front: bool = False) -> None:
    """A processor's: the next output that this thread makes takes it along.

    Args:
        stats: What was found; None for nothing.
        in_front: Whether its tokens come before those of which figures were handed over already.
    """
    if stats is not None:
        found: list[StepStats] = vars(_pending).setdefault("step_stats", [])
        found.insert(0 if in_front else len(found), stats)


def wrap_output_init(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``ModelRunnerOutput.__init__``."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if found := vars(_pending).pop("step_stats", None):
            self.cold = found

    return __init__


def from_worker(output: Any) -> dict[str, list[RowStats]]:
    """What came with a ``ModelRunnerOutput``, by the group's id, in the order of its tokens."""
    found: dict[str, list[RowStats]] = {}
    for stats in getattr(output, "cold", ()):
        for group, figures in stats.figures():
            found.setdefault(group, []).append(figures)
    return found
