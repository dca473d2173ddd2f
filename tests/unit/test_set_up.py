# SPDX-License-Identifier: Apache-2.0
"""packaging/set_up.py, which ``make venv`` calls: where packages come from, and what a step that
fails leaves behind. Without a network; scripts stand in for commands.
"""

import os
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.test_release import script

pytestmark = pytest.mark.unit


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with this environment's pip, configured by nothing but PIP_*."""
    module = script("set_up", monkeypatch)
    monkeypatch.setattr(module, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(module, "VENV", tmp_path / "venv")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return module


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A wheel of nothing but metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(path, "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


def both(folder: Path, local: str, *requires: str) -> Path:
    """A folder with such builds of torch and torchvision."""
    wheel(folder, "torch", f"2.13.0{local}", *requires)
    wheel(folder, "torchvision", f"0.28.0{local}")
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index on loopback, with what lies in ``served``."""
    served = tmp_path / "served"
    served.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


CPU = ["torch==2.13.0+cpu", "torchvision==0.28.0+cpu"]
PLAIN = ["torch==2.13.0", "torchvision==0.28.0"]


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, set_up: ModuleType, tmp_path: Path) -> Path:
    """pip has a folder of wheels, and no index; PyTorch's refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(set_up, "PYTORCH", f"http://127.0.0.1:{free.getsockname()[1]}/cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "wheels"


def test_torch_comes_from_where_pip_looks(set_up: ModuleType, folders: Path) -> None:
    """A build for CPUs by its version, whatever else there is, or by what it needs."""
    both(folders, "")
    assert set_up.torch_for_cpu(False) == (PLAIN, None)
    both(folders, "+cpu")
    both(folders, "+cu130", "nvidia-cudnn-cu13==9.20.0.48; platform_system == 'Linux'")
    assert set_up.torch_for_cpu(False) == (CPU, None)


def test_a_torch_for_cuda_is_not_taken(set_up: ModuleType, folders: Path) -> None:
    """Then PyTorch's index is asked; here it has none either."""
    both(folders, "", "numpy", "cuda-bindings<14,>=13.0.3; platform_system == 'Linux'")
    started = time.monotonic()
    with pytest.raises(set_up.Failed, match="PIP_FIND_LINKS=FOLDER make venv"):
        set_up.torch_for_cpu(False)
    assert time.monotonic() - started < 20
    for other in ("nvidia-nccl-cu13==2.29", "triton==3.9.0", "intel-sycl-rt==2025.3"):
        assert set_up.needs_cuda({"requires_dist": ["sympy", other]})
    assert not set_up.needs_cuda({})


def test_torch_comes_from_pytorch(
    set_up: ModuleType, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pip's own index has builds for CUDA alone."""
    for name, local, needs in (("pypi", "", ["nvidia-nccl-cu13"]), ("pytorch", "+cpu", [])):
        wheel(tmp_path / "served" / name / "torch", "torch", f"2.13.0{local}", *needs)
        wheel(tmp_path / "served" / name / "torchvision", "torchvision", f"0.28.0{local}")
    monkeypatch.setenv("PIP_INDEX_URL", f"{index}/pypi")
    monkeypatch.setattr(set_up, "PYTORCH", f"{index}/pytorch")
    # As README.md once said: of no use, and of no harm.
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index}/pytorch")
    assert set_up.torch_for_cpu(False) == (CPU, f"{index}/pytorch")


def test_a_torch_that_is_installed_stays(
    set_up: ModuleType, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not looked for: a changed lock needs no index of PyTorch's."""
    packages = set_up.VENV / "lib" / "python3.11" / "site-packages"
    for requirement in CPU:
        (packages / f"{requirement.replace('==', '-')}.dist-info").mkdir(parents=True)
    assert set_up.torch_for_cpu(False) == (CPU, None)
    with pytest.raises(set_up.Failed):
        set_up.torch_for_cpu(True)  # it may be half of it


def test_uv_takes_it(
    set_up: ModuleType, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest of two indexes and a folder, under a constraint, as pip."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("there is no uv here")
    for place, version in (("one/aa", "1.0"), ("two/aa", "1.5"), ("two/aa", "3.0")):
        wheel(tmp_path / "served" / place, "aa", version)
    wheel(tmp_path / "folder", "bb", "2.0+cpu")
    wheel(tmp_path / "served" / "one" / "bb", "bb", "2.0")
    (tmp_path / "constraints").write_text("aa<2\n")
    for name, value in (
        ("INDEX_URL", f"{index}/one"),
        ("EXTRA_INDEX_URL", f"{index}/two"),
        ("FIND_LINKS", tmp_path / "folder"),
        ("CONSTRAINT", tmp_path / "constraints"),
    ):
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    wanted = {"aa": "1.5", "bb": "2.0+cpu"}
    variables, options = set_up.for_uv(set_up.pip_settings())
    command = [uv, "pip", "install", "--dry-run", "--python", sys.executable, "--no-deps"]
    job = set_up.Job(*command, *options, *wanted, environment=variables)
    assert job.succeeds(), job.written
    assert {line for line in job.written.splitlines() if line.startswith(" +")} == {
        f" + {name}=={version}" for name, version in wanted.items()
    }
    by_pip = set_up.available(list(wanted))
    assert {str(one["name"]): one["version"] for one in by_pip} == wanted


# What stands for .venv/bin/python and .venv/bin/uv: it keeps what it was called with, does what the
# test wants of such a call, and as a build makes the library.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
    *"$FAILS"*) echo "the reason"; exit 1;;
    *--editable*) touch "$LIBRARY";;
    *"config list"*) echo "global.index-url='https://index.invalid'";;
esac
"""


@pytest.fixture
def steps(set_up: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script with everything that it calls replaced; returns the record of calls."""
    log, made = tmp_path / "log", tmp_path / "venv" / "bin"
    made.mkdir(parents=True)
    for name in ("python", "uv"):
        (made / name).write_text(STAND_IN)
        (made / name).chmod(0o755)
    lock = tmp_path / "lock"
    lock.write_text(
        "".join(f"{one}\n" for one in ("pip==2", "setuptools==3", "uv==4", *PLAIN, "six==1"))
    )
    for name, path in (
        ("PYTHON", made / "python"),
        ("UV", made / "uv"),
        ("LOCK", lock),
        ("LIBRARY", tmp_path / "library"),
        ("LOCKED", tmp_path / "locked"),
        ("INSTALLED", tmp_path / "installed"),
        ("BEGUN", tmp_path / "begun"),
    ):
        monkeypatch.setattr(set_up, name, path)
    monkeypatch.setattr(set_up, "torch_for_cpu", lambda again: (CPU, None))
    for name, value in (("LOG", log), ("LIBRARY", tmp_path / "library")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("FAILS", "nothing")
    return log


def calls(log: Path) -> list[str]:
    """What was called since the last time this was asked for."""
    found = log.read_text().splitlines()
    log.unlink()
    return found


def test_what_is_done_is_not_done_again(set_up: ModuleType, steps: Path) -> None:
    assert set_up.main() == 0
    (packages,) = (line for line in calls(steps) if line.startswith("uv pip"))
    assert packages.endswith(f"{' '.join(CPU)} six==1") and "--reinstall" not in packages
    assert set_up.main() == 0  # make calls it where a source of the kernels is newer
    (kernels,) = calls(steps)
    assert "--editable ." in kernels
    later = set_up.LOCKED.stat().st_mtime + 1
    os.utime(set_up.LOCK, (later, later))
    assert set_up.main() == 0
    assert any("six==1" in line for line in calls(steps))


def test_without_uv_pip_installs(
    set_up: ModuleType, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "uv==4")  # no index has it
    assert set_up.main() == 0
    found = calls(steps)
    assert not [line for line in found if line.startswith("uv ")]
    assert [line for line in found if line.endswith(f"{' '.join(CPU)} six==1")]


@pytest.mark.parametrize(
    ("fails", "says", "left"),
    [
        ("six==1", "requirements.lock is not installed", {"begun"}),
        ("vllm_cold.tools.main", "vllm-cold setup-cpu failed", set()),
        ("torch.version.cuda", "the torch in .venv is no build for CPUs", set()),
        ("import peft", "vLLM cannot be imported", set()),
        ("--editable", "the C++ kernels were not built", {"locked"}),
    ],
)
def test_a_step_that_fails_is_one_sentence(
    fails: str,
    says: str,
    left: set[str],
    set_up: ModuleType,
    steps: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the next call goes on; what may have been written by halves is written again."""
    with monkeypatch.context() as patched:
        patched.setenv("FAILS", fails)
        assert set_up.main() == 1
    why, sentence = capsys.readouterr().err.splitlines()
    assert why == "the reason" and sentence.startswith(f"make venv: {says}: see above")
    assert {path.name for path in steps.parent.iterdir()} & {"begun", "locked", "installed"} == left
    calls(steps)
    assert set_up.main() == 0
    again = ["--reinstall" in line for line in calls(steps) if "six==1" in line]
    assert again == ([] if "locked" in left else ["begun" in left])


def test_a_machine_without_a_compiler_is_told_at_once(
    set_up: ModuleType,
    steps: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert set_up.main() == 1
    assert "make venv: no-such-compiler, the C++ compiler" in capsys.readouterr().err
    assert not steps.exists()
