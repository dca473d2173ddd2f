# SPDX-License-Identifier: Apache-2.0
"""Requests, queues, KV cache and the messages between scheduler, workers and front end.

``tests/scheduler`` shows what the scheduler does with them.
"""

import ast
import copy
import inspect
import re
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contracts.source import contains, fields, find, in_order, set_in_init, since, source_of
from vllm_cold.vllm import versions
from vllm_cold.vllm.scheduler.passes import Pass

pytestmark = pytest.mark.unit

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


def scheduler() -> Any:
    """vLLM's own scheduler: vllm-ascend puts a class that extends it in its place."""
    kinds = find(_SCHEDULER).__mro__
    return next(k for k in kinds if k.__module__ == _SCHEDULER.partition(":")[0])


def request(request_id: str) -> Any:
    """Made the way amateurs are."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    return Request(
        request_id=request_id,
        client_index=0,
        prompt_token_ids=[1, 2, 3],
        prompt_embeds=None,
        prompt_is_token_ids=None,
        sampling_params=SamplingParams(max_tokens=4),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        priority=0,
        block_hasher=None,
    )


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


def test_a_step_is_trimmed_after_everything_else() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(scheduler().schedule))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    call, end = tree.body[-2:]
    assert "self._update_after_schedule(scheduler_output)" in ast.unparse(call)
    assert ast.unparse(end) == "return scheduler_output"
    assert "num_computed_tokens +=" not in source_of(scheduler().schedule)


@since(0, 32)
def test_who_is_preempted_at_the_end_of_a_pass_is_reported_in_that_step() -> None:
    """To the V2 runner."""
    told = "self.reset_preempted_req_ids.add(request.request_id)"
    assert told in source_of(scheduler()._preempt_request)
    assert "preempted_req_ids=self.reset_preempted_req_ids" in source_of(scheduler().schedule)
    assert "return valid_requests" in source_of(scheduler().finish_requests)


def test_the_queues_are_known() -> None:
    made = set_in_init(scheduler())
    assert made["running"] == "[]"
    queues = {name for name, value in made.items() if value.startswith("create_request_queue(")}
    assert {"waiting"} <= queues <= {"waiting", "skipped_waiting", "kv_holding_waiting"}


def test_who_begins_to_wait_is_put_into_the_queue_of_that_name() -> None:
    """So another one in its place takes what is to wait elsewhere (``admission.aside``)."""
    add, put = (source_of(getattr(scheduler(), f)) for f in ("add_request", "_preempt_request"))
    enqueue = source_of(scheduler()._enqueue_waiting_request)
    assert "self._enqueue_waiting_request(request)" in add and "self.waiting" not in add
    assert enqueue.count("self.waiting") == enqueue.count("self.waiting.add_request(request)") == 1
    assert put.count("self.waiting") == put.count("self.waiting.prepend_request(request)") == 1


def test_who_may_start_is_asked_of_the_queues() -> None:
    """A pass looks at a queue by its truth and its head, and takes that out or puts it back: so
    ``admission.View`` can stand for it.
    """
    from vllm.v1.core.sched.request_queue import RequestQueue

    from vllm_cold.vllm.scheduler.admission import View

    assert RequestQueue.__abstractmethods__ <= set(vars(View))
    source = source_of(scheduler().schedule)
    used = set(re.findall(r"(?:request_queue|from_queue|waiting)\.(\w+)\(", source))
    assert used - {"add", "discard", "append", "appendleft"} <= {
        "peek_request", "pop_request", "prepend_request", "prepend_requests"
    }  # fmt: skip
    ready = ("_handle_blocked_waiting_request", "_try_promote_blocked_waiting_request")  # in 0.23
    assert any(hasattr(scheduler(), name) for name in ready)
    assert "if not request_queue" in source or "while (self.waiting or self.skip" in source


def test_the_kv_cache() -> None:
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    returned = str(inspect.signature(KVCacheManager.get_computed_blocks).return_annotation)
    assert "KVCacheBlocks" in returned and returned.index("KVCacheBlocks") < returned.index("int")
    contains("vllm.v1.core.kv_cache_manager:KVCacheManager", "request.skip_reading_prefix_cache")
    in_order(
        "vllm.v1.core.block_pool:BlockPool.__init__",
        "for idx in range(num_gpu_blocks)",
        "self.null_block = self.free_block_queue.popleft()",
    )
    made = set_in_init(find("vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator"))
    assert "single_type_managers" in made
    single = find("vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager")
    assert "block_size" in set_in_init(single)


def test_the_count_of_blocks_takes_what_is_given() -> None:
    count = "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.get_num_blocks_to_allocate"
    names = (
        "self request_id num_tokens new_computed_blocks num_encoder_tokens total_computed_tokens "
        "num_tokens_main_model apply_admission_cap"
    )
    known = set(names.split())
    later = known | {"num_local_computed_tokens", "prefill_end"}  # since 0.31
    assert set(inspect.signature(find(count)).parameters) in (known, later)


@since(0, 32)
def test_states_are_split_and_kept_as_is_known() -> None:
    """The scheduler asks vLLM's rule; ``kv_blocks`` counts blocks of states; ``capacity`` tells by
    vLLM's count of the longest requests.
    """
    from vllm.config import VllmConfig
    from vllm.config.cache import CacheConfig
    from vllm.v1.kv_cache_interface import MambaSpec

    made = set_in_init(scheduler())
    assert made["need_mamba_block_aligned_split"] == (
        "self.has_mamba_layers and self.cache_config.mamba_cache_mode == 'align'"
    )
    assert "hash_block_size" in made
    of_request = set_in_init(find("vllm.v1.request:Request"))
    assert {"block_hashes", "shared_prefix_boundary"} <= set(of_request)
    split = source_of(scheduler()._mamba_block_aligned_split)
    assert "junction = request.shared_prefix_boundary" in split
    # vLLM's own chunks, where a block is wider than a step.
    assert "if aligned_end > start or block_size <= max_prefill_tokens:" in split
    assert source_of(scheduler().schedule).count("request.shared_prefix_boundary") == 2
    manager = "vllm.v1.core.single_type_kv_cache_manager:MambaManager"
    contains(f"{manager}.get_num_blocks_to_allocate", "in self.cached_blocks_this_step")
    assert "mamba_cache_mode" in set_in_init(find(manager))
    assert {"num_prefill_checkpoint_blocks", "block_size"} <= fields(MambaSpec)
    assert isinstance(VllmConfig.max_concurrent_batches, property)
    assert {"kv_cache_max_concurrency", "mamba_cache_mode"} <= fields(CacheConfig)


@since(0, 32)
def test_looking_a_prefix_up_counts_nothing() -> None:
    """Else the cache's hit rate would be wrong while contrastive requests wait, as in 0.23."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    assert ".record(" not in source_of(KVCacheManager.get_computed_blocks)


def test_what_a_request_asks_for_is_known() -> None:
    """A new one: decide in scheduler.amateurs whether the amateur keeps it."""
    from vllm.sampling_params import SamplingParams

    dropped = """top_p top_k min_p logprobs prompt_logprobs structured_outputs stop_token_ids
        repetition_detection _eos_token_id min_tokens bad_words _bad_words_token_ids
        allowed_token_ids prompt_logprob_token_ids logprob_token_ids extra_args"""
    kept = """n presence_penalty frequency_penalty repetition_penalty temperature seed
        ignore_eos max_tokens logit_bias skip_reading_prefix_cache thinking_token_budget"""
    of_no_effect_on_it = """stop flat_logprobs detokenize skip_special_tokens
        spaces_between_special_tokens include_stop_str_in_output output_kind stream_interval
        skip_clone output_text_buffer_length _all_stop_token_ids prompt_logprob_start
        routed_experts_prompt_start trace_decode_token_ids watermarking _watermarking_skipped"""
    assert fields(SamplingParams) <= set(f"{dropped} {kept} {of_no_effect_on_it}".split())


def test_a_step_has_a_request_s_own_parameters() -> None:
    """What is written into them behind the pass reaches the workers."""
    made = "vllm.v1.core.sched.output:NewRequestData.from_request"
    contains(made, "sampling_params=request.sampling_params")


def test_columns_of_a_step() -> None:
    """How each is cleared of a group that is split."""
    from vllm.v1.core.sched.output import CachedRequestData

    empty = CachedRequestData.make_empty()
    kinds = {name: type(getattr(empty, name)) for name in fields(CachedRequestData)}
    others = {"resumed_req_ids": set, "all_token_ids": dict}
    assert kinds == dict.fromkeys(kinds, list) | others


def test_the_encoder_is_asked_next_to_the_cap() -> None:
    """Behind it, in both loops; before 0.31 in front of it. ``_cap`` is called first in any case:
    what is asked for is what was capped.
    """
    source = source_of(scheduler().schedule)
    calls = ("self._mamba_block_aligned_split(", "self._try_schedule_encoder_inputs(")
    found = sorted(
        (at.start(), name) for name in calls for at in re.finditer(re.escape(name), source)
    )
    order = calls if not versions.is_before(0, 31) else calls[::-1]
    assert tuple(name for _, name in found) == order * 2
    ask = source_of(scheduler()._try_schedule_encoder_inputs)
    assert "self.encoder_cache_manager.check_and_update_cache(request, i)" in ask
    assert "self.encoder_cache_manager.can_allocate(" in ask
    assert ".allocate(" not in ask
    # As (those to be encoded, tokens left, budget left, ...).
    begin = "return ([], num_new_tokens, encoder_compute_budget"
    assert begin in ask
    end = "return (encoder_inputs_to_schedule, num_new_tokens, encoder_compute_budget"
    assert end in ask


def test_media_of_a_preempted_request_stay_in_the_encoders_cache() -> None:
    """As if they had been encoded, also where that was to be in this very step."""
    preempt = source_of(scheduler()._preempt_request)
    assert "self.encoder_cache_manager.free(request)" in preempt
    made = set_in_init(scheduler())
    assert "encoder_cache_manager" in made and "max_num_encoder_input_tokens" in made
    schedule = source_of(scheduler().schedule)
    assert "free_encoder_mm_hashes=self.encoder_cache_manager.get_freed_mm_hashes()" in schedule
    assert "encoder_compute_budget = self.max_num_encoder_input_tokens" in schedule


def _image(name: str, offset: int, length: int) -> Any:
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    place = PlaceholderRange(offset=offset, length=length)
    return MultiModalFeatureSpec(None, "image", name, place)


def _with_images(request_id: str, *names: str) -> Any:
    made = request(request_id)
    made.mm_features = [_image(name, 4 * at, 4) for at, name in enumerate(names)]
    return made


def test_the_encoders_cache_is_counted_as_is_known() -> None:
    """What is dropped leaves it as what is pushed out does."""
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

    from vllm_cold.vllm.scheduler.encoder import EncoderInputs

    def state(manager: Any) -> dict[str, Any]:
        return {name: copy.deepcopy(value) for name, value in vars(manager).items()}

    managers = [EncoderCacheManager(cache_size=8) for _ in range(2)]
    for manager in managers:
        first, second = _with_images("a", "x", "y"), _with_images("b", "x")
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
    assert theirs.can_allocate(_with_images("c", "z"), 0, 8, 0)  # pushes "y" out
    encoder = object.__new__(EncoderInputs)
    encoder._scheduler = SimpleNamespace(encoder_cache_manager=mine)  # type: ignore[assignment]
    encoder._drop("y")
    assert state(mine) == state(theirs) and mine.get_freed_mm_hashes() == ["y"]


@since(0, 31)
def test_media_that_are_freed_and_planned_again_are_not_told_as_freed() -> None:
    contains(
        "vllm.v1.core.encoder_cache_manager:EncoderCacheManager.get_freed_mm_hashes",
        "if mm_hash not in self.cached",
    )


@since(0, 31)
def test_cached_media_are_sent_without_their_data_once() -> None:
    """The V1 runner is not sent them again; the V2 runner gets who resumes as new."""
    contains("vllm.v1.core.sched.output:NewRequestData.from_request", "strip_covered_mm_data(")
    update = "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states"
    source = source_of(find(update))
    assert source.count("mm_features") == source.count("mm_features=new_req_data.mm_features") * 2
    contains("vllm.v1.core.sched.scheduler:Scheduler.schedule",
             "scheduled_new_reqs.extend(scheduled_resumed_reqs)")  # fmt: skip


@since(0, 33)
def test_workers_are_told_of_media_by_request() -> None:
    """A request that is taken out of a step must not be named there."""
    from vllm.v1.core.sched.output import SchedulerOutput

    assert "encoder_input_updates" in fields(SchedulerOutput)
    updates = source_of(find("vllm.v1.core.sched.scheduler:Scheduler._get_encoder_input_updates"))
    # Those that a request still needs are there, so they can be encoded for it.
    assert "position.offset + position.length <= computed" in updates
