# SPDX-License-Identifier: Apache-2.0
"""Requests whose logits are no numbers, beside healthy ones: they end with an error that says so,
and nobody else notices.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from tests.engine.conftest import free_blocks, scheduler
from tests.engine.pressure import assert_idle, preempted_pairs
from tests.naive import NaiveCold, assert_same_tokens
from tests.tiny import make_large_adapter, make_sick_adapter
from vllm_cold.group.step_stats import CountersByKind
from vllm_cold.ops.interface import NOT_FINITE

pytestmark = pytest.mark.engine

NAMES = ("one", "two", "zero", "nan", "inf", "early", "large")
SICK = {"nan", "inf", "early", "large"}
LARGE = 30_000.0
COLD = {"alpha": 0.05, "beta": 0.5}
JSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer"}},
    "required": ["name", "n"],
}


@dataclass(frozen=True)
class Asked:
    """One request: CoLD with an expert, or plain with or without an adapter."""

    prompt: tuple[int, ...]
    adapter: str | None
    cold: bool = True
    amateur: str | None = None
    further: bool = False
    """Whether the base model with the prompt's beginning is an amateur too, the first."""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_sick(self) -> bool:
        return bool({self.adapter, self.amateur} & SICK)

    @property
    def is_greedy(self) -> bool:
        """Greedy CoLD that nothing else changes, which the naive reference can do."""
        return self.cold and not self.options.keys() - {"max_tokens", "prompt_logprobs"}


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All of ``NAMES``. The large one overflows in float16; that and ``early`` leave NaN in the KV
    cache.
    """
    folder = tmp_path_factory.mktemp("sick")
    return {
        **{name: tiny / name for name in ("one", "two", "zero")},
        "nan": make_sick_adapter(tiny / "one", folder / "nan", math.nan),
        "inf": make_sick_adapter(tiny / "one", folder / "inf", math.inf),
        "early": make_sick_adapter(tiny / "one", folder / "early", math.nan, layer=0),
        "large": make_large_adapter(tiny / "one", folder / "large", LARGE),
    }


def lora(adapters: dict[str, Path], name: str | None) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, NAMES.index(name) + 1, str(adapters[name])) if name else None


def params(adapters: dict[str, Path], asked: Asked) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from vllm_cold import Amateur, ColdParams

    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, **asked.options}
    if (constraint := options.pop("structured", None)) is not None:
        options["structured_outputs"] = StructuredOutputsParams(**constraint)
    if not asked.cold:
        return SamplingParams(**options)
    amateur = lora(adapters, asked.amateur)
    if asked.further:
        first = Amateur(prompt=asked.prompt[:2], lora_request=None, weight=-0.5)
        last = Amateur(lora_request=amateur, weight=-0.5)
        return ColdParams(alpha=COLD["alpha"], amateurs=[first, last], **options)
    return ColdParams(amateur=amateur, **COLD, **options)


def generate(llm: Any, adapters: dict[str, Path], asked: Sequence[Asked]) -> list[Any]:
    """All of them in one call."""
    return llm.generate(
        [{"prompt_token_ids": list(a.prompt)} for a in asked],
        [params(adapters, a) for a in asked],
        lora_request=[lora(adapters, a.adapter) for a in asked],
        use_tqdm=False,
    )  # type: ignore[no-any-return]


def tokens(output: Any) -> list[list[int]]:
    return [list(c.token_ids) for c in output.outputs]


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"structured": {"regex": "([a-f]{3}-){5}[0-9]{2}"}, "max_tokens": 30},
    {"n": 3, "temperature": 1.2, "seed": 7},
    {"prompt_logprobs": 2},
    {"structured": {"json": JSON}, "max_tokens": 40},
    {"temperature": 1.3, "seed": 11, "top_p": 0.9, "top_k": 20},
    {"repetition_penalty": 1.5, "logprobs": 3},
    {"temperature": 0.9, "seed": 5, "min_tokens": 8, "logit_bias": {3: 8.0}},
)
"""What requests ask for, sick and healthy ones alike."""


def make_requests(sick: Sequence[tuple[str, str | None]], seed: int = 3) -> list[Asked]:
    """Healthy CoLD requests and plain ones, with each kind of options; and for each of ``sick``
    (expert, amateur) the same. All in random order.
    """
    rng = random.Random(seed)

    def prompt() -> tuple[int, ...]:
        # The longest take more than one step to compute.
        return tuple(rng.randrange(4, 512) for _ in range(rng.choice((3, 24, 31, 33, 70))))

    asked = []
    for number, options in enumerate(OPTIONS):
        adapter = ("one", "two")[number % 2]
        asked.append(Asked(prompt(), adapter, options=options))
        asked.append(Asked(prompt(), adapter, options={"max_tokens": 24}))
        asked.append(Asked(prompt(), (None, "one", "two")[number % 3], cold=False, options=options))
        expert, amateur = sick[number % len(sick)]
        asked.append(Asked(prompt(), expert, amateur=amateur, options=options))
    asked.append(Asked(prompt(), "two", amateur="one", options={"max_tokens": 24}))
    asked += [Asked(prompt(), expert, amateur=amateur, further=True) for expert, amateur in sick]
    # Without CoLD, a sick adapter is vLLM's affair; it writes NaN to the KV cache for longest.
    asked += [
        Asked(prompt(), expert, cold=False, options={"max_tokens": 40})
        for expert in {expert for expert, _ in sick} & SICK
    ]
    rng.shuffle(asked)
    return asked


def assert_sick(output: Any) -> None:
    assert output.finished
    for completion in output.outputs:
        assert (completion.finish_reason, completion.stop_reason) == ("error", NOT_FINITE)
        assert not completion.token_ids
        assert completion.text == ""


def check(
    llm: Any, adapters: dict[str, Path], asked: Sequence[Asked], again: bool = True
) -> list[list[list[int]]]:
    """Run the healthy ones alone, all of them, and the healthy ones ``again``; the tokens of the
    healthy ones, the same each time.
    """
    before = free_blocks(llm)
    healthy = [a for a in asked if not a.is_sick]

    def run(requests: Sequence[Asked]) -> list[Any]:
        assert scheduler(llm).reset_prefix_cache()
        outputs = generate(llm, adapters, requests)
        assert_idle(llm)
        assert free_blocks(llm) == before
        return outputs

    alone = [tokens(o) for o in run(healthy)]
    mixed = run(asked)
    for request, output in zip(asked, mixed, strict=True):
        if request.is_sick and request.cold:
            assert len(output.outputs) == request.options.get("n", 1)
            assert_sick(output)
    others = [(a, o) for a, o in zip(asked, mixed, strict=True) if not a.is_sick]
    for (request, output), expected in zip(others, alone, strict=True):
        assert tokens(output) == expected, request
        assert all(c.finish_reason in ("stop", "length") for c in output.outputs), request
    assert not again or [tokens(o) for o in run(healthy)] == alone
    return alone


NOT_NUMBERS = [("nan", None), ("inf", None), ("one", "nan"), ("two", "inf"), ("nan", "one")]


def test_the_others_do_not_notice(
    make_llm: Any, adapters: dict[str, Path], naive: NaiveCold
) -> None:
    """With chunked prompts and preemptions."""
    options = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 14}
    llm = make_llm(max_loras=5, async_scheduling=True, **options)
    asked = make_requests(NOT_NUMBERS)
    with preempted_pairs(llm) as preempted:
        got = check(llm, adapters, asked)
    assert preempted
    healthy = [a for a in asked if not a.is_sick]
    pairs = [(a, t[0]) for a, t in zip(healthy, got, strict=True) if a.is_greedy]
    traces = [
        naive.generate(
            a.prompt,
            expert=str(a.adapter),
            amateur=a.amateur,
            max_tokens=a.options.get("max_tokens", 16),
            **COLD,
        )
        for a, _ in pairs
    ]
    assert_same_tokens([t for _, t in pairs], traces)


def test_overflow_in_float16(make_llm: Any, adapters: dict[str, Path], tiny: Path) -> None:
    """An adapter that is fine in float32: its logits are numbers there. All healthy requests start
    in the first step, so that none gets a block in which a sick one left NaN (see below).
    """
    asked = make_requests([("large", None), ("one", "large"), ("large", "two")])
    asked = [a for a in asked if a.is_sick or "structured" not in a.options]  # these would wait
    reference = NaiveCold(tiny / "model", {"large": adapters["large"]})
    for request in asked[:3]:
        logits, _ = reference._forward("large", [list(request.prompt)], None)
        assert logits.isfinite().all()
    llm = make_llm(max_loras=4, max_num_batched_tokens=8192, max_num_seqs=128, dtype="float16")
    assert llm.llm_engine.model_config.dtype == torch.float16
    check(llm, adapters, asked, again=False)


def test_blocks_that_held_nan(make_llm: Any, adapters: dict[str, Path]) -> None:
    """Whoever gets such a block next has numbers all the same: it was cleared. (vLLM's attention on
    CPUs reads the whole of a sequence's last block and weighs what stands behind its end with 0,
    which makes NaN of NaN. Of requests without CoLD that is so, with and without this package.)
    """
    llm = make_llm(max_loras=3, max_num_batched_tokens=64)
    asked = make_requests([("early", None), ("one", "early")])
    check(llm, adapters, [a for a in asked if a.cold or not a.is_sick])


class Recorded(CountersByKind):
    """Keeps what was counted in sum."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Counter[str] = Counter()

    def take(self, running: int, waiting: int) -> dict[str, Any]:
        for (method, adapter), sums in self.sums.items():
            added = structs.asdict(sums)
            candidates = added.pop("candidates")
            self.total.update(added, candidates=sum(candidates), count=len(candidates))
            self.total[f"{method} {adapter}"] += sums.requests
        return super().take(running, waiting)


def test_two_engines_in_one_process(
    make_llm: Any,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Step by step in turns, with the same request ids. What belongs to one does not show in the
    other: tokens, errors, counts.
    """
    monkeypatch.setenv("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")
    options = {"max_loras": 3, "async_scheduling": True, "disable_log_stats": False}
    engines = [make_llm(**options) for _ in range(2)]
    rng = random.Random(1)
    prompts = [tuple(rng.randrange(4, 512) for _ in range(length)) for length in (20, 33, 7, 50)]
    first = [Asked(p, ("one", "two")[i % 2]) for i, p in enumerate(prompts)]
    # The other engine's are other requests, one of them sick: its partner in name is not.
    second = [Asked(p[::-1], "one", options={"max_tokens": 20}) for p in prompts]
    second[1] = replace(second[1], adapter="nan")
    second[2] = replace(second[2], amateur="nan")

    def run(*work: tuple[Any, list[Asked]]) -> tuple[list[dict[str, Any]], list[Counter[str]]]:
        """The outputs by request id, and the counts, of each engine."""
        results: list[dict[str, Any]] = [{} for _ in work]
        recorded = []
        for llm, asked in work:
            recorded.append(Recorded())
            scheduler(llm)._counters = recorded[-1]
            assert scheduler(llm).reset_prefix_cache()
            for number, request in enumerate(asked):
                added = llm.llm_engine.add_request(
                    str(number),
                    {"prompt_token_ids": list(request.prompt)},
                    params(adapters, request),
                    lora_request=lora(adapters, request.adapter),
                )
                assert added == str(number)
        while any(llm.llm_engine.has_unfinished_requests() for llm, _ in work):
            for (llm, _), outputs in zip(work, results, strict=True):
                outputs.update({o.request_id: o for o in llm.llm_engine.step()})
        for llm, _ in work:
            assert_idle(llm)
        return results, [r.total for r in recorded]

    (alone_first,), (counts_first,) = run((engines[0], first))
    (alone_second,), (counts_second,) = run((engines[1], second))
    together, counts = run((engines[0], first), (engines[1], second))
    assert {i: tokens(o) for i, o in together[0].items()} == {
        i: tokens(o) for i, o in alone_first.items()
    }
    assert {i: tokens(o) for i, o in together[1].items()} == {
        i: tokens(o) for i, o in alone_second.items()
    }
    assert all(o.outputs[0].finish_reason == "length" for o in together[0].values())
    for number, output in together[1].items():
        if second[int(number)].is_sick:
            assert_sick(output)
        else:
            assert output.outputs[0].finish_reason == "length"
    assert counts == [counts_first, counts_second]
    for mine, number, length in zip(counts, (4, 2), (16, 20), strict=True):
        assert mine["requests"] == 4
        assert mine["generation_tokens"] == mine["count"] == number * length
