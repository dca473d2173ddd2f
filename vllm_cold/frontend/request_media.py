# SPDX-License-Identifier: Apache-2.0
"""Media of amateurs' prompts: fetched once (``remembering``), sent after their expert's
(``contrast``), split off by the scheduler (``scheduler.amateur_requests``). ``admission`` checks
in them what vLLM checks in a client's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from vllm.config import VllmConfig

from vllm_cold.compat import places, refused_options, versions
from vllm_cold.compat.patching import Original, result_of
from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.images import Distorted
from vllm_cold.settings.sources import CannotLeaveOut

REFUSED = "vllm-cold does not support prompts with media here: "
_OLD = f"vLLM is older than {places.since(places.MEDIA)}; send text only."


def is_old() -> bool:
    """Whether vLLM is older than what is relied on for media."""
    return versions.is_before(places.since(places.MEDIA))


# ---- what is fetched -----------------------------------------------------------------------------

_fetched: ContextVar[dict[Any, Any] | None] = ContextVar("fetched", default=None)


@contextmanager
def remembering(fetched: dict[Any, Any] | None = None) -> Iterator[dict[Any, Any]]:
    """Have vLLM fetch and decode each URL once, however often this is entered with this dict; with
    None, that of the ``remembering`` around this or a new one.
    """
    if fetched is None:
        fetched = {} if (around := _fetched.get()) is None else around
    token = _fetched.set(fetched)
    try:
        yield fetched
    finally:
        _fetched.reset(token)


async def wrap_load_from_url(
    original: Original, self: Any, url: str, media_io: Any, **kwargs: Any
) -> Any:
    """Wrap ``MediaConnector.load_from_url_async`` and ``MediaConnector.load_from_url``."""
    if (fetched := _fetched.get()) is None:
        return await result_of(original(self, url, media_io, **kwargs))
    # What it is decoded with comes from the connector's keywords.
    key = url, type(media_io), repr(self.media_io_kwargs)
    if key not in fetched:
        fetched[key] = await result_of(original(self, url, media_io, **kwargs))
    return fetched[key]


# ---- what prompts have ---------------------------------------------------------------------------


def of_prompt(prompt: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the media of what a renderer made of a prompt, as vLLM's InputProcessor describes
    them.
    """
    if prompt.get("type") != "multimodal":
        return ()
    if is_old():
        raise ValueError(f"{REFUSED}{_OLD}")
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.multimodal.utils import argsort_mm_positions

    positions, hashes, data = prompt["mm_placeholders"], prompt["mm_hashes"], prompt["mm_kwargs"]
    return tuple(
        MultiModalFeatureSpec(
            data=data[modality][i],
            modality=modality,
            # With adapters of encoders it would be another: ``unsupported`` refuses them.
            identifier=hashes[modality][i],
            mm_position=positions[modality][i],
            mm_hash=hashes[modality][i],
        )
        for modality, i in argsort_mm_positions(positions)
    )


def make_readable(messages: Sequence[Any]) -> None:
    """Make lists of messages' contents, which pydantic gives as iterators."""
    for message in messages:
        if isinstance(message, dict) and not isinstance(
            content := message.get("content"), (str, list, type(None))
        ):
            message["content"] = list(content)


def distorted(image: Any, amateur: AmateurSpec, most_megapixels: float) -> Any:
    """Return what an amateur with a ``Distorted`` prompt sees of a decoded image; slow.

    Raises:
        CannotLeaveOut: it is not an image, or one that would keep other clients waiting.
    """
    import numpy as np
    from PIL import Image
    from vllm.multimodal.image import convert_image_mode, normalize_image
    from vllm.multimodal.media import MediaWithBytes

    assert isinstance(amateur.source, Distorted)
    if image is None:
        problem = "an image of the prompt is known by its uuid alone; send the image"
        raise amateur.refused(problem, CannotLeaveOut)
    if isinstance(image, MediaWithBytes):
        image = image.media
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise amateur.refused(
            f"an image of the prompt is a {type(image).__name__}; send it as a PIL image or a URL, "
            "or say what the amateur reads",
            CannotLeaveOut,
        )
    if (megapixels := image.width * image.height / 1e6) > most_megapixels:
        raise amateur.refused(
            f"an image of the prompt has {megapixels:.1f} megapixels, and at most "
            f"{most_megapixels:g} are distorted here; send a smaller one, or start the engine with "
            "a larger max_megapixels (--cold-max-megapixels)",
            CannotLeaveOut,
        )
    # As vLLM reads the expert's: upright, on white.
    return amateur.source(convert_image_mode(normalize_image(image), "RGB"))


# ---- what cannot be ------------------------------------------------------------------------------


@cache
def _changed() -> str | None:
    return places.problem(places.MEDIA)


# The methods of speculation that look up tokens.
_TEXT_DRAFTERS = ("ngram", "ngram_gpu", "suffix")


def unsupported(config: VllmConfig) -> str | None:
    """Say why this engine cannot contrast prompts with media, with the remedy; None if it can."""
    if is_old():
        return _OLD
    if (changed := _changed()) is not None:
        return (
            f"this vLLM has changed where vllm-cold takes part: {changed}. Send text only, or "
            f"install vLLM {versions.RANGE}, or a newer vllm-cold."
        )
    speculative = config.speculative_config
    if (reason := next(refused_options.refused(config, refused_options.MEDIA), None)) is not None:
        return reason
    if speculative is not None and (method := speculative.method) not in _TEXT_DRAFTERS:
        return (
            f"speculative decoding is on ({method}), whose drafter reads the media, too; start the "
            "engine with ngram or without speculative decoding, or send text only."
        )
    return None
