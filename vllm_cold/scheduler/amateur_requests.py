# SPDX-License-Identifier: Apache-2.0
"""Makes the amateurs of a contrastive request: requests of vLLM's like their expert."""

import copy
from dataclasses import replace
from typing import Any

from msgspec import structs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from vllm_cold.wire import transfer_params
from vllm_cold.wire.stream import AmateurStream, Stream

# What would be done twice or for nobody: an amateur is told its tokens, its outputs are dropped and
# its end is the expert's. It keeps a seed: for a batch in which some rows have one and some have
# none, the V1 runner samples twice.
_EXPERTS_ALONE = (
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logprobs", "prompt_logprobs", "structured_outputs", "stop_token_ids", "repetition_detection",
    "_eos_token_id", "min_tokens", "bad_words", "_bad_words_token_ids", "allowed_token_ids",
    "prompt_logprob_token_ids", "logprob_token_ids",
)  # fmt: skip


def make_streams(expert: Request, stream: Stream) -> tuple[Request, ...]:
    """Return the expert, with its part of the group's description, and its amateurs.

    Args:
        expert: The client's request.
        stream: Its streams, as admission described them, with the group's id.
    """
    args = expert.sampling_params.extra_args
    features = _take_features(expert, stream)
    # Workers need no more than the settings and the weights.
    weights = tuple(AmateurStream(amateur.weight) for amateur in stream.amateurs)
    of_workers = structs.replace(stream, amateurs=weights, method="")
    of_expert: SamplingParams = copy.copy(expert.sampling_params)
    of_expert.extra_args = structs.replace(of_workers, index=0).to_extra_args(args)
    expert.sampling_params = of_expert
    amateurs = []
    for index, amateur in enumerate(stream.amateurs, 1):
        params = _amateur_params(of_expert)
        params.extra_args = structs.replace(of_workers, index=index).to_extra_args(args)
        transfer = params.extra_args.pop("kv_transfer_params", None)
        if (transfer := transfer_params.of_amateur(transfer, index - 1)) is not None:
            params.extra_args["kv_transfer_params"] = transfer
        amateurs.append(_make_amateur(expert, amateur, index, params, features[index - 1]))
    return expert, *amateurs


def _take_features(expert: Request, stream: Stream) -> list[list[Any]]:
    """Take the amateurs' media, which came after the expert's, from it; return each one's."""
    num_own = len(expert.mm_features) - sum(a.num_features for a in stream.amateurs)
    features = iter(expert.mm_features[num_own:])
    # Workers in this process put data into them: no two streams share one.
    expert.mm_features = [replace(feature) for feature in expert.mm_features[:num_own]]
    end, taken = expert.num_prompt_tokens, []
    for amateur in stream.amateurs:
        mine = []
        for _ in range(amateur.num_features):
            feature = next(features)
            place = feature.mm_position
            place = replace(place, offset=place.offset - end)
            mine.append(replace(feature, mm_position=place))
        taken.append(mine)
        end += len(amateur.prompt or ())
    return taken


def _amateur_params(of_expert: SamplingParams) -> SamplingParams:
    params: SamplingParams = copy.copy(of_expert)
    defaults = SamplingParams()
    for name in _EXPERTS_ALONE:
        if hasattr(params, name):  # some came later than 0.23
            setattr(params, name, getattr(defaults, name))
    if of_expert.prompt_logprobs is not None and hasattr(params, "skip_reading_prefix_cache"):
        params.skip_reading_prefix_cache = False  # that is for the expert's prompt logprobs
    return params


def _make_amateur(
    expert: Request,
    amateur: AmateurStream,
    index: int,
    params: SamplingParams,
    features: list[Any],
) -> Request:
    if (ids := amateur.prompt) is None:
        ids = expert.prompt_token_ids
        features = [replace(feature) for feature in expert.mm_features]
    return Request(
        request_id=f"{expert.request_id}-amateur-{index}",
        client_index=expert.client_index,
        prompt_token_ids=ids,
        mm_features=features,
        sampling_params=params,
        pooling_params=None,
        arrival_time=expert.arrival_time,
        lora_request=LoRARequest(**amateur.adapter) if amateur.adapter else None,
        cache_salt=expert.cache_salt,
        priority=expert.priority,
        block_hasher=expert._block_hasher,
    )
