# SPDX-License-Identifier: Apache-2.0
"""Brings a worker's figures of the groups that it scored (``wire.step_stats``) to the scheduler,
which may be another process: as the attribute ``cold`` of a step's own output, an ordinary object
that is pickled with its attributes. The first output tells in ``cold_kernels`` what computes there.
"""

import threading
from typing import Any

from vllm_cold.compat import hardware
from vllm_cold.wire.step_stats import RowStats, StepStats

# ``step_stats`` of a thread: the figures of a step that has made no output yet. The model runner
# does not tell its logits processors when it makes an output. But a step is one call in one thread,
# so that engines in a process do not see each other's. What a failed engine leaves is of groups
# that no other engine knows.
_pending = threading.local()


def hand_over(stats: StepStats | None, *, in_front: bool = False) -> None:
    """Have the next output that this thread makes take a processor's figures along.

    Args:
        stats: The figures; None if there are none.
        in_front: Whether its tokens come before those of which figures were handed over already.
    """
    if stats is not None:
        pending: list[StepStats] = vars(_pending).setdefault("step_stats", [])
        pending.insert(0 if in_front else len(pending), stats)


def tell_kernels() -> None:
    """Have the next output that this thread makes tell which kernels compute: by then the model is
    loaded, and they are known.
    """
    _pending.tells_kernels = True


def attach(output: Any) -> None:
    """Have a ``ModelRunnerOutput`` take along what this thread has handed over."""
    if pending := vars(_pending).pop("step_stats", None):
        output.cold = pending
    if vars(_pending).pop("tells_kernels", False):
        output.cold_kernels = list(hardware.kernels)


def kernels_of(output: Any) -> list[hardware.Kernel]:
    """Return which kernels a ``ModelRunnerOutput`` tells of: a worker's first one."""
    kernels: list[hardware.Kernel] = getattr(output, "cold_kernels", [])
    return kernels


def from_worker(output: Any) -> dict[str, list[RowStats]]:
    """Return the figures that came with a ``ModelRunnerOutput``, by the group's id, in the order of
    its tokens.
    """
    by_group: dict[str, list[RowStats]] = {}
    for stats in getattr(output, "cold", ()):  # which an output without groups lacks
        for group, row_stats in stats.figures():
            by_group.setdefault(group, []).append(row_stats)
    return by_group
