# SPDX-License-Identifier: Apache-2.0
"""Situations of engines whose model reads images."""

from pathlib import Path
from typing import Any

from tests.scheduler.harness import Harness, Setup
from tests.scheduler.media import Media


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
    harness = engine(model, Media(cache=14, budget=12), caching=False)
    for mine in (image(6, 2), image(5, 4)):
        harness.add(mine + text(2), 1)
        harness.until_idle()
    amateurs = [(0, image(6, 2) + text(4))]
    cold = harness.add(image(7) + text(9), 3, adapter=1, cold=True, amateurs=amateurs)
    before = harness.steps
    harness.drain()
    assert harness.first_step[cold] - before <= 2 and harness.group_preemptions == 0


def cached_expert_beside_images(model: Path) -> None:
    """An expert that lacks its last token alone, and an amateur with more images than a step
    encodes: the expert cannot wait for it but with its prompt computed anew.
    """
    harness = engine(model, Media(budget=7))
    prompt = image(6) + text(2) + image(5, 2) + text(4)
    harness.add(prompt, 1, adapter=1)
    harness.until_idle()
    before = harness.steps
    cold = harness.add(prompt, 3, adapter=1, cold=True, noises=[1])
    harness.drain()
    assert harness.first_step[cold] - before <= 5


def never(model: Path) -> None:
    """A pair that was not refused, with an image that no step can encode."""
    harness = engine(model, Media(cache=10, budget=5))
    request_id = harness.add(image(6) + text(1), 3, adapter=1, cold=True, noises=[1])
    harness.errors[request_id] = ""
    for _ in range(3):
        harness.step()
    assert "has media of 6 embeddings" in harness.errors[request_id]
    harness.drain()


def image_that_waits(model: Path) -> None:
    """An expert waits for room for its image; others are admitted meanwhile."""
    harness = engine(model, Media(cache=8, budget=8), long_prefill=2)
    amateurs = [(0, text(13, 300))]
    harness.add(amateurs[0][1], 1)  # it is cached, so the expert begins alone
    harness.until_idle()
    harness.add(image(7) + text(1), 1)  # takes four steps
    prompt = text(3) + image(7, 2) + text(9, 200)
    harness.add(prompt, 3, adapter=1, cold=True, amateurs=amateurs)
    for _ in range(3):
        harness.step()
    small = harness.add(text(2, 400), 1)
    harness.step()
    assert small in harness.first_step, "it waited for another's image"
    harness.drain()


def tokens_taken_off(model: Path) -> None:
    """A request waits for room for its image; what it was granted meanwhile a pair can have."""
    harness = engine(model, Media(cache=8, budget=8), budget=4, long_prefill=2)
    harness.add(image(7) + text(1), 1)
    harness.add(text(2, 200) + image(7, 2) + text(3), 1)
    cold = harness.add(text(1, 300), 2, adapter=1, cold=True)
    harness.drain()
    assert harness.first_step[cold] == 2


def image_of_two(model: Path) -> None:
    """An image is to be encoded for a pair, and another request counts on that; then the pair
    makes room for it.
    """
    harness = engine(model, Media(), num_blocks=17, long_prefill=8, policy="priority")
    harness.add(text(1, 300), 9)
    cold = harness.add(text(16) + image(6) + text(2), 3, adapter=1, cold=True, priority=2)
    harness.step()
    other = harness.add(text(8, 200) + image(6) + text(2), 3)
    for _ in range(2):
        harness.step()
    assert other in harness.first_step and cold not in harness.first_step
    harness.drain()
    assert harness.group_preemptions


def image_of_two_twice(model: Path) -> None:
    """As before, and the other request's prompt has the image twice, the first time in what the
    prefix cache covers: of that one, workers have no data.
    """
    harness = engine(model, Media(), num_blocks=19, long_prefill=8, policy="priority")
    cached = image(6) + text(10, 250)
    harness.add(cached, 1)
    harness.until_idle()
    harness.forget_images()
    harness.add(text(1, 300), 9)
    cold = harness.add(text(16) + image(6) + text(2), 3, adapter=1, cold=True, priority=2)
    harness.step()
    other = harness.add(cached + text(8, 200) + image(6) + text(2), 3)
    for _ in range(2):
        harness.step()
    assert other in harness.first_step and cold not in harness.first_step
    harness.drain()
    assert harness.group_preemptions


def cached_before_it_was_preempted(model: Path) -> None:
    """Workers are sent a pair whose image the prefix cache covers; then all is computed anew."""
    harness = engine(model, Media())
    prompt = text(2) + image(6) + text(8)
    harness.add(prompt, 1, adapter=1)
    harness.until_idle()
    harness.add(prompt, 5, adapter=1, cold=True, noises=[1])
    harness.step()
    harness.reset(running=True)
    harness.forget_images()
    harness.drain()
