# SPDX-License-Identifier: Apache-2.0
"""What an amateur sees instead of its expert's images. Imports no vLLM.

All of it works on the decoded picture. The code of VCD (arXiv 2311.16922) noises the tensor that
CLIP's preprocessing makes of a picture: resized, and normalized by CLIP's means and deviations. A
model's own preprocessing is not known here, so pixels are scaled to [-1, 1] instead, and clipped to
that range once they are noised. The same number of steps is therefore not the same strength in
both: in a picture that is scaled down afterwards, noise is averaged away.
"""

import hashlib
import re
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from vllm_cold.errors import ColdError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

NUM_STEPS = 1000  # of VCD's diffusion
_ROWS = 128  # of a picture at a time: floats of all of it would take many times its memory
MAX_RADIUS = 1000.0  # beyond any picture's use
ALLOWED = (
    "must be 'none', 'noise:500' (steps of VCD's diffusion, 0 to 999) or 'blur:12' (the radius in "
    "pixels, above 0, at most 1000)"
)


class Distorted(msgspec.Struct, frozen=True):
    """The request's own prompt with other images, each of which is made of one of the expert's."""

    @property
    def value(self) -> str:
        """What clients and errors call it: what ``cold_images`` says."""
        return str(self)

    def __call__(self, image: "Image.Image") -> "Image.Image":
        """Return the picture that is seen instead, RGB."""
        raise NotImplementedError


class Noise(Distorted, frozen=True):
    """Images with VCD's noise (arXiv 2311.16922, equation 2), its forward diffusion with 1000 steps
    of rates from a sigmoid, at a step.

    It is put on the decoded picture, scaled to [-1, 1], and not on the tensor that is made of it
    for the model, as in the paper's code. It depends on the picture and the step alone. So caches
    of prompts and of encoded images recognise the noised picture, and a repeated request gets the
    same tokens.

    Attributes:
        step: 0 to 999. The higher it is, the less is left of the picture. The paper has 500.

    Raises:
        ValueError: names the value and what is allowed.
    """

    step: int = 500

    def __post_init__(self) -> None:
        step = self.step
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < NUM_STEPS:
            raise ColdError("step", step, f"must be an integer from 0 to {NUM_STEPS - 1}")

    def __str__(self) -> str:
        return f"noise:{self.step}"

    def __call__(self, image: "Image.Image") -> "Image.Image":
        """Return the noised picture, RGB."""
        import numpy as np
        from PIL import Image

        pixels = np.array(image.convert("RGB"))
        seed = hashlib.sha256(f"{self.step} {pixels.shape}".encode())
        seed.update(pixels.data)
        generator = np.random.default_rng(np.frombuffer(seed.digest(), np.uint32))
        kept, noise = _amplitudes(self.step)
        half = np.float32(127.5)
        for i in range(0, len(pixels), _ROWS):
            rows = pixels[i : i + _ROWS]
            noised = generator.standard_normal(rows.shape, np.float32)
            noised *= noise
            noised += (rows.astype(np.float32) / half - np.float32(1.0)) * kept
            rows[:] = np.rint((noised + np.float32(1.0)) * half).clip(0, 255)
        return Image.fromarray(pixels)


@cache
def _amplitudes(step: int) -> "tuple[np.float32, np.float32]":
    """Return the factors of picture and noise: sqrt(a) and sqrt(1 - a), a being the product of
    1 - rate up to the step, rate_t = 1e-5 + (5e-3 - 1e-5) sigmoid(x_t) with x_t from -6 to 6 (the
    paper's code).
    """
    import numpy as np

    at = np.linspace(-6.0, 6.0, NUM_STEPS)
    rates = (0.5e-2 - 1e-5) / (1.0 + np.exp(-at)) + 1e-5
    left = np.prod(1.0 - rates[: step + 1])
    return np.float32(np.sqrt(left)), np.float32(np.sqrt(1.0 - left))


class Blur(Distorted, frozen=True):
    """Images with a Gaussian blur.

    Attributes:
        radius: The deviation in pixels of the decoded picture, above 0, at most 1000.

    Raises:
        ValueError: names the value and what is allowed.
    """

    radius: float = 12.0

    def __post_init__(self) -> None:
        radius = self.radius
        is_number = isinstance(radius, (int, float)) and not isinstance(radius, bool)
        if not (is_number and 0 < radius <= MAX_RADIUS):
            raise ColdError("radius", radius, "must be a number above 0, at most 1000")

    def __str__(self) -> str:
        return f"blur:{self.radius:g}"

    def __call__(self, image: "Image.Image") -> "Image.Image":
        """Return the blurred picture, RGB."""
        from PIL import ImageFilter

        return image.convert("RGB").filter(ImageFilter.GaussianBlur(self.radius))


_TEXT = re.compile(r"(noise|blur):(\d{1,9}(?:\.\d{1,9})?)", re.ASCII)


def read_distorted(field: str, text: str) -> Noise | Blur:
    """Read ``cold_images`` if it is not "none"; raises ColdError for anything else."""
    if match := _TEXT.fullmatch(text):
        with suppress(ValueError):  # out of range, or a step that is no integer
            return Noise(int(match[2])) if match[1] == "noise" else Blur(float(match[2]))
    raise ColdError(field, text, ALLOWED)
