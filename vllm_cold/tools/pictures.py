# SPDX-License-Identifier: Apache-2.0
"""Pictures in prompts: sent as they are, and shown by name wherever something is printed or kept.
Imports no vLLM.
"""

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from vllm_cold.settings.images import Distorted
from vllm_cold.tools.command_error import ToolError

_DATA = re.compile(r"(data:[\w.+-]*/?[\w.+-]*;base64,)[\w+/=-]+")


@dataclass(frozen=True)
class Picture:
    """A picture."""

    name: str = field(compare=False)  # the file's
    data: bytes = field(repr=False)  # the file's
    size: tuple[int, int]  # width and height in pixels
    kind: str  # its media type, such as "image/png"
    seen: Distorted | None = None  # what an amateur sees of it, made by a server; None for the file

    def __str__(self) -> str:
        width, height = self.size
        as_seen = "" if self.seen is None else f", {self.seen}"
        return f"{self.name}, {width} × {height}{as_seen}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256(self.data).hexdigest()

    @property
    def url(self) -> str:
        """The data URL that a request carries."""
        assert self.seen is None
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode()}"


def read_picture(path: Path, where: str) -> Picture:
    """Read a file, which errors call ``where``; ToolError if it is no picture that can be read."""
    try:
        return make_picture(path.name, path.read_bytes())
    except OSError as error:
        raise ToolError(f"{where}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ToolError(f"{where}: {error}") from error


@lru_cache(maxsize=4096)  # many rows ask about one picture, which may change between runs
def make_picture(name: str, data: bytes) -> Picture:
    """Make a picture of a file's bytes; ValueError where these are none."""
    from PIL import Image, ImageOps, UnidentifiedImageError  # comes with vLLM

    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = Image.MIME.get(image.format or "")
            image.load()
            size = ImageOps.exif_transpose(image).size
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("is no readable picture; use PNG, JPEG or WebP") from error
    if kind not in ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"):
        raise ValueError(f"is a picture of type {kind}; use PNG, JPEG or WebP")
    return Picture(name, data, size, kind)


def replace_pictures(
    messages: Sequence[Mapping[str, Any]], change: Callable[[Picture], Any]
) -> list[dict[str, Any]]:
    """Return messages with something else in place of each picture."""

    def changed_part(part: Any) -> Any:
        picture = part.get("image_url")
        return {**part, "image_url": change(picture)} if isinstance(picture, Picture) else part

    return [
        {**message, "content": list(map(changed_part, message["content"]))}
        if isinstance(message.get("content"), list)
        else {**message}
        for message in messages
    ]


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's content as it is shown, with names in place of media."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(map(_shown, content))


def _shown(part: Mapping[str, Any]) -> str:
    kind = str(part.get("type", "text"))
    if kind == "text":
        return str(part["text"])
    what = part.get(kind)
    if isinstance(what, Mapping):
        what = what.get("url")
    name = f" {without_data(str(what))}" if isinstance(what, (Picture, str)) else ""
    return f"[{kind.removesuffix('_url')}{name}]"


def without_data(text: str) -> str:
    """Return a text without the data of data URLs."""
    return _DATA.sub(r"\1...", text)
