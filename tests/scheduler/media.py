# SPDX-License-Identifier: Apache-2.0
"""Images in prompts, and the encoder of an engine without a model.

What images a prompt has is a function of its tokens, and what an amateur sees in their place one of
its ``noise`` too; so a client's request says no more than before. The workers' encoder cache holds
what was encoded and not yet freed: a token of an image whose embeddings are not there ends in an
error, as do an input of a request that they do not know, one whose data they were not sent, and
more than the step's budget or the cache can take.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

LONGEST = 7
"""Tokens of an image at most."""
FIRST_SEEN = 1_000_000
"""What stands for an image's embeddings is greater than any token."""


@dataclass(frozen=True)
class Media:
    """An engine whose model reads images.

    Attributes:
        cache: Embeddings that the encoder's cache holds.
        budget: Embeddings that a step encodes.
        one_in: Of so many tokens one begins an image.
        is_whole: Whether an image must not be split.
        regular: Whether regular requests have images, too.
    """

    cache: int = 40
    budget: int = 40
    one_in: int = 5
    is_whole: bool = False
    regular: bool = True

    def features(self, prompt: Sequence[int], noise: int = 0) -> list[MultiModalFeatureSpec]:
        """The images of a prompt."""
        found, at = [], 0
        end = len(prompt) - 1  # the last token is one of text
        while at < end:
            length = 1 + prompt[at] % LONGEST
            if prompt[at] % self.one_in or at + length > end:
                at += 1
                continue
            kind = prompt[at] % 9
            name = f"{kind}-{length}-{noise}"
            place = PlaceholderRange(at, length, _embedded(kind, length))
            data: Any = {"pixels": name}
            found.append(MultiModalFeatureSpec(data, "image", name, place, name))
            at += length
        return found


def _embedded(kind: int, length: int) -> torch.Tensor | None:
    """Some images have tokens of text at both ends."""
    if kind % 3 or length < 3:
        return None
    return torch.tensor([False, *[True] * (length - 2), False])


def seen(prompt: Sequence[int], features: Sequence[MultiModalFeatureSpec]) -> list[int]:
    """What a model reads of a prompt with these images."""
    read = list(prompt)
    for feature in features:
        place = feature.mm_position
        mask = place.is_embed.tolist() if place.is_embed is not None else [True] * place.length
        value = FIRST_SEEN + int.from_bytes(feature.identifier.encode(), "big") % 999_983
        for number, is_embedded in enumerate(mask):
            if is_embedded:
                read[place.offset + number] = value + number
    return read


def random_media(rng: random.Random, **how: Any) -> Media:
    """Any encoder: from one that holds an image to one that holds all."""
    sizes = (LONGEST, 8, 12, 40)
    return replace(Media(rng.choice(sizes), rng.choice(sizes)), **how)


class Encoder:
    """The encoder of one engine's workers.

    Attributes:
        counts: What was encoded, looked up and missed.
    """

    def __init__(self, media: Media) -> None:
        self.media = media
        self.features: dict[str, list[MultiModalFeatureSpec]] = {}
        self.held: dict[str, int] = {}
        self.counts: Counter[str] = Counter()

    def before_step(self, output: Any) -> None:
        """Requests that are new, and what is freed and encoded."""
        for name in output.free_encoder_mm_hashes:
            self.held.pop(name, None)
        for request in output.scheduled_new_reqs:
            self.features[request.req_id] = list(request.mm_features)
        updates: Mapping[str, Mapping[int, Any]] = getattr(output, "encoder_input_updates", {})
        for request_id, changed in updates.items():
            for index, data in changed.items():
                mine = self.features[request_id]
                mine[index] = replace(mine[index], data=data)
        spent = 0
        for request_id, inputs in output.scheduled_encoder_inputs.items():
            assert request_id in output.num_scheduled_tokens, f"{request_id} is not in the step"
            for index in inputs:
                feature = self.features[request_id][index]
                assert feature.data is not None, f"{request_id} was not sent image {index}"
                size = feature.mm_position.get_num_embeds()
                spent += size
                self.held[feature.identifier] = size
                self.counts["encoded"] += 1
        assert spent <= self.media.budget, f"{spent} embeddings in a step"
        assert sum(self.held.values()) <= self.media.cache, "more embeddings than the cache holds"

    def compute(self, request_id: str, start: int, end: int, in_step: bool) -> None:
        """A request computes the tokens from ``start`` to ``end``; ``in_step``: in a group."""
        for index, feature in enumerate(self.features.get(request_id, ())):
            place = feature.mm_position
            if place.offset >= end or place.offset + place.length <= start:
                continue
            within = max(start - place.offset, 0), min(end - place.offset, place.length)
            first, last = place.get_embeds_indices_in_range(*within)
            if first < last:
                self.counts["read"] += 1
                assert feature.identifier in self.held, (
                    f"{request_id} computes image {index}, which is not encoded"
                )
            if within[1] < place.length:
                self.counts["split"] += 1
                assert not (in_step and self.media.is_whole and start <= place.offset), (
                    f"{request_id} computes a part of image {index}"
                )
