# SPDX-License-Identifier: Apache-2.0
"""Which media of a request's streams can be encoded in lockstep."""

import re
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
    # With a token of output after it there is nothing to keep.
    assert at_end(features, 11) == []


def test_the_same_medium_is_encoded_once() -> None:
    assert num_embeds([image("a", 0, 4), image("a", 9, 4), image("b", 4, 3)]) == 7


WHOLE = replace(ROOM, is_whole=True)
# Prompts of ten tokens end with their image; those of thirty do not.
A, B, C = ((10, [image(name, 0, 10)]) for name in "abc")
LONG = (30, [image("a", 0, 10)])
TOO_LARGE = (
    "has media of 11 embeddings, and the engine encodes 10 at most: send less, or raise "
    "max_num_batched_tokens"
)
TOO_LONG = "has media of 10 tokens.*one stream of it can have 9"
TOO_MUCH = "embeddings must be kept at once, and the encoder's cache holds"


@pytest.mark.parametrize(
    ("streams", "room", "told"),
    [
        ([TEXT, TEXT], ROOM, None),
        # Too much for one step or for the cache, and nobody keeps any of it.
        ([LONG, (30, [image("b", 0, 10), image("c", 12, 10)])], ROOM, None),
        # Too large a medium of any stream.
        ([TEXT, (30, [image("a", 0, 11)])], ROOM, TOO_LARGE),
        ([TEXT, (30, [image("a", 0, 11)])], replace(ROOM, budget=11), None),
        ([TEXT, (30, [image("a", 0, 11)])], replace(ROOM, budget=11, cache=10), TOO_LARGE),
        # Images at the ends, which the cache holds, though a step encodes one; or does not.
        ([A, B], ROOM, None),
        ([A, A, A], ROOM, None),
        ([A, B, C], ROOM, f"30 {TOO_MUCH} 20: let text follow them in each prompt"),
        # One stream keeps an image, and next to it each other one fits; or does not.
        ([A, (40, [image("b", 0, 10), image("c", 12, 10)])], ROOM, None),
        ([A, (30, [image("b", 0, 10)])], replace(ROOM, cache=19), f"20 {TOO_MUCH} 19"),
        # Its own stream's others are done by then.
        ([(30, [image("b", 0, 10), image("a", 20, 10)]), TEXT], replace(ROOM, cache=10), None),
        # Media that must not be split.
        ([A, TEXT], WHOLE, "a prompt that ends with media.*or leave disable_chunked_mm_input out"),
        ([(11, [image("a", 0, 10)]), TEXT], WHOLE, None),
        # With a token of each other stream.
        ([LONG, TEXT, TEXT], replace(WHOLE, tokens=12), None),
        ([LONG, TEXT, TEXT], replace(WHOLE, tokens=11), TOO_LONG),
        ([LONG, TEXT, TEXT], replace(ROOM, tokens=11), None),
        # A step may compute less of one prompt than of all.
        ([LONG, TEXT, TEXT], replace(WHOLE, chunk=10), None),
        ([LONG, TEXT, TEXT], replace(WHOLE, chunk=9), TOO_LONG),
    ],
)
def test_what_can_be_scheduled(streams: list[Any], room: EncoderRoom, told: str | None) -> None:
    found = why_never(streams, room)
    assert found is None if told is None else re.search(told, found or "")
