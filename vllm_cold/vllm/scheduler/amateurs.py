# SPDX-License-Identifier: Apache-2.0
"""Makes the amateur of a CoLD request: a request of vLLM's like its expert.

Touched in vLLM: ``Request`` and ``SamplingParams``.
"""

import copy

from msgspec import structs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from vllm_cold.group.stream import Stream


def make_amateur(expert: Request, stream: Stream) -> Request:
    """The twin of ``expert``; also gives the expert its half of the pair's description.

    Args:
        expert: The client's request.
        stream: Its streams, as admission described them, with the pair's id.
    """
    params: SamplingParams = copy.copy(expert.sampling_params)
    twin = copy.copy(params)
    args = params.extra_args
    params.extra_args = structs.replace(stream, role="expert").to_extra_args(args)
    twin.extra_args = structs.replace(stream, role="amateur").to_extra_args(args)
    expert.sampling_params = params
    # What would be done twice or for nobody: the amateur is told its tokens, its outputs are
    # dropped and its end is the expert's. It keeps a seed: for a batch in which some rows have one
    # and some have none, the V1 runner draws twice.
    twin.top_p, twin.top_k, twin.min_p = 1.0, 0, 0.0
    twin.logprobs = twin.prompt_logprobs = None
    twin.structured_outputs = None
    twin.stop_token_ids = []
    twin.repetition_detection = None
    twin._eos_token_id = None
    twin.min_tokens = 0
    twin.bad_words = []
    twin._bad_words_token_ids = None
    twin.allowed_token_ids = None
    for optional in ("prompt_logprob_token_ids", "logprob_token_ids"):
        if hasattr(twin, optional):
            setattr(twin, optional, None)
    return Request(
        request_id=f"{expert.request_id}-amateur",
        client_index=expert.client_index,
        prompt_token_ids=expert.prompt_token_ids,
        prompt_embeds=expert.prompt_embeds,
        prompt_is_token_ids=expert.prompt_is_token_ids,
        sampling_params=twin,
        pooling_params=None,
        arrival_time=expert.arrival_time,
        lora_request=LoRARequest(**stream.amateur) if stream.amateur else None,
        cache_salt=expert.cache_salt,
        priority=expert.priority,
        block_hasher=expert._block_hasher,
    )
