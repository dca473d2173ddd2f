# SPDX-License-Identifier: Apache-2.0
"""What vLLM's parameters mean does not change when groups are preempted: feature by feature, each
request compared with the same request alone.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.pressure import Engines, drive, engines, preempted_pairs
from tests.engine.streams import JUDGE, Job
from tests.naive import Amateur, Group, pair
from tests.tiny import EOS_ID

__all__ = ["engines"]

pytestmark = pytest.mark.engine

ALPHA, LONGEST = 0.05, 44


def make_bare() -> list[Job]:
    """Nine requests whose streams outgrow their first blocks soon after they started: pairs, and
    groups of three whose second amateur has a prompt of its own. A third is sampled.
    """
    rng = random.Random(5)
    jobs = []
    for i in range(9):
        prompt = tuple(rng.randrange(4, 512) for _ in range(rng.choice((24, 29, 31))))
        options: dict[str, Any] = {"ignore_eos": False}
        if i % 3 == 1:
            options |= {"temperature": 1.2, "seed": i}
        expert = ("one", "two")[i % 2]
        if i % 4 == 3:
            amateurs = [Amateur(-0.4, "one"), Amateur(-0.4, expert, prompt[: 3 * i])]
            group = Group(prompt, expert, amateurs, ALPHA, LONGEST)
        else:
            group = pair(prompt, expert, ALPHA, 0.5, LONGEST, "zero" if i % 4 == 2 else None)
        jobs.append(Job(group, options))
    return jobs


BARE = make_bare()

PRESSURE: dict[str, Any] = {"async_scheduling": True, "num_gpu_blocks_override": 12}


def everywhere(**options: Any) -> Callable[[Engines], list[Job]]:
    return lambda _: [replace(job, options={**job.options, **options}) for job in BARE]


def structured(**constraint: Any) -> Callable[[Engines], list[Job]]:
    def options() -> dict[str, Any]:
        from vllm.sampling_params import StructuredOutputsParams

        return {"structured_outputs": StructuredOutputsParams(**constraint)}

    return lambda _: [replace(job, make_options=options) for job in BARE]


def stopped(engines: Engines) -> list[Job]:
    """By a text that comes late in each job's result, some inside of a token."""
    texts = [engines.alone(job).text for job in BARE]
    return [
        replace(job, options={**job.options, "stop": [text[len(text) * 3 // 4 :][:6]]})
        for job, text in zip(BARE, texts, strict=True)
    ]


def from_result(make: Callable[[list[int], Any], dict[str, Any]]) -> Callable[[Engines], list[Job]]:
    """Options that depend on the tokens of the bare job and the tokenizer."""

    def jobs(engines: Engines) -> list[Job]:
        tokenizer = engines.tokenizer
        return [
            replace(job, options={**job.options, **make(engines.alone(job).tokens[0], tokenizer)})
            for job in BARE
        ]

    return jobs


def judged(_: Engines) -> list[Job]:
    """The rule keeps what the judge said, who is gone when the group is preempted."""
    name, parameters = JUDGE
    jobs = []
    for job in BARE:
        prompt = job.group.prompt_ids
        judge = Amateur(None, job.group.expert, (*prompt, 7))
        amateurs = [replace(job.group.amateurs[0], weight=None), judge]
        group = replace(job.group, amateurs=amateurs, rule=name, rule_parameters=parameters)
        jobs.append(replace(job, group=group))
    return jobs


def bound(_: Engines) -> list[Job]:
    """Sampled, several answers each, and each token is charged once."""
    jobs = []
    for job in BARE:
        amateurs = [replace(job.group.amateurs[0], weight=None)]
        limits = {"bits": 5.0, "bits_per_token": 0.3}
        group = replace(
            job.group,
            amateurs=amateurs,
            alpha=0.0,
            expert_top_k=None,
            rule="bound",
            rule_parameters=limits,
        )
        options = {**job.options, "temperature": 1.1, "seed": 5, "n": 2}
        jobs.append(replace(job, group=group, options=options))
    return jobs


def late(tokens: list[int]) -> int:
    return tokens[len(tokens) * 3 // 4]


FEATURES: dict[str, Callable[[Engines], list[Job]]] = {
    "json": structured(
        json={
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 20}, "n": {"type": "integer"}},
            "required": ["name", "n"],
        }
    ),
    "regex": structured(regex="([a-f]{3}-){9}[0-9]{2}"),
    "logit_bias": everywhere(logit_bias={77: 6.0, 78: 6.0, 400: -50.0}),
    "frequency": everywhere(frequency_penalty=1.5),
    "repetition": everywhere(repetition_penalty=1.6),
    "allowed": everywhere(allowed_token_ids=list(range(40, 80))),
    "eos": everywhere(logit_bias={EOS_ID: 10.5}, min_tokens=12),
    "min_tokens": everywhere(logit_bias={EOS_ID: 10.5}, min_tokens=36),
    "bad_words": from_result(
        lambda t, tok: {"bad_words": [tok.decode([x]).strip() for x in t[3:9]]}
    ),
    "stop_token_ids": from_result(lambda t, _: {"stop_token_ids": [late(t)]}),
    "stop": stopped,
    "logprobs": everywhere(logprobs=3),
    "prompt_logprobs": everywhere(prompt_logprobs=2, logprobs=0),
    "n": everywhere(n=2, temperature=1.1, seed=17),
    "top_p, top_k, min_p": everywhere(temperature=1.4, seed=3, top_p=0.8, top_k=9, min_p=0.02),
    "a rule's state": judged,
    "bound": bound,
}
UNCHANGED = ("logprobs", "prompt_logprobs")  # these add to a result


# One of each kind is in every run: those that keep state of their own, or cut the text.
OFTEN = (
    "json",
    "logit_bias",
    "repetition",
    "min_tokens",
    "bad_words",
    "stop",
    "prompt_logprobs",
    "bound",
)
CASES = [pytest.param(n, marks=() if n in OFTEN else pytest.mark.full) for n in FEATURES]


@pytest.mark.parametrize("feature", CASES)
def test_feature(feature: str, engines: Engines, tiny: Path) -> None:
    jobs = FEATURES[feature](engines)
    llm = engines.get(**PRESSURE)
    with preempted_pairs(llm) as preempted:
        results = drive(llm, tiny, jobs, seed=3)
    assert len(preempted) >= 2
    engines.check(jobs, results)
    # The feature does something at all.
    pairs = zip(jobs, BARE, strict=True)
    changed = sum(engines.alone(job).tokens != engines.alone(bare).tokens for job, bare in pairs)
    assert changed == 0 if feature in UNCHANGED else changed >= 4, changed
