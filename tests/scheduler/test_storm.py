# SPDX-License-Identifier: Apache-2.0
"""Seeded storms over random engines, with every invariant checked in each step."""

import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.scheduler.harness import IS_0_23, Harness, Setup
from tests.scheduler.ssm import supported
from tests.scheduler.storm import (
    IMAGES,
    random_ssm,
    storms,
    with_connector,
    with_images,
    with_share,
)

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize(
    "first", [0, 20, 40, *(pytest.param(n, marks=pytest.mark.full) for n in (60, 80))]
)
def test_storm(first: int, tiny: Path) -> None:
    preemptions = group_preemptions = 0
    for harness in storms(tiny / "model", range(first, first + 20)):
        preemptions += harness.preemptions
        group_preemptions += harness.group_preemptions
    assert preemptions > 20
    assert group_preemptions > 10


@pytest.mark.skipif(IS_0_23, reason="its connectors are refused")
@pytest.mark.parametrize(
    "first", [0, 15, *(pytest.param(n, marks=pytest.mark.full) for n in range(30, 90, 15))]
)
def test_share(first: int, tiny: Path) -> None:
    """Contrastive requests have a part of the sequence slots."""
    waited = 0
    for harness in storms(tiny / "model", range(first, first + 15), with_share):
        waited += sum(report.requests_waiting_for_share > 0 for report in harness.reports)
    assert waited > 100


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_little_room(policy: str, is_async: bool, tiny: Path) -> None:
    """Five pairs are admitted, and there is room for one to end: they preempt each other."""
    setup = Setup(num_blocks=21, budget=24, max_num_seqs=10, policy=policy, is_async=is_async)
    harness = Harness(tiny / "model", setup)
    for number in range(20):
        prompt = [number, *range(100, 104)]
        harness.add(prompt, 20, adapter=1 + number % 2, cold=True, priority=number % 3)
    harness.drain()
    assert harness.group_preemptions > 20


@pytest.mark.skipif(not supported(), reason="vllm-cold takes SSM layers since vLLM 0.32")
@pytest.mark.parametrize("mode", ["align", "none"])
@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.full) for n in range(15, 90, 15))]
)
def test_ssm(first: int, mode: str, tiny: Path) -> None:
    """Models with SSM layers, whose states vLLM keeps of a request, or of a block."""
    preemptions = group_preemptions = 0
    of_ssm = partial(random_ssm, mode=mode)
    for harness in storms(tiny / "model", range(first, first + 15), of_ssm):
        preemptions += harness.preemptions
        group_preemptions += harness.group_preemptions
    assert preemptions > 20
    assert group_preemptions > 5


@pytest.mark.skipif(IS_0_23, reason="vllm-cold contrasts prompts with media since vLLM 0.31")
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.full) for n in range(4, 104, 20))]
)
def test_images(first: int, kind: str, tiny: Path) -> None:
    """A few in every run, and a hundred more of each kind in all."""
    counts: Counter[str] = Counter()
    seeds = range(first, first + (20 if first else 4))
    for harness in storms(tiny / "model", seeds, partial(with_images, kind=kind)):
        assert harness.workers.encoder is not None
        counts.update(harness.workers.encoder.counts, preempted=harness.group_preemptions)
    assert counts["encoded"] > 50 and counts["read"] > 100 and counts["preempted"] > 0
    assert counts["split"] > 10 or kind == "whole"


@pytest.mark.full
@pytest.mark.skipif(not supported(), reason="vllm-cold takes SSM layers since vLLM 0.32")
@pytest.mark.parametrize("kind", [kind for kind in IMAGES if kind != "whole"])
@pytest.mark.parametrize("beside", ["SSM layers", "a connector"])
def test_images_beside(beside: str, kind: str, tiny: Path) -> None:
    """Images in prompts of a model with SSM layers, and of an engine with a KV connector."""

    def setup_of(rng: random.Random) -> Setup:
        of_engine = random_ssm(rng, "align") if beside == "SSM layers" else with_connector(rng)
        return with_images(rng, kind, of_engine)

    assert len(list(storms(tiny / "model", range(30), setup_of))) == 30
