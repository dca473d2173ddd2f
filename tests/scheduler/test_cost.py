# SPDX-License-Identifier: Apache-2.0
"""A step costs no time for those who wait: counted in Python's operations, not in seconds."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from tests.scheduler.cases import prompt
from tests.scheduler.connector import Ways
from tests.scheduler.harness import (
    IS_0_23,
    Asked,
    Setup,
    WithoutModel,
)
from tests.scheduler.media import Media

pytestmark = pytest.mark.unit

SLOTS = 8
_ABORTED = RequestStatus.FINISHED_ABORTED


def operations(call: Callable[[], object]) -> int:
    """How many operations Python's interpreter takes for it."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


class Engine(WithoutModel):
    """How many operations a scheduler's calls take.

    Attributes:
        found: By what happened, those of a step, or of a call between steps.
    """

    def __init__(self, model: Path, **options: Any) -> None:
        setup = Setup(num_blocks=1000, budget=64, max_num_seqs=SLOTS, **options)
        super().__init__(model, setup)
        self.media = setup.media
        self.found: dict[str, int] = {}

    def comes(self, length: int, what: str = "", **how: Any) -> str:
        # What is measured has the same prompt, however many there are.
        first = 5 if what else 5 + self.added % 5
        asked = Asked(prompt(length, first), 40, adapter=1, media=self.media, **how)
        request = self.request(asked, f"r{self.added}")
        self.found[what] = operations(lambda: self.sched.add_request(request))
        return request.request_id

    def steps(self, what: str = "") -> None:
        planned = list[Any]()
        count = operations(lambda: planned.append(self.sched.schedule()))
        (output,) = planned
        result = self.result(output)
        self.found[what] = count + operations(lambda: self.sched.update_from_output(output, result))


ENGINES: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "priority": {"policy": "priority"},
    "a share": {"share": 0.75},
    "images": {"media": Media(one_in=3)},
    "a connector": {"connector": Ways()},
}


@pytest.mark.parametrize("kind", ENGINES)
def test_who_waits_costs_nothing(kind: str, tiny: Path) -> None:
    """Beside decoding requests, at the ends of some and the beginning of others, at a preemption,
    in a step without tokens, while admission is paused, and at an arrival.
    """
    if IS_0_23 and kind in ("images", "a connector"):
        pytest.skip("vLLM 0.23 has contrastive decoding without them")

    def measured(waiting: int) -> dict[str, int]:
        engine = Engine(tiny / "model", **ENGINES[kind])
        sched, pool = engine.sched, engine.sched.kv_cache_manager.block_pool
        pairs = [engine.comes(5, cold=True) for _ in range(3)]
        for _ in range(2):
            engine.comes(5)
        for number in range(waiting):
            # Every other amateur is longer than its expert.
            own = [(1, prompt(9, number % 5))] if number % 2 else []
            engine.comes(5, cold=True, amateurs=own, priority=1 + number % 3)
        for _ in range(2):
            engine.steps()
        assert len(sched.running) == SLOTS
        engine.steps("decoding")
        engine.comes(5, "an equal amateur", cold=True, priority=9)
        engine.comes(5, "a longer amateur", cold=True, amateurs=[(1, prompt(9))], priority=9)
        sched.finish_requests(pairs[0], _ABORTED)
        engine.steps("one begins")
        engine.steps("next to it")
        sched.finish_requests(pairs[1], _ABORTED)
        taken = pool.get_new_blocks(pool.get_num_free_blocks())
        engine.steps("no room")
        while not any(each.num_preemptions for each in sched.requests.values()):
            engine.steps("a preemption")
        engine.steps("after it")
        pool.free_blocks(taken)
        for state in (PauseState.PAUSED_ALL, PauseState.PAUSED_NEW):
            sched.set_pause_state(state)
            engine.steps(state.name)
        return {what: count for what, count in engine.found.items() if what}

    few, many = measured(20), measured(1000)
    assert len(few) > 9
    for what, count in few.items():
        assert many[what] < 1.1 * count + 100, f"{what}: {count} operations, {many[what]} with 1000"
