# SPDX-License-Identifier: Apache-2.0
"""What a V2 runner gets: the order of its processors, who is told what, where chunks end."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.utils.import_utils import resolve_obj_by_qualname

from tests import engine_config
from tests.contrast import Contrast
from vllm_cold.compat import versions
from vllm_cold.compat.engine import chained_extension
from vllm_cold.compat.patching import bind, original_of
from vllm_cold.wire import worker_output
from vllm_cold.wire.step_stats import StepStats
from vllm_cold.worker import runner_hooks
from vllm_cold.worker.group_rows import GroupRows

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(versions.is_before("0.32"), reason="vllm-cold speculates since vLLM 0.32"),
]


def vllms_chunks(cu_num_logits: np.ndarray, most: int) -> list[tuple[int, int]]:
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    chunks = rejection_sampler._iter_request_chunks
    return list(original_of(chunks)(cu_num_logits, most))


def groups_of(members: Sequence[Sequence[int]]) -> GroupRows:
    """By position alone."""
    nothing: Any = torch.empty(0, dtype=torch.int64)
    return GroupRows((), tuple(members), nothing, nothing, nothing)


def chunks(
    counts: Sequence[int], most: int, members: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """Of requests with so many rows each."""
    ours = bind(runner_hooks.wrap_iter_request_chunks, lambda *args: iter(vllms_chunks(*args)))
    token = runner_hooks._verified.set(groups_of(members))
    try:
        return list(ours(np.cumsum([0, *counts], dtype=np.int32), most))
    finally:
        runner_hooks._verified.reset(token)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], int, list[list[int]]]:
    """Rows of each request, the most rows of a chunk, and the positions of groups."""
    size = draw(st.integers(1, 40))
    counts = draw(st.lists(st.integers(1, 6), min_size=size, max_size=size))
    # Groups next to each other, as the scheduler has them, or anywhere.
    free = draw(st.permutations(range(size)) | st.just(list(range(size))))
    members, free = [], list(free)
    while len(free) >= 2 and draw(st.integers(0, 3)):
        num = draw(st.integers(2, min(4, len(free))))
        members.append([free.pop() for _ in range(num)])
        for _ in range(draw(st.integers(0, min(3, len(free))))):
            free.pop()
    return counts, draw(st.integers(1, 60)), members


@settings(max_examples=100, deadline=None)
@given(batches())
def test_no_group_is_split(batch: tuple[list[int], int, list[list[int]]]) -> None:
    """Every request is verified once, in the order of the batch."""
    counts, most, members = batch
    found = chunks(counts, most, members)
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(counts) and all(start < end for start, end in found)
    for group in members:
        assert len({sum(end <= position for _, end in found) for position in group}) == 1
    # What is larger than a chunk may be is what cannot be smaller.
    inside = {p for group in members for p in range(min(group) + 1, max(group) + 1)}
    for start, end in found:
        apart = [position for position in range(start + 1, end) if position not in inside]
        assert sum(counts[start:end]) <= most or not apart
        # And it is filled: the next thing that may not be split does not fit.
        following = next(p for p in range(end + 1, len(counts) + 1) if p not in inside) if (
            end < len(counts)
        ) else None  # fmt: skip
        assert following is None or sum(counts[start:following]) > most


# ---- an engine of these --------------------------------------------------------------------------


ONE = Contrast((-0.5,))


@pytest.fixture
def processor() -> Any:
    """Slots: 5 and 2 are x's, 1 and 7 are y's, 3 is a regular request's."""
    from vllm_cold.worker.processor import ColdLogitsProcessor

    states: Any = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=8, prompt_len=None)
    made = ColdLogitsProcessor(engine_config.config(), states)
    for slot, name, index in ((5, "x", 0), (2, "x", 1), (1, "y", 0), (7, "y", 1)):
        made.add_request(slot, ONE.params(name, index))
    made.add_request(3, SamplingParams())
    return made


ORDER = np.array([7, 5, 3, 1, 2])
EXPERT_OF = [3, 1, 2, 3, 1]  # by position


def batch_of(counts: Sequence[int]) -> Any:
    return SimpleNamespace(
        idx_mapping_np=ORDER,
        idx_mapping=torch.from_numpy(ORDER),
        cu_num_logits_np=np.cumsum([0, *counts], dtype=np.int32),
        num_draft_tokens=sum(counts) - len(counts),
    )


def output_of(num: int) -> Any:
    return SimpleNamespace(
        sampled_token_ids=torch.arange(num * 3).view(num, 3),
        num_sampled=torch.arange(num),
        num_rejected=10 * torch.arange(num),
    )


class LogitBiasState: ...


class PenaltiesState: ...


class BadWordsState: ...


class OtherProcessor: ...


class Speculator:
    def propose(self, input_batch: Any, *, num: int) -> torch.Tensor:
        return torch.arange(5 * num).view(5, num)


class Runner:
    """As much of vLLM's as is extended."""

    def __init__(self, *processors: Any, with_drafts: bool = True) -> None:
        self.seen: list[Any] = []
        self.processors = list(processors)
        self.sampler: Any = None
        self.rejection_sampler = object() if with_drafts else None
        self.speculator = Speculator() if with_drafts else None

    def load_model(self) -> None:
        stock = [LogitBiasState(), PenaltiesState(), BadWordsState(), OtherProcessor()]
        self.sampler = SimpleNamespace(logits_processors=[*stock, *self.processors])

    def initialize_kv_cache(self, config: str, is_profiling: bool = False) -> None:
        self.seen.append((config, is_profiling))

    def _init_kv_zero_meta(self) -> None:
        self.seen.append("zeroes")

    def sample(self, hidden_states: Any, input_batch: Any, grammar: Any) -> Any:
        groups, output = runner_hooks._verified.get(), output_of(len(input_batch.idx_mapping))
        self.seen.append((hidden_states, grammar, None if groups is None else groups.members))
        return output, output.num_sampled, output.num_rejected

    def sample_tokens(self, grammar: Any) -> Any:
        return grammar


def loaded(*processors: Any, with_drafts: bool = True) -> Runner:
    """A runner that vLLM has loaded, and started for its profile and for good."""
    runner = Runner(*processors, with_drafts=with_drafts)
    runner.load_model()
    for is_profiling in (True, False):
        runner_hooks.wrap_initialize_kv_cache(
            Runner.initialize_kv_cache, runner, "config", is_profiling=is_profiling
        )
    assert runner.seen == [("config", True), "zeroes", ("config", False), "zeroes"]
    runner.seen.clear()
    return runner


# ---- which processor comes when ------------------------------------------------------------------


def test_scores_stand_between_bad_words_and_penalties(processor: Any) -> None:
    kinds = [type(p) for p in loaded(processor).sampler.logits_processors]
    ours = [BadWordsState, type(processor), PenaltiesState]
    assert kinds == [LogitBiasState, *ours, OtherProcessor]


def test_a_runner_without_ours_stays_as_it_is() -> None:
    runner = loaded()
    assert vars(runner).keys() == vars(Runner()).keys()
    assert [type(p) for p in runner.sampler.logits_processors][1] is PenaltiesState
    stage = Runner()  # of a pipeline, and not its last: it has no sampler
    runner_hooks.extend(stage)
    assert vars(stage).keys() == vars(Runner()).keys()


@pytest.mark.parametrize("missing", [PenaltiesState, BadWordsState])
def test_a_sampler_that_is_not_known_is_refused(missing: type, processor: Any) -> None:
    runner = Runner(processor)
    runner.load_model()
    stock = runner.sampler.logits_processors
    runner.sampler.logits_processors = [p for p in stock if type(p) is not missing]
    with pytest.raises(RuntimeError, match="install a vLLM that vllm-cold supports"):
        runner_hooks.extend(runner)


def test_other_platforms_clear_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_hooks, "is_on", lambda platform: False)
    runner = Runner()
    runner_hooks.wrap_initialize_kv_cache(Runner.initialize_kv_cache, runner, "config")
    assert runner.seen == [("config", False)]


# ---- who is told ---------------------------------------------------------------------------------


def test_it_knows_the_rows_before_and_tells_amateurs_after(processor: Any) -> None:
    runner = loaded(processor)
    batch = batch_of([2, 3, 1, 2, 3])
    output, num_sampled, num_rejected = runner.sample("states", batch, None)
    ((states, grammar, members),) = runner.seen
    assert (states, grammar) == ("states", None)
    assert sorted(map(tuple, members)) == [(1, 4), (3, 0)]
    assert processor._num_rows[ORDER].tolist() == [2, 3, 1, 2, 3]
    assert runner_hooks._verified.get() is None
    assert num_sampled.tolist() == EXPERT_OF
    assert num_rejected.tolist() == [10 * position for position in EXPERT_OF]
    assert output.sampled_token_ids[:, 0].tolist() == [3 * position for position in EXPERT_OF]


@pytest.mark.parametrize("with_drafts", [True, False])
def test_a_step_without_drafts_tells_the_tokens_alone(with_drafts: bool, processor: Any) -> None:
    """A stream whose prompt goes on has got none, whatever its expert has."""
    runner = loaded(processor, with_drafts=with_drafts)
    output, num_sampled, _ = runner.sample("states", batch_of([1] * 5), None)
    assert runner.seen == [("states", None, None)]
    assert output.sampled_token_ids[:, 0].tolist() == [3 * position for position in EXPERT_OF]
    assert num_sampled.tolist() == list(range(5))


def test_amateurs_are_told_the_next_drafts(processor: Any) -> None:
    """Before the host and other stages get them."""
    runner = loaded(processor)
    assert runner.speculator is not None
    drafts = runner.speculator.propose(batch_of([1] * 5), num=2)
    assert drafts[:, 0].tolist() == [2 * position for position in EXPERT_OF]
    half = batch_of([1] * 3)
    half.idx_mapping_np = ORDER[1:4]
    assert runner.speculator.propose(half, num=2)[:, 0].tolist() == list(range(0, 10, 2))


@pytest.mark.parametrize("is_async", [True, False])
def test_figures_leave_with_the_output(is_async: bool, processor: Any) -> None:
    runner, figures = loaded(processor), StepStats((), torch.empty(0, 3), ())
    worker_output.attach(SimpleNamespace())  # what other tests of this process have left
    worker_output.hand_over(figures)
    assert runner.sample_tokens(None) is None  # another stage, or a failed step
    output = SimpleNamespace()
    returned = SimpleNamespace(model_runner_output=output) if is_async else output
    assert runner.sample_tokens(returned) is returned
    assert output.cold == [figures]


# ---- how it gets there ---------------------------------------------------------------------------


class OfUser:
    """An extension of a user's: the first of its names stands in the engine's configuration."""

    def init_worker_extension(self) -> None:
        vars(self)["theirs"] = True

    def weights(self) -> str:
        return "theirs"


def worker_with(extension: str, runner: Runner) -> Any:
    """As vLLM makes it: the class is added to the worker's bases, and called for the worker."""
    kind = resolve_obj_by_qualname(extension)
    worker = type("Worker", (kind,), {})()
    worker.model_runner = runner
    kind.init_worker_extension(worker)
    return worker


def test_the_extension_takes_the_runner_of_its_worker(processor: Any) -> None:
    runner, other = Runner(processor), Runner(processor)
    worker_with(chained_extension(""), runner)
    runner.load_model()
    runner.initialize_kv_cache("config", is_profiling=True)
    assert "sample" in vars(runner) and runner.seen == [("config", True), "zeroes"]
    other.load_model()
    other.initialize_kv_cache("config")
    assert "sample" not in vars(other) and other.seen == [("config", False)]


def test_an_extension_of_a_users_is_kept(processor: Any) -> None:
    name = chained_extension(f"{__name__}.OfUser")
    assert chained_extension(name) == name
    assert resolve_obj_by_qualname(name) is resolve_obj_by_qualname(name)
    runner = Runner(processor)
    worker = worker_with(name, runner)
    assert worker.theirs and worker.weights() == "theirs"
    runner.load_model()
    runner.initialize_kv_cache("config")
    assert "sample" in vars(runner)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        resolve_obj_by_qualname(chained_extension("").rpartition(".")[0] + ".Nothing")
