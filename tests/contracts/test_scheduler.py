# SPDX-License-Identifier: Apache-2.0
"""Requests, queues, KV cache and the messages between scheduler, workers and front end.

``tests/scheduler`` shows what the scheduler does with them.
"""

import ast
import copy
import inspect
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contracts.source import find, set_in_init, since, source_of
from tests.scheduler.harness import Asked, make_hasher, make_request
from vllm_cold.compat import places, versions
from vllm_cold.compat.patching import Relies
from vllm_cold.scheduler.amateur_requests import _EXPERTS_ALONE
from vllm_cold.scheduler.lockstep import Request
from vllm_cold.scheduler.passes import Pass
from vllm_cold.scheduler.scheduler import GroupScheduler

pytestmark = pytest.mark.unit

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


def scheduler() -> Any:
    """vLLM's own scheduler: vllm-ascend puts a class that extends it in its place."""
    kinds = find(_SCHEDULER).__mro__
    return next(k for k in kinds if k.__module__ == _SCHEDULER.partition(":")[0])


def stated(where: str) -> set[str]:
    """Names that the scheduler's table says are relied on of a class."""
    return {name for place in _relied(where) for name in place._names()}


def _relied(where: str) -> list[Relies]:
    rows = places.table("vllm_cold.scheduler.scheduler_places")
    return [p for row in rows for p in row.places if p.where == where and isinstance(p, Relies)]


def test_what_is_used_of_a_request_is_looked_at() -> None:
    request = make_request("r", Asked([1, 2], 3), make_hasher(4), 0.0)
    used = {name for name in vars(Request) if not name.startswith("_")}
    used |= Request.__annotations__.keys()
    assert used <= stated("vllm.v1.request:Request")
    rows = _relied("vllm.v1.request:Request")
    elsewhere = {n for p in rows if not versions.is_within(p.since, p.until) for n in p._names()}
    assert [name for name in used - elsewhere if not hasattr(request, name)] == []


def test_what_is_used_of_the_scheduler_is_looked_at() -> None:
    """To a type checker its attributes are Any, misspelt ones, too: each that is not ours stands in
    the table, also a method that ours overrides.
    """
    layers = [kind for kind in GroupScheduler.__mro__ if kind.__module__.startswith("vllm_cold.")]
    theirs = {*dir(scheduler()), *set_in_init(scheduler())}
    names = {name for kind in layers for name in (*vars(kind), *set_in_init(kind))}
    used = {n for n in names & theirs if inspect.isfunction(getattr(GroupScheduler, n, None))}
    for path in Path(inspect.getfile(GroupScheduler)).parent.glob("*.py"):
        owners = {"scheduler", "self._scheduler", "super()"}
        if f"vllm_cold.scheduler.{path.stem}" in {kind.__module__ for kind in layers}:
            owners.add("self")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners:
                used.add(node.attr)
    used -= {"__init__"}
    assert len(used & theirs) > 40 and used - (names - theirs) <= stated(_SCHEDULER)


def test_the_hook_is_ours_alone() -> None:
    """Switching it on does nothing else, and it is called with what ours takes."""
    flag = "need_mamba_block_aligned_split"
    tree = ast.parse(textwrap.dedent(inspect.getsource(scheduler()))).body[0]
    assert isinstance(tree, ast.ClassDef)
    readers = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and flag in ast.unparse(node)
    }
    assert readers == {"__init__", "schedule"}
    theirs = list(inspect.signature(scheduler()._mamba_block_aligned_split).parameters)
    taken = list(inspect.signature(Pass.cap).parameters)
    assert len(theirs) >= 5 and theirs == taken[: len(theirs)]


def test_the_queues_are_known() -> None:
    made = set_in_init(scheduler())
    assert made["running"] == "[]"
    queues = {name for name, value in made.items() if value.startswith("create_request_queue(")}
    assert (
        {"waiting"}
        <= queues
        <= {
            "waiting",
            "skipped_waiting",
            "kv_holding_waiting",
            "async_kv_waiting",  # with --max-num-inflight-kv-loads, which is refused
        }
    )


def test_the_count_of_blocks_takes_what_is_given() -> None:
    count = "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.get_num_blocks_to_allocate"
    names = (
        "self request_id num_tokens new_computed_blocks num_encoder_tokens total_computed_tokens "
        "num_tokens_main_model apply_admission_cap"
    )
    known = set(names.split())
    later = known | {"num_local_computed_tokens", "prefill_end"}  # since 0.31
    assert set(inspect.signature(find(count)).parameters) in (known, later)


@since("0.32")
def test_what_states_are_counted_by_is_there() -> None:
    """``kv_blocks`` asks for some of it with a default, for older releases."""
    from vllm.config import VllmConfig

    manager = find("vllm.v1.core.single_type_kv_cache_manager:MambaManager")
    assert "mamba_cache_mode" in set_in_init(manager)
    assert isinstance(VllmConfig.max_concurrent_batches, property)


@since("0.32")
def test_looking_a_prefix_up_counts_nothing() -> None:
    """Else the cache's hit rate would be wrong while contrastive requests wait, as in 0.23."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    assert ".record(" not in source_of(KVCacheManager.get_computed_blocks)


def test_what_a_request_asks_for_is_known() -> None:
    """A new one: decide in scheduler.amateurs whether the amateur keeps it."""
    from vllm.sampling_params import SamplingParams

    kept = """n temperature seed ignore_eos max_tokens logit_bias skip_reading_prefix_cache
        thinking_token_budget"""
    of_no_effect_on_it = """stop flat_logprobs detokenize skip_special_tokens
        spaces_between_special_tokens include_stop_str_in_output output_kind stream_interval
        skip_clone output_text_buffer_length _all_stop_token_ids prompt_logprob_start
        routed_experts_prompt_start trace_decode_token_ids watermarking _watermarking_skipped"""
    known = {"extra_args", *_EXPERTS_ALONE, *kept.split(), *of_no_effect_on_it.split()}
    assert set(SamplingParams.__struct_fields__) <= known


def test_the_encoders_cache_is_counted_as_is_known() -> None:
    """What is dropped leaves it as what is pushed out does."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    from vllm_cold.scheduler.encoder_inputs import EncoderInputs

    def with_images(request_id: str, *names: str) -> Any:
        request = make_request(request_id, Asked([1, 2, 3], 4), make_hasher(4), 0.0)
        request.mm_features = [
            MultiModalFeatureSpec(None, "image", name, PlaceholderRange(4 * at, 4))
            for at, name in enumerate(names)
        ]
        return request

    def state(manager: Any) -> dict[str, Any]:
        return {name: copy.deepcopy(value) for name, value in vars(manager).items()}

    managers = [EncoderCacheManager(cache_size=8) for _ in range(2)]
    for manager in managers:
        first, second = with_images("a", "x", "y"), with_images("b", "x")
        for index in range(2):
            assert manager.can_allocate(first, index, 8, 0)
            manager.allocate(first, index)
        assert manager.check_and_update_cache(second, 0)
        assert manager.cached == {"x": {"a", "b"}, "y": {"a"}}
        assert manager.get_cached_input_ids(first) == {0, 1}
        assert (manager.num_free_slots, manager.num_freeable_slots) == (0, 0)
        manager.free(first)
        assert manager.cached == {"x": {"b"}, "y": set()} and list(manager.freeable) == ["y"]
        assert (manager.num_free_slots, manager.num_freeable_slots) == (0, 4)
    theirs, mine = managers
    assert theirs.can_allocate(with_images("c", "z"), 0, 8, 0)  # pushes "y" out
    encoder = object.__new__(EncoderInputs)
    encoder._scheduler = SimpleNamespace(encoder_cache_manager=mine)  # type: ignore[assignment]
    encoder._drop("y")
    assert state(mine) == state(theirs) and mine.get_freed_mm_hashes() == ["y"]
