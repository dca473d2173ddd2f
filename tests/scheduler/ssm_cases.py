# SPDX-License-Identifier: Apache-2.0
"""Situations of models with SSM layers."""

from pathlib import Path
from typing import Any

from tests.scheduler.cases import prompt
from tests.scheduler.harness import Harness, Setup
from tests.scheduler.ssm import StateLayers

ALL = StateLayers("align", retention=None)
"""One state for each block, all of them kept."""


def setup(layers: StateLayers = ALL, **rest: Any) -> Setup:
    return Setup(**{"num_blocks": 65, "budget": 64, "max_num_seqs": 8, "layers": layers} | rest)


def block_as_wide_as_a_step(model: Path) -> None:
    """What the other streams leave of a step is less than a block for each."""
    harness = Harness(model, setup(budget=4))
    cold = harness.add(prompt(30), 3, adapter=1, cold=True)
    harness.add(prompt(30, 300), 3)
    harness.drain()
    assert harness.ended[cold] == "length"


def cached_expert_beside_a_split_amateur(model: Path) -> None:
    """An expert that lacks its last token alone, and an amateur whose prompt takes two steps: the
    expert cannot wait for it but with its prompt computed anew.
    """
    harness = Harness(model, setup())
    harness.add(prompt(9), 1, adapter=1)
    harness.until_idle()
    cold = harness.add(prompt(9), 3, adapter=1, cold=True)
    before = harness.steps
    harness.drain()
    assert harness.first_step[cold] - before <= 3


def amateur_that_finds_anothers_state(model: Path, length: int = 6) -> None:
    """One amateur's prompt ends with a block, and another's goes on after it: it would find what
    the first one leaves in the step in which both get to their ends.
    """
    harness = Harness(model, setup())
    harness.add(prompt(6), 1, adapter=1)
    harness.add(prompt(length), 1)
    harness.until_idle()
    harness.add(prompt(3, 500), 30)
    amateurs = [(0, prompt(4)), (0, prompt(length))]
    cold = harness.add(prompt(6), 3, adapter=1, cold=True, amateurs=amateurs)
    before = harness.steps
    harness.drain()
    assert harness.first_step[cold] - before <= 3


def amateur_that_needs_anothers_state(model: Path) -> None:
    """The same, and that is all that it has left to do: it has no token to be admitted with."""
    amateur_that_finds_anothers_state(model, 5)


def amateurs_that_find_the_same_state(model: Path) -> None:
    """vLLM admits the second of two that find the state at the end of the first one's prompt when
    the first one's step is over. A group that goes nevertheless begins anew while others run.
    """
    for is_async in (False, True):
        harness = Harness(model, setup(is_async=is_async))
        for adapter in (0, 1):
            harness.add(prompt(6), 1, adapter=adapter)
        harness.until_idle()
        harness.add(prompt(3, 500), 30)
        amateurs = [(0, prompt(6)), (0, [*prompt(5), 300])]
        cold = harness.add(prompt(6), 3, adapter=1, cold=True, amateurs=amateurs)
        before = harness.steps
        harness.drain()
        assert harness.first_step[cold] - before <= 3


def junction(model: Path) -> None:
    """Of what an amateur's prompt begins with, attention is cached and the state is not: a step
    ends there, so that the next request finds the state.
    """
    layers = StateLayers("align", checkpoints=True)
    harness = Harness(model, setup(layers))
    harness.add(prompt(14), 1)
    harness.until_idle()
    amateurs = [(0, prompt(5) + prompt(5, 300))]
    cold = harness.add(prompt(10, 200), 3, adapter=1, cold=True, amateurs=amateurs)
    before = harness.steps
    harness.until_idle()
    assert harness.first_step[cold] - before <= 3
    harness.add(prompt(10, 300), 3, adapter=1, cold=True, amateurs=[(0, prompt(9))])
    harness.drain()
    sums = [sums for report in harness.reports for _, sums in report.sums]
    assert sum(each.amateur_cached_prompt_tokens for each in sums) == 4


def room_for_two_states(model: Path) -> None:
    """A group would be admitted next to a request that leaves room for one state of each stream,
    and be preempted when the second one is needed.
    """
    layers = StateLayers("align", groups=2)
    # The request: 10 blocks and two states, one of each group. The pair: 2 * (3 + 2), then 2 more.
    harness = Harness(model, setup(layers, num_blocks=1 + 12 + 12, budget=16))
    harness.add(prompt(40), 20)
    for _ in range(5):
        harness.step()
    cold = harness.add(prompt(12, 200), 3, adapter=1, cold=True)
    harness.drain()
    assert harness.group_preemptions == 0 and harness.ended[cold] == "length"


def long_and_short(model: Path, is_async: bool = False) -> None:
    """Prompts of one to a thousand tokens, next to each other and in one group."""
    for layers in (StateLayers("none"), ALL, StateLayers("align", groups=2, checkpoints=True)):
        harness = Harness(
            model,
            setup(
                layers,
                num_blocks=520,
                block_size=16,
                budget=100,
                max_model_len=1100,
                caching=layers.mode == "align",
                is_async=is_async,
                max_num_seqs=16,
            ),
        )
        for number, length in enumerate((1, 1000, 17, 333, 64)):
            harness.add(prompt(length, 100 + number), 9, adapter=number % 3)
            amateurs = [(0, prompt(1 + 999 // length)), (0, prompt(length, 700)), (2, None)]
            harness.add(
                prompt(length, 400), 9, adapter=1, cold=True, amateurs=amateurs[: 1 + number % 3]
            )
        harness.drain()


def amateur_that_keeps_its_hit(model: Path) -> None:
    """An amateur finds all of its prompt but the last token, up to the end of a block. Its expert
    begins with that block, too, and its last step begins after it, within the next one: no state
    that the amateur would find is left then.
    """
    harness = Harness(model, setup())
    harness.add([*prompt(4), 200], 1, adapter=1)
    harness.until_idle()
    amateurs = [(1, [*prompt(4), 300])]
    cold = harness.add(prompt(8), 3, adapter=1, cold=True, amateurs=amateurs)
    before = harness.steps
    harness.drain()
    assert harness.first_step[cold] - before <= 2
    sums = [sums for report in harness.reports for _, sums in report.sums]
    assert sum(each.amateur_cached_prompt_tokens for each in sums) == 4
