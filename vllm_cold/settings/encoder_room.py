# SPDX-License-Identifier: Apache-2.0
"""Whether the media of a request's streams can ever be encoded in lockstep. Needs no vLLM.

An encoder turns an image, a video or an audio into embeddings, which stay in the encoder's cache
until all of its tokens are computed. A stream that waits for the others stops one token short of
its end. By then it has computed all of its media, unless its prompt ends with one. It would keep
that, and all might wait for room for ever; so text must follow.

Media are vLLM's ``MultiModalFeatureSpec``: each with an identifier, the same for the same
embeddings, and the place of its tokens in a prompt.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EncoderRoom:
    """What an engine can encode.

    Attributes:
        cache: Embeddings that its cache holds.
        budget: Embeddings that one step can encode.
        tokens: Tokens that one step can compute, of all requests, besides drafts.
        chunk: Tokens that one step can compute of one prompt; 0 for no limit.
        is_whole: Whether the tokens of a medium are computed in one step
            (``disable_chunked_mm_input``).
    """

    cache: int
    budget: int
    tokens: int
    chunk: int = 0
    is_whole: bool = False


def overlapping(features: Sequence[Any], start: int, end: int) -> Iterator[Any]:
    """Yield the media with tokens in ``[start, end)``."""
    for feature in features:
        place = feature.mm_position
        if place.offset < end and place.offset + place.length > start:
            yield feature


def num_embeds(features: Iterable[Any]) -> int:
    """Count the embeddings of these media; those of the same identifier are encoded once."""
    return sum({f.identifier: f.mm_position.get_num_embeds() for f in features}.values())


def why_never(streams: Sequence[tuple[int, Sequence[Any]]], room: EncoderRoom) -> str | None:
    """Tell why an engine could never schedule a request's streams in lockstep, for their media.

    Args:
        streams: Of each, the number of its prompt's tokens and its media, with offsets in its own
            prompt.
        room: What the engine can encode.

    Returns:
        What is too much, and the remedy, to stand after "this request ..."; None if it can.
    """
    media = [feature for _, features in streams for feature in features]
    most = min(room.cache, room.budget)
    if (size := max((num_embeds([medium]) for medium in media), default=0)) > most:
        return (
            f"has media of {size} embeddings, and the engine encodes {most} at most: send less, or "
            "raise max_num_batched_tokens"
        )
    # With a token of each other stream that is admitted with it.
    longest = room.tokens - (len(streams) - 1)
    longest = min(longest, room.chunk or longest)
    length = max((medium.mm_position.length for medium in media), default=0)
    if room.is_whole and length > longest:
        return (
            f"has media of {length} tokens, which must be computed in one step, and one stream of "
            f"it can have {longest}: send less, raise max_num_batched_tokens, or leave "
            "disable_chunked_mm_input out"
        )
    for num_tokens, features in streams:
        if any(overlapping(features, num_tokens - 1, num_tokens)):
            return (
                "has a prompt that ends with media, which would be kept while its streams wait for "
                "each other: let text follow them"
            )
    return None


def room_of(vllm_config: Any, cache: int, budget: int | None = None) -> EncoderRoom:
    """Return what an engine can encode.

    Args:
        vllm_config: The engine's.
        cache: Embeddings that the encoder's cache holds (``MultiModalBudget.encoder_cache_size``).
        budget: Embeddings that a step encodes; default: what is known of it without the model.
    """
    config, drafter = vllm_config.scheduler_config, vllm_config.speculative_config
    tokens = getattr(config, "max_num_scheduled_tokens", None) or config.max_num_batched_tokens
    if budget is None:
        budget = config.max_num_encoder_input_tokens
        if cache > config.encoder_cache_size:  # then the largest medium sets both
            budget = max(budget, cache)
    return EncoderRoom(
        cache=cache,
        budget=budget,
        tokens=min(tokens, config.max_num_batched_tokens)
        - getattr(drafter, "num_speculative_tokens", 0),
        chunk=max(config.long_prefill_token_threshold, 0),
        is_whole=config.disable_chunked_mm_input,
    )
