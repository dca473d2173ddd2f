# SPDX-License-Identifier: Apache-2.0
"""Which media of a request's streams can be encoded in lockstep."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from vllm_cold.settings.encoder_room import EncoderRoom, num_embeds, why_never

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


def test_the_same_medium_is_encoded_once() -> None:
    assert num_embeds([image("a", 0, 4), image("a", 9, 4), image("b", 4, 3)]) == 7


WHOLE = replace(ROOM, is_whole=True)
LONG = (30, [image("a", 0, 10)])
TOO_LARGE = (
    "has media of 11 embeddings, and the engine encodes 10 at most: send less, or raise "
    "max_num_batched_tokens"
)
TOO_LONG = "has media of 10 tokens.*one stream of it can have 9"


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
        # A medium at the end of any prompt.
        ([TEXT, (10, [image("a", 0, 10)])], ROOM, "a prompt that ends with media.*let text follow"),
        ([TEXT, (11, [image("a", 0, 10)])], ROOM, None),
        # Media that must not be split, with a token of each other stream.
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
