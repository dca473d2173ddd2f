# SPDX-License-Identifier: Apache-2.0
"""Which media of a request's streams can be encoded in step."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from vllm_cold.group.media import EncoderRoom, at_end, num_embeds, why_never

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Place:
    offset: int
    length: int

    def get_num_embeds(self) -> int:
        return self.length


@dataclass(frozen=True)
class Feature:
    identifier: str
    mm_position: Place


def image(name: str, offset: int, length: int) -> Feature:
    return Feature(name, Place(offset, length))


ROOM = EncoderRoom(cache=20, budget=10, tokens=64)
TEXT: tuple[int, list[Any]] = (30, [])


def test_what_a_stream_keeps_at_its_last_token() -> None:
    features = [image("a", 0, 4), image("b", 6, 4)]
    assert at_end(features, 12) == at_end(features, 11) == []
    assert at_end(features, 10) == features[1:]
    # A drafter reads ahead.
    assert at_end(features, 11, lookahead=1) == features[1:]
    assert at_end([image("a", 0, 4), image("b", 9, 1)], 10, lookahead=1) == [image("b", 9, 1)]
    # With a token of output behind it there is nothing to keep.
    assert at_end(features, 11) == []


def test_the_same_medium_is_encoded_once() -> None:
    assert num_embeds([image("a", 0, 4), image("a", 9, 4), image("b", 4, 3)]) == 7


@pytest.mark.parametrize(
    "streams",
    [
        [TEXT, TEXT],
        # Too much for one step or for the cache, and nobody keeps any of it.
        [(30, [image("a", 0, 10)]), (30, [image("b", 0, 10), image("c", 12, 10)])],
        # Two at the ends, which the cache holds, though a step encodes one.
        [(10, [image("a", 0, 10)]), (10, [image("b", 0, 10)])],
        # The same one.
        [(10, [image("a", 0, 10)])] * 3,
        # One stream keeps an image, and beside it each other one fits.
        [(10, [image("a", 0, 10)]), (40, [image("b", 0, 10), image("c", 12, 10)])],
    ],
)
def test_what_can_be_scheduled(streams: list[Any]) -> None:
    assert why_never(streams, ROOM) is None


def test_a_medium_that_is_too_large_of_any_stream() -> None:
    streams = [TEXT, (30, [image("a", 0, 11)])]
    told = why_never(streams, ROOM)
    assert told == (
        "has media of 11 embeddings, and the engine encodes 10 at most: send less, or raise "
        "max_num_batched_tokens"
    )
    assert why_never(streams, replace(ROOM, budget=11)) is None
    assert why_never(streams, replace(ROOM, budget=11, cache=10)) is not None


def test_ends_that_the_cache_does_not_hold() -> None:
    streams = [(10, [image(name, 0, 10)]) for name in "abc"]
    told = why_never(streams, ROOM)
    assert told and "30 embeddings must be kept at once, and the encoder's cache holds 20" in told
    assert "let text follow them in each prompt" in told
    assert why_never(streams[:2], ROOM) is None


def test_an_end_that_leaves_no_room_for_anothers_media() -> None:
    streams = [(10, [image("a", 0, 10)]), (30, [image("b", 0, 10)])]
    assert why_never(streams, ROOM) is None
    assert why_never(streams, replace(ROOM, cache=19)) is not None
    # Its own stream's others are done by then.
    streams = [(30, [image("b", 0, 10), image("a", 20, 10)]), (30, [])]
    assert why_never(streams, replace(ROOM, cache=10)) is None


def test_media_that_must_not_be_split() -> None:
    whole = replace(ROOM, is_whole=True)
    told = why_never([(10, [image("a", 0, 10)]), TEXT], whole)
    assert told and "has a prompt that ends with media" in told and "disable_chunked" in told
    assert why_never([(11, [image("a", 0, 10)]), TEXT], whole) is None
    # Beside a token of each other stream.
    streams = [(30, [image("a", 0, 10)]), TEXT, TEXT]
    assert why_never(streams, replace(whole, tokens=12)) is None
    told = why_never(streams, replace(whole, tokens=11))
    assert told and "has media of 10 tokens" in told and "one stream of it can have 9" in told
    assert why_never(streams, replace(whole, is_whole=False, tokens=11)) is None
    # A step may compute less of one prompt than of all.
    assert why_never(streams, replace(whole, chunk=10)) is None
    told = why_never(streams, replace(whole, chunk=9))
    assert told and "has media of 10 tokens" in told and "one stream of it can have 9" in told
