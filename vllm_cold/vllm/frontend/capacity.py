# SPDX-License-Identifier: Apache-2.0
"""Whether a request's streams fit the context and the KV cache, each at its own length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm_cold.method.settings import ColdError
from vllm_cold.vllm.frontend.plan import Prepared

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def lengths_of(prepared: Prepared, expert: int) -> list[int]:
    """Of the streams' prompts."""
    return [expert, *(expert if ids is None else len(ids) for ids in prepared.prompts)]


def fit_context(
    config: "VllmConfig", sampling: Any, prepared: Prepared, lengths: Sequence[int]
) -> None:
    """An amateur must not be at the end of the context before its expert is done.

    Raises:
        ColdError: one would be.
    """
    assert prepared.plan is not None
    if max(lengths) == lengths[0]:
        return  # vLLM sees to it, as for any request
    limit = config.model_config.max_model_len
    left = limit - max(lengths)
    if left >= sampling.max_tokens:
        return
    if left > 0 and lengths[0] + sampling.max_tokens >= limit:
        # As many tokens as fit: that is what vLLM makes of a request without a number.
        sampling.max_tokens = left
        sampling.min_tokens = min(sampling.min_tokens, left)
        return
    longest = lengths.index(max(lengths)) - 1
    one = prepared.plan.amateurs[longest]
    raise one.prompt.refused(
        f"the amateur's prompt has {max(lengths)} tokens, which with max_tokens="
        f"{sampling.max_tokens} is more than max_model_len={limit}; shorten it or lower max_tokens",
    )


def check_capacity(config: "VllmConfig", max_tokens: int | None, lengths: Sequence[int]) -> None:
    """Refuse what could never finish: all streams at their full length, in vLLM's blocks.

    Args:
        config: The engine's configuration.
        max_tokens: The request's.
        lengths: Of the streams' prompts.
    """
    cache = config.cache_config
    num_blocks, block_size = cache.num_gpu_blocks, cache.block_size
    if not num_blocks or not block_size:
        return  # not known yet in this process; the scheduler ends such a request with an error
    parallel = config.parallel_config
    block_size *= getattr(parallel, "decode_context_parallel_size", 1)
    local = getattr(parallel, "local_engines_only", False)
    engines = parallel.data_parallel_size_local if local else parallel.data_parallel_size
    num_blocks //= engines
    # vLLM keeps one block as the null block, and the watermark's free when the amateur is admitted.
    watermark = int(getattr(config.scheduler_config, "watermark", 0.0) * num_blocks)
    usable = num_blocks - 1 - watermark
    # The last token is sampled, but nothing is computed for it.
    computed = (max_tokens or 1) - 1
    limit = config.model_config.max_model_len
    needed = sum(-(-min(prompt + computed, limit) // block_size) for prompt in lengths)
    if needed > usable:
        same = len(set(lengths)) == 1
        told = (
            f"the prompt's {lengths[0]}" if same else f"prompts of {', '.join(map(str, lengths))}"
        )
        streams = "two" if len(lengths) == 2 else len(lengths)
        raise ColdError(
            "max_tokens",
            max_tokens,
            f"with {told} tokens, the {streams} streams of a CoLD request need {needed} "
            f"KV cache blocks of {block_size} tokens, and the engine has {usable}; lower "
            "max_tokens, shorten the prompt or enlarge the KV cache",
        )
