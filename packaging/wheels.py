# SPDX-License-Identifier: Apache-2.0
"""The files of a release: ``python packaging/wheels.py [FOLDER]`` (default: dist).

A source distribution of what git knows here, and from it a wheel for each CPU. zig's C++ compiler
(the package ziglang) builds both on any machine, against glibc 2.17 whatever the machine has. The
kernels use no C interface of Python's or torch's, so that is one wheel for all of either.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINES = ("x86_64", "aarch64")
GLIBC = (2, 17)
LIBRARY = "vllm_cold/ops/_cpu.so"


def tracked() -> list[str]:
    """Files of the repository, whether or not they are committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).exists())


def sdist(folder: Path) -> Path:
    """Build the source distribution from a copy that holds nothing else."""
    with tempfile.TemporaryDirectory() as copy:
        for name in tracked():
            target = Path(copy, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
        _build("build_sdist", Path(copy), folder)
    (made,) = folder.glob("*.tar.gz")
    return made


def wheel(source: Path, machine: str, folder: Path) -> Path:
    """Build the wheel for a machine from a source distribution.

    Raises:
        RuntimeError: the library was not built, for which setup.py has a warning alone.
    """
    libc = ".".join(map(str, GLIBC))
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-gnu.{libc}"]
    variables = {
        "CC": shlex.join(compiler),
        "CXX": shlex.join(compiler),
        "LDSHARED": shlex.join([*compiler, "-shared", "-s"]),
        "LDCXXSHARED": shlex.join([*compiler, "-shared", "-s"]),
    }
    platform = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{machine}"
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(source) as archive:
            archive.extractall(unpacked, filter="data")
        (tree,) = Path(unpacked).iterdir()
        _build("build_wheel", tree, folder, "--plat-name", platform, **variables)
    (made,) = folder.glob(f"*{platform}.whl")
    with zipfile.ZipFile(made) as files:
        if LIBRARY not in files.namelist():
            made.unlink()
            raise RuntimeError(f"{LIBRARY} was not built for {machine}; the reason is above")
    return made


def _build(hook: str, tree: Path, folder: Path, *options: str, **variables: str) -> None:
    settings = {"--build-option": list(options)}
    code = f"from setuptools import build_meta as b; b.{hook}({str(folder)!r}, {settings!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=tree, env=os.environ | variables, text=True, capture_output=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}\n{hook} failed")


def main(folder: Path) -> list[Path]:
    """All files, newly made in an empty folder."""
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = sdist(folder)
    return [source, *(wheel(source, machine, folder) for machine in MACHINES)]


if __name__ == "__main__":
    for path in main(Path(sys.argv[1] if sys.argv[1:] else ROOT / "dist")):
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {path}")
