# SPDX-License-Identifier: Apache-2.0
"""Builds the native kernels; everything else about the package is in pyproject.toml.

The libraries are loaded by path and use neither Python's nor torch's C interface: one file name and
one wheel serve every Python and torch. Where one cannot be built the package installs without it
(``pip install -v`` shows why), torch operations take their place, and the log says so.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CPU = Extension(
    "vllm_cold.ops._cpu",
    sources=sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")),
    depends=sorted(str(path) for path in Path("csrc/cpu").glob("*.h")),
    language="c++",
    # Instruction sets are chosen at run time, so none is named here. Without contraction every
    # compiler's code gives the same scores, in each form of the op. Nothing of the C++ library is
    # linked: the result needs glibc 2.14 alone.
    extra_compile_args=[
        "-std=c++17", "-O3", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off",
        "-fvisibility=hidden", "-Wall", "-Wextra", "-g0",
    ],
    extra_link_args=["-static-libstdc++", "-static-libgcc", "-Wl,--as-needed"],
    optional=True,
)  # fmt: skip


class BuildKernels(build_ext):
    """The CPU's library, and where CANN is set up the Ascend NPU's."""

    def run(self) -> None:
        # A build that fails must not leave the library of another version behind.
        Path(self.get_ext_fullpath(CPU.name)).unlink(missing_ok=True)
        super().run()
        if os.environ.get("ASCEND_HOME_PATH"):
            self._build_ascend(Path(self.get_ext_fullpath(CPU.name)).resolve().parent)

    def build_extension(self, ext: Extension) -> None:
        """With a compiler for each core: setuptools compiles one file after the other."""
        compile_files = self.compiler.compile

        def compile_all(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile_files([source], **options), sources)
                return [name for names in made for name in names]

        self.compiler.compile = compile_all
        super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's ABI tag: the library is no Python module."""
        return str(Path(*fullname.split("."))) + ".so"

    def _build_ascend(self, folder: Path) -> None:
        (folder / "libvllm_cold_ascend.so").unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as build:
            try:
                for step in (
                    [
                        "-S",
                        "csrc/ascend",
                        "-B",
                        build,
                        f"-DCMAKE_INSTALL_PREFIX={folder}",
                        f"-DPYTHON_EXECUTABLE={sys.executable}",
                    ],
                    ["--build", build, "--parallel"],
                    ["--install", build],
                ):
                    subprocess.run(["cmake", *step], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                logging.warning("vllm-cold: the AscendC kernel was not built: %s", error)


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def long_description() -> str:
    """README.md as an index of packages shows it: links to the release's files, pictures included,
    stand for those to files of the repository.
    """
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    pages = f"{project['urls']['Source']}/blob/v{project['version']}/"
    files = pages.replace("//github.com/", "//raw.githubusercontent.com/").replace("/blob/", "/")

    def absolute(match: re.Match[str]) -> str:
        picture = match["path"].partition("#")[0].endswith((".svg", ".png", ".gif", ".jpg"))
        return match["before"] + (files if picture else pages) + match["path"]

    relative = r"""(?P<before>\]\(|(?:src|srcset|href)=")(?!\w+:|\#)(?P<path>[^)"\s]+)"""
    return re.sub(relative, absolute, Path("README.md").read_text(encoding="utf-8"))


setup(
    ext_modules=[CPU],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
