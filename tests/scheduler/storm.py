# SPDX-License-Identifier: Apache-2.0
"""A seeded storm over a scheduler: arrivals, aborts, resets, pauses, late results."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.interface import PauseState

from tests.scheduler.connector import Ways
from tests.scheduler.harness import MAX_MODEL_LEN, Harness, Setup
from tests.scheduler.media import LONGEST, random_media
from tests.scheduler.ssm import StateLayers
from tests.scheduler.workers import RELEASE


def random_setup(rng: random.Random) -> Setup:
    """Any engine that takes contrastive requests, without a KV connector and SSM layers."""
    setup = _full_attention(rng)
    windows, size = rng.choice((0, 0, 1, 2)), setup.block_size
    if not windows or setup.dcp > 1:
        return _with_room(setup)
    finer = setup.caching and RELEASE >= (0, 32)
    units = [unit for unit in (1, 2, 4) if finer and unit < size and size % unit == 0]
    return _with_room(
        dataclasses.replace(
            setup,
            num_blocks=min(setup.num_blocks * (1 + windows), 65),  # of which each group takes some
            windows=windows,
            unit=rng.choice((None, None, *units)),
            # Blocks are kept for as many steps as are under way, of which vLLM knows these.
            depth=min(setup.depth, 1 + setup.is_async),
        )
    )


def _with_room(setup: Setup) -> Setup:
    """The same engine with blocks for a pair of three tokens each, at least."""
    of_a_stream = -(-(3 + setup.lookahead) // setup.block_size) * (1 + setup.windows)
    least = 1 + setup.watermark + 2 * of_a_stream
    return dataclasses.replace(setup, num_blocks=max(setup.num_blocks, least))


def _full_attention(rng: random.Random) -> Setup:
    block_size = rng.choice((1, 2, 3, 4, 8, 16))
    is_async = rng.random() < 0.5
    v2 = rng.random() < 0.5
    # Workers of the V1 runner know the step before, so they run one step ahead at most.
    depth = rng.choice((1, 2, 3) if v2 or not is_async else (1, 2))
    drafts = rng.choice((0, 0, 1, 2, 4, 8)) if can_draft(is_async, depth) else 0
    slots = rng.choice((0, 0, 1, drafts)) if drafts else 0
    return Setup(
        num_blocks=rng.randint(9, 65) if block_size < 4 else rng.randint(9, 33),
        block_size=block_size,
        # A pair, with a place for drafts of a request that is admitted.
        budget=rng.choice((2, 3, 4, 5, 7, 8, 16, 33, 64)) + drafts + 2 * slots,
        max_num_seqs=rng.choice((2, 3, 4, 5, 7, 8)),
        # Stock vLLM counts the adapters of scheduled requests only: without async scheduling it
        # admits one too many next to requests that are in flight, and dies.
        max_loras=rng.choice((1, 1, 2, 3)) if is_async or depth == 1 else 3,
        caching=rng.random() < 0.75,
        is_async=is_async,
        policy=rng.choice(("fcfs", "fcfs", "priority")),
        # vLLM dies of a request that it pads to more than that.
        long_prefill=rng.choice((0, 0, 0, 3, 8)) if not drafts else rng.choice((0, 0, 9, 12)),
        v2=v2,
        watermark=rng.choice((0, 0, 0, 0, 2)),
        dcp=rng.choice((1, 1, 2)) if block_size in (2, 4, 8, 16) else 1,
        drafts=drafts,
        right=rng.choice((0.0, 0.5, 0.9, 1.0)),
        break_even=rng.choice((0.0, 0.0, 0.6)),
        draft_slots=slots,
        lookahead=rng.choice((0, 0, drafts)),
        depth=depth,
        interval=rng.choice((1, 1, 2, 5)) if RELEASE >= (0, 33) else 1,
    )


def with_connector(rng: random.Random) -> Setup:
    """Any engine with a KV connector: loads late, in vain, for nobody, or nobody knows yet."""
    setup = _full_attention(rng)
    late = rng.choice((0.0, 0.5, 1.0, 1.0))
    fails = rng.choice((0.0, 0.3))
    return dataclasses.replace(
        setup,
        # Where a step waited for a load that failed, stock vLLM gives a regular request the next
        # step's token if that one is under way, and its V2 runner does not step back.
        only_cold=bool(fails) and late < 1 and (setup.is_async or setup.depth > 1 or setup.v2),
        dcp=1,
        caching=rng.random() < 0.75,
        connector=Ways(
            late=late,
            fails=fails,
            unknown=rng.choice((0.0, 0.1)),
            delay=rng.choice((0, 1, 3, 8)),
            policy=rng.choice(("recompute", "recompute", "fail")),
            by_request=late == 1.0 and rng.random() < 0.3,
            saves=rng.choice((0.0, 0.3)),
            delivers=rng.random() < 0.5,
            seed=rng.randrange(1000),
        ),
    )


def with_share(rng: random.Random) -> Setup:
    """Any engine in which contrastive requests have a part of the sequence slots."""
    setup = rng.choice((random_setup, random_setup, with_connector))(rng)
    slots = rng.choice((4, 5, 7, 8, 12))
    share = rng.randint(2, slots - 1) / slots
    return dataclasses.replace(setup, max_num_seqs=slots, share=share)


def random_ssm(rng: random.Random, mode: str) -> Setup:
    """Any engine whose model has layers with SSM states; those do without drafts."""
    setup = _full_attention(rng)
    while setup.drafts:
        setup = _full_attention(rng)
    size = setup.block_size
    units = [unit for unit in (1, 2, 4) if size % unit == 0 and unit < size]
    layers = StateLayers(
        mode,
        groups=rng.choice((1, 1, 2)),
        checkpoints=rng.random() < 0.4,
        retention=rng.choice((0, 0, None, 2 * size)),
        attention=rng.random() < 0.9,
        unit=rng.choice((None, None, None, *units)),
    )
    if not layers.attention:
        # Alike, so vLLM puts all in one group, which is found by whole blocks.
        layers = dataclasses.replace(layers, groups=1, unit=None)
    if layers.checkpoints:
        # With prefixes found within a block and states left within a step, vLLM 0.33 itself keeps
        # the state after 3 tokens for that after 4.
        layers = dataclasses.replace(layers, unit=None)
    if mode == "none":
        layers = dataclasses.replace(layers, retention=0, unit=None)
    room = 2 * layers.blocks_of_a_stream(max(setup.depth, 1))
    return dataclasses.replace(
        setup,
        caching=mode == "align",  # as vLLM has it
        dcp=1,
        num_blocks=setup.num_blocks + room,
        layers=layers,
    )


IMAGES: dict[str, dict[str, Any]] = {
    "light": {},
    "dense": {"one_in": 2},
    "whole": {"one_in": 3, "is_whole": True},
}
"""Kinds of images in prompts: few or many, and such as must not be split."""


def with_images(rng: random.Random, kind: str, setup: Setup | None = None) -> Setup:
    """Any engine, or ``setup``, whose model reads images of a kind."""
    setup = setup or random_setup(rng)
    dense = kind == "dense"
    budget = max(setup.budget, 8) if dense else setup.budget
    media = random_media(rng, **IMAGES[kind])
    if media.is_whole:
        # vLLM wants a step as wide as the longest image.
        budget = max(budget, LONGEST + setup.drafts + 2)
    made = dataclasses.replace(
        setup,
        # States have the room that they need and no more.
        num_blocks=max(17 * (1 + setup.windows), setup.num_blocks // 2)
        if dense and setup.layers is None
        else setup.num_blocks,
        budget=budget,
        draft_slots=0,  # which drafters have that are models; these read no images
        long_prefill=0 if media.is_whole else setup.long_prefill,
        # Bugs of vLLM's: its V1 runner is not sent an image again that was cached before a
        # preemption; one counts as encoded whose request is preempted in that very step; and the
        # adapter of a request that gets no tokens in a step does not count.
        media=dataclasses.replace(
            media,
            regular=setup.policy == "fcfs"
            and (setup.v2 or not setup.caching)
            and setup.max_loras >= 3,
        ),
    )
    return _with_room(made)


def can_draft(is_async: bool, depth: int) -> bool:
    """vllm-cold speculates since vLLM 0.32; drafts without asynchronous scheduling come with a
    step's results.
    """
    return RELEASE >= (0, 32) and (is_async or depth == 1)


def random_request(rng: random.Random, harness: Harness, prefix: list[int]) -> dict[str, Any]:
    """Any request that admission lets through, as arguments of ``Harness.add``."""
    while True:
        request = _random_request(rng, harness, prefix)
        asked = {name: request[name] for name in ("prompt", "cold", "amateurs", "noises")}
        if harness.why_never(**asked) is None:
            return request


def _random_request(rng: random.Random, harness: Harness, prefix: list[int]) -> dict[str, Any]:
    setup = harness.setup
    cold = rng.random() < 0.6 or setup.only_cold
    streams = rng.choice((2, 2, 3, 4)) if cold else 2
    streams = min(
        streams, setup.slots_of_share, (setup.budget - setup.drafts) // (1 + setup.draft_slots)
    )
    while streams > 2 and harness.capacity_of(streams) < 2:
        streams -= 1
    most = harness.capacity_of(streams)
    prompt = random_prompt(rng, harness, prefix, most)
    # With three slots no more than three adapters; see random_setup.
    numbers = [1, 2, 3] if setup.max_loras >= 3 else [1, 2, 3, 4, 5]
    adapter = rng.choice(numbers) if cold else rng.choice([0, *numbers])
    amateurs: list[tuple[int, list[int] | None]] = []
    noises: list[int] = []
    while cold and len(amateurs) < streams - 1:
        own = random_prompt(rng, harness, prefix, most) if rng.random() < 0.5 else None
        used = {adapter, *(number for number, _ in amateurs)} - {0}
        others = numbers if len(used) < setup.max_loras else sorted(used)
        number = rng.choice((0, 0, rng.choice(others), adapter))
        noise = rng.choice((0, 0, 1, 2)) if setup.media else 0
        if own is not None or number != adapter or noise:
            amateurs.append((number, own))
            noises.append(noise)
    longest = max(map(len, (prompt, *(own for _, own in amateurs if own is not None))))
    return {
        "prompt": prompt,
        "max_tokens": rng.choice((1, most - longest, rng.randint(1, most - longest))),
        "cold": cold,
        "adapter": adapter,
        "amateurs": amateurs,
        "noises": noises,
        "priority": rng.randint(0, 2),
        "stop": rng.randrange(3, 53) if rng.random() < 0.5 else None,
        "grammar": rng.random() < 0.15,
        "lives": [rng.randint(1, 12) for _ in amateurs] if rng.random() < 0.3 else (),
        "rule_keeps_state": not harness.setup.drafts and rng.random() < 0.5,
    }


def random_prompt(rng: random.Random, harness: Harness, prefix: list[int], most: int) -> list[int]:
    """Of 1 to ``most - 1`` tokens, often with a part of others in front."""
    size = harness.setup.block_size
    length = rng.choice((1, size, size + 1, rng.randint(1, most), most - 1))
    length = min(length, most - 1)
    if harness.asked and rng.random() < 0.3:
        # The same prompt for another adapter: the amateur's is cached, the expert's is not.
        return list(rng.choice([*harness.asked.values()][-6:]).prompt)[: most - 1]
    # Often all of it: then a stream finds its whole prompt cached, and the other does not.
    head = prefix[: rng.choice((0, length, length, rng.randint(0, length)))]
    return head + [rng.randrange(3, 500) for _ in range(length - len(head))]


def storm(model: Path, seed: int, steps: int, setup: Setup | None = None) -> Harness:
    """``steps`` steps of an engine under pressure, then the end of all requests."""
    rng = random.Random(seed)
    harness = Harness(model, setup or random_setup(rng))
    prefix = [rng.randrange(3, 500) for _ in range(MAX_MODEL_LEN)]
    busy = rng.choice((0.1, 0.25, 0.5))
    same = rng.random() < 0.5
    while harness.steps < steps:
        event = rng.random()
        if event < busy and len(harness.sched.requests) < 24:
            # Some come at the same time, as the requests of one body do.
            arrival = float(len(harness.asked) // 4) if same else None
            harness.add(**random_request(rng, harness, prefix), arrival=arrival)
        elif event < busy + 0.04:
            if alive := harness.alive():
                harness.abort(rng.sample(alive, rng.randint(1, min(3, len(alive)))))
        elif event < busy + 0.05 and harness.may_reset():
            harness.reset(running=rng.random() < 0.8)
        elif event < busy + 0.06:
            harness.pause(rng.choice(list(PauseState)))
        elif event < busy + 0.062:
            harness.abort(None)
        elif event < busy + 0.067:
            harness.wait()
        if harness.paused != PauseState.UNPAUSED and rng.random() < 0.2:
            harness.pause(PauseState.UNPAUSED)
        for request_id in harness.compiling():
            if rng.random() < 0.2:
                harness.compiled(request_id)
        early = 0.0 if harness.setup.stages else 0.3  # a pipeline's queue is filled first
        while len(harness.in_flight) >= harness.depth or (
            harness.in_flight and rng.random() < early
        ):
            harness.deliver()
        squeeze = rng.randint(1, harness.setup.num_blocks) if rng.random() < 0.03 else 0
        squeeze *= harness.may_squeeze()
        # The same for requests whose prompt is held back.
        throttle = harness.setup.max_loras >= 3 and rng.random() < 0.05
        harness.schedule(throttle=throttle, squeeze=squeeze)
    harness.drain()
    return harness


def storms(
    model: Path, seeds: Iterable[int], setup_of: Callable[[random.Random], Setup] | None = None
) -> Iterator[Harness]:
    """Storms of 200 steps, over engines as ``setup_of`` makes them; an error says of which."""
    for seed in seeds:
        setup = setup_of(random.Random(seed)) if setup_of is not None else None
        try:
            yield storm(model, seed, 200, setup)
        except Exception as error:
            error.add_note(f"storm(model, {seed}, 200, {setup})")
            raise
