# SPDX-License-Identifier: Apache-2.0
"""Prompts with images, videos and sounds, of experts and of amateurs: the engine's tokens equal
those of transformers and peft, which read each stream alone.

What could go wrong with them: whose media a stream sees, where they stand (M-RoPE), what caches of
prompts and of media take for equal, and an embedding that the scheduler counts on and nobody
computed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine import drafters
from tests.engine.conftest import free_blocks, scheduler
from tests.engine.drafters import counted
from tests.engine.families import RANK
from tests.engine.media import (
    KINDS,
    MEDIA,
    Case,
    Noised,
    make_cases,
    of_vllm,
)
from tests.engine.pressure import assert_idle, preempted_pairs, some
from tests.engine.streams import Job, generate, tokens_of
from tests.naive import Trace, assert_same_tokens
from vllm_cold.scheduler.drafting import DraftController

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

REFERENCE = "tests.engine.media"
IN_EVERY_RUN = ("qwen2-vl", "llava-1.5")  # with M-RoPE and without

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "small steps": {"max_num_batched_tokens": 24, "max_num_seqs": 8, "async_scheduling": True},
    # Those below only in full.
    "pressure": {
        "num_gpu_blocks_override": 16,
        "max_num_batched_tokens": 40,
        "max_num_seqs": 16,
        "async_scheduling": True,
    },
    "whole images, no prefix cache": {
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 48,
        "disable_chunked_mm_input": True,
    },
    "no cache of processed images": {"mm_processor_cache_gb": 0, "max_num_batched_tokens": 40},
    "compiled": {"enforce_eager": False, "max_num_batched_tokens": 64},
    "two processes": {"tensor_parallel_size": 2, "kv_cache_memory_bytes": 2**26},
    "drafts": {"max_num_batched_tokens": 64},
}


def options(folder: Path) -> dict[str, Any]:
    """What the engines of a family have in common."""
    family = MEDIA[folder.name]
    found = {
        "model": str(folder / "model"),
        "limit_mm_per_prompt": family.limits,
        "skip_mm_profiling": True,
    }
    if family.model.lora:
        return found | {"max_lora_rank": RANK, "max_loras": 2}
    return found | {"enable_lora": False, "additional_config": {"cold": True}}


@dataclass(frozen=True, eq=False)
class MediaJob(Job):
    """A case, for the tests under pressure as well."""

    family: str = ""
    case: Case = None  # type: ignore[assignment]

    def asked(self) -> dict[str, Any]:
        return of_vllm(MEDIA[self.family], self.case.expert_prompt)

    def own_prompt(self, index: int) -> dict[str, Any]:
        from vllm_cold import Noise

        own = self.case.prompts[index + 1]
        if own is None:
            return {}
        if isinstance(own, Noised):
            return {"images": Noise(own.steps)}
        made = of_vllm(MEDIA[self.family], own)
        return {"prompt": made if "multi_modal_data" in made else made["prompt"]}


def jobs_of(folder: Path, **more: Any) -> list[MediaJob]:
    """A family's requests."""
    return [
        MediaJob(case.group, more, family=folder.name, case=case)
        for case in make_cases(MEDIA[folder.name])
    ]


def is_taken(job: MediaJob, options: dict[str, Any]) -> bool:
    """Whether an engine has slots for its adapters."""
    return len(set(job.case.group.adapters) - {None}) <= options.get("max_loras", 2)


@dataclass(frozen=True)
class Expected:
    """The reference's answers to a family's requests.

    Attributes:
        traces: Of each.
        alone: What the expert alone answers.
        prompts: The token ids of the expert's prompt.
    """

    traces: list[Trace]
    alone: list[list[int]]
    prompts: list[list[int]]


def expected_of(folder: Path) -> Expected:
    """Amateurs and media count in it, or an engine that leaves them out would pass."""
    read = json.loads((folder / "traces.json").read_text())["cases"]
    found = Expected(
        [Trace(**one["trace"]) for one in read],
        [one["alone"] for one in read],
        [one["prompt"] for one in read],
    )
    unlike: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for job, trace, alone in zip(jobs_of(folder), found.traces, found.alone, strict=True):
        if job.case.group.amateurs:
            unlike[job.case.kind].append(trace.tokens != alone)
    for kind, counts in unlike.items():
        assert not counts or any(counts), f"{kind}: the amateurs make no difference"
    every = [one for counts in unlike.values() for one in counts]
    assert sum(every) > 0.6 * len(every)
    tokens = {tuple(trace.tokens) for trace in found.traces}
    assert len(tokens) > 0.8 * len(found.traces), "the media make no difference"
    return found


def check(llm: Any, folder: Path, expected: Expected, chosen: Sequence[int] | None = None) -> int:
    """The engine's prompts and tokens are the reference's; how many prompt tokens were cached."""
    jobs = jobs_of(folder)
    chosen = range(len(jobs)) if chosen is None else chosen
    outputs = generate(llm, folder, [jobs[i] for i in chosen])
    assert [list(o.prompt_token_ids) for o in outputs] == [expected.prompts[i] for i in chosen]
    tokens = tokens_of([jobs[i] for i in chosen], outputs)
    assert_same_tokens(tokens, [expected.traces[i] for i in chosen])
    return sum(output.num_cached_tokens or 0 for output in outputs)


def assert_no_media(llm: Any) -> None:
    """Nobody holds an embedding of a medium."""
    assert_idle(llm)
    manager = scheduler(llm).encoder_cache_manager
    assert not any(manager.cached.values())
    assert manager.num_freeable_slots == manager.cache_size


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in IN_EVERY_RUN else pytest.mark.full) for f in MEDIA],
)
def test_tokens_equal_the_reference(family: str, folders: Path, make_llm: Any, runner: str) -> None:
    """In small steps, in which prompts and images are cut; the second time prompts are cached."""
    folder = folders / family
    expected = expected_of(folder)
    llm = make_llm(**options(folder), **CONFIGURATIONS["small steps"])
    before = free_blocks(llm)
    chosen = some(list(range(len(expected.traces))), runner)
    check(llm, folder, expected, chosen)
    if runner == "v1":
        assert check(llm, folder, expected, chosen)
        for i in chosen[:6]:
            check(llm, folder, expected, [i])
    assert free_blocks(llm) == before
    assert_no_media(llm)


@pytest.mark.full
@pytest.mark.parametrize("name", list(CONFIGURATIONS)[1:])
@pytest.mark.parametrize("family", IN_EVERY_RUN)
def test_configurations(
    family: str,
    name: str,
    folders: Path,
    make_llm: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runner: str,
) -> None:
    """On V1, drafts are told: random models repeat nothing that could be looked up."""
    folder = folders / family
    expected = expected_of(folder)
    drafts = None
    if name == "drafts":
        monkeypatch.setattr(DraftController, "break_even", lambda *args: 0.0)
        answered = zip(expected.prompts, expected.traces, strict=True)
        texts = [[*prompt, *trace.tokens] for prompt, trace in answered]
        drafts = drafters.oracle(monkeypatch, tmp_path, texts, runner=runner, as_ngrams=True)
    llm = make_llm(**options(folder), **CONFIGURATIONS[name], speculative_config=drafts)
    before = free_blocks(llm)
    with preempted_pairs(llm) as preempted:
        chosen = [i for i, job in enumerate(jobs_of(folder)) if is_taken(job, CONFIGURATIONS[name])]
        cached = sum(check(llm, folder, expected, chosen) for _ in range(2))
    assert bool(preempted) == name.startswith("pressure")
    if name == "drafts":
        drafted, right = counted(llm)
        assert right < drafted and (right > 0.3 * drafted or runner == "v2")
    assert bool(cached) == ("no prefix cache" not in name)
    assert free_blocks(llm) == before
    assert_no_media(llm)


@pytest.mark.full
@pytest.mark.parametrize("size", [4.0, 1e-5])  # the smaller one holds a few images
@pytest.mark.parametrize("family", IN_EVERY_RUN)
def test_caches_of_processed_images(
    family: str, size: float, folders: Path, make_llm: Any, monkeypatch: Any
) -> None:
    """The engine core in a process of its own has a part of them."""
    folder = folders / family
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = make_llm(**options(folder), mm_processor_cache_gb=size, max_num_batched_tokens=40)
    expected = expected_of(folder)
    for _ in range(2):
        check(llm, folder, expected)
