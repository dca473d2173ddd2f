# SPDX-License-Identifier: Apache-2.0
"""What ``make test`` leaves out, and what a change is counted from."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import __main__ as suite
from tests import changed

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NAMES = {part.name for part in changed.PARTS}


def names(*files: str) -> set[str]:
    """The parts that run after a change of these files."""
    return NAMES - {part.name for part in changed.left_out(files)}


def test_what_runs_after_a_change() -> None:
    assert names() == names("SECURITY.md") == set()
    assert names("csrc/ascend/scoring.cpp") >= {"kernels for Ascend on CPU"}
    assert "benchmarks" not in names("csrc/ascend/scoring.cpp")
    assert "vllm-ascend's own classes" in names("vllm_cold/vllm/scheduler/admission.py")
    assert names("tests/unit/test_tune_data.py") == {"tune"}
    assert names("tests/unit/conftest.py") == set()
    assert names("tests/conftest.py") == names("requirements.lock", "README.md") == NAMES
    assert changed.left_out(None) == []  # git cannot say


@pytest.mark.parametrize("part", changed.PARTS, ids=lambda part: part.name)
def test_every_part_has_tests_and_something_that_they_are_about(part: changed.Part) -> None:
    folders = ("tests", "vllm_cold", "docs", "examples", "benchmarks", "csrc", "packaging")
    files = [path for folder in folders for path in (changed.ROOT / folder).rglob("*.*")]
    tests = [path for path in files if changed.is_in(path, [part]) and path.suffix == ".py"]
    assert tests
    names = [path.relative_to(changed.ROOT).as_posix() for path in files if path not in tests]
    assert part not in changed.left_out(names)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two commits on ``main``; nothing of the user's git settings."""
    monkeypatch.setattr(changed, "ROOT", tmp_path)
    monkeypatch.delenv("COLD_TEST_BASE", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b.c")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for name in ("one", "two"):
        commit(tmp_path, name)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, name: str) -> str:
    (folder / name).write_text(name)
    git(folder, "add", name)
    git(folder, "commit", "--quiet", "--message", name)
    return git(folder, "rev-parse", "HEAD")


def test_what_a_change_is_counted_from(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = git(clone, "rev-parse", "HEAD~1"), git(clone, "rev-parse", "HEAD")
    assert changed.base() is None  # on main, of whose last commits any may be new
    git(clone, "checkout", "--quiet", "-b", "work")
    commit(clone, "three")
    (clone / "new").touch()
    assert changed.base() == second  # where the branch began
    assert changed.changed_files(second) == ["three", "new"]
    monkeypatch.setenv("COLD_TEST_BASE", first)
    assert changed.base() == first
    monkeypatch.setenv("COLD_TEST_BASE", "0" * 40)
    assert changed.base() is None
    assert changed.now() == []


def test_a_step_has_each_folder() -> None:
    """Tests of engines and servers are where their step looks for them; in two folders are no
    others.
    """
    marks = {
        path.relative_to(changed.ROOT).as_posix(): set(
            re.findall(
                r"^(?:@|pytestmark = ).*mark\.(engine|server|unit)\b", path.read_text(), re.M
            )
        )
        for path in (changed.ROOT / "tests").rglob("test_*.py")
    }
    for name, found in marks.items():
        if found & {"engine", "server"}:
            assert name.startswith(suite.ENGINES), name
        if name.startswith(suite.ENGINES[:2]):
            assert "unit" not in found, name
