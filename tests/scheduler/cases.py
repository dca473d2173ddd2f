# SPDX-License-Identifier: Apache-2.0
"""Situations that storms meet rarely or never."""

from pathlib import Path
from typing import Any

import pytest
from vllm.v1.request import RequestStatus

from tests.scheduler.harness import Harness, Setup, stats_of
from tests.scheduler.workers import RELEASE
from vllm_cold.ops.interface import NOT_FINITE
from vllm_cold.scheduler import passes
from vllm_cold.wire.step_stats import RowStats


def prompt(length: int, first: int = 100) -> list[int]:
    """``length`` different tokens."""
    return list(range(first, first + length))


def windows(model: Path) -> None:
    """A model with sliding-window layers: a pair needs less than its whole prompt in them."""
    harness = Harness(model, Setup(num_blocks=110, budget=8, windows=5, caching=False))
    harness.add(prompt(3), 45)
    harness.step()
    cold = harness.add(prompt(40, 200), 3, adapter=1, cold=True)
    before = harness.steps
    harness.drain()
    assert harness.first_step[cold] - before <= 15, "a pair waited for room that it does not need"


def throttled(model: Path) -> None:
    """Prompts are held back (prefill balancing); an expert's is cached and its amateur's is not."""
    harness = Harness(model, Setup(num_blocks=60, budget=32, max_loras=3))
    harness.add(prompt(17), 1, adapter=1)
    harness.until_idle()
    harness.add(prompt(3, 200), 30)
    harness.step()
    harness.step()
    harness.add(prompt(17), 3, adapter=1, cold=True)
    for _ in range(12):
        harness.step(throttle=True)
    harness.drain()


def between_prompts(model: Path) -> None:
    """The same where vLLM itself holds prompts back, for some steps after each (since 0.33)."""
    if RELEASE < (0, 33):
        pytest.skip("vLLM's schedulers hold prompts back since 0.33")
    harness = Harness(model, Setup(num_blocks=60, budget=32, max_loras=3, interval=6))
    harness.add(prompt(17), 1, adapter=1)
    harness.until_idle()
    harness.add(prompt(3, 200), 30)
    harness.step()
    before = harness.steps
    cold = harness.add(prompt(17), 3, adapter=1, cold=True)
    harness.drain()
    assert 4 <= harness.first_step[cold] - before <= 8
    assert not harness.preemptions and not harness.group_preemptions


def too_large(model: Path) -> None:
    """A pair that was not refused, and whose amateur never has room next to its expert."""
    harness = Harness(model, Setup(num_blocks=8, budget=8))
    harness.add(prompt(17), 1)  # the amateur's prompt is cached, so the expert starts alone
    harness.until_idle()
    request_id = harness.add(prompt(17), 2, adapter=1, cold=True)
    harness.errors[request_id] = ""
    harness.drain()
    assert "do not fit the KV cache of 8 blocks of 4 tokens" in harness.errors[request_id]


def many_small_ones(model: Path, is_async: bool = False) -> None:
    """An expert waits for room for its amateur while small requests come without end."""
    setup = Setup(num_blocks=22, long_prefill=3, max_num_seqs=8, is_async=is_async)
    harness = Harness(model, setup)
    harness.add(prompt(33), 1)  # the amateur's prompt is cached, so the expert starts alone
    harness.until_idle()
    cold = harness.add(prompt(33), 4, adapter=1, cold=True)
    for number in range(80):
        harness.add(prompt(4, 200 + number), 5)
        harness.step()
    assert cold in harness.ended, "small requests kept a pair waiting"
    harness.drain()


def with_growing_ones(
    model: Path, num_blocks: int, long_prefill: int, tokens: int, others: int
) -> tuple[Harness, int]:
    """A pair whose amateur's prompt is cached, so that its expert starts alone, with requests that
    grow until the cache is full, and others that come. Returns when it has ended; after how many
    steps.
    """
    setup = Setup(num_blocks, budget=64, long_prefill=long_prefill, max_num_seqs=10)
    harness = Harness(model, setup)
    harness.add(prompt(33), 1)
    harness.until_idle()
    for number in range(others):
        harness.add(prompt(4, 300 + 5 * number), 40)
    harness.step()
    cold, before = harness.add(prompt(33), tokens, adapter=1, cold=True), harness.steps
    while cold not in harness.ended and harness.steps - before < 200:
        if (number := harness.steps - before) % 3 == 0:
            harness.add(prompt(4, 400 + number), 40)
        harness.step()
    assert cold in harness.ended, "younger requests kept a pair waiting"
    return harness, harness.steps - before


def growing_younger_ones(model: Path) -> None:
    """Blocks that younger requests need are not taken from a pair whose prompt takes long."""
    harness, steps = with_growing_ones(model, 34, 1, tokens=4, others=6)
    assert steps <= 130, "a regular request in its place takes 120"
    harness.drain()


def the_youngest_is_preempted(model: Path) -> None:
    """A pair stands where it started, also when its amateur has followed."""
    harness, _ = with_growing_ones(model, 48, 8, tokens=20, others=3)
    assert harness.preemptions and not harness.group_preemptions
    harness.drain()


def no_room_for_the_amateurs_last_token(model: Path) -> None:
    """A pair that lacks but a block is not the first to be preempted."""
    harness, steps = with_growing_ones(model, 36, 4, tokens=20, others=3)
    assert steps <= 80
    harness.drain()


def behind_a_pair_that_waits_for_another(model: Path) -> None:
    """A regular request does not wait for the prompt of a pair that is not its own."""
    harness = Harness(model, Setup(num_blocks=129, long_prefill=1, max_num_seqs=8, budget=64))
    for first in (100, 200):
        harness.add(prompt(33, first), 1)  # the amateurs' prompts are cached
    harness.until_idle()
    for first in (100, 200):
        harness.add(prompt(33, first), 3, adapter=1, cold=True)
    behind = harness.add(prompt(1, 300), 3)
    before = harness.steps
    harness.drain()
    assert harness.first_step[behind] - before <= 2


def passed_by_those_who_need_slots(model: Path) -> None:
    """A pair that others pass keeps its slots: it starts as soon as the one does it waits for."""
    setup = Setup(num_blocks=257, long_prefill=2, max_num_seqs=8, max_loras=2, budget=64)
    harness = Harness(model, setup)
    for first in (100, 200):
        harness.add(prompt(33, first), 1)  # the amateurs' prompts are cached
    harness.until_idle()
    before = harness.steps
    _, second = (harness.add(prompt(33, first), 3, adapter=n, cold=True)
                 for n, first in ((1, 100), (2, 200)))  # fmt: skip
    for number in range(60):
        harness.add(prompt(2, 300 + number), 50, adapter=(3, 1)[number % 2])
        harness.step()
    assert harness.first_step[second] - before <= 40
    harness.drain()


def too_little_for_a_group(model: Path) -> None:
    """Others have the slots that are too few for a group, in some passes; then it is next."""
    for most, wanted in ((0, 13), (16, 7)):
        harness = Harness(model, Setup(num_blocks=257, max_num_seqs=4, budget=64))
        for number in range(4):
            harness.add(prompt(4, 10 * number), 6 + 6 * (number > 0))
        harness.step()
        cold = harness.add(prompt(5), 3, adapter=1, cold=True)
        behind = harness.add(prompt(4, 90), 30)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "_MAX_OVERTAKEN", most)
            harness.drain()
        assert harness.first_step[behind] == wanted, most
        assert harness.first_step[cold] == 13
    harness = Harness(model, Setup(num_blocks=257, max_num_seqs=4, budget=64))
    for number in range(4):
        harness.add(prompt(4, 10 * number), 6 + number)
    harness.step()
    cold, before = harness.add(prompt(5), 3, adapter=1, cold=True), harness.steps
    while cold not in harness.first_step and harness.steps - before < 200:
        harness.add(prompt(4, 10 * harness.steps), 9)  # always more than there is room for
        harness.step()
    # A slot is free in four of nine steps.
    assert harness.first_step[cold] - before <= 6 + 16 * 9 / 4 + 9
    harness.drain()


def looked_past_are_few_groups(model: Path) -> None:
    """Who comes behind five groups with too little room waits for them, but not behind four."""
    for groups, wanted in ((4, 7), (5, 13)):
        harness = Harness(model, Setup(num_blocks=257, max_num_seqs=4, budget=64))
        for number in range(4):
            harness.add(prompt(4, 10 * number), 6 + 6 * (number > 0))
        harness.step()
        for number in range(groups):
            harness.add(prompt(5, 20 * number), 3, adapter=1, cold=True)
        behind = harness.add(prompt(4, 290), 30)
        harness.drain()
        if wanted == 7:
            assert harness.first_step[behind] == 7
        else:
            assert harness.first_step[behind] > 13


def urgent_ones_are_not_overtaken(model: Path) -> None:
    """With priorities by those that are as urgent, and by no others."""
    for urgency, wanted in ((1, 7), (2, 13)):
        setup = Setup(num_blocks=257, max_num_seqs=4, budget=64, policy="priority")
        harness = Harness(model, setup)
        for number in range(4):
            harness.add(prompt(4, 10 * number), 6 + 6 * (number > 0), priority=0)
        harness.step()
        cold = harness.add(prompt(5), 3, adapter=1, cold=True, priority=1)
        behind = harness.add(prompt(4, 90), 30, priority=urgency)
        harness.drain()
        assert (harness.first_step[cold], harness.first_step[behind]) == (13, wanted)


def no_slot_for_the_amateur(model: Path) -> None:
    """An expert runs alone, its amateur's cached blocks are used, and its slot is taken."""
    setup = Setup(num_blocks=34, long_prefill=3, max_num_seqs=8, max_loras=2)
    harness = Harness(model, setup)
    harness.add(prompt(33), 1, adapter=2)
    harness.until_idle()
    harness.add(prompt(50, 300), 1)  # takes other blocks
    harness.add(prompt(45, 400), 1)
    harness.until_idle()
    harness.add(prompt(33), 4, adapter=1, cold=True, amateur=2)
    harness.add(prompt(3, 500), 30, adapter=3)
    harness.drain()


def no_slots_for_a_group(model: Path) -> None:
    """It is passed over, as vLLM passes a request over whose adapter has no slot; not for ever."""
    harness = Harness(model, Setup(num_blocks=257, max_loras=2, max_num_seqs=8))
    harness.add(prompt(5), 6, adapter=1)
    harness.step()
    pair = harness.add(prompt(5, 200), 3, adapter=2, cold=True, amateur=3)
    behind = harness.add(prompt(5, 300), 3, adapter=1)
    harness.step()
    assert behind in harness.first_step, "regular requests wait for a group without slots"
    # Somebody with the first adapter always comes before the last one ends.
    for number in range(40):
        harness.add(prompt(3, 10 * number), 12, adapter=1)
        for _ in range(8):
            harness.step()
        if pair in harness.ended:
            break
    assert pair in harness.ended, "it waits as long as others come"
    harness.drain()


def preempted_beside_a_cached_amateur(model: Path) -> None:
    """A pass preempts a request when an expert has its last token left and its amateur, whose
    prompt is cached, would have to be admitted.
    """
    setup = Setup(
        num_blocks=33, budget=32, long_prefill=8, max_num_seqs=8, policy="priority", max_loras=1
    )
    harness = Harness(model, setup)
    harness.add(prompt(9), 30)  # holds the amateur's blocks
    low = harness.add(prompt(8, 200), 20, priority=2)
    for _ in range(3):
        harness.step()
    harness.add(prompt(20, 300), 2, priority=0)
    cold = harness.add(prompt(9), 3, adapter=1, cold=True, priority=1)
    harness.step()
    assert harness.sched.running[-1].request_id == cold
    harness.occupy(leave=1)
    harness.step()
    assert harness.sched.requests[low].num_preemptions == 1
    assert harness.sched.requests[cold].num_preemptions == 0
    harness.drain()


def longer_amateur(model: Path) -> None:
    """An expert of one token, whose amateur's prompt takes several steps."""
    harness = Harness(model, Setup(num_blocks=65, budget=16))
    harness.add(prompt(3, 500), 40)
    harness.step()
    before = harness.steps
    cold = harness.add(prompt(1), 4, adapter=1, cold=True, amateurs=[(1, prompt(45, 200))])
    behind = harness.add(prompt(5, 400), 3)
    harness.drain()
    # What 46 tokens take, of 15 a step.
    assert harness.first_step[cold] - before <= 4, "an expert waited for its amateur"
    assert harness.first_step[behind] - before <= 5


def cached_beside_a_long_amateur(model: Path) -> None:
    """An expert is at its last token, one amateur is amid its prompt, and another one, which is
    cached, has to wait for that: small requests are admitted meanwhile.
    """
    harness = Harness(model, Setup(num_blocks=257, budget=16, max_num_seqs=8, long_prefill=4))
    harness.add(prompt(9, 200), 1)
    harness.add(prompt(33), 1, adapter=1)
    harness.until_idle()
    amateurs = [(0, prompt(9, 200)), (0, prompt(40, 300))]
    cold = harness.add(prompt(41), 3, adapter=1, cold=True, amateurs=amateurs)
    for _ in range(4):
        harness.step()
    running = {r.request_id for r in harness.sched.running}
    assert running == {cold, f"{cold}-amateur-2"}
    small = harness.add(prompt(3, 400), 2)
    harness.step()
    assert small in harness.first_step, "a small request waited for nothing"
    assert cold not in harness.first_step
    harness.drain()


def amateur_in_flight(model: Path) -> None:
    """A group is preempted while results of its amateur, but not of its expert, are under way."""
    setup = Setup(num_blocks=40, budget=8, is_async=True, v2=True, depth=3)
    harness = Harness(model, setup)
    harness.add(prompt(29), 1, adapter=1)
    harness.until_idle()
    while harness.in_flight:
        harness.deliver()
    cold = harness.add(prompt(33), 3, adapter=1, cold=True)
    harness.schedule()
    harness.deliver()
    expert, amateur = harness.sched.running
    assert expert.num_tokens - expert.num_computed_tokens == 1
    harness.schedule()  # the amateur alone
    harness.occupy(leave=0)
    harness.schedule()
    assert not harness.sched.running
    harness.sched.kv_cache_manager.block_pool.free_blocks(harness.occupied)
    harness.occupied.clear()
    late = getattr(amateur, "num_stale_output_tokens", 0)  # not before 0.27
    if late and not amateur.drop_stale_output:
        harness.schedule()
        assert not harness.sched.running, "an expert runs whose amateur cannot"
    assert cold not in harness.first_step
    harness.drain()


def mutual_eviction(model: Path) -> None:
    """Nothing else runs, all prompts are cached, and the blocks that one stream takes are those
    that another one finds.
    """
    setup = Setup(num_blocks=12, block_size=3, budget=4, max_num_seqs=3, max_loras=3)
    harness = Harness(model, setup)
    amateurs = [(1, prompt(2, 200)), (2, prompt(8, 300))]
    harness.add(prompt(8), 5, adapter=1, cold=True, amateurs=amateurs)
    for _ in range(6):
        harness.step()
    harness.step(squeeze=4)
    harness.drain()


def drafts_that_do_not_fit(model: Path, is_async: bool = True) -> None:
    """A pair fills the KV cache with its last tokens: it goes on without drafts."""
    setup = Setup(num_blocks=9, budget=64, drafts=4, right=0.0, is_async=is_async)
    harness = Harness(model, setup)
    harness.add(prompt(9), 7, adapter=1, cold=True)
    harness.drain()
    assert harness.group_preemptions <= 2, "a pair begins anew for each of its tokens"


def until_it_drafts(harness: Harness, request_id: str, least: int = 2) -> int:
    """Steps until one is in front of ``harness.in_flight`` in which a request verifies drafts.

    Returns:
        How many; ``least`` or more.
    """
    while True:
        while len(harness.in_flight) < harness.depth:
            harness.schedule()
        output, _ = harness.in_flight[0]
        num = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
        if num >= least:
            return num
        harness.deliver()


def find_of_drafts(harness: Harness, request_id: str, rows: dict[int, RowStats | None]) -> None:
    """What the workers found of a request in the step in front of ``harness.in_flight``, by row:
    None if they did not look at it.
    """
    _, result = harness.in_flight[0]
    group = harness.sched._group_id(harness.sched.requests[request_id])
    found: list[tuple[str, RowStats]] = []
    row = 0
    for name, figures in (one for tally in result.cold for one in tally.figures()):
        here = rows.get(row, figures) if name == group else figures
        row += name == group
        if here is not None:
            found.append((name, here))
    result.cold = [stats_of(found)]


def sick_draft(model: Path, is_async: bool = True) -> None:
    """A row in which a draft is verified holds no scores: none of the step's tokens leaves."""
    harness = Harness(model, Setup(num_blocks=65, drafts=4, right=1.0, is_async=is_async))
    healthy = harness.add(prompt(9), 30, adapter=1, cold=True)
    cold = harness.add(prompt(5, 200), 30, adapter=1, cold=True)
    num = until_it_drafts(harness, cold)
    before = list(harness.got[cold])
    find_of_drafts(harness, cold, {num: RowStats(1, 0, 1, present=1)})
    harness.errors[cold] = NOT_FINITE
    harness.deliver()
    assert harness.ended.get(cold) == "error" and harness.got[cold] == before
    harness.drain()
    assert harness.ended[healthy] == "length"


def counted_once(model: Path, is_async: bool = True) -> None:
    """Drafts of a group, by vLLM's figures and by ours."""
    harness = Harness(model, Setup(num_blocks=65, drafts=4, right=0.5, is_async=is_async))
    make, stats = harness.sched.make_stats, []

    def watched(spec_decoding_stats: Any = None, *args: Any, **kwargs: Any) -> Any:
        stats.append(spec_decoding_stats)
        return make(spec_decoding_stats, *args, **kwargs)

    harness.sched.make_stats = watched
    cold = harness.add(prompt(5), 40, adapter=1, cold=True, amateurs=[(0, None), (0, prompt(3))])
    drafted = accepted = 0
    while cold not in harness.ended:
        while len(harness.in_flight) < harness.depth:
            harness.schedule()
        output, result = harness.in_flight[0]
        drafts = len(output.scheduled_spec_decode_tokens.get(cold, ()))
        if drafts and not drafted:  # a grammar forbids one
            output.num_invalid_spec_tokens = {cold: 1}
            drafts -= 1
        drafted += drafts
        if cold in result.req_ids:
            tokens = result.sampled_token_ids[result.req_ids.index(cold)]
            accepted += max(len(tokens) - 1, 0)
        harness.deliver()
    harness.drain()
    assert 0 < accepted < drafted
    theirs = [one for one in stats if one is not None]
    assert sum(one.num_draft_tokens for one in theirs) == drafted
    assert sum(one.num_accepted_tokens for one in theirs) == accepted
    ours = [sums for report in harness.reports for _, sums in report.sums]
    assert sum(sums.draft_tokens for sums in ours) == drafted
    assert sum(sums.accepted_draft_tokens for sums in ours) == accepted
    # Each token that was given has its figures.
    given = sum(sums.generation_tokens for sums in ours)
    assert given == 40 == sum(len(sums.candidates) for sums in ours)


def _streams(harness: Harness, request_id: str) -> int:
    """How many streams of a request the scheduler still has."""
    return sum(name.split("-")[0] == request_id for name in harness.sched.requests)


def amateur_that_has_ended(model: Path) -> None:
    """Its sequence slot and its blocks are for those who wait; what is left needs no group."""
    harness = Harness(model, Setup(num_blocks=17, max_num_seqs=2, max_loras=2, long_prefill=8))
    cold = harness.add(prompt(12), 30, adapter=1, cold=True, lives=(3,), rule_keeps_state=True)
    waits = harness.add(prompt(3, 300), 4, adapter=2)
    while len(harness.got[cold]) < 3:
        assert _streams(harness, cold) == 2
        assert waits not in harness.first_step
        harness.step()
    assert _streams(harness, cold) == 1
    (group,) = harness.groups()
    assert group.amateurs == ()
    harness.step()
    assert waits in harness.first_step, "a sequence slot is free"
    harness.drain()
    sums = [each for report in harness.reports for _, each in report.sums]
    assert sum(each.retired_streams for each in sums) == 1
    assert sum(each.generation_tokens for each in sums) == 30


def ended_amateur_of_a_preempted_group(model: Path) -> None:
    """The token with which an amateur has done its work comes when its group was preempted: it ends
    when it runs again.
    """
    setup = Setup(num_blocks=129, block_size=1, budget=32, is_async=True)
    harness = Harness(model, setup)
    amateurs = [(0, prompt(19))]
    cold = harness.add(prompt(5), 20, adapter=1, cold=True, amateurs=amateurs, lives=(4,))
    while len(harness.got[cold]) < 3:
        harness.schedule()
        if len(harness.in_flight) == harness.depth:
            harness.deliver()
    harness.schedule(squeeze=129)
    while harness.in_flight:
        harness.deliver()
    assert harness.sched.requests[cold].status == RequestStatus.PREEMPTED
    assert len(harness.got[cold]) == 4
    assert _streams(harness, cold) == 2
    harness.drain()


def states_of_those_who_run(model: Path, is_async: bool = True) -> None:
    """What rules remember takes as many slots as groups have run and not ended, preempted or not,
    however many wait.
    """
    harness = Harness(model, Setup(num_blocks=65, max_num_seqs=4, is_async=is_async))
    for number in range(30):
        how: dict[str, Any] = {"cold": True, "lives": (9,), "rule_keeps_state": True}
        harness.add(prompt(5, 10 * number), 4 + number % 5, adapter=1, **how)
    numbers, preempted = set(), 0
    while harness.alive():
        harness.step()
        if harness.steps % 7 == 0:
            preempted += len(harness.sched.running)
            harness.reset(running=True)
        numbers |= {row.slot for row in harness.workers.rows.values()} - {None}
    assert numbers == {0, 1}, "there are sequence slots for two"
    assert preempted > 20
    harness.drain()


def paused_amid_its_prompt(model: Path) -> None:
    """Admission is paused again and again while one stream runs alone: that is no failure."""
    harness = Harness(model, Setup(num_blocks=65, budget=3))
    cold = harness.add(prompt(40), 3, adapter=1, cold=True, amateurs=[(0, prompt(1, 300))])
    for _ in range(4):
        harness.step()
        assert _streams(harness, cold) == 2
        harness.wait()
    harness.drain()
    assert harness.ended[cold] == "length"
