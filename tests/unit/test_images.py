# SPDX-License-Identifier: Apache-2.0
"""What an amateur sees instead of images."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vllm_cold import Blur, Noise
from vllm_cold.errors import ColdError
from vllm_cold.settings.images import read_distorted
from vllm_cold.settings.source_readers import read_images
from vllm_cold.settings.sources import Without

pytestmark = pytest.mark.unit


def picture(seed: int = 0, width: int = 40, height: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


# sqrt_alphas_bar and sqrt(1 - alphas_bar) of VCD's code (vcd_add_noise.py) at some steps:
# betas = sigmoid(linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5, by 40 digits.
VCD = [
    (0, 0.9999888307, 0.004726350553),
    (1, 0.9999775872, 0.006695147964),
    (500, 0.8630171065, 0.5051746965),
    (999, 0.285042443, 0.9585148959),
]


@pytest.mark.parametrize("grey", [128, 166])
@pytest.mark.parametrize(("step", "kept", "noise"), VCD)
def test_noise_is_the_papers(step: int, kept: float, noise: float, grey: int) -> None:
    """Of so much of the picture and of the noise, cut off at the ends, are its pixels."""
    sampled = np.random.default_rng(5).standard_normal(10**6) * noise
    sampled += kept * (grey / 127.5 - 1)
    wanted = np.rint((sampled + 1) * 127.5).clip(0, 255)
    found = np.asarray(Noise(step)(Image.new("RGB", (400, 400), (grey,) * 3)))
    assert found.std() == pytest.approx(wanted.std(), rel=0.01)
    assert abs(found.mean() - wanted.mean()) < 5 * wanted.std() / math.sqrt(found.size)


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
    assert read_images("f", "noise:500") == Noise(500)
    for said in ("noise:0", "noise:7", "noise:999", "blur:12", "blur:0.5"):
        kind, _, number = said.partition(":")
        wanted = Noise(int(number)) if kind == "noise" else Blur(float(number))
        assert read_distorted("f", said) == wanted
        assert str(wanted) == wanted.value == said


@pytest.mark.parametrize(
    "said",
    ["", "noise", "noise:1000", "noise:5.5", "noise:-1", "noise:1e2", "blur:0", "blur:1001",
     "blur:nan", "blur:1:2", "noise:5 ", "Noise:5", "noise:\u0665", "none,none", "os.system"],
)  # fmt: skip
def test_what_is_not_read(said: str) -> None:
    with pytest.raises(ColdError, match="^cold_images=.*must be 'none', 'noise:500' "):
        read_images("cold_images", said)
