# SPDX-License-Identifier: Apache-2.0
"""Makes .venv, or what of it is out of date: ``make venv``, by Python's own library alone.

The packages of requirements.lock are installed by uv, which takes a third of pip's time, from the
indexes and folders that pip is configured for; by pip, where there is no uv, or it fails. Meanwhile
the kernels compile: they need neither.

.venv/.locked is newer than requirements.lock once its packages are in, .venv/.installed newer than
what the kernels are made of once they are. What was broken off is begun again.
"""

import ast
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
LIBRARY = ROOT / "vllm_cold" / "ops" / "_cpu.so"
VENV = ROOT / ".venv"
PYTHON, UV = VENV / "bin" / "python", VENV / "bin" / "uv"
LOCKED, INSTALLED = VENV / ".locked", VENV / ".installed"
# Is there while packages are written: what it is left with may be half of one.
BEGUN = VENV / ".begun"

# The one place besides pip's own where torch is looked for, and for how many seconds, twice.
PYTORCH = "https://download.pytorch.org/whl/cpu"
PATIENCE = 10
FIRST_IMPORT = (
    "import peft, vllm.entrypoints.openai.api_server, vllm.v1.engine.core, "
    "vllm.v1.worker.cpu_worker"
)
NEXT = "`make venv` goes on from here"

# pip's settings that say nothing about what is installed from where.
IRRELEVANT = {
    "break-system-packages", "cache-dir", "config-file", "debug", "disable-pip-version-check",
    "exists-action", "log", "no-color", "no-compile", "no-input", "no-python-version-warning",
    "no-warn-conflicts", "no-warn-script-location", "prefer-binary", "progress-bar", "quiet",
    "require-virtualenv", "resume-retries", "root-user-action", "use-deprecated", "use-feature",
    "verbose",
}  # fmt: skip


class Failed(Exception):
    """One sentence about what failed, and what to do.

    Args:
        sentence: Follows ``written``.
        written: What the command that failed has written.
    """

    def __init__(self, sentence: str, written: str = "") -> None:
        super().__init__(sentence)
        self.written = written


class Job:
    """A command that runs next to others. What it writes is kept, for where it fails."""

    running: "list[Job]" = []

    def __init__(self, *command: str | Path, environment: dict[str, str] | None = None) -> None:
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 (kept open)
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=variables() if environment is None else environment,
            stdin=subprocess.DEVNULL,
            stdout=self._kept,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        Job.running.append(self)

    @property
    def written(self) -> str:
        """What it has written so far."""
        kept = self._kept.fileno()
        return os.pread(kept, os.fstat(kept).st_size, 0).decode(errors="replace")

    def succeeds(self, progress: Callable[[str], str] | None = None) -> bool:
        """Wait for its end; meanwhile a terminal shows what ``progress`` makes of ``written``."""
        if progress and sys.stdout.isatty():
            while self._process.poll() is None:
                print(f"\r      {progress(self.written)}\x1b[K", end="", flush=True)
                try:
                    self._process.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
            print("\r\x1b[K", end="", flush=True)
        return self._process.wait() == 0

    def yields(self) -> None:
        """It and all that it starts take what others leave of the machine."""
        os.setpriority(os.PRIO_PGRP, self._process.pid, 10)

    def end(self) -> None:
        """End it and all that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)  # pip removes what it has in /tmp
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def variables() -> dict[str, str]:
    """The environment of what is run here.

    PyTorch's index is none of pip's: it would be asked, five times where it is not to be reached,
    for each of the packages that it does not have.
    """
    found = os.environ | {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # Packages are installed uncompiled: most of their modules are never imported. Python compiles
    # what is, once.
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    indexes = found.get("PIP_EXTRA_INDEX_URL", "").split()
    found["PIP_EXTRA_INDEX_URL"] = " ".join(i for i in indexes if i.rstrip("/") != PYTORCH)
    return found


def pip_settings() -> dict[str, list[str]]:
    """pip's configuration, files and environment merged as pip does, values split at blanks."""
    listing = Job(PYTHON, "-m", "pip", "config", "list")
    if not listing.succeeds():
        raise Failed("pip's configuration cannot be read", listing.written)
    sections: dict[str, dict[str, list[str]]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.written.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections and (values := ast.literal_eval(value).split()):
            sections[section][option] = values
    return {k: v for section in sections.values() for k, v in section.items()}


def for_uv(settings: dict[str, list[str]]) -> tuple[dict[str, str], list[str]] | None:
    """The variables and options by which uv, which reads nothing of pip's, does what pip is
    configured for; None where it could do something else.
    """
    made = {k: v for k, v in variables().items() if not k.startswith("UV_") or k == "UV_CACHE_DIR"}
    # As pip does: the best file of all indexes, whichever is named first.
    made |= {"UV_NO_CONFIG": "1", "UV_SYSTEM_CERTS": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    options: list[str] = []
    left = {name: values for name, values in settings.items() if name not in IRRELEVANT}
    for name, variable in (
        ("timeout", "UV_HTTP_TIMEOUT"),
        ("default-timeout", "UV_HTTP_TIMEOUT"),
        ("retries", "UV_HTTP_RETRIES"),
        ("index-url", "UV_DEFAULT_INDEX"),
        ("extra-index-url", "UV_INDEX"),
        ("trusted-host", "UV_INSECURE_HOST"),
        ("constraint", "UV_CONSTRAINT"),
        ("client-cert", "SSL_CLIENT_CERT"),
    ):
        if name in left:
            made[variable] = " ".join(left.pop(name))
    for proxy in left.pop("proxy", []):
        made |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy)
    cert = " ".join(left.pop("cert", []))
    if bundle := cert or made.get("REQUESTS_CA_BUNDLE") or made.get("CURL_CA_BUNDLE"):
        names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
        here, other = reversed(names) if Path(bundle).is_dir() else names
        made[here] = bundle
        made.pop(other, None)
    places = [p if "://" in p else str(Path(p).expanduser()) for p in left.pop("find-links", [])]
    # pip passes over those that are not there, and uv takes a comma for the end of one.
    made["UV_FIND_LINKS"] = ",".join(p for p in places if "://" in p or Path(p).exists())
    if any("," in place for place in places):
        return None
    for name in ("no-index", "no-cache-dir"):
        if (value := left.pop(name, ["no"])[0].lower()) in ("1", "on", "t", "true", "y", "yes"):
            options.append(f"--{name.removesuffix('-dir')}")
        elif value not in ("0", "off", "f", "false", "n", "no"):
            return None
    return None if left else (made, options)


def locked(*names: str) -> list[str]:
    """The lines of requirements.lock for these packages; without names, for all."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return [line for line in lines if not names or re.split("[=<> ]", line)[0] in names]


def environment() -> None:
    """Make .venv with a pip that works, unless it is there."""
    for options in ((), ("--clear",)):
        if pip_works():
            return
        made = Job(sys.executable, "-m", "venv", *options, VENV)
        made.succeeds()
    if not pip_works():
        raise Failed(
            f"{sys.executable} cannot make a virtual environment with pip; on Debian and Ubuntu, "
            "install python3-venv",
            made.written,
        )


def pip_works() -> bool:
    """All of it, as by installing what is there: pip may have been broken off while it was
    replacing itself.
    """
    return PYTHON.exists() and Job(PYTHON, "-m", "pip", "install", "--dry-run", "pip").succeeds()


def pip_install(*more: str, again: bool) -> list[str | Path]:
    """pip's command for packages of requirements.lock."""
    options = ["--no-deps", "--no-compile", "--no-build-isolation", *more]
    return [PYTHON, "-m", "pip", "install", *options, *(["--force-reinstall"] if again else [])]


def install(
    requirements: Sequence[str],
    uv: tuple[dict[str, str], list[str]] | None,
    index: str | None,
    again: bool,
) -> None:
    """By uv, where its settings are given, or by pip.

    Args:
        requirements: All that they need is among them.
        uv: What ``for_uv`` makes, None without uv.
        index: In place of pip's.
        again: Install also what is there.
    """
    if uv is not None:
        made, options = uv
        command = [UV, "pip", "install", "--python", PYTHON, "--no-deps", "--no-build-isolation"]
        command += [*options, *(["--reinstall"] if again else [])]
        command += ["--default-index", index] if index else []
        job = Job(*command, *requirements, environment=made)
        if job.succeeds(progress_of_uv):
            return
        say(f"{job.written.rstrip()}\n      uv failed: see above; now by pip")
    command = pip_install(*(["--index-url", index] if index else []), again=again)
    job = Job(*command, *requirements)
    if not job.succeeds(lambda text: progress_of_pip(text, len(requirements))):
        raise Failed(f"requirements.lock is not installed: see above; {NEXT}", job.written)


def progress_of_uv(written: str) -> str:
    """uv names files of a megabyte and more."""
    if "Prepared " in written:
        return "all are here and go into .venv"
    begun, done = written.count("Downloading "), written.count(" Downloaded ")
    return f"{done} of {begun} large files are here" if begun else "looking for them"


def progress_of_pip(written: str, wanted: int) -> str:
    """pip names every requirement."""
    if "Installing collected packages" in written:
        return "all are here and go into .venv"
    return f"{min(written.count('Collecting '), wanted)} of {wanted}"


def available(requirements: Sequence[str], *options: str) -> list[dict[str, object]] | None:
    """The metadata of what pip would install, without downloading it; None if there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report")
        how = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", report)
        lazily = ("--use-feature", "fast-deps")  # of a file that is far away, the metadata alone
        job = Job(PYTHON, "-m", "pip", "install", *how, *lazily, *options, *requirements)
        if not job.succeeds():
            return None
        return [entry["metadata"] for entry in json.loads(report.read_text())["install"]]


def needs_cuda(metadata: dict[str, object]) -> bool:
    """Or another accelerator: gigabytes, which fail to load with vLLM's build for CPUs."""
    wanted = metadata.get("requires_dist") or []
    _, _, build = str(metadata.get("version", "")).partition("+")
    return build not in ("", "cpu") or any(
        re.match("nvidia|cuda|triton|pytorch-triton|rocm|intel-sycl", each) for each in wanted
    )


def torch_for_cpu(again: bool) -> tuple[list[str], str | None]:
    """The requirements by which torch and torchvision come as builds for CPUs, and the index to
    take them from, None for pip's own.

    On x86-64 PyPI has those for CUDA, under the same version.
    """
    plain = locked("torch", "torchvision")
    cpu = [f"{line}+cpu" for line in plain]
    packages = VENV.glob("lib/python*/site-packages/torch*.dist-info")
    installed = {path.name.removesuffix(".dist-info").replace("-", "==") for path in packages}
    if installed.issuperset(cpu) and not again or available(cpu):
        return cpu, None
    if (found := available(plain)) and not any(needs_cuda(one) for one in found):
        return plain, None
    alone = ("--index-url", PYTORCH, "--timeout", str(PATIENCE), "--retries", "1")
    if available(cpu, *alone):
        return cpu, PYTORCH
    raise Failed(
        f"{' and '.join(cpu)}, PyTorch's builds for CPUs, are neither on pip's indexes nor at "
        f"{PYTORCH}: put their two wheels into a folder and call `PIP_FIND_LINKS=FOLDER make "
        "venv`, or name a mirror, `PIP_EXTRA_INDEX_URL=URL make venv`"
    )


def check_machine() -> None:
    """Refuse before anything is downloaded what would fail minutes later."""
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        raise Failed(
            f"{compiler}, the C++ compiler of this Python, is not installed (on Debian and Ubuntu: "
            "build-essential); another is named by `CC=gcc CXX=g++ make venv`"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise Failed(f"{header} is missing; on Debian and Ubuntu, install python3-dev")


def build() -> Job:
    """Begin to build vllm-cold, editable, with its kernels."""
    LIBRARY.unlink(missing_ok=True)
    how = ("--verbose", "--no-deps", "--no-compile", "--no-build-isolation")
    quiet = variables() | {"PYTHONWARNINGS": "ignore"}
    return Job(PYTHON, "-m", "pip", "install", *how, "--editable", ".", environment=quiet)


def set_up() -> None:
    """All steps."""
    check_machine()
    kernels = None
    if not LOCKED.exists() or LOCKED.stat().st_mtime <= LOCK.stat().st_mtime:
        say("[1/5] virtual environment in .venv")
        environment()
        say("[2/5] packages of requirements.lock (a minute the first time)")
        again = BEGUN.exists()
        BEGUN.touch()
        # pip and setuptools go first: the few packages without a wheel are built by this
        # setuptools, as the kernels are.
        tools = Job(*pip_install(again=again), *locked("pip", "setuptools"))
        if not tools.succeeds():
            raise Failed(f"pip installs nothing: see above; {NEXT}", tools.written)
        kernels = build()
        kernels.yields()
        got = Job(*pip_install("--only-binary=uv", again=again), *locked("uv"))
        uv = for_uv(pip_settings())
        torch, index = torch_for_cpu(again)
        if not got.succeeds() or not Job(UV, "--version").succeeds():
            uv = None
        if index is not None:
            install(torch, uv, index, again)
        rest = set(locked()) - set(locked("pip", "setuptools", "uv", "torch", "torchvision"))
        install([*(torch if index is None else ()), *sorted(rest)], uv, None, again)
        BEGUN.unlink()
        say("[3/5] vllm-cold setup-cpu")
        named = Job(PYTHON, "-m", "vllm_cold.tools.main", "setup-cpu")
        if not named.succeeds():
            raise Failed("vllm-cold setup-cpu failed: see above", named.written)
        say("[4/5] first import of vLLM, which checks the installation")
        # Whoever was asked what there is, another may have installed it.
        asked = "import sys, torch; sys.exit(torch.version.cuda or torch.version.hip)"
        torch_built = Job(PYTHON, "-c", asked)
        if not torch_built.succeeds():
            raise Failed(
                "the torch in .venv is no build for CPUs: see above; remove .venv, and the folder "
                "or index that pip is configured for and that has this torch",
                torch_built.written,
            )
        quiet = variables() | {"VLLM_LOGGING_LEVEL": "ERROR"}
        imported = Job(PYTHON, "-W", "ignore", "-c", FIRST_IMPORT, environment=quiet)
        if not imported.succeeds():
            raise Failed("vLLM cannot be imported: see above", imported.written)
        LOCKED.touch()
    say("[5/5] vllm-cold itself, editable, and its C++ kernels")
    kernels = kernels or build()
    if not kernels.succeeds() or not LIBRARY.exists():
        # Of all that pip and setuptools say, the part of the compiler.
        said = re.search(r"building '.*? failed: [^\n]*", kernels.written, re.S)
        raise Failed(
            f"the C++ kernels were not built: see above; {NEXT}",
            said[0] if said else kernels.written,
        )
    INSTALLED.touch()


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """All steps; returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # told, or its terminal closed
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        set_up()
        return 0
    except Failed as error:
        print(
            *filter(None, [error.written.rstrip()]),
            f"make venv: {error}",
            sep="\n",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\nmake venv: stopped; {NEXT}", file=sys.stderr)
        return 130
    finally:
        for job in Job.running:
            job.end()


if __name__ == "__main__":
    sys.exit(main())
