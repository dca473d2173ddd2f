# SPDX-License-Identifier: Apache-2.0
"""Whether a request's streams fit the context and the KV cache, each at its own length."""

from bisect import bisect_right
from collections.abc import Sequence

from vllm.config import VllmConfig

from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import AmateurSpec


def fit(
    config: VllmConfig,
    amateurs: Sequence[AmateurSpec],
    lengths: Sequence[int],
    max_tokens: int,
    unlimited: bool = False,
) -> int:
    """Return how many tokens a request gets, so that all of its streams have room for them.

    Args:
        config: The engine's configuration.
        amateurs: For errors.
        lengths: Of the prompts in tokens, the expert's first.
        max_tokens: What it would get without amateurs. Where the expert has no room for it in the
            context, it is shortened to what all streams have there, as vLLM does.
        unlimited: Whether nobody asked for that number: then it is shortened to what there is room
            for.

    Raises:
        ColdError: there is no room for them; where they may be shortened, not even for one.
    """
    limit: int = config.model_config.max_model_len
    required = 1 if unlimited else max_tokens
    longest = lengths.index(max(lengths))
    if longest:  # vLLM sees to the expert, as for any request
        left = limit - lengths[longest]
        least = 1 if lengths[0] + max_tokens >= limit else required
        if left < least:
            raise amateurs[longest - 1].refused(
                f"the amateur's prompt has {lengths[longest]} tokens, which with max_tokens="
                f"{least} is more than max_model_len={limit}; shorten it or lower max_tokens",
            )
        max_tokens = min(max_tokens, left)
    if (usable := _usable_blocks(config)) is None:
        return max_tokens
    size = config.cache_config.block_size
    size *= config.parallel_config.decode_context_parallel_size
    # A drafter writes so far ahead. Since 0.31.
    lookahead = getattr(config, "num_lookahead_tokens", 0)

    def needed(tokens: int) -> int:
        # Nothing is computed for the last token. Prompts that begin alike may share blocks, but one
        # may be admitted before the other's are there.
        return sum(-(-min(n + tokens - 1 + lookahead, limit) // size) for n in lengths)

    most = bisect_right(range(1, max_tokens + 1), usable, key=needed)
    if most < min(required, max_tokens):
        sizes = ", ".join(map(str, lengths))
        streams = "two" if len(lengths) == 2 else len(lengths)
        raise ColdError(
            "max_tokens",
            required,
            f"with prompts of {sizes} tokens, the {streams} streams of a contrastive request need "
            f"{needed(required)} KV cache blocks of {size} tokens, and the engine has {usable}; "
            "lower max_tokens, shorten the prompt or enlarge the KV cache",
        )
    return most


def _usable_blocks(config: VllmConfig) -> int | None:
    """Return how many of the KV cache's blocks a request can have. None where a stream's blocks do
    not grow with its length, or where it is not known yet: then the scheduler ends a request that
    does not fit with an error. So it does where SSM states, which are not counted here, take what
    is left.
    """
    cache, parallel = config.cache_config, config.parallel_config
    if not cache.num_gpu_blocks or not cache.block_size:
        return None  # not known yet in this process
    # A window in all layers: a stream frees blocks that it has passed. No attention: SSM states.
    if cache.sliding_window or config.model_config.is_attention_free:
        return None
    local = parallel.local_engines_only
    engines = parallel.data_parallel_size_local if local else parallel.data_parallel_size
    num_blocks: int = cache.num_gpu_blocks // engines
    # vLLM keeps one block as the null block, and the watermark's free when an amateur is admitted.
    watermark = getattr(config.scheduler_config, "watermark", 0.0)  # since 0.31
    return num_blocks - 1 - int(watermark * num_blocks)
