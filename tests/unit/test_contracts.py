# SPDX-License-Identifier: Apache-2.0
"""Every place of vLLM that the package relies on is still there, and the checks notice if not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vllm_cold.vllm import contracts
from vllm_cold.vllm.contracts import CONTRACTS, Contract, ContractBroken, check_all, run

pytestmark = pytest.mark.unit

BY_NAME = {contract.name: contract for contract in CONTRACTS}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.name)
def test_contract(contract: Contract) -> None:
    if not contract.applies(contracts.installed()):
        pytest.skip(f"holds from {contract.since} until {contract.until}")
    run(contract)


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CONTRACTS)


def _breaks(name: str, *words: str) -> None:
    with pytest.raises(ContractBroken) as caught:
        run(BY_NAME[name])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("place", "attribute", "name"),
    [
        ("scheduler:Scheduler", "_mamba_block_aligned_split", "split_signature"),
        ("scheduler:Scheduler", "_preempt_request", "preempt_puts_into_waiting"),
        ("scheduler:Scheduler", "finish_requests", "overridden_methods"),
        ("scheduler:Scheduler", "pause_state", "pause_state"),
        ("kv:KVCacheManager", "evict_blocks", "kv_cache_manager"),
        ("kv:KVCacheManager", "get_block_ids", "kv_cache_manager"),
        ("input:InputProcessor", "process_inputs", "process_inputs"),
        ("args:EngineArgs", "create_engine_config", "engine_args"),
        ("args:EngineArgs", "from_cli_args", "engine_args"),
    ],
)
def test_a_missing_method_is_named(
    monkeypatch: pytest.MonkeyPatch, place: str, attribute: str, name: str
) -> None:
    from vllm.engine import arg_utils
    from vllm.v1.core import kv_cache_manager
    from vllm.v1.core.sched import scheduler
    from vllm.v1.engine import input_processor

    modules = {
        "scheduler": scheduler,
        "kv": kv_cache_manager,
        "input": input_processor,
        "args": arg_utils,
    }
    module, owner = place.split(":")
    monkeypatch.delattr(getattr(modules[module], owner), attribute)
    _breaks(name, attribute)


def test_a_renamed_parameter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    def finish_requests(self: Any, ids: Any, finished_status: Any) -> list[Any]:
        return []

    monkeypatch.setattr(Scheduler, "finish_requests", finish_requests)
    _breaks("overridden_methods", "finish_requests", "ids", "request_ids")
    _breaks("finish_requests_returns_requests", "does not return")


def _reordered(
    self: Any, num_new_tokens: int, token_budget: int, req_index: int, scheduler_output: Any
) -> Any:
    """A schedule() whose running loop takes blocks before it asks for the cap."""
    while req_index < len(self.running) and token_budget > 0:
        request = self.running[req_index]
        self.kv_cache_manager.allocate_slots(request, num_new_tokens)
        if self.need_mamba_block_aligned_split:
            num_new_tokens = self._mamba_block_aligned_split(request, num_new_tokens)
        if num_new_tokens == 0:
            req_index += 1
            continue
    self._update_after_schedule(scheduler_output)
    self.running.sort()
    return scheduler_output


def test_another_order_of_statements_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.setattr(Scheduler, "schedule", _reordered)
    _breaks("schedule_caps_running", "allocate_slots", "elsewhere")
    _breaks("schedule_caps_waiting", "no loop over the waiting requests")
    _breaks("schedule_ends_with_update_after_schedule", "after _update_after_schedule")


def test_a_new_column_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched import output

    @dataclasses.dataclass
    class CachedRequestData(output.CachedRequestData):
        num_spare_tokens: list[int] = dataclasses.field(default_factory=list)

    monkeypatch.setattr(output, "CachedRequestData", CachedRequestData)
    _breaks("cached_request_columns", "num_spare_tokens", "_strip")


def test_a_new_sampling_parameter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import sampling_params

    class SamplingParams(sampling_params.SamplingParams):
        mood: str = "good"

    monkeypatch.setattr(sampling_params, "SamplingParams", SamplingParams)
    _breaks("sampling_params_fields", "mood", "scheduler.amateurs")


def test_another_order_of_processors_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample.sampler import Sampler

    def apply_logits_processors(self: Any, logits: Any, sampling_metadata: Any) -> Any:
        logits = self.apply_penalties(logits, sampling_metadata.allowed_token_ids_mask)
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            logits = processor.apply(logits)
        return logits

    monkeypatch.setattr(Sampler, "apply_logits_processors", apply_logits_processors)
    _breaks("processor_v1_order", "apply_bad_words")


def test_a_platform_with_another_lora_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms.cpu import CpuPlatform

    monkeypatch.setattr(CpuPlatform, "get_punica_wrapper", classmethod(lambda cls: "other.Wrapper"))
    _breaks("punica_wrapper_of_the_cpu", "other.Wrapper")


def test_more_for_lora_than_compilation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms.cpu import CpuPlatform

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        vllm_config.cache = vllm_config.lora_config

    monkeypatch.setattr(
        CpuPlatform, "check_and_update_config", classmethod(check_and_update_config)
    )
    _breaks("lora_on_cpu_is_not_compiled", "CompilationMode.NONE")


def test_a_layer_that_wants_more_of_its_wrapper_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora import layers

    class VocabParallelEmbeddingWithLoRA(layers.VocabParallelEmbeddingWithLoRA):
        def forward(self, x: Any) -> Any:
            return self.punica_wrapper.add_something_new(x)

    monkeypatch.setattr(layers, "VocabParallelEmbeddingWithLoRA", VocabParallelEmbeddingWithLoRA)
    _breaks("lora_layers", "add_something_new")


def test_a_module_that_moved_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.async_scheduler", None)
    _breaks("async_scheduler_extends_scheduler", "could not be checked", "async_scheduler")


def test_check_all_reports_what_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    monkeypatch.delattr(KVCacheManager, "evict_blocks")
    (broken,) = check_all()
    assert broken.contract is BY_NAME["kv_cache_manager"]
    assert "evict_blocks" in broken.reason
    assert "\n" not in broken.reason


def test_versions_bound_a_contract() -> None:
    contract = Contract("c", "place", "why", (0, 24), (0, 33), lambda: None)
    assert [contract.applies(v) for v in ((0, 23), (0, 24), (0, 32), (0, 33))] == [
        False,
        True,
        True,
        False,
    ]
