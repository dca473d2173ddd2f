# SPDX-License-Identifier: Apache-2.0
"""Pictures of files: what is read, what is sent of them, and what is shown."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vllm_cold.settings.sources import Messages
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import endpoint
from vllm_cold.tools.pictures import (
    make_picture,
    read_picture,
    text_of,
    without_data,
)

pytestmark = pytest.mark.unit


def pixels(size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    shape = (size[1], size[0], len(mode))
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)


def file(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    kept = io.BytesIO()
    image.save(kept, kind, **how)
    return kept.getvalue()


def test_a_file_is_sent_as_it_is() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        picture = make_picture("a", file(pixels(), kind))
        assert picture.url.startswith(f"data:image/{kind.lower()};base64,")
        assert base64.b64decode(picture.url.partition(";base64,")[2]) == picture.data
        assert str(picture) == "a, 8 × 6"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    assert make_picture("a", file(pixels(), exif=exif)).size == (6, 8)


def test_only_pictures_of_messages_change() -> None:
    picture = make_picture("a", file(pixels()))
    other = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    text = {"type": "text", "text": "w"}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image_url", "image_url": picture}, other, text]},
        {"role": "assistant", "content": None},
    ]
    sent_ = {"type": "image_url", "image_url": {"url": picture.url}}
    asks = {"role": "user", "content": [sent_, other, text]}
    assert endpoint(Messages(messages))[1] == {"messages": [messages[0], asks, messages[2]]}


def test_no_data_is_shown() -> None:
    picture = make_picture("a.png", file(pixels()))
    for part, said in (
        ({"type": "image_url", "image_url": picture}, "[image a.png, 8 × 6]"),
        (
            {"type": "image_url", "image_url": {"url": picture.url}},
            "[image data:image/png;base64,...]",
        ),
        ({"type": "image_url", "image_url": {"url": "https://x/y"}}, "[image https://x/y]"),
        ({"type": "input_audio", "input_audio": {"data": "UklGR"}}, "[input_audio]"),
    ):
        message = {"role": "user", "content": [part, {"type": "text", "text": "Why?"}]}
        assert text_of(message) == f"{said}\nWhy?"
    said = without_data(f"cold_amateur_messages='{picture.url}': and {picture.url}")
    assert said == (
        "cold_amateur_messages='data:image/png;base64,...': and data:image/png;base64,..."
    )
    assert "iVBOR" not in repr(picture)


def test_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^--image=x: cannot be read \(No such file"):
        read_picture(tmp_path / "x", "--image=x")
    with pytest.raises(ToolError, match="^--image=.: cannot be read .Is a directory"):
        read_picture(tmp_path, "--image=.")
    for data in (b"", b"GIF89a", b"<svg/>", file(pixels())[:60]):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ToolError, match="^--image=x: is no readable picture; use PNG"):
            read_picture(tmp_path / "x", "--image=x")
    with pytest.raises(ValueError, match="is a picture of type image/tiff; use PNG"):
        make_picture("x", file(pixels(), "TIFF"))
