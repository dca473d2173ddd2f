# SPDX-License-Identifier: Apache-2.0
"""What an amateur sees instead of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vllm_cold import Blur, Noise
from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import Distorted, Without, read_images
from vllm_cold.method.images import NUM_STEPS, name_of, read_view

pytestmark = pytest.mark.unit


def picture(seed: int = 0, width: int = 40, height: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def amplitudes(step: int) -> tuple[float, float]:
    """Of the picture and of the noise, by the loop over steps that the paper describes."""
    left = 1.0
    for t in range(step + 1):
        x = -6 + 12 * t / (NUM_STEPS - 1)
        left *= 1 - (1e-5 + (0.5e-2 - 1e-5) / (1 + math.exp(-x)))
    return math.sqrt(left), math.sqrt(1 - left)


def pixels(image: Image.Image) -> Any:
    return np.asarray(image).astype(np.float64) / 127.5 - 1


@pytest.mark.parametrize("step", [0, 500, 999])
def test_noise_is_the_papers(step: int) -> None:
    """Its share grows with the step, and that of the picture falls."""
    kept, noise = amplitudes(step)
    noised = pixels(Noise(step)(Image.new("RGB", (200, 200), (128, 128, 128))))
    # Of a picture of zeros only the noise is left; of noise beyond 1, 1.
    rng = np.random.default_rng(5)
    cut = np.clip(rng.standard_normal(10**6) * noise, -1, 1)
    assert abs(noised.std() - cut.std()) < 0.02 * max(noise, 0.3)
    assert abs(noised.mean()) < 0.02
    light = Image.new("RGB", (200, 200), (166, 166, 166))  # 0.3
    cut = np.clip(rng.standard_normal(10**6) * noise + 0.302 * kept, -1, 1)
    assert abs(pixels(Noise(step)(light)).mean() - cut.mean()) < 0.02


def test_the_steps_of_the_paper() -> None:
    """As its code has them: at 500 a quarter of the energy is noise, at the end almost all."""
    assert [round(amplitudes(step)[1] ** 2, 2) for step in (0, 500, 999)] == [0.0, 0.26, 0.92]


def test_noise_is_the_pictures() -> None:
    """The same picture has the same noise; another one has another."""
    one = Noise(500)(picture(1))
    assert one.mode == "RGB" and one.size == (40, 24)
    assert one.tobytes() == Noise(500)(picture(1)).tobytes()
    others = [Noise(500)(picture(2)), Noise(501)(picture(1)), picture(1)]
    assert len({image.tobytes() for image in (one, *others)}) == 4
    noise, turned = (Noise(300)(Image.new("RGB", size)) for size in ((20, 30), (30, 20)))
    assert noise.tobytes() != turned.tobytes()


def test_other_modes_become_rgb() -> None:
    grey_one = Image.new("L", (8, 8), 100)
    for view in (Noise(10), Blur(1)):
        assert view(grey_one).mode == "RGB"
        assert view(grey_one).tobytes() == view(grey_one.convert("RGB")).tobytes()


def test_blur_is_pils() -> None:
    image = picture()
    wanted = image.filter(ImageFilter.GaussianBlur(2.5))
    assert Blur(2.5)(image).tobytes() == wanted.tobytes() != image.tobytes()


def test_steps_and_radii_that_are_none() -> None:
    for step in (-1, 1000, 500.0, True, None, "500", math.nan):
        with pytest.raises(ValueError, match="^step=.*must be an integer from 0 to 999$"):
            Noise(step)  # type: ignore[arg-type]
    for radius in (0, -1, 1000.1, True, None, "2", math.nan, math.inf):
        with pytest.raises(ValueError, match="^radius=.*must be a number above 0, at most 1000$"):
            Blur(radius)  # type: ignore[arg-type]


def test_what_is_read() -> None:
    assert read_images("f", "none") == Without(("images",))
    assert read_images("f", "noise:500") == Distorted(Noise(500))
    assert read_view("f", "noise:0") == Noise(0) and read_view("f", "noise:999") == Noise(999)
    assert read_view("f", "blur:12") == Blur(12) and read_view("f", "blur:0.5") == Blur(0.5)
    for view in (Noise(7), Blur(2.5), Blur(12)):
        assert read_view("f", name_of(view)) == view

    def darker(image: Image.Image) -> Image.Image:
        return image

    assert name_of(darker) == "images by darker"
    assert str(Distorted(darker)) == "images by darker"


@pytest.mark.parametrize(
    "said",
    ["", "noise", "noise:1000", "noise:5.5", "noise:-1", "noise:1e2", "blur:0", "blur:1001",
     "blur:nan", "blur:1:2", "noise:5 ", "Noise:5", "noise:\u0665", "none,none", "os.system"],
)  # fmt: skip
def test_what_is_not_read(said: str) -> None:
    with pytest.raises(ColdError, match="^cold_images=.*must be 'none', 'noise:500' "):
        read_images("cold_images", said)
