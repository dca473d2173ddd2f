# SPDX-License-Identifier: Apache-2.0
"""Single situations: nothing waits longer than it must, and nothing is silently wrong."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.sched.interface import PauseState

from tests.scheduler import cases, connector_cases, media_cases, ssm_cases
from tests.scheduler.cases import prompt
from tests.scheduler.harness import (
    IS_0_23,
    Harness,
    Setup,
    cases_in,
    stats_of,
)
from tests.scheduler.workers import RELEASE
from vllm_cold.ops.interface import NOT_FINITE, OUT_OF_RANGE
from vllm_cold.scheduler.budgets import Budget
from vllm_cold.scheduler.drafting import DraftController
from vllm_cold.scheduler.output_checks import ENDED_BY_RULE, NOT_EXPLAINED, NOT_SCORED
from vllm_cold.wire.counters import ColdStats, Counters, Kind
from vllm_cold.wire.step_stats import ENDS, RowStats

pytestmark = pytest.mark.unit

both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


# And the first release of vLLM with which vllm-cold does what they are about.
MODULES = {
    cases: (0, 23), connector_cases: (0, 31), media_cases: (0, 31), ssm_cases: (0, 32)
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [each for module, since in MODULES.items() if since <= RELEASE for each in cases_in(module)],
)
def test_case(case: Callable[[Path], None], tiny: Path) -> None:
    case(tiny / "model")


@both
@pytest.mark.parametrize("drafts", [1, 4])
def test_right_drafts_are_given_at_once(drafts: int, is_async: bool, tiny: Path) -> None:
    """A group takes as many steps as a regular request does, and fewer than tokens."""
    steps = {}
    for cold in (False, True):
        harness = harness_of(tiny, budget=64, drafts=drafts, right=1.0, is_async=is_async)
        harness.workers.rng = random.Random(1)
        harness.add(prompt(9), 31, adapter=1, cold=cold, amateurs=[(0, prompt(3)), (0, None)])
        harness.drain()
        steps[cold] = harness.steps
        assert harness.workers.accepted == harness.workers.drafted >= 10
    assert steps[True] == steps[False] < 31
    if is_async:
        assert steps[True] <= 2 + 31 / (1 + drafts) + 3


@both
def test_a_full_budget_is_shared_between_the_streams_drafts(is_async: bool, tiny: Path) -> None:
    """Two tokens of 8 are for a regular request; the pair verifies two drafts each."""
    harness = harness_of(tiny, budget=8, drafts=4, right=1.0, is_async=is_async, max_num_seqs=3)
    cold = harness.add(prompt(3), 40, adapter=1, cold=True)
    for _ in range(4):
        harness.step()
    seen = set()
    while cold not in harness.ended:
        harness.step()
        for output, _ in harness.in_flight:
            drafts = output.scheduled_spec_decode_tokens
            seen.add((len(drafts.get(cold, ())), len(drafts.get(f"{cold}-amateur-1", ()))))
    harness.drain()
    assert all(ours == theirs for ours, theirs in seen)
    if is_async:
        assert (3, 3) in seen, "four tokens for each stream"


def harness_of(tiny: Path, **options: Any) -> Harness:
    return Harness(tiny / "model", Setup(**{"num_blocks": 129, **options}))


@both
@pytest.mark.parametrize("length", [1, 2, 4, 17])
def test_the_first_token_comes_as_early_as_a_regular_requests(
    length: int, is_async: bool, tiny: Path
) -> None:
    harness = harness_of(tiny, budget=64, is_async=is_async)
    regular = harness.add(prompt(length, 300), 3, adapter=1)
    cold = harness.add(prompt(length), 3, adapter=1, cold=True)
    harness.step()
    assert harness.first_step == {regular: 1, cold: 1, f"{cold}-amateur-1": 1}
    harness.drain()
    assert harness.steps <= 5


@both
@pytest.mark.parametrize(("budget", "steps"), [(64, 2), (40, 2), (17, 4), (16, 5), (5, 14)])
def test_a_prompt_takes_no_more_steps_than_its_tokens(
    budget: int, steps: int, is_async: bool, tiny: Path
) -> None:
    """Both streams, 33 tokens each."""
    harness = harness_of(tiny, budget=budget, is_async=is_async)
    cold = harness.add(prompt(33), 2, adapter=1, cold=True)
    harness.drain()
    assert harness.first_step[cold] == steps == -(-66 // budget)


@both
@pytest.mark.parametrize("cached", ["expert", "amateur", "both"])
def test_a_cached_prompt_is_not_computed_again(cached: str, is_async: bool, tiny: Path) -> None:
    """Of 33 tokens 32 are cached for one stream or both."""
    harness = harness_of(tiny, budget=17, is_async=is_async)
    for adapter in {"expert": [1], "amateur": [0], "both": [0, 1]}[cached]:
        harness.add(prompt(33), 1, adapter=adapter)
    harness.until_idle()
    before = harness.steps
    cold = harness.add(prompt(33), 3, adapter=1, cold=True)
    harness.drain()
    steps = harness.first_step[cold] - before
    assert steps == {"expert": 2, "amateur": 2, "both": 1}[cached]


@both
@pytest.mark.parametrize("kind", [{}, {"adapter": 2}, {"adapter": 2, "cold": True}])
def test_decoding_pairs_are_not_held_back_by_a_long_prompt(
    kind: dict[str, Any], is_async: bool, tiny: Path
) -> None:
    harness = harness_of(tiny, budget=8, is_async=is_async)
    pairs = [harness.add(prompt(2, 50 * i), 40, adapter=1, cold=True) for i in (1, 2)]
    for _ in range(4):
        harness.step()
    long = harness.add(prompt(60), 2, **kind)
    while long not in harness.first_step:
        before = [len(harness.workers.rows[p].tokens) for p in pairs]
        harness.step()
        after = [len(harness.workers.rows[p].tokens) for p in pairs]
        assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
    assert harness.steps > 10
    harness.drain()


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_a_group_fits_as_much_room_as_it_takes(windows: int, tiny: Path) -> None:
    """Of prompts that are cached, longer than sliding windows are: after a hit, vLLM takes blocks
    for these that it does not count.
    """
    setup = Setup(num_blocks=300, block_size=2, budget=8, max_num_seqs=6, windows=windows)
    harness = Harness(tiny / "model", setup)
    for adapter in (0, 1):
        harness.add(prompt(41), 1, adapter=adapter)
    running = harness.add(prompt(3, 300), 60)
    for _ in range(15):
        harness.step()
    assert [request.request_id for request in harness.sched.running] == [running]
    harness.add(prompt(43), 3, adapter=1, cold=True)
    (group,) = harness.groups()
    manager, blocks = harness.sched.kv_cache_manager, harness.sched._blocks
    found = {each: blocks.look_up(each) for each in group.streams}
    before = harness.free_blocks()
    for each, one in found.items():
        assert one.num_tokens == 40
        assert manager.allocate_slots(each, 3, 40, one.blocks, delay_cache_blocks=True)
    taken = before - harness.free_blocks()
    for each in group.streams:
        manager.free(each)
    for leave, fits in ((taken, True), (taken - 1, False)):
        harness.occupy(leave)
        assert blocks.has_room(group, found) == fits
    harness.drain()


@pytest.mark.skipif(IS_0_23, reason="vLLM 0.23 itself dies of it")
@both
def test_a_grammar_that_does_not_compile_ends_the_pair(is_async: bool, tiny: Path) -> None:
    harness = harness_of(tiny, is_async=is_async)
    cold = harness.add(prompt(9), 3, adapter=1, cold=True, grammar=True)
    harness.errors[cold] = ""
    request = harness.sched.requests[cold]
    request.structured_output_request.grammar = RuntimeError("no grammar")
    harness.drain()
    assert harness.ended[cold] == "error"


@both
@pytest.mark.parametrize("state", [PauseState.PAUSED_NEW, PauseState.PAUSED_ALL])
def test_pause(state: PauseState, is_async: bool, tiny: Path) -> None:
    """A paused engine admits nothing or runs nothing; then everything goes on."""
    harness = harness_of(tiny, is_async=is_async)
    running = harness.add(prompt(9), 20, adapter=1, cold=True)
    harness.step()
    harness.step()
    harness.pause(state)
    waiting = harness.add(prompt(9, 200), 3, adapter=1, cold=True)
    counts = [harness.step() for _ in range(4)]
    assert set(counts) == ({2} if state == PauseState.PAUSED_NEW else {0})
    assert waiting not in harness.first_step
    assert running not in harness.ended
    harness.drain()


@both
@pytest.mark.parametrize("harm", ["another token", "no token", "one more"])
def test_a_desynchronised_pair_ends_with_an_error(harm: str, is_async: bool, tiny: Path) -> None:
    """The check that is always on: that request ends and says why, and the others do not notice."""
    harness = harness_of(tiny, budget=64, is_async=is_async)
    cold = harness.add(prompt(9), 20, adapter=1, cold=True)
    harness.add(prompt(9, 200), 20, adapter=1, cold=True)
    harness.add(prompt(9, 300), 20)
    harness.step()
    harness.schedule()
    _, result = harness.in_flight[0]
    tokens = result.sampled_token_ids[result.req_ids.index(f"{cold}-amateur-1")]
    tokens[:] = {"another token": [tokens[0] + 1], "no token": [], "one more": [*tokens, 7]}[harm]
    harness.errors[cold] = ""
    harness.deliver()
    assert harness.ended[cold] == "error"
    assert "expert and amateur are desynchronised at token" in harness.errors[cold]
    assert cold not in harness.sched.requests
    harness.drain()


def totals(harness: Harness) -> dict[Kind, Counters]:
    """All that was reported, added up."""
    found: dict[Kind, Counters] = {}
    for kind, sums in (each for report in harness.reports for each in report.sums):
        total = found.setdefault(kind, Counters())
        for name in sums.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(sums, name))
    return found


@both
def test_what_is_reported_for_metrics(is_async: bool, tiny: Path) -> None:
    harness = harness_of(tiny, block_size=4, is_async=is_async, max_loras=3)
    harness.add(prompt(17), 3, adapter=1)
    harness.drain()
    assert harness.reports == [], "a regular request was counted"
    for _ in range(2):
        harness.add(prompt(17), 3, adapter=1, cold=True)
        harness.drain()
    harness.add(prompt(9, 300), 5, adapter=1, cold=True)
    harness.step()
    harness.step()
    assert harness.reports[-1].requests_running == 1
    harness.reset(running=True)
    harness.drain()
    amateurs = [(1, None), (2, prompt(4, 200))]
    harness.add(prompt(5, 400), 4, cold=True, method="dexperts", amateurs=amateurs)
    harness.drain()
    assert harness.reports[-1].requests_running == harness.reports[-1].requests_waiting == 0
    assert totals(harness) == {
        ("cold", "a1"): Counters(
            requests=3, generation_tokens=11, preemptions=1, amateur_prompt_tokens=43,
            # The first amateur fills the cache for the second one.
            amateur_cached_prompt_tokens=16,
            # With what was under way when the prefix cache was reset, whose token is dropped.
            candidates=[1] * 11,
        ),
        ("dexperts", ""): Counters(
            requests=1, generation_tokens=4, amateur_prompt_tokens=9, candidates=[1] * 4
        ),
    }  # fmt: skip


def test_without_statistics_nothing_piles_up(tiny: Path) -> None:
    """Nobody takes what is counted then."""
    harness = harness_of(tiny)
    harness.sched.log_stats = False
    harness.add(prompt(5), 9, adapter=1, cold=True)
    harness.drain()
    assert [sums.candidates for sums in harness.sched._counters.sums.values()] == [[]]


def test_positions_that_give_no_token_are_not_counted(tiny: Path) -> None:
    """vLLM has a row of logits amid a prompt too."""
    harness = harness_of(tiny, budget=16)
    cold = harness.add(prompt(20), 2, adapter=1, cold=True)
    step = 0
    while cold not in harness.ended:
        step += 1
        harness.schedule()
        # This step has as many candidates as its number.
        pair = harness.sched._group_id(harness.sched.requests[cold])
        harness.in_flight[-1][1].cold = [stats_of([(pair, RowStats(step, 1, 0, present=1))])]
        harness.deliver()
    first = harness.first_step[cold]
    assert first == 3, "the prompt takes several steps"
    harness.add(prompt(5, 300), 2, adapter=1)  # nothing but regular requests
    harness.drain()
    (sums,) = totals(harness).values()
    assert sums.candidates == [first, first + 1]
    assert sums.changed_tokens == 2


@both
@pytest.mark.parametrize(
    "found",
    [
        RowStats(1, 0, 1, present=1),
        RowStats(0, 0, OUT_OF_RANGE, present=1),
        RowStats(0, 0, ENDS, present=1),
        None,
    ],
    ids=["not finite", "out of range", "ended by its rule", "not scored"],
)
@pytest.mark.parametrize("tokens", [1, 4], ids=["with its last token", "amid its tokens"])
def test_a_pair_without_a_token_ends_alone(
    tokens: int, found: RowStats | None, is_async: bool, tiny: Path
) -> None:
    """With an error, and without the token; others go on, and all blocks come back. It was given
    up, so that a step that is already under way for it comes to nothing.
    """
    harness = harness_of(tiny, is_async=is_async)
    healthy = harness.add(prompt(9), 6, adapter=1, cold=True)
    regular = harness.add(prompt(7, 200), 6, adapter=1)
    sick = harness.add(prompt(5, 300), tokens, adapter=2, cold=True)
    nonfinite = 0 if found is None else found.nonfinite
    reasons = {1: NOT_FINITE, ENDS: ENDED_BY_RULE}
    harness.errors[sick] = reasons.get(nonfinite, NOT_SCORED)
    while sick not in harness.ended:
        while len(harness.in_flight) < harness.depth:
            harness.schedule()
        output, _ = harness.in_flight[0]
        if sick in output.num_scheduled_tokens:
            cases.find_of_drafts(harness, sick, {0: found})
        harness.deliver()
    assert harness.got[sick] == []
    harness.drain()
    how = "stop" if nonfinite == ENDS else "error"
    assert harness.ended == {healthy: "length", regular: "length", sick: how}


@both
def test_blocks_of_such_a_pair_are_cleared_once_they_are_nobodys(
    is_async: bool, tiny: Path
) -> None:
    """vLLM's attention on CPU would read NaN in them. Others share some of them until then."""
    harness = harness_of(tiny, is_async=is_async)
    schedule, cleared = harness.sched.schedule, set()
    pool = harness.sched.kv_cache_manager.block_pool

    def watched(*args: Any) -> Any:
        output = schedule(*args)
        cleared.update(output.new_block_ids_to_zero or ())
        return output

    harness.sched.schedule = watched
    sick = harness.add(prompt(12), 9, adapter=1, cold=True)
    harness.errors[sick] = NOT_FINITE
    harness.step()
    held = set(harness.sched.kv_cache_manager.get_block_ids(sick)[0])
    sharer = harness.add(prompt(12), 20, adapter=1, cold=True)
    for _ in range(3):
        harness.step()
    shared = {block for block in held if pool.blocks[block].ref_cnt > 1}
    while sick not in harness.ended:  # now it turns out to be sick
        while len(harness.in_flight) < harness.depth:
            harness.schedule()
        cases.find_of_drafts(harness, sick, {0: RowStats(1, 0, 1, present=1)})
        harness.deliver()
    harness.step()
    assert shared and not shared & cleared and held - shared <= cleared
    harness.until_idle()
    harness.add(prompt(12), 2, adapter=1, cold=True)  # finds nothing of it in the prefix cache
    harness.drain()
    assert held <= cleared and harness.ended[sharer] == "length"


def test_the_front_ends_hear_for_a_while_that_no_pair_is_left(tiny: Path) -> None:
    """Of several, each gets a part of the messages: a slow one must not have the last word."""
    harness = harness_of(tiny)
    harness.add(prompt(5), 2, adapter=1, cold=True)
    harness.drain()
    before = len(harness.reports)
    harness.add(prompt(5, 300), 50, adapter=1)
    harness.drain()
    after = harness.reports[before:]
    assert 10 < len(after) < 40
    assert all(report == ColdStats() for report in after)


def test_what_a_worker_computes_with_is_told_once(tiny: Path) -> None:
    """By its first output, whoever's request that is."""
    harness = harness_of(tiny)
    harness.add(prompt(5), 3, adapter=1)
    harness.schedule()
    harness.in_flight[0][1].cold_kernels = [("lora", "inside", "one call")]
    harness.drain()
    assert harness.reports == [ColdStats(kernels=[("lora", "inside", "one call")])]
    harness.add(prompt(5), 3, adapter=1, cold=True)
    harness.drain()
    assert len(harness.reports) > 1 and not any(r.kernels for r in harness.reports[1:])


@both
def test_a_cold_request_is_counted_once(is_async: bool, tiny: Path) -> None:
    """In vLLM's statistics: while it waits, runs, and waits again."""
    harness = harness_of(tiny, num_blocks=9, max_num_seqs=4, is_async=is_async)
    for first in (100, 200, 300):
        harness.add(prompt(5, first), 9, adapter=1, cold=True)

    def counts() -> tuple[int, int]:
        stats = harness.sched.make_stats()
        return stats.num_running_reqs, stats.num_waiting_reqs

    assert counts() == (0, 3)
    harness.step()
    assert counts() == (2, 1)
    harness.reset(running=True)
    assert counts() == (0, 3)
    harness.drain()
    assert counts() == (0, 0)


@both
def test_what_is_asked_of_the_steps(
    is_async: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What drafts cost for the streams and requests that got tokens and are still there."""
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(DraftController, "break_even", lambda _, *step: asked.append(step) or 0.0)
    harness = harness_of(tiny, is_async=is_async, drafts=2, budget=64)
    harness.sched._draft_controller = DraftController()  # the harness's own asks nobody
    harness.add(prompt(5), 20, adapter=1, cold=True, amateurs=[(0, None), (0, prompt(3))])
    regular = harness.add(prompt(7, 200), 20, adapter=1)
    harness.schedule()
    harness.deliver()
    assert asked == [(4, 2)]
    harness.schedule()
    harness.deliver()
    assert asked == [(4, 2)] * 2
    harness.schedule()
    harness.abort([regular])
    harness.deliver()
    assert asked[2:] == [(3, 1)]  # who has gone is no load
    harness.drain()


def test_two_schedulers_do_not_take_each_others_figures(tiny: Path) -> None:
    """They may have requests of the same name."""
    one, two = harness_of(tiny), harness_of(tiny)
    assert one.add(prompt(5), 2, adapter=1, cold=True) == two.add(
        prompt(5), 2, adapter=1, cold=True
    )
    one.schedule()
    two.schedule()
    ((foreign, _),) = one.in_flight[0][1].cold[0].figures()
    two.in_flight[0][1].cold.append(stats_of([(foreign, RowStats(1, 0, 1, present=1))]))
    two.drain()
    assert list(two.ended.values()) == ["length"]


@pytest.mark.skipif(IS_0_23, reason="vLLM lifts its limit for a lone request since 0.31")
@both
def test_a_lone_contrast_has_no_limit_for_long_prompts(is_async: bool, tiny: Path) -> None:
    """As a lone request has none: both streams go at once. Where another request is there, they
    have it, as all do.
    """
    harness = harness_of(tiny, num_blocks=65, budget=64, long_prefill=8, is_async=is_async)
    alone = harness.add(prompt(20), 2, adapter=1, cold=True)
    harness.step()
    assert harness.first_step[alone] == 1
    harness.drain()
    start = harness.steps
    two = [harness.add(prompt(20, first), 2, adapter=1, cold=True) for first in (200, 300)]
    harness.drain()
    assert [harness.first_step[name] - start for name in two] == [3, 3]


@pytest.mark.skipif(IS_0_23, reason="vLLM has this option since 0.31")
@both
def test_a_limit_for_long_prompts_that_adapts(is_async: bool, tiny: Path) -> None:
    """To a share of the budget, of which each request that waits has one."""
    harness = harness_of(tiny, num_blocks=65, budget=64, long_prefill=8, is_async=is_async)
    harness.sched.adaptive_long_prefill_threshold = True
    names = [harness.add(prompt(15, first), 2, adapter=1, cold=True) for first in (200, 300)]
    harness.step()
    assert [harness.first_step[name] for name in names] == [1, 1]
    harness.drain()


def test_a_token_without_its_explanation_ends_its_request(tiny: Path) -> None:
    """And not the engine: others go on."""
    harness = harness_of(tiny)
    asks = harness.add(prompt(9), 6, adapter=1, cold=True, lives=(9,))
    other = harness.add(prompt(9, 300), 6, adapter=1, cold=True)
    harness.errors[asks] = ""
    for _ in range(3):
        harness.step()
    execute = harness.workers.execute

    def without(output: Any) -> Any:
        results = execute(output)
        scored = harness.workers.scored
        scored[:] = [(name, figures._replace(explained=None)) for name, figures in scored]
        return results

    harness.workers.execute = without  # type: ignore[method-assign]
    harness.drain()
    assert harness.ended == {asks: "error", other: "length"}
    assert harness.errors[asks] == NOT_EXPLAINED


@both
def test_what_an_answer_has_spent_is_counted_once(is_async: bool, tiny: Path) -> None:
    """Of one that ends, and of one that the front end aborts, as at a stop string; of one that got
    no token nothing, whether it is told or not.
    """
    harness = harness_of(tiny, is_async=is_async)
    told: dict[str, Any] = {}

    def tell(name: str, params: Any, num: int) -> None:
        told[name] = params["cold"]["budget"] | {"tokens": len(harness.got[name])}

    harness._check_told = tell  # type: ignore[method-assign]
    amateurs = [(0, None), (0, prompt(5, 200))]
    names = [
        harness.add(prompt(9, first), 6, adapter=1, cold=True, amateurs=amateurs)
        for first in (0, 300, 600)
    ]
    for name in names:
        harness.sched._groups[name].budget = Budget(2, {"bits": 8.0})
    ends, stops, waits = names
    harness.abort([waits])
    execute = harness.workers.execute

    def charging(output: Any) -> Any:
        results = execute(output)
        charges = [(0.5, 8.0, 0.0), (-0.25, 4.0, 1.0), (0.0, 0.0, 0.0)]  # of other groups' amateurs
        scored = harness.workers.scored
        scored[:] = [(name, figures._replace(charges=charges)) for name, figures in scored]
        return results

    harness.workers.execute = charging  # type: ignore[method-assign]
    while len(harness.got[stops]) < 3:
        harness.step()
    at_stop = told[stops]["tokens"]
    harness.abort([stops])
    harness.drain()
    harness.add(prompt(5, 900), 4, adapter=1)  # another step reports
    harness._check_told = lambda *_: None  # type: ignore[method-assign]
    harness.drain()
    spent = [bits for report in harness.reports for _, sums in report.sums for bits in sums.spent]
    assert sorted(spent) == sorted([3.0, -1.5, 0.5 * at_stop, -0.25 * at_stop])
    assert told[ends] == {
        "bits": 8.0, "spent": [3.0, -1.5], "left": [7.5, 4.25], "reached": [False, True],
        "tokens": 6,
    }  # fmt: skip
    assert harness.ended == {ends: "length", stops: "abort", waits: "abort", "r4": "length"}
