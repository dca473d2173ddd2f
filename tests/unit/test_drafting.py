# SPDX-License-Identifier: Apache-2.0
"""Drafters and the steps that are played over recorded answers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks.drafting import compare, report
from benchmarks.drafting.drafters import Index, Lookup, Memory, Recall, Suffix, Table, Tree, Walk
from benchmarks.drafting.play import Tally, plan, play, play_all
from benchmarks.drafting.record import Answer, Record

pytestmark = pytest.mark.unit


def _first_longest(tokens: list[int], low: int, high: int, k: int) -> list[int]:
    """vLLM's n-gram rule, by trying: the longest of low..high tokens, its first place."""
    for size in range(min(high, len(tokens) - 1), low - 1, -1):
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == tokens[-size:]:
                return tokens[start + size : start + size + k]
    return []


@pytest.mark.parametrize(("low", "high"), [(5, 5), (2, 4), (1, 4), (3, 3), (1, 1)])
def test_the_ngram_rule(low: int, high: int) -> None:
    rng = random.Random(low * 10 + high)
    hits = 0
    for _ in range(150):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 40))]
        cut = rng.randrange(1, len(tokens) + 1)
        drafter = Lookup(tokens[:cut], low, high, "first")
        for token in tokens[cut:]:
            drafter.add(token)
        wanted = _first_longest(tokens, low, high, 6)
        assert drafter.draft(6) == wanted
        hits += bool(wanted)
    assert hits > 40


@pytest.mark.slow
def test_the_ngram_rule_is_vllms() -> None:
    from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens

    rng = random.Random(0)
    for _ in range(300):
        low = rng.randrange(1, 5)
        high = rng.randrange(low, 6)
        tokens = [rng.randrange(3) for _ in range(rng.randrange(2, 60))]
        theirs = _find_longest_matched_ngram_and_propose_tokens(
            np.array(tokens, dtype=np.int32), low, high, 1000, 5
        )
        assert Lookup(tokens, low, high, "first").draft(5) == theirs.tolist()


def test_of_equal_matches_the_last_is_taken_if_asked_for() -> None:
    tokens = [1, 2, 7, 1, 2, 8, 1, 2]
    assert Lookup(tokens, 2, 4, "first").draft(1) == [7]
    assert Lookup(tokens, 2, 4, "last").draft(1) == [8]


def test_a_match_is_compared_to_its_longest_only() -> None:
    tokens = [3, 1, 2, 7, 9, 1, 2, 8, 3, 1, 2]
    assert Lookup(tokens, 2, 4, "last").draft(1) == [7]
    assert Lookup(tokens, 2, 2, "last").draft(1) == [8]


def test_earlier_answers_are_found_when_finished_and_not_across_their_ends() -> None:
    earlier = Index(2, 32, "last")
    first = Lookup([50, 51], 2, 32, "last", earlier)
    for token in (1, 2, 3):
        first.add(token)
    second = Lookup([50, 51], 2, 32, "last", earlier)
    second.add(1)
    assert second.draft(4) == []
    first.finish()
    # The prompt's end is kept too: it finds where an answer begins.
    assert second.draft(4) == [2, 3]


def test_a_longer_match_in_an_earlier_answer_wins_unless_told_otherwise() -> None:
    earlier = Index(2, 32, "last")
    earlier.add([1, 2, 3, 9])
    earlier.end()
    prompt = [2, 3, 8, 1, 2, 3]
    assert Lookup(prompt, 2, 32, "last", earlier).draft(1) == [9]
    assert Lookup(prompt, 2, 32, "last", earlier, own_first=True).draft(1) == [8]


def test_a_walk_goes_on_from_what_it_drafted() -> None:
    table = Table(1, 4)
    for before, token in (([1], 2), ([1, 2], 3), ([2, 3], 4)):
        table.learn(before, token)
    walk = Walk([9], 1, 4, table)
    walk.add(1)
    assert walk.draft(8) == [2, 3, 4]


def test_suffix_decoding_follows_counts_and_is_as_long_as_its_match() -> None:
    # 2 follows 1 twice, 3 once.
    assert Suffix([1, 2, 5, 1, 3, 6, 1, 2, 4, 1]).draft(8) == [2]
    # A longer match promises more tokens: as many as it has, and here it has four.
    assert Suffix([1, 2, 5, 1, 3, 6, 1, 2, 5, 1]).draft(8) == [3, 6, 1, 2]
    shared = Tree(Suffix.DEPTH)
    first = Suffix([7], shared)
    for token in (1, 2, 3, 4):
        first.add(token)
    assert Suffix([8, 1, 2], shared).draft(8) == [3, 4]


# Recall


def test_recall_believes_the_source_that_was_right() -> None:
    memory = Memory()
    memory.learn([1], 3)
    recall = Recall([1, 2, 1], memory, 0.0)
    assert recall.draft(1) == [2]  # the request's own text, until it is wrong more often
    for _ in range(8):
        memory.judge("own", 1, False)
        memory.judge("answers", 1, True)
    assert recall.draft(1) == [3]
    for _ in range(40):
        memory.judge("own", 1, True)
    assert recall.draft(1) == [2]


def test_recall_stops_where_a_draft_is_unlikely() -> None:
    memory = Memory(longest=2)
    prompt = [1, 2, 3, 4, 5, 6, 7, 1]
    assert Recall(prompt, memory, 0.0).draft(4) == [2, 3, 4, 5]
    # Two of three, as nothing was judged; 2/3 ** 4 is 0.198.
    assert Recall(prompt, memory, 0.2).draft(4) == [2, 3, 4]
    for _ in range(98):
        memory.judge("own", 2, True)
    assert Recall(prompt, memory, 0.2).draft(4) == [2, 3, 4, 5]


def test_recall_learns_from_every_token_and_at_once() -> None:
    memory = Memory()
    first, second = Recall([9], memory, 0.0), Recall([9], memory, 0.0)
    for token in (1, 2, 3):
        first.add(token)
    second.add(1)
    assert second.draft(2) == [2, 3]
    assert Recall([9, 1], memory, answers=False).draft(2) == []


# Steps


def test_steps() -> None:
    answer = Answer([1, 2, 3, 4, 5], ended=True)
    drafts = [[], [2, 3, 9], [], [], [5, 6], []]
    tally = Tally()
    play(drafts, answer, 3, tally)
    # 1 by the prefill; 2, 3 accepted and 4 with them; 5 accepted, and the end with it.
    assert (tally.steps, tally.tokens, tally.drafted, tally.accepted) == (2, 4, 5, 3)
    assert tally.tried == 5
    assert tally.sizes == {2: 1, 1: 1}
    short = Tally()
    play(drafts, answer, 1, short)
    # 2 and 3; 4 without a draft would be place 3; then 5.
    assert (short.steps, short.tokens, short.drafted, short.accepted) == (3, 4, 2, 2)
    assert short.sizes[-1] == 1
    assert short.per_step == pytest.approx(4 / 3)


def test_what_follows_an_answer_that_was_cut_off_is_not_judged() -> None:
    for ended, drafted in ((True, 3), (False, 1)):
        tally = Tally()
        play([[], [2, 3, 4], []], Answer([1, 2], ended), 3, tally)
        assert (tally.drafted, tally.accepted, tally.tokens) == (drafted, 1, 1)


def test_a_profile_adds_up() -> None:
    tally = Tally()
    play([[], [2, 9], [], [4], []], Answer([1, 2, 3, 4], True), 4, tally)
    profile = tally.profile(4)
    assert profile["without_draft"] == 0.0
    assert profile["accepted"] == [0.0, 1.0, 0.0, 0.0, 0.0]
    tally.sizes[-1] += 2
    tally.steps += 2
    assert tally.profile(4)["without_draft"] == 0.5


def test_places_are_planned_side_by_side() -> None:
    answers = [Answer([1, 2, 3], True), Answer([7, 1, 2], True), Answer([1, 2], True)]

    def make(at_once: int) -> list[list[list[int]]]:
        table = Table(1, 2)
        return plan(lambda i: Walk([], 1, 2, table), answers, at_once)

    alone = make(1)
    assert [len(each) for each in alone] == [4, 4, 3]
    assert alone[1][2] == [2, 3]  # after 7, 1: the first answer is known
    together = make(3)
    assert together[1][2] == [2] and together[0][1] == []


# What is compared


def _record(cold: list[int], expert: list[int], amateur: list[int]) -> Record:
    answer = Answer(cold, True)
    return Record([1, 2, 3], [], answer, answer, answer, expert, amateur, cold)


def test_agreement_and_the_amateur_as_drafter() -> None:
    record = _record([5, 6, 7, 8], [5, 6, 0, 8], [5, 0, 7, 8])
    found = compare.agreement([record])
    assert found["contrast is expert's"] == 0.75 and found["contrast is amateur's"] == 0.75
    assert found["expert's is amateur's"] == 0.5 and found["steps"] == 4
    ahead = play_all([compare.amateur_ahead(record)], [record.cold], 2)
    # 6 is missed; 7 and 8 are accepted.
    assert (ahead.steps, ahead.accepted) == (2, 2)
    late = compare.amateur_late(record)
    assert late == [[], [], [0], [], []]


def test_acceptance_by_agreement() -> None:
    record = _record([5, 6, 7, 8], [5, 6, 0, 8], [5, 0, 7, 8])
    drafts = [[], [6, 7, 9], [], [], []]
    found = compare.by_agreement([drafts], [record], 4)
    assert found["all"] == {"judged": 3, "accepted": round(2 / 3, 3)}
    assert found["contrast is not expert's"] == {"judged": 1, "accepted": 1.0}
    assert found["streams agree"] == {"judged": 1, "accepted": 0.0}
    assert found["first draft"]["judged"] == 1


def test_gates() -> None:
    record = _record([5, 6, 7, 8], [0, 6, 7, 8], [5, 6, 7, 8])
    drafts = [[], [6], [7], [8], []]
    always = compare.gated([drafts], [record], 4, "always")
    after = compare.gated([drafts], [record], 4, "after expert's choice")
    # The first token was not the expert's: no draft behind it.
    assert (always.drafted, after.drafted) == (2, 1)
    recent = compare.Recent(retry=True)
    for place in range(compare.WINDOW):
        assert recent(place)
        recent.heard(place, 4, 0)
    asked = [recent(place) for place in range(compare.PAUSE)]
    assert asked == [False] * (compare.PAUSE - 1) + [True]
    final = compare.Recent(retry=False)
    for place in range(compare.WINDOW):
        final.heard(place, 4, 0)
    assert not any(final(place) for place in range(100))


def test_ratios_are_over_all_answers() -> None:
    answers = [Answer([1, 2, 3], True), Answer([1, 2, 3], True)]
    nothing: list[list[list[int]]] = [[[], [], [], []]] * 2
    first = [[[], [2, 3], [3], []], nothing[1]]
    found = report.ratio(first, nothing, answers, 4)
    assert found[0] == round(4 / 3, 3)  # four tokens in three steps, and in four
    assert found[1] == 1.0 and found[2] == 2.0
    assert report.ratio(first, first, answers, 4) == [1.0, 1.0, 1.0]


def test_the_page_has_every_workload_and_drafter() -> None:
    rng = random.Random(3)
    tokens = [[rng.randrange(9) for _ in range(20)] for _ in range(3)]
    records = [_record(each, each, each[::-1]) for each in tokens]
    found = [report.measure(workload, records) for workload in report.WORKLOADS[:2]]
    page = report.tables(found, report.mixed({w["workload"]: records for w in found}))
    for word in (*compare.MAKERS, *compare.OF_EXPERT, *compare.GATES, "edit", "answers"):
        assert f"| {word} |" in page
    for workload in found:
        profile = workload["profiles"]["cold"][compare.RECALL]
        assert sum(profile["accepted"]) == pytest.approx(1, abs=1e-3)
