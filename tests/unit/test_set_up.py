# SPDX-License-Identifier: Apache-2.0
"""packaging/set_up.py, which ``make venv`` calls: where packages come from, and what a step that
fails leaves behind. Without a network; scripts stand in for commands.
"""

import os
import socket
import sys
import zipfile
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
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
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


def test_a_torch_for_cpus_is_taken_from_where_pip_looks(set_up: ModuleType, folders: Path) -> None:
    """A build for CPUs by its version, whatever else there is, or by what it needs; where there is
    none PyTorch's index is asked, which here has none either.
    """
    needs = "cuda-bindings<14,>=13.0.3; platform_system == 'Linux'"
    both(folders, "", "numpy", needs)
    with pytest.raises(set_up.Failed, match="PIP_FIND_LINKS=FOLDER make venv"):
        set_up.torch_for_cpu(False)
    both(folders, "", "numpy")
    assert set_up.torch_for_cpu(False) == (PLAIN, None)
    both(folders, "+cpu")
    both(folders, "+cu130", "nvidia-cudnn-cu13==9.20.0.48; platform_system == 'Linux'")
    assert set_up.torch_for_cpu(False) == (CPU, None)
    for other in ("nvidia-nccl-cu13==2.29", "triton==3.9.0", "intel-sycl-rt==2025.3"):
        assert set_up.needs_cuda({"requires_dist": ["sympy", other]})


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
    log, programs = tmp_path / "log", tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "uv"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    lock = tmp_path / "lock"
    lock.write_text(
        "".join(f"{pin}\n" for pin in ("pip==2", "setuptools==3", "uv==4", *PLAIN, "six==1"))
    )
    for name, path in (
        ("PYTHON", programs / "python"),
        ("UV", programs / "uv"),
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
    lines = log.read_text().splitlines()
    log.unlink()
    return lines


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
