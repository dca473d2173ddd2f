# SPDX-License-Identifier: Apache-2.0
"""Logits processors, samplers and speculative decoding, on both model runners."""

import typing

import pytest

from tests.contracts.source import contains, find, in_order, since

pytestmark = pytest.mark.unit

_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_REJECTION_V2 = "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler"


def row(where: str, *parts: str, until: str | None = None) -> typing.Any:
    """A place, and what its source has in this order; ``until``: it came with this release."""
    marks = () if until is None else since(until)
    return pytest.param(where, parts, marks=marks, id=where.partition(":")[2])


def later(where: str, *parts: str) -> typing.Any:
    """One that came with 0.32, as speculation with contrastive decoding did."""
    return row(where, *parts, until="0.32")


@pytest.mark.parametrize(
    ("where", "parts"),
    [
        # The order of V1's sampler is in the table, and a part of V2's.
        later(
            "vllm.v1.worker.gpu.sample.sampler:Sampler.__init__",
            "self.logits_processors: list[LogitsProcessor] = [",
            "*custom_logits_processors]",
        ),
        later(
            "vllm.v1.worker.gpu.sample.sampler:Sampler.__call__",
            "idx_mapping_np = input_batch.idx_mapping_np",
            "self.sample(",
            "sampled_token_ids=sampled.view(-1, 1)",
            "return sampler_output",
        ),
        # Amateurs are told their expert's drafts before these are used.
        later(
            f"{_V1}.sample_tokens",
            "self._draft_token_ids = self.propose_draft_token_ids(",
            "self._copy_draft_token_ids_to_cpu(scheduler_output)",
        ),
        later(f"{_V1}._sample", "self.rejection_sampler("),
        later(f"{_V1}.__init__", "logitsprocs="),
        # Speculation on V2: rows of each request are known, and no group is split into chunks.
        later(f"{_REJECTION_V2}.__init__", "self.sampler = sampler"),
        later(
            f"{_REJECTION_V2}.__call__",
            "self._verify_in_chunks(",
            "SamplerOutput(sampled_token_ids=sampled",
            "num_sampled=num_sampled",
            "num_rejected=num_rejected",
        ),
        later(
            f"{_REJECTION_V2}._verify_in_chunks",
            "cu_num_logits_np = input_batch.cu_num_logits_np",
            "request_chunks = _iter_request_chunks(cu_num_logits_np, max_chunk_logits)",
            "for start, end in request_chunks:",
            "lo = int(cu_num_logits_np[start])",
            "logits[lo:hi]",
            "input_batch.idx_mapping_np[start:end]",
        ),
        later(
            f"{_REJECTION_V2}._verify",
            "self.sampler.apply_sampling_params(logits",
            "draft_sampled, expanded_local_pos",
            "rejection_sample(processed_logits",
        ),
        later(
            f"{_V2}.sample_tokens",
            "input_batch = self.execute_model_state.input_batch",
            "self.execute_model_state = None",
            "self.sample(",
            "self.speculator.propose(",
            "self.req_states.draft_tokens[input_batch.idx_mapping] = draft_tokens",
        ),
        later(f"{_V2}.sample", "self.rejection_sampler(logits, input_batch"),
        # What the next step verifies comes from the worker's state, not from the scheduler.
        later(
            f"{_V2}.prepare_inputs",
            "combine_sampled_and_draft_tokens(",
            "self.req_states.draft_tokens",
        ),
        # Blocks that held NaN are cleared when they are free.
        row(
            f"{_V1}._update_states",
            "self._zero_block_ids(scheduler_output.new_block_ids_to_zero)",
        ),
    ],
)
def test_statements_in_order(where: str, parts: tuple[str, ...]) -> None:
    in_order(where, *parts)


def test_changes_of_a_batch() -> None:
    interface = find("vllm.v1.sample.logits_processor.interface")
    assert len(typing.get_args(interface.AddedRequest)) == 4
    assert len(typing.get_args(interface.MovedRequest)) == 3


@since("0.32")
def test_v2_processors_have_to_have_nothing_else() -> None:
    interface = find("vllm.v1.worker.gpu.sample.logits_processor.interface")
    assert set(interface.LogitsProcessor.__abstractmethods__) <= {"apply"}
    fields = interface.LogitsProcRequestState.__annotations__
    assert {"device", "max_num_reqs"} <= set(fields)


@since("0.32")
def test_v2_clears_blocks_of_some_caches() -> None:
    """What ``runner_hooks`` adds; it can go when V2 does it for all."""
    contains(f"{_V2}._init_kv_zero_meta", "self.kv_block_zeroer = ")
    contains(
        _V2,
        "assert self.kv_block_zeroer is not None",
        "self.kv_block_zeroer.zero_block_ids(scheduler_output.new_block_ids_to_zero)",
    )
