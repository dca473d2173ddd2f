# SPDX-License-Identifier: Apache-2.0
"""Contracts of speculative decoding: of both runners, and of the scheduler."""

from typing import Any

from vllm_cold.vllm.contracts.contract import contract
from vllm_cold.vllm.contracts.source import (
    assigned_in_init,
    attribute,
    contains,
    has_fields,
    has_parameters,
    in_order,
    loop_over,
    no_new_fields,
    require,
    scheduler,
    source_of,
)

_REJECTION_V1 = "vllm.v1.sample.rejection_sampler.RejectionSampler"
_REJECTION_V2 = "vllm.v1.worker.gpu.spec_decode.rejection_sampler"
_SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"
_SINCE = (0, 32)


def _no_problem(places: Any) -> None:
    problems = [problem for place in places if (problem := place.problem()) is not None]
    require(not problems, "; ".join(problems) + ".")


# ---- the V1 runner -------------------------------------------------------------------------------


@contract(
    _REJECTION_V1,
    "figures of drafts come behind those of the last row, and scores before penalties",
    since=_SINCE,
    speculation=True,
)
def _check_rejection_sampler_v1() -> None:
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    from vllm_cold.vllm.worker import drafts_v1

    _no_problem(drafts_v1.PLACES)
    has_fields(SpecDecodeMetadata, "num_draft_tokens", "draft_token_ids")
    in_order(
        source_of(RejectionSampler.forward),
        "RejectionSampler.forward",
        "bonus_logits = logits[bonus_logits_indices]",
        "self.sampler(logits=bonus_logits",
        "target_logits = self.apply_logits_processors(target_logits, sampling_metadata, metadata)",
        "apply_sampling_constraints(",
        "output_token_ids = rejection_sample(",
        "sampled_token_ids=output_token_ids",
    )
    # Without penalties, and then with nothing else.
    in_order(
        source_of(RejectionSampler.apply_logits_processors),
        "RejectionSampler.apply_logits_processors",
        "has_penalties = not sampling_metadata.no_penalties",
        "self.apply_penalties(",
        "if sampling_metadata.allowed_token_ids_mask is not None:",
        "if (bad_words_token_ids := sampling_metadata.bad_words_token_ids):",
        "for processor in sampling_metadata.logitsprocs.non_argmax_invariant:",
        "if isinstance(processor, MinTokensLogitsProcessor):",
        "holder = sampling_metadata.thinking_budget_state_holder",
        "if holder is not None",
        "return logits",
    )
    in_order(
        source_of(RejectionSampler.apply_penalties),
        "RejectionSampler.apply_penalties",
        "if sampling_metadata.no_penalties:\n        return logits",
        "apply_all_penalties(",
    )


@contract(
    "vllm.v1.sample.metadata.SamplingMetadata",
    "masks and penalties of drafts are applied apart, each once",
    since=_SINCE,
    speculation=True,
)
def _check_sampling_metadata() -> None:
    from vllm.v1.sample.metadata import SamplingMetadata

    masks = (
        "allowed_token_ids_mask",
        "bad_words_token_ids",
        "logitsprocs",
        "thinking_budget_state_holder",
    )
    penalties = (
        "no_penalties",
        "prompt_token_ids",
        "frequency_penalties",
        "presence_penalties",
        "repetition_penalties",
    )
    others = (
        "temperature",
        "all_greedy",
        "all_random",
        "top_p",
        "top_k",
        "generators",
        "max_num_logprobs",
        "output_token_ids",
        "logprob_token_ids",
        "spec_token_ids",
    )
    has_fields(SamplingMetadata, *masks, *penalties)
    no_new_fields(
        SamplingMetadata,
        (*masks, *penalties, *others),
        "if it changes logits, drafts_v1 must see to it that it is applied once.",
    )


@contract(
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner",
    "amateurs are told their expert's drafts before they are used",
    since=_SINCE,
    speculation=True,
)
def _check_drafts_of_the_v1_runner() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    contains(source_of(GPUModelRunner._sample), "GPUModelRunner._sample", "self.rejection_sampler(")
    in_order(
        source_of(GPUModelRunner.sample_tokens),
        "GPUModelRunner.sample_tokens",
        "self._draft_token_ids = self.propose_draft_token_ids(",
        "self._copy_draft_token_ids_to_cpu(scheduler_output)",
    )
    contains(source_of(GPUModelRunner.__init__), "GPUModelRunner.__init__", "logitsprocs=")


@contract(
    "vllm.v1.sample.logits_processor.build_logitsprocs",
    "V1 loads the processor under speculation, too",
    since=_SINCE,
    speculation=True,
)
def _check_build_logitsprocs() -> None:
    from vllm.v1.sample import logits_processor
    from vllm.v1.worker import gpu_model_runner

    from vllm_cold.vllm.worker import drafts_v1

    _no_problem(drafts_v1.builders())
    in_order(
        source_of(logits_processor.build_logitsprocs),
        "build_logitsprocs",
        "if vllm_config.speculative_config:",
        "if custom_logitsprocs:",
        "raise ValueError(STR_SPEC_DEC_REJECTS_LOGITSPROCS)",
        "MinTokensLogitsProcessor(vllm_config, device, is_pin_memory)",
    )
    attribute(logits_processor.LogitsProcessors, "all")
    attribute(gpu_model_runner, "build_logitsprocs")


# ---- the V2 runner -------------------------------------------------------------------------------


@contract(
    _REJECTION_V2,
    "each request's rows are known, and no group is split into two chunks",
    since=_SINCE,
    speculation=True,
)
def _check_rejection_sampler_v2() -> None:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    from vllm_cold.vllm.worker import drafts_v2

    _no_problem(drafts_v2.PLACES)
    has_fields(LogitsContext, "input_ids", "expanded_local_pos")
    owner = rejection_sampler.RejectionSampler
    contains(source_of(owner.__init__), "RejectionSampler.__init__ (V2)", "self.sampler = sampler")
    in_order(
        source_of(owner.__call__),
        "RejectionSampler.__call__ (V2)",
        "self._verify_in_chunks(",
        "SamplerOutput(sampled_token_ids=sampled",
        "num_sampled=num_sampled",
        "num_rejected=num_rejected",
    )
    in_order(
        source_of(owner._verify_in_chunks),
        "RejectionSampler._verify_in_chunks",
        "cu_num_logits_np = input_batch.cu_num_logits_np",
        "request_chunks = _iter_request_chunks(cu_num_logits_np, max_chunk_logits)",
        "for start, end in request_chunks:",
        "lo = int(cu_num_logits_np[start])",
        "logits[lo:hi]",
        "input_batch.idx_mapping_np[start:end]",
    )
    in_order(
        source_of(owner._verify),
        "RejectionSampler._verify",
        "self.sampler.apply_sampling_params(logits",
        "draft_sampled, expanded_local_pos",
        "rejection_sample(processed_logits",
    )


@contract(
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner",
    "amateurs are told their expert's drafts for the next step",
    since=_SINCE,
    speculation=True,
)
def _check_drafts_of_the_v2_runner() -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    in_order(
        source_of(GPUModelRunner.sample_tokens),
        "GPUModelRunner.sample_tokens (V2)",
        "input_batch = self.execute_model_state.input_batch",
        "self.execute_model_state = None",
        "self.sample(",
        "self.speculator.propose(",
        "self.req_states.draft_tokens[input_batch.idx_mapping] = draft_tokens",
    )
    contains(
        source_of(GPUModelRunner.sample),
        "GPUModelRunner.sample (V2)",
        "self.rejection_sampler(logits, input_batch",
    )
    # What the next step verifies comes from there, not from the scheduler.
    in_order(
        source_of(GPUModelRunner.prepare_inputs),
        "GPUModelRunner.prepare_inputs (V2)",
        "combine_sampled_and_draft_tokens(",
        "self.req_states.draft_tokens",
    )


# ---- the scheduler -------------------------------------------------------------------------------


@contract(
    _SCHEDULER + ".schedule",
    "a cap on a running request's tokens is a cap on its drafts",
    since=_SINCE,
    speculation=True,
)
def _check_schedule_trims_drafts() -> None:
    in_order(
        loop_over(scheduler().schedule, "running", "self.running[req_index]"),
        "Scheduler.schedule, running requests",
        "num_new_tokens = request.num_tokens_with_spec + request.num_output_placeholders - "
        "request.num_computed_tokens",
        "self._mamba_block_aligned_split(request, num_new_tokens)",
        "if request.spec_token_ids:",
        "num_scheduled_spec_tokens = num_new_tokens + request.num_computed_tokens - "
        "request.num_tokens - request.num_output_placeholders",
        "if num_scheduled_spec_tokens > 0:",
        "spec_token_ids = spec_token_ids[:num_scheduled_spec_tokens]",
        "scheduled_spec_decode_tokens[request.request_id] = spec_token_ids",
        "request.spec_token_ids = []",
    )
    contains(
        source_of(scheduler()._preempt_request),
        "Scheduler._preempt_request",
        "request.spec_token_ids = []",
    )


@contract(
    _SCHEDULER + ".schedule",
    "a follower that is admitted at its last token is given that alone",
    since=_SINCE,
    speculation=True,
)
def _check_schedule_drops_padding() -> None:
    in_order(
        loop_over(scheduler().schedule, "waiting", "request_queue.peek_request()"),
        "Scheduler.schedule, waiting requests",
        "num_new_tokens == 1",
        "padded_num_tokens = 1 + self.num_spec_tokens",
        "if padded_num_tokens > request_token_budget:",
        "break",
        "num_new_tokens = padded_num_tokens",
        "pad_spec_decode = True",
        "self._mamba_block_aligned_split(",
        "if num_new_tokens == 0:",
        "break",
        "if pad_spec_decode and num_new_tokens != 1 + self.num_spec_tokens:",
        "num_new_tokens = 1",
        "pad_spec_decode = False",
        "if pad_spec_decode:",
        "scheduled_spec_decode_tokens[request_id] = ",
    )


@contract(
    _SCHEDULER + ".schedule",
    "what a drafter adds to each request is part of the budget",
    since=_SINCE,
    speculation=True,
)
def _check_schedule_counts_draft_slots() -> None:
    from vllm.config import SpeculativeConfig

    attribute(SpeculativeConfig, "max_num_new_slots_for_drafting")
    assigned = assigned_in_init(scheduler())
    missing = [name for name in ("num_spec_tokens", "num_lookahead_tokens") if name not in assigned]
    require(not missing, f"Scheduler.__init__ sets no {', '.join(missing)} any more.")
    source = source_of(scheduler().schedule)
    contains(source, "Scheduler.schedule", "draft_slots = spec.max_num_new_slots_for_drafting")
    for kind, marks in (("running", "self.running[req_index]"), ("waiting", ".peek_request()")):
        contains(
            loop_over(scheduler().schedule, kind, marks),
            f"Scheduler.schedule, {kind} requests",
            "min(token_budget, input_budget - draft_slots)"
            if kind == "waiting"
            else "min(num_new_tokens, token_budget, input_budget - draft_slots)",
            "input_budget -= num_new_tokens + draft_slots",
        )


@contract(
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler",
    "drafts in flight are counted as tokens, and those that were wrong taken back",
    since=_SINCE,
    speculation=True,
)
def _check_drafts_in_flight() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    in_order(
        source_of(AsyncScheduler._update_after_schedule),
        "AsyncScheduler._update_after_schedule",
        "super()._update_after_schedule(scheduler_output)",
        "if request.is_prefill_chunk:",
        "cur_num_spec_tokens = len(spec_decode_tokens.get(req_id, ()))",
        "request.num_output_placeholders += self.num_sampled_tokens_per_step + cur_num_spec_tokens",
        "request.spec_token_ids = self._spec_token_placeholders",
    )
    in_order(
        source_of(scheduler().update_from_output),
        "Scheduler.update_from_output",
        "num_rejected = num_draft_tokens - num_accepted",
        "request.num_computed_tokens -= num_rejected",
        "request.num_output_placeholders -= num_rejected",
    )
    has_parameters(scheduler(), "update_draft_token_ids", "draft_token_ids", exact=True)


@contract(
    _SCHEDULER + ".make_spec_decoding_stats",
    "drafts of a group are counted once",
    since=_SINCE,
    speculation=True,
)
def _check_figures_of_drafts() -> None:
    from vllm.v1.core.sched.output import SchedulerOutput

    has_fields(SchedulerOutput, "scheduled_spec_decode_tokens", "num_invalid_spec_tokens")
    in_order(
        source_of(scheduler().update_from_output),
        "Scheduler.update_from_output",
        "spec_decoding_stats = self.make_spec_decoding_stats(spec_decoding_stats, ",
        "request_id=req_id",
    )


@contract(
    _SCHEDULER + ".schedule",
    "its padding of a request's last prompt token is cut by long_prefill_token_threshold",
    since=_SINCE,
    note=True,
    speculation=True,
)
def _check_padding_is_still_cut_by_the_threshold() -> None:
    in_order(
        loop_over(scheduler().schedule, "waiting", "request_queue.peek_request()"),
        "Scheduler.schedule, waiting requests",
        "pad_spec_decode = True",
        "if 0 < long_prefill_token_threshold < num_new_tokens:",
        "assert num_new_tokens == 1 + self.num_spec_tokens",
    )
