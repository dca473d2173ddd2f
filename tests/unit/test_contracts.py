# SPDX-License-Identifier: Apache-2.0
"""Every place of vLLM that the package relies on is still there, and the checks notice if not."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest

from vllm_cold.vllm import contracts, versions
from vllm_cold.vllm.contracts import CONTRACTS, Broken, Contract, ContractBroken, check_all, run

pytestmark = pytest.mark.unit

since_speculation = pytest.mark.skipif(
    versions.is_before(0, 32), reason="CoLD speculates since vLLM 0.32"
)

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


# Contract, and a text in what it looks at with what a vLLM might have instead.
OF_SPECULATION = [
    (
        "rejection_sampler_v1",
        "target_logits = self.apply_logits_processors(target_logits, sampling_metadata, metadata)",
        "target_logits = self.process(target_logits)",
    ),
    ("rejection_sampler_v1", "self.sampler(logits=bonus_logits", "self.bonus(bonus_logits"),
    (
        "rejection_sampler_v1",
        "has_penalties = not sampling_metadata.no_penalties",
        "has_penalties = True",
    ),
    ("rejection_sampler_v1", "if sampling_metadata.no_penalties:", "if not metadata:"),
    (
        "rejection_sampler_v1",
        "isinstance(processor, MinTokensLogitsProcessor)",
        "hasattr(processor, 'apply_with_spec_decode')",
    ),
    (
        "drafts_of_the_v1_runner",
        "self._draft_token_ids = self.propose_draft_token_ids(",
        "self.propose_draft_token_ids(self._draft_token_ids, ",
    ),
    ("drafts_of_the_v1_runner", "self.rejection_sampler(", "self.verify("),
    ("drafts_of_the_v1_runner", "logitsprocs=", "processors="),
    ("build_logitsprocs", "STR_SPEC_DEC_REJECTS_LOGITSPROCS", "'no'"),
    (
        "build_logitsprocs",
        "MinTokensLogitsProcessor(vllm_config, device, is_pin_memory)",
        "MinTokensLogitsProcessor(vllm_config)",
    ),
    (
        "rejection_sampler_v2",
        "_iter_request_chunks(cu_num_logits_np, max_chunk_logits)",
        "self._iter_request_chunks(cu_num_logits_np, max_chunk_logits)",
    ),
    ("rejection_sampler_v2", "num_rejected=num_rejected", "num_wrong=num_rejected"),
    (
        "rejection_sampler_v2",
        "self.sampler.apply_sampling_params(logits",
        "self.sampler.apply_all(logits",
    ),
    ("rejection_sampler_v2", "self.sampler = sampler", "self._sampler = sampler"),
    (
        "drafts_of_the_v2_runner",
        "self.req_states.draft_tokens[input_batch.idx_mapping] = draft_tokens",
        "self.drafts[input_batch.idx_mapping] = draft_tokens",
    ),
    ("drafts_of_the_v2_runner", "input_batch = self.execute_model_state.input_batch", "pass"),
    (
        "drafts_of_the_v2_runner",
        "self.req_states.draft_tokens, cu_num_logits",
        "scheduled_drafts, cu_num_logits",
    ),
    (
        "schedule_trims_drafts",
        "spec_token_ids = spec_token_ids[:num_scheduled_spec_tokens]",
        "raise ValueError",
    ),
    ("schedule_trims_drafts", "request.num_tokens_with_spec", "request.num_tokens"),
    ("schedule_trims_drafts", "request.spec_token_ids = []", "pass"),
    (
        "schedule_drops_padding",
        "if pad_spec_decode and num_new_tokens != 1 + self.num_spec_tokens:",
        "if False:",
    ),
    ("schedule_drops_padding", "if padded_num_tokens > request_token_budget:", "if False:"),
    ("schedule_drops_padding", "padded_num_tokens = 1 + self.num_spec_tokens", "pass"),
    (
        "schedule_counts_draft_slots",
        "input_budget -= num_new_tokens + draft_slots",
        "input_budget -= num_new_tokens",
    ),
    (
        "schedule_counts_draft_slots",
        "min(token_budget, input_budget - draft_slots)",
        "min(token_budget, input_budget)",
    ),
    (
        "schedule_counts_draft_slots",
        "draft_slots = spec.max_num_new_slots_for_drafting",
        "draft_slots = spec.slots",
    ),
    ("drafts_in_flight", "+ cur_num_spec_tokens", ""),
    ("drafts_in_flight", "= self._spec_token_placeholders", "= []"),
    ("drafts_in_flight", "request.num_computed_tokens -= num_rejected", "pass"),
    ("figures_of_drafts", "request_id=req_id", "request=request"),
]


@since_speculation
@pytest.mark.parametrize(("name", "there", "instead"), OF_SPECULATION)
def test_another_way_to_speculate_is_noticed(
    name: str, there: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = 0

    def looks(function: Any) -> Any:
        def changing(*args: Any) -> str:
            nonlocal changed
            source: str = function(*args)
            changed += there in source
            return source.replace(there, instead)

        return changing

    for look in ("source_of", "loop_over"):
        monkeypatch.setattr(
            contracts.speculation, look, looks(getattr(contracts.speculation, look))
        )
    _breaks(name, "`")
    assert changed, "the text is not there"


@since_speculation
@pytest.mark.parametrize(
    ("name", "owner", "attribute"),
    [
        ("rejection_sampler_v1", "sample.rejection_sampler:RejectionSampler", "forward"),
        (
            "rejection_sampler_v1",
            "sample.rejection_sampler:RejectionSampler",
            "apply_logits_processors",
        ),
        (
            "rejection_sampler_v1",
            "worker.gpu_model_runner:GPUModelRunner",
            "propose_draft_token_ids",
        ),
        (
            "rejection_sampler_v2",
            "worker.gpu.spec_decode.rejection_sampler:",
            "_iter_request_chunks",
        ),
        (
            "rejection_sampler_v2",
            "worker.gpu.spec_decode.rejection_sampler:RejectionSampler",
            "__call__",
        ),
        ("rejection_sampler_v2", "worker.gpu.model_runner:GPUModelRunner", "sample_tokens"),
        ("build_logitsprocs", "sample.logits_processor:", "build_logitsprocs"),
        ("build_logitsprocs", "sample.logits_processor:LogitsProcessors", "all"),
        ("build_logitsprocs", "worker.gpu_model_runner:", "build_logitsprocs"),
        ("drafts_in_flight", "core.sched.scheduler:Scheduler", "update_draft_token_ids"),
    ],
)
def test_a_place_of_speculation_that_is_gone_is_named(
    name: str, owner: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, kind = owner.partition(":")
    found: Any = importlib.import_module(f"vllm.v1.{module}")
    monkeypatch.delattr(getattr(found, kind) if kind else found, attribute)
    _breaks(name, attribute)


@since_speculation
@pytest.mark.parametrize(
    ("name", "module", "kind"),
    [
        ("sampling_metadata", "vllm.v1.sample.metadata", "SamplingMetadata"),
        ("scheduler_output_fields", "vllm.v1.core.sched.output", "SchedulerOutput"),
    ],
)
def test_a_new_field_is_noticed(
    name: str, module: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = getattr(importlib.import_module(module), kind)

    @dataclasses.dataclass
    class Grown(base):  # type: ignore[misc]
        mood: Any = None

    monkeypatch.setattr(f"{module}.{kind}", Grown)
    _breaks(name, "mood")


def test_what_speculation_relies_on_is_told_apart() -> None:
    """An engine without it keeps CoLD if a vLLM that is not validated has changed that alone."""
    of_it = {contract.name for contract in CONTRACTS if contract.speculation}
    assert {name for name, _, _ in OF_SPECULATION} <= of_it
    assert of_it == {
        check.removeprefix("_check_") for check in vars(contracts.speculation) if "_check" in check
    }
    assert all(contract.since == (0, 32) for contract in CONTRACTS if contract.speculation)


def test_a_broken_contract_of_speculation_takes_cold_from_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm_cold.vllm import availability, plugin

    monkeypatch.setattr(availability, "without_speculation", None)

    def broken(**of: bool) -> list[Broken]:
        return [Broken(Contract("c", "place", "why", (0, 23), None, lambda: None, **of), "Gone.")]

    for found, said, of_speculation in (
        (broken(), "Gone (why)", None),
        (broken(note=True), None, None),
        (broken(speculation=True), None, "Gone (why)"),
    ):
        monkeypatch.setattr(contracts, "check_all", lambda found=found: found)
        assert plugin._broken_contracts() == said
        assert availability.without_speculation == of_speculation  # which such engines are told


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
