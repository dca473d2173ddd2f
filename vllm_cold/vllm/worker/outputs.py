# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``ModelRunnerOutput.__init__``.

Why: what a worker found of the pairs that it scored (``group.tally``) has to get to the scheduler,
which may be another process. It travels as the attribute ``cold`` of a step's own output, an
ordinary object that is pickled with its attributes.
Since: 0.23 to 0.33. Can go: when vLLM has a channel for the figures of plugins.
"""

from collections.abc import Callable
from typing import Any

from vllm_cold.group.tally import Figures, take
from vllm_cold.vllm.patching import Place


def _make_output_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if scored := take():
            self.cold = scored

    return __init__


PLACES = (Place("vllm.v1.outputs:ModelRunnerOutput.__init__", _make_output_init),)


def from_worker(output: Any) -> dict[str, Figures]:
    """What came with a ``ModelRunnerOutput``, by the pair's id."""
    found: dict[str, Figures] = {}
    for scored in getattr(output, "cold", ()):
        found.update(scored.figures())
    return found
