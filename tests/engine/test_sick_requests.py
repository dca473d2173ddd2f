# SPDX-License-Identifier: Apache-2.0
"""Requests whose logits are no numbers, next to healthy ones: they end with an error that says so,
and nobody else notices.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import free_blocks, scheduler
from tests.engine.pressure import add, assert_idle, preempted_pairs
from tests.engine.streams import Job, generate
from tests.naive import Amateur, Group, NaiveCold, assert_same_tokens, pair
from tests.tiny import make_sick_adapter
from vllm_cold.ops.interface import NOT_FINITE

pytestmark = pytest.mark.engine

SICK = {"nan", "inf", "early"}
JSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer"}},
    "required": ["name", "n"],
}


def is_sick(job: Job) -> bool:
    return bool(set(job.group.adapters) & SICK)


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of ``conftest.ADAPTERS``; ``early`` leaves NaN in the KV cache."""
    folder = tmp_path_factory.mktemp("sick")
    for name in ("one", "two", "zero"):
        (folder / name).symlink_to(tiny / name)
    make_sick_adapter(tiny / "one", folder / "nan", math.nan)
    make_sick_adapter(tiny / "one", folder / "inf", math.inf)
    make_sick_adapter(tiny / "one", folder / "early", math.nan, layer=0)
    return folder


def contrast(
    prompt: tuple[int, ...], expert: str, amateur: str | None = None, **options: Any
) -> Job:
    return Job(pair(prompt, expert, 0.05, 0.5, 16, amateur), {"ignore_eos": False, **options})


def regular(prompt: tuple[int, ...], adapter: str | None, **options: Any) -> Job:
    return Job(Group(prompt, adapter, (), 0.0, 16), {"ignore_eos": False, **options})


def tokens(output: Any) -> list[list[int]]:
    return [list(c.token_ids) for c in output.outputs]


def structured(**constraint: Any) -> dict[str, Any]:
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(**constraint)}


OPTIONS: tuple[tuple[dict[str, Any], Callable[[], dict[str, Any]]], ...] = (
    ({}, dict),
    ({"max_tokens": 30}, partial(structured, regex="([a-f]{3}-){5}[0-9]{2}")),
    ({"n": 3, "temperature": 1.2, "seed": 7}, dict),
    ({"prompt_logprobs": 2}, dict),
    ({"max_tokens": 40}, partial(structured, json=JSON)),
    ({"temperature": 1.3, "seed": 11, "top_p": 0.9, "top_k": 20}, dict),
    ({"repetition_penalty": 1.5, "logprobs": 3}, dict),
    ({"temperature": 0.9, "seed": 5, "min_tokens": 8, "logit_bias": {3: 8.0}}, dict),
)
"""What requests ask for, sick and healthy ones alike."""


def make_requests(sick: Sequence[tuple[str, str | None]], seed: int = 3) -> list[Job]:
    """Healthy contrastive requests and regular ones, with each kind of options; and for each of
    ``sick`` (expert, amateur) the same. All in random order.
    """
    rng = random.Random(seed)

    def prompt() -> tuple[int, ...]:
        # The longest take more than one step to compute.
        return tuple(rng.randrange(4, 512) for _ in range(rng.choice((3, 24, 31, 33, 70))))

    asked = []
    for number, (options, more) in enumerate(OPTIONS):
        adapter = ("one", "two")[number % 2]
        asked.append(replace(contrast(prompt(), adapter, **options), make_options=more))
        asked.append(contrast(prompt(), adapter, max_tokens=24))
        other = (None, "one", "two")[number % 3]
        asked.append(replace(regular(prompt(), other, **options), make_options=more))
        asked.append(
            replace(contrast(prompt(), *sick[number % len(sick)], **options), make_options=more)
        )
    asked.append(contrast(prompt(), "two", "one", max_tokens=24))
    for expert, amateur in sick:
        ids = prompt()
        amateurs = [Amateur(-0.5, None, ids[:2]), Amateur(-0.5, amateur)]
        asked.append(Job(Group(ids, expert, amateurs, 0.05, 16)))
    # Without contrastive decoding, a sick adapter is vLLM's affair; it writes NaN to the KV cache
    # for longest.
    asked += [regular(prompt(), name, max_tokens=40) for name in {e for e, _ in sick} & SICK]
    rng.shuffle(asked)
    return asked


def assert_sick(output: Any) -> None:
    assert output.finished
    for completion in output.outputs:
        assert (completion.finish_reason, completion.stop_reason) == ("error", NOT_FINITE)
        assert not completion.token_ids
        assert completion.text == ""


def check(
    llm: Any, adapters: Path, asked: Sequence[Job], again: bool = True
) -> list[list[list[int]]]:
    """Run the healthy ones alone, all of them, and the healthy ones ``again``; the tokens of the
    healthy ones, the same each time.
    """
    before = free_blocks(llm)
    healthy = [a for a in asked if not is_sick(a)]

    def run(requests: Sequence[Job]) -> list[Any]:
        assert scheduler(llm).reset_prefix_cache()
        outputs = generate(llm, adapters, requests)
        assert_idle(llm)
        assert free_blocks(llm) == before
        return outputs

    alone = [tokens(o) for o in run(healthy)]
    mixed = run(asked)
    for request, output in zip(asked, mixed, strict=True):
        if is_sick(request) and request.group.amateurs:
            assert len(output.outputs) == request.options.get("n", 1)
            assert_sick(output)
    others = [(a, o) for a, o in zip(asked, mixed, strict=True) if not is_sick(a)]
    for (request, output), expected in zip(others, alone, strict=True):
        assert tokens(output) == expected, request
        assert all(c.finish_reason in ("stop", "length") for c in output.outputs), request
    assert not again or [tokens(o) for o in run(healthy)] == alone
    return alone


NOT_NUMBERS = [("nan", None), ("inf", None), ("one", "nan"), ("two", "inf"), ("nan", "one")]


def test_the_others_do_not_notice(make_llm: Any, adapters: Path, naive: NaiveCold) -> None:
    """With chunked prompts and preemptions."""
    options = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 14}
    llm = make_llm(max_loras=5, async_scheduling=True, **options)
    asked = make_requests(NOT_NUMBERS)
    with preempted_pairs(llm) as preempted:
        got = check(llm, adapters, asked)
    assert preempted
    healthy = [a for a in asked if not is_sick(a)]
    # Greedy ones that nothing else changes, which the naive reference can do.
    pairs = [
        (replace(a.group, max_tokens=a.options.get("max_tokens", 16)), t[0])
        for a, t in zip(healthy, got, strict=True)
        if a.group.amateurs
        and a.options.keys() <= {"ignore_eos", "max_tokens", "prompt_logprobs"}
        and a.make_options is dict
    ]
    assert_same_tokens([t for _, t in pairs], naive.generate_many([group for group, _ in pairs]))


def test_blocks_that_held_nan(make_llm: Any, adapters: Path) -> None:
    """Whoever gets such a block next has numbers all the same: it was cleared. (vLLM's attention on
    CPUs reads the whole of a sequence's last block and weighs what stands after its end with 0,
    which makes NaN of NaN. Of requests without contrastive decoding that is so, with and without
    this package.)
    """
    llm = make_llm(max_loras=3, max_num_batched_tokens=64)
    asked = make_requests([("early", None), ("one", "early")])
    check(llm, adapters, [a for a in asked if a.group.amateurs or not is_sick(a)])


def test_two_engines_in_one_process(
    make_llm: Any, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step in turns, with the same request ids: nothing of one shows in the other. One
    request is sick, and its namesake in the other engine is not.
    """
    monkeypatch.setenv("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")
    engines = [make_llm(max_loras=3, async_scheduling=True) for _ in range(2)]
    prompts = [tuple(range(20, 20 + length)) for length in (20, 33, 7, 50)]
    sick: list[tuple[str, str | None]] = [
        ("one", None),
        ("nan", None),
        ("one", "nan"),
        ("one", None),
    ]
    asked = [
        [contrast(prompt, ("one", "two")[i % 2]) for i, prompt in enumerate(prompts)],
        [contrast(p[::-1], *who) for p, who in zip(prompts, sick, strict=True)],
    ]

    def run(*which: int) -> list[dict[str, Any]]:
        """The last output of each request, by engine."""
        results: list[dict[str, Any]] = [{} for _ in which]
        for one in which:
            assert scheduler(engines[one]).reset_prefix_cache()
            for number, request in enumerate(asked[one]):
                assert add(engines[one], adapters, request, str(number)) == str(number)
        while any(engines[one].llm_engine.has_unfinished_requests() for one in which):
            for one, found in zip(which, results, strict=True):
                found.update({o.request_id: o for o in engines[one].llm_engine.step()})
        return results

    alone = [*run(0), *run(1)]
    for one, (together, by_itself) in enumerate(zip(run(0, 1), alone, strict=True)):
        for number, request in enumerate(asked[one]):
            output = together[str(number)]
            assert tokens(output) == tokens(by_itself[str(number)])
            if is_sick(request):
                assert_sick(output)
            else:
                assert output.outputs[0].finish_reason == "length"
