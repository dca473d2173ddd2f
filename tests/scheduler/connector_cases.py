# SPDX-License-Identifier: Apache-2.0
"""Situations of engines with a KV connector."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from tests.scheduler.cases import prompt
from tests.scheduler.connector import ConnectorWorkers, Ways
from tests.scheduler.harness import Harness, Setup
from tests.scheduler.workers import RELEASE


def _stored(
    model: Path, *streams: tuple[int, list[int]], ways: Ways | None = None, **setup: Any
) -> tuple[Harness, ConnectorWorkers]:
    """An engine that has computed these prompts, each with its adapter, whose KV only the connector
    still has.
    """
    connector = Ways() if ways is None else ways
    harness = Harness(
        model, Setup(**{"num_blocks": 65, "budget": 64, "connector": connector, **setup})
    )
    for adapter, each in streams:
        harness.add(each, 1, adapter=adapter)
    harness.drain()
    harness.reset(running=True)
    assert harness.loads is not None and not harness.loads.loads
    return harness, harness.loads


def _loads_late(harness: Harness, of: Callable[[int], bool]) -> None:
    """Loads of prompts with so many tokens take place between steps."""
    connector = harness.sched.connector
    ask = connector.get_num_new_matched_tokens

    def asked(request: Any, num_computed_tokens: int) -> Any:
        connector.ways = replace(connector.ways, late=float(of(request.num_prompt_tokens)))
        return ask(request, num_computed_tokens)

    connector.get_num_new_matched_tokens = asked


def loaded_group(model: Path, is_async: bool = False, late: float = 1.0) -> None:
    """The KV of all streams is elsewhere: it is brought at the same time, and nobody is preempted
    for it.
    """
    amateurs = [(0, prompt(17)), (0, prompt(13, 300)), (2, prompt(22))]
    harness, loads = _stored(
        model, (1, prompt(17)), *amateurs, ways=Ways(late=late, delay=0), is_async=is_async
    )
    before = harness.steps
    request_id = harness.add(prompt(17), 3, adapter=1, cold=True, amateurs=amateurs)
    harness.drain()
    assert loads.loads == 4
    assert not harness.preemptions and not harness.group_preemptions
    assert harness.first_step[request_id] - before <= (4 if late else 1)


def loaded_in_time(model: Path, is_async: bool = False) -> None:
    """The same at the start of a step."""
    loaded_group(model, is_async, late=0.0)


def lost_load(model: Path, cold: bool = True) -> None:
    """A load between steps that brings nothing, of a request that needs more than half of the KV
    cache: it is loaded again, and not kept waiting for blocks by itself.
    """
    ways = Ways(late=1.0, delay=0, by_request=True)
    asked = prompt(37 if cold else 61)
    harness, loads = _stored(model, (1, asked), (0, asked), ways=ways, num_blocks=24)
    loads.ways = replace(ways, fails=1.0)
    harness.add(asked, 3, adapter=1, cold=cold)
    while not loads.failed:
        harness.step()
    loads.ways = ways
    if not cold:
        harness.add(prompt(3, 400), 3, adapter=1, cold=True)
    harness.drain()


def lost_load_in_front_of_a_group(model: Path) -> None:
    """The same of a regular request, which the group would wait for."""
    lost_load(model, cold=False)


def lost_in_time(model: Path) -> None:
    """A load at the start of a step that brings nothing, of a group that has tokens: workers that
    are a step ahead are sent these again.
    """
    ways = Ways()
    harness = Harness(model, Setup(num_blocks=65, budget=64, is_async=True, connector=ways))
    request_id = harness.add(prompt(17), 16, adapter=1, cold=True)
    while len(harness.got[request_id]) < 8:
        harness.step()
    while harness.in_flight:
        harness.deliver()
    harness.reset(running=True)
    assert harness.loads is not None
    harness.loads.ways = replace(ways, fails=1.0)
    while not harness.loads.failed:
        harness.step()
    harness.loads.ways = ways
    harness.drain()


def shared_and_lost(model: Path) -> None:
    """A load at the start of a step brings nothing. Two others found its blocks in the prefix cache
    and are loaded between steps; the first of these is aborted, and does not compute them.
    """
    harness, loads = _stored(model, (0, prompt(25)))
    fill = loads._fill

    def fails_once(load: Any) -> Any:
        loads.ways = replace(loads.ways, fails=float(not load.late and not loads.failed))
        return fill(load)

    _loads_late(harness, lambda num_tokens: num_tokens > 9)
    loads._fill = fails_once  # type: ignore[method-assign]
    harness.add(prompt(9), 3, adapter=1, cold=True)
    first = harness.add(prompt(25), 3)
    harness.add(prompt(25), 3, adapter=2, cold=True)
    harness.step()
    assert loads.failed == 1 and len(loads.late) + loads.loads > 2
    harness.abort([first])
    harness.drain()


def late_behind_its_expert(model: Path) -> None:
    """Of an amateur's prompt the second block is elsewhere, of which it learns when its expert has
    the first: its KV is to come later, so that its group is taken out of the step, and the first
    block is not written. Another request has the same beginning.
    """
    own = [*prompt(4), *prompt(9, 300)]
    harness, _ = _stored(model, (1, own), ways=Ways(late=1.0, delay=2))
    store = harness.sched.connector.store
    del store[next(iter(store))]
    cold = harness.add(prompt(9), 3, adapter=1, cold=True, amateurs=[(1, own)])
    harness.add([*prompt(4), *prompt(5, 200)], 3, adapter=1)
    harness.step()
    expert, amateur = (harness.sched.requests[i] for i in (cold, f"{cold}-amateur-1"))
    assert amateur.status == RequestStatus.WAITING_FOR_REMOTE_KVS
    assert expert.status == RequestStatus.PREEMPTED or expert.status == RequestStatus.WAITING
    harness.drain()
    assert harness.first_step[cold] < 20


def aborted_amid_a_lost_load(model: Path) -> None:
    """A group is aborted while the step runs that was to load its KV, in vain."""
    harness, loads = _stored(model, (0, prompt(17)))
    loads.ways = Ways(fails=1.0)
    cold = harness.add(prompt(17), 3, adapter=1, cold=True)
    harness.schedule()
    harness.abort([cold])
    harness.deliver()
    assert loads.failed
    loads.ways = Ways()
    harness.add(prompt(17), 3)
    harness.drain()


def blocked_queue(model: Path) -> None:
    """An expert has its last token left and waits for room for its amateur: who waits after it is
    not looked at, one after the other, in each step, and not loaded; and all keep their order.
    """
    prompts = [prompt(4, 200 + 4 * number) for number in range(30)]
    setup = {"budget": 16, "long_prefill": 3, "max_num_seqs": 8}
    harness, _ = _stored(model, *((0, each) for each in prompts), ways=Ways(delay=0), **setup)
    _loads_late(harness, lambda num_tokens: num_tokens == 4)
    harness.add(prompt(33), 1)  # the amateur's prompt is cached, so the expert starts alone
    harness.until_idle()
    harness.add(prompt(3, 400), 40)
    cold = harness.add(prompt(33), 4, adapter=1, cold=True)
    while harness.sched.requests[cold].num_computed_tokens < 30:
        harness.step()
    harness.occupy(leave=5)
    harness.step()
    small = [harness.add(each, 3) for each in prompts]
    looked_at: list[str] = []
    look = harness.sched._handle_blocked_waiting_request

    def watch(request: Any) -> Any:
        looked_at.append(request.request_id)
        return look(request)

    harness.sched._handle_blocked_waiting_request = watch
    for _ in range(3):
        looked_at.clear()
        harness.step()
        assert not looked_at
    del harness.sched._handle_blocked_waiting_request
    harness.drain()
    steps = [harness.first_step[each] for each in (cold, *small)]
    assert steps == sorted(steps)


def not_known_yet(model: Path) -> None:
    """A connector that does not know yet of an amateur is asked again; meanwhile its group keeps
    what it has, and holds up nobody.
    """
    harness = Harness(model, Setup(num_blocks=65, budget=16, connector=Ways()))
    amateur = prompt(13, 300)
    harness.add(amateur, 1, adapter=0)
    harness.drain()
    cold = harness.add(prompt(30), 3, adapter=1, cold=True, amateurs=[(0, amateur)])
    harness.step()
    connector = harness.sched.connector
    ask = connector.get_num_new_matched_tokens

    def asked(request: Any, num_computed_tokens: int) -> Any:
        is_known = request.request_id != f"{cold}-amateur-1"
        return ask(request, num_computed_tokens) if is_known else (None, False)

    connector.get_num_new_matched_tokens = asked
    for _ in range(3):
        harness.step()
    small = harness.add(prompt(3, 400), 2)
    harness.step()
    assert small in harness.first_step and cold not in harness.first_step
    connector.get_num_new_matched_tokens = ask
    harness.drain()
    assert not harness.preemptions and not harness.group_preemptions


def loads_in_order(model: Path) -> None:
    """Regular requests whose KV comes at the same time start in the order in which they came, also
    next to a group, and where the first ones load already when others come.
    """
    prompts = [prompt(9, 200 + 10 * number) for number in range(6)]
    setup = {"budget": 16, "max_num_seqs": 4, "is_async": True}
    stored = ((0, each) for each in prompts)
    harness, _ = _stored(model, *stored, ways=Ways(late=1.0, delay=0), **setup)
    harness.add(prompt(3), 30, adapter=1, cold=True)
    harness.step()
    harness.deliver()
    small = []
    for some in (prompts[:3], prompts[3:]):
        small += [harness.add(each, 3) for each in some]
        harness.schedule()
    harness.drain()
    steps = [harness.first_step[each] for each in small]
    assert steps == sorted(steps) and steps[0] < steps[-1]


def loaded_in_a_pause(model: Path) -> None:
    """An amateur's KV has come, and its expert is amid its prompt, when admission is paused: as
    vLLM does with requests that were loaded, the group goes on to its end, or before 0.32 waits.
    """
    amateur = prompt(13, 300)
    harness, _ = _stored(model, (0, amateur), ways=Ways(late=1.0, delay=0), budget=16)
    cold = harness.add(prompt(50), 3, adapter=1, cold=True, amateurs=[(0, amateur)])
    while not harness.sched.running:
        harness.step()
    harness.wait()
    if RELEASE >= (0, 32):
        assert harness.ended[cold] == "length" and not harness.preemptions
    harness.drain()


def emptied_step(model: Path) -> None:
    """A group is alone, and all of it is taken out of a step: vLLM, which keeps count of steps that
    do something, must not wait for that one before it frees blocks.
    """
    setup = Setup(num_blocks=17, budget=32, is_async=True, connector=Ways())
    harness = Harness(model, setup)
    harness.add(prompt(6), 24, adapter=1, cold=True, amateurs=[(0, prompt(4))])
    harness.step()
    for _ in range(3):
        harness.step(squeeze=17)
    assert harness.group_preemptions
    for number in range(8):
        harness.add(prompt(8, 200 + 10 * number), 4)
    harness.drain()


def two_that_load(model: Path) -> None:
    """Two groups whose KV is elsewhere, and room for the prompts of both only until the first has
    all of its own: the second one's streams hold no blocks that the first needs to end.
    """
    setup = Setup(num_blocks=19, budget=64, connector=Ways(late=1.0, delay=0))
    harness = Harness(model, setup)
    for max_tokens in (1, 16):
        for first in (100, 300):
            harness.add(prompt(17, first), max_tokens, adapter=1, cold=True)
        harness.drain()
        harness.reset(running=True)
    assert harness.loads is not None and harness.loads.loads == 4
    assert not harness.preemptions and not harness.group_preemptions


def loaded_and_held(model: Path) -> None:
    """An amateur's KV has come, and its expert may not begin: the prefix cache can be reset; and an
    engine whose admission is paused comes to rest when all that runs has ended, with the blocks
    that the amateur had.
    """
    amateur = prompt(13, 300)
    harness, loads = _stored(model, (0, amateur), ways=Ways(late=1.0, delay=0), num_blocks=17)
    harness.add(prompt(30), 3, adapter=1, cold=True, amateurs=[(0, amateur)])
    harness.step()
    harness.pause(PauseState.PAUSED_ALL)
    harness.step()
    assert harness.sched._loads.holding()
    harness.reset(running=True)
    harness.pause(PauseState.UNPAUSED)
    regular = harness.add(prompt(5, 400), 52)
    harness.step()
    assert loads.loads == 2
    harness.wait()
    assert regular in harness.ended
    harness.drain()


def freed_later(model: Path) -> None:
    """An expert waits for room for its amateur, nothing else runs, and the connector is to free
    blocks: it keeps what it has.
    """
    harness = Harness(model, Setup(num_blocks=65, long_prefill=3, connector=Ways()))
    harness.add(prompt(33), 1)  # as in blocked_queue
    harness.until_idle()
    cold = harness.add(prompt(33), 4, adapter=1, cold=True)
    while harness.sched.requests[cold].num_computed_tokens < 30:
        harness.step()
    harness.occupy(leave=2)
    harness.sched.connector.has_pending_block_frees = lambda: True
    for _ in range(4):
        harness.step()
    assert not harness.group_preemptions
    harness.drain()


def paused_behind_a_retirement(model: Path) -> None:
    """Admission is paused when an amateur that was loaded has just ended, and its group goes on."""
    streams = [(adapter, prompt(13)) for adapter in (0, 1)]
    harness, loads = _stored(model, *streams, ways=Ways(late=1.0, delay=0))
    cold = harness.add(prompt(13), 9, adapter=1, cold=True, lives=(1,))
    while not harness.got[cold]:
        harness.step()
    assert loads.loads == 2
    assert f"{cold}-amateur-1" not in harness.sched.requests
    harness.pause(PauseState.PAUSED_NEW)
    harness.drain()
    assert harness.ended[cold] == "length"
