# SPDX-License-Identifier: Apache-2.0
"""Situations of engines whose model reads images, for the tests and for the mutation table."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.scheduler.harness import Harness, Setup
from tests.scheduler.media import Media
from tests.scheduler.storm import storm, with_images


def image(length: int, kind: int = 1) -> list[int]:
    """An image's tokens; those of the same kind are the same. Kinds that 3 divides have text at
    both ends.
    """
    first = next(t for t in range(3, 1000) if (t % 5, t % 7, t % 9) == (0, length - 1, kind))
    return [first] * length


def text(length: int, first: int = 101) -> list[int]:
    """Tokens of which none begins an image."""
    return [t for t in range(first, first + 2 * length) if t % 5][:length]


def engine(model: Path, media: Media, **rest: Any) -> Harness:
    setup = {"num_blocks": 129, "budget": 64, "max_num_seqs": 8, "media": media} | rest
    return Harness(model, Setup(**setup))


def more_than_a_step_encodes(model: Path) -> None:
    """Expert and amateur have an image each, and a step encodes one: they wait for each other."""
    harness = engine(model, Media(budget=7))
    prompt = text(3) + image(5) + text(3, 200)
    cold = harness.add(prompt, 3, adapter=1, cold=True, noises=[1])
    harness.drain()
    assert harness.first_step[cold] == 2


def cached_images(model: Path) -> None:
    """The amateur's image is in the encoder's cache, and the expert's would push it out."""
    harness = engine(model, Media(cache=12, budget=12), caching=False)
    harness.add(image(6, 2) + text(2), 1)
    _until_idle(harness)
    amateurs = [(0, image(6, 2) + text(4))]
    harness.add(image(7) + text(9), 3, adapter=1, cold=True, amateurs=amateurs)
    harness.drain()
    assert harness.group_preemptions == 0


def cached_expert_beside_images(model: Path) -> None:
    """An expert that lacks its last token alone, and an amateur with more images than a step
    encodes: the expert cannot wait for it but with its prompt computed anew.
    """
    harness = engine(model, Media(budget=7))
    prompt = image(6) + text(2) + image(5, 2) + text(4)
    harness.add(prompt, 1, adapter=1)
    _until_idle(harness)
    before = harness.steps
    cold = harness.add(prompt, 3, adapter=1, cold=True, noises=[1])
    harness.drain()
    assert harness.first_step[cold] - before <= 5


def cached_to_their_ends(model: Path) -> None:
    """Prompts that end with an image and are cached up to the last token: all of these would have
    to be encoded in one step.
    """
    harness = engine(model, Media(budget=7, last=True), block_size=1)
    prompt = text(3) + image(6)
    for noises in ([1, 2], [1, 2]):
        harness.add(prompt, 2, adapter=1, cold=True, amateurs=[(0, None)] * 2, noises=noises)
        _until_idle(harness)
    harness.drain()


def two_that_end_with_images(model: Path) -> None:
    """Two pairs whose prompts end with images, and a cache that holds one pair's: each would keep
    one image and wait for room for the other.
    """
    harness = engine(model, Media(cache=12, budget=6, last=True), long_prefill=6)
    for first in (101, 201):
        prompt = text(3, first) + image(6, first % 9)
        harness.add(prompt, 3, adapter=1, cold=True, noises=[1])
    harness.drain()


def never(model: Path) -> None:
    """A pair that was not refused, whose images the cache never holds at once."""
    harness = engine(model, Media(cache=10, budget=10, last=True))
    request_id = harness.add(image(6), 3, adapter=1, cold=True, noises=[1])
    harness.errors[request_id] = ""
    for _ in range(3):
        harness.step()
    assert (
        "12 embeddings must be kept at once, and the encoder's cache holds 10"
        in (harness.errors[request_id])
    )
    harness.drain()


def forgotten_images(model: Path) -> None:
    """The encoder's cache is reset, as for new weights, while streams wait at their last tokens."""
    harness = engine(model, Media(budget=7, last=True))
    cold = harness.add(text(3) + image(6), 3, adapter=1, cold=True, noises=[1])
    harness.add(text(3, 200), 20)
    streams = harness.sched._groups[cold].streams
    while any(s.num_tokens - s.num_computed_tokens > 1 for s in streams):
        harness.step()
    harness.sched.reset_encoder_cache()
    harness.workers.encoder.held.clear()
    for _ in range(6):
        harness.step()
    assert harness.first_step[cold]
    harness.drain()


def image_that_waits(model: Path) -> None:
    """A leader waits for room for its image; others are admitted meanwhile."""
    harness = engine(model, Media(cache=8, budget=8), long_prefill=2, max_num_seqs=8)
    harness.add(text(12, 300), 1)  # the amateur's prompt is cached
    _until_idle(harness)
    harness.add(image(7) + text(1), 1)  # takes four steps
    amateurs = [(0, text(12, 300))]
    prompt = text(3) + image(7, 2) + text(9, 200)
    harness.add(prompt, 3, adapter=1, cold=True, amateurs=amateurs)
    for _ in range(3):
        harness.step()
    small = harness.add(text(2, 400), 1)
    harness.step()
    assert small in harness.first_step, "it waited for another's image"
    harness.drain()


def storm_of_images(kind: str, seed: int) -> Callable[[Path], None]:
    def run(model: Path) -> None:
        storm(model, seed, 200, with_images(random.Random(seed), kind))

    return run


def storms_of_images(*kinds: str, num: int = 40) -> Callable[[Path], None]:
    def run(model: Path) -> None:
        for seed in range(num):
            for kind in kinds:
                storm_of_images(kind, seed)(model)

    return run


def _until_idle(harness: Harness) -> None:
    while harness.alive():
        harness.step()
