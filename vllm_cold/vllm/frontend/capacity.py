# SPDX-License-Identifier: Apache-2.0
"""Whether a request's streams fit the context and the KV cache, each at its own length."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import AmateurSpec
from vllm_cold.vllm.worker.states import has_states

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def most_tokens(config: "ModelConfig") -> int | None:
    """The most tokens that a server gives a request, however many it asks for; None for no such
    number. May read a file.
    """
    if config.generation_config in ("auto", "vllm"):
        most: int | None = config.override_generation_config.get("max_new_tokens")
        return most
    most = config.get_diff_sampling_param().get("max_tokens")
    return most


def fit(
    config: "VllmConfig",
    amateurs: Sequence[AmateurSpec],
    num_prompt_tokens: int,
    max_tokens: int,
    unlimited: bool = False,
) -> int:
    """How many tokens a request gets, all of whose streams must have room for them: no amateur may
    be at the end of the context before its expert is done.

    Args:
        config: The engine's configuration.
        amateurs: With their prompts.
        num_prompt_tokens: The expert's.
        max_tokens: What it gets without amateurs. Where the expert has no room for it in the
            context, it is shortened to what all streams have there, as vLLM does.
        unlimited: Whether nobody asked for that number: then it is shortened to what there is room
            for.

    Raises:
        ColdError: there is no room for them; where they may be shortened, not even for one.
    """
    own = (num_prompt_tokens if a.prompt is None else len(a.prompt) for a in amateurs)
    lengths = [num_prompt_tokens, *own]
    limit: int = config.model_config.max_model_len
    asked = 1 if unlimited else max_tokens
    longest = lengths.index(max(lengths))
    if longest:  # vLLM sees to the expert, as for any request
        left = limit - lengths[longest]
        least = 1 if num_prompt_tokens + max_tokens >= limit else asked
        if left < least:
            raise amateurs[longest - 1].refused(
                f"the amateur's prompt has {lengths[longest]} tokens, which with max_tokens="
                f"{least} is more than max_model_len={limit}; shorten it or lower max_tokens",
            )
        max_tokens = min(max_tokens, left)
    if (cache := _cache(config)) is None:
        return max_tokens
    lookahead = getattr(config, "num_lookahead_tokens", 0)  # a drafter writes so far ahead

    def full(tokens: int) -> Iterator[int]:
        # The last token is sampled, but nothing is computed for it. That prompts which begin alike
        # share blocks is nothing to rely on: one may be admitted before the other's are there.
        return (min(length + tokens - 1 + lookahead, limit) for length in lengths)

    def needed(tokens: int) -> int:
        return sum(map(cache.blocks, full(tokens)))

    most = bisect_right(range(1, max_tokens + 1), cache.usable, key=needed)
    if most < min(asked, max_tokens):
        same = len(set(lengths)) == 1
        told = (
            f"the prompt's {lengths[0]}" if same else f"prompts of {', '.join(map(str, lengths))}"
        )
        streams = "two" if len(lengths) == 2 else len(lengths)
        kept = sum(map(cache.state_blocks, full(asked)))
        states = f" ({kept} of them for states)" if kept else ""
        raise ColdError(
            "max_tokens",
            asked,
            f"with {told} tokens, the {streams} streams of a CoLD request need {needed(asked)} "
            f"KV cache blocks of {cache.block_size} tokens{states}, and the engine has "
            f"{cache.usable}; lower max_tokens, shorten the prompt or enlarge the KV cache",
        )
    return most


class _Cache(NamedTuple):
    """A KV cache as a request sees it.

    Attributes:
        usable: How many blocks a request can have.
        block_size: Their tokens.
        attends: Whether tokens take blocks.
        states: How many blocks the states of a stream take, whatever its length.
        first: Of them, those that a stream within its first block takes at least.
    """

    usable: int
    block_size: int
    attends: bool = True
    states: int = 0
    first: int = 0

    def blocks(self, tokens: int) -> int:
        """How many a stream of so many tokens takes."""
        return self.attends * -(-tokens // self.block_size) + self.state_blocks(tokens)

    def state_blocks(self, tokens: int) -> int:
        """Of these, those for its states."""
        return self.first if tokens <= self.block_size else self.states


def _cache(config: "VllmConfig") -> _Cache | None:
    """What it has; None where that is not known, and the scheduler ends a request that does not fit
    with an error.
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
    num_blocks //= parallel.data_parallel_size_local if local else parallel.data_parallel_size
    # vLLM keeps one block as the null block, and the watermark's free when an amateur is admitted.
    watermark = int(getattr(config.scheduler_config, "watermark", 0.0) * num_blocks)
    found = _Cache(num_blocks - 1 - watermark, block_size)
    return _with_states(found, config, num_blocks) if has_states(config.model_config) else found


def _with_states(cache: _Cache, config: "VllmConfig", num_blocks: int) -> _Cache | None:
    """The same for a model with state-space layers; None where their share is not known.

    vLLM tells front ends how many requests of the greatest length fit, thus how many blocks one
    takes. Attention layers, of which such models have the fewer, are one group of them.
    """
    model = config.model_config
    attends = not getattr(model, "is_attention_free", False)
    concurrency = getattr(config.cache_config, "kv_cache_max_concurrency", None)
    if not concurrency or (attends and getattr(model.hf_text_config, "sliding_window", None)):
        return None
    one = round(num_blocks / concurrency)
    states = one - attends * -(-model.max_model_len // cache.block_size)
    if states < 1:
        return None
    first = states
    if config.cache_config.mamba_cache_mode == "align":
        # Of each, the running one and the one before, and with some kernels one at the prompt's
        # end.
        first = states // (2 if states % 3 else 3)
    return cache._replace(attends=attends, states=states, first=first)
