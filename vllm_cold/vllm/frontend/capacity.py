# SPDX-License-Identifier: Apache-2.0
"""Whether a request's streams fit the context and the KV cache, each at its own length."""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import AmateurSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class Blocks(NamedTuple):
    """The KV cache's blocks.

    Attributes:
        usable: Blocks that a request can have.
        size: Tokens of a block.
        layers: Blocks that a stream takes for so many tokens: in models with states, layers with
            attention may be in several groups.
        states: Blocks that it takes for the states of one step, however long the stream is.
        kept: Steps whose states it has at once; a stream of fewer blocks has fewer.
    """

    usable: int
    size: int
    layers: int = 1
    states: int = 0
    kept: int = 1

    def of_a_stream(self, num_tokens: int) -> int:
        """How many blocks a stream of this length takes."""
        blocks = -(-num_tokens // self.size)
        return self.layers * blocks + self.states * min(blocks, self.kept)


def fit(
    config: "VllmConfig",
    amateurs: Sequence[AmateurSpec],
    lengths: Sequence[int],
    max_tokens: int,
    unlimited: bool = False,
) -> int:
    """How many tokens a request gets, so that all of its streams have room for them.

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
    asked = 1 if unlimited else max_tokens
    longest = lengths.index(max(lengths))
    if longest:  # vLLM sees to the expert, as for any request
        left = limit - lengths[longest]
        least = 1 if lengths[0] + max_tokens >= limit else asked
        if left < least:
            raise amateurs[longest - 1].refused(
                f"the amateur's prompt has {lengths[longest]} tokens, which with max_tokens="
                f"{least} is more than max_model_len={limit}; shorten it or lower max_tokens",
            )
        max_tokens = min(max_tokens, left)
    if (blocks := _blocks(config)) is None:
        return max_tokens
    lookahead = getattr(config, "num_lookahead_tokens", 0)  # a drafter writes so far ahead

    def needed(tokens: int) -> int:
        # Nothing is computed for the last token. Prompts that begin alike may share blocks, but one
        # may be admitted before the other's are there.
        full = (min(length + tokens - 1 + lookahead, limit) for length in lengths)
        return sum(map(blocks.of_a_stream, full))

    most = bisect_right(range(1, max_tokens + 1), blocks.usable, key=needed)
    if most < min(asked, max_tokens):
        told = ", ".join(map(str, lengths))
        streams = "two" if len(lengths) == 2 else len(lengths)
        states = ", states included" if blocks.states else ""
        raise ColdError(
            "max_tokens",
            asked,
            f"with prompts of {told} tokens, the {streams} streams of a contrastive request need "
            f"{needed(asked)} KV cache blocks of {blocks.size} tokens{states}, and the engine has "
            f"{blocks.usable}; lower max_tokens, shorten the prompt or enlarge the KV cache",
        )
    return most


def _blocks(config: "VllmConfig") -> Blocks | None:
    """None where it is not known: the scheduler ends a request that does not fit with an error.

    With states vLLM says how many of the longest requests the cache holds (since 0.32). The blocks
    of such a request that are not for its tokens are for states; where these are more than one
    group's blocks for all its tokens, they are counted as if they grew with its length, which is
    too few. (Sliding windows of such a model are counted as states.)

    With prefix caching vLLM counts two or three states of each layer's group: this step's, that of
    the step before and, for some layers on GPUs, one at the end of the prompt. Here each is counted
    as one of two, which is never too few, and one for each further step that is under way: while a
    prompt is computed, each step begins a block.
    """
    model, cache = config.model_config, config.cache_config
    num_blocks, block_size = cache.num_gpu_blocks, cache.block_size
    if not num_blocks or not block_size:
        return None  # not known yet in this process
    if cache.sliding_window:
        return None  # in all layers: a stream frees blocks that its window has passed
    parallel = config.parallel_config
    block_size *= getattr(parallel, "decode_context_parallel_size", 1)
    local = getattr(parallel, "local_engines_only", False)
    num_blocks //= parallel.data_parallel_size_local if local else parallel.data_parallel_size
    # vLLM keeps one block as the null block, and the watermark's free when an amateur is admitted.
    watermark = int(getattr(config.scheduler_config, "watermark", 0.0) * num_blocks)
    usable = num_blocks - 1 - watermark
    if not (model.is_hybrid or getattr(model, "is_attention_free", False)):
        return Blocks(usable, block_size)
    if not (longest := getattr(cache, "kv_cache_max_concurrency", None)):
        return None
    # Data-parallel engines may differ by a few blocks: known are their mean and one's ratio, in
    # which the longest request's blocks are still exact. (Mean by ratio is many blocks off.)
    ratio = Fraction(longest).limit_denominator(2 + int(2 * num_blocks / longest))
    request = ratio.denominator * max(1, round(num_blocks / ratio.numerator))
    layers, states = divmod(request, -(-model.max_model_len // block_size))
    if getattr(cache, "mamba_cache_mode", "none") != "align":
        return Blocks(usable, block_size, layers, states)
    steps = getattr(config, "max_concurrent_batches", 1)
    return Blocks(usable, block_size, layers, -(-states // 2), 1 + steps)
