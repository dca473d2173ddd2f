# SPDX-License-Identifier: Apache-2.0
"""Whether a request's streams fit the context and the KV cache, each at its own length."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm_cold.method.settings import ColdError
from vllm_cold.vllm.frontend.plan import Prepared

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest


def fit(
    config: "VllmConfig",
    prepared: Prepared,
    expert: "LoRARequest | None",
    prompt: Sequence[int],
    max_tokens: int,
) -> int:
    """How many tokens a request gets, all of whose streams must have room for them: no amateur may
    be at the end of the context before its expert is done.

    Args:
        config: The engine's configuration.
        prepared: The amateurs.
        expert: The request's adapter.
        prompt: Its token ids, or as many numbers.
        max_tokens: What it gets without amateurs. Where nobody asked for a number, it is shortened
            to what there is room for; where the expert has no room for it in the context, to what
            all streams have there, as vLLM does.

    Raises:
        ColdError: there is no room for them; where they may be shortened, not even for one.
    """
    assert prepared.plan is not None
    amateurs = prepared.plan.amateurs
    prompts = [prompt, *(prompt if ids is None else ids for ids in prepared.prompts)]
    lengths = list(map(len, prompts))
    limit: int = config.model_config.max_model_len
    asked = 1 if prepared.unlimited else max_tokens
    longest = lengths.index(max(lengths))
    if longest:  # vLLM sees to the expert, as for any request
        left = limit - lengths[longest]
        least = 1 if len(prompt) + max_tokens >= limit else asked
        if left < least:
            raise amateurs[longest - 1].prompt.refused(
                f"the amateur's prompt has {lengths[longest]} tokens, which with max_tokens="
                f"{least} is more than max_model_len={limit}; shorten it or lower max_tokens",
            )
        max_tokens = min(max_tokens, left)
    if (blocks := _blocks(config)) is None:
        return max_tokens
    usable, block_size = blocks
    shared = 0

    def needed(tokens: int) -> int:
        # The last token is sampled, but nothing is computed for it.
        full = (min(length + tokens - 1, limit) for length in lengths)
        return sum(-(-tokens // block_size) for tokens in full) - shared

    if needed(max_tokens) <= usable:
        return max_tokens
    if config.cache_config.enable_prefix_caching:
        adapters = [expert, *(one.adapter for one in amateurs)]
        shared = _shared(config.scheduler_config, adapters, prompts, block_size)
    most = bisect_right(range(1, max_tokens + 1), usable, key=needed)
    if most < min(asked, max_tokens):
        same = len(set(lengths)) == 1
        told = (
            f"the prompt's {lengths[0]}" if same else f"prompts of {', '.join(map(str, lengths))}"
        )
        streams = "two" if len(lengths) == 2 else len(lengths)
        raise ColdError(
            "max_tokens",
            asked,
            f"with {told} tokens, the {streams} streams of a CoLD request need {needed(asked)} "
            f"KV cache blocks of {block_size} tokens, and the engine has {usable}; lower "
            "max_tokens, shorten the prompt or enlarge the KV cache",
        )
    return most


def _blocks(config: "VllmConfig") -> tuple[int, int] | None:
    """How many blocks a request can have, and their tokens; None where that is not known, and the
    scheduler ends a request that does not fit with an error.
    """
    cache = config.cache_config
    num_blocks, block_size = cache.num_gpu_blocks, cache.block_size
    if not num_blocks or not block_size:
        return None  # not known yet in this process
    if cache.sliding_window:
        return None  # in all layers: a stream gives back what its window has left behind
    parallel = config.parallel_config
    block_size *= getattr(parallel, "decode_context_parallel_size", 1)
    local = getattr(parallel, "local_engines_only", False)
    engines = parallel.data_parallel_size_local if local else parallel.data_parallel_size
    num_blocks //= engines
    # vLLM keeps one block as the null block, and the watermark's free when an amateur is admitted.
    watermark = int(getattr(config.scheduler_config, "watermark", 0.0) * num_blocks)
    return num_blocks - 1 - watermark, block_size


def _shared(
    scheduler: Any, adapters: Sequence[Any], prompts: Sequence[Sequence[int]], block_size: int
) -> int:
    """Blocks that streams are sure to find in the prefix cache because another stream has them:
    those of the same adapter whose prompts begin alike. The longest is admitted first.
    """
    seen: set[int] = set()
    shared = 0
    streams = zip(adapters, prompts, strict=True)
    for adapter, prompt in sorted(streams, key=lambda stream: -len(stream[1])):
        key = hash(adapter and adapter.lora_int_id)
        for end in range(block_size, len(prompt) + 1, block_size):
            key = hash((key, tuple(prompt[end - block_size : end])))
            shared += key in seen and end < len(prompt)  # the last token is always computed
            seen.add(key)
    # In several steps a stream may be admitted before the other's blocks are there.
    one_step = sum(map(len, prompts)) - shared * block_size <= scheduler.max_num_batched_tokens
    return shared if one_step and not scheduler.long_prefill_token_threshold else 0
