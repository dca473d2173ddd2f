# SPDX-License-Identifier: Apache-2.0
"""What is said of a vLLM that has changed where vllm-cold takes part, before it is supported."""

import os
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.places import NOWHERE, add
from tests.upstream import environments, newest, sdist, versions
from tests.upstream.broken import Row, broken
from tests.upstream.compare import Result
from vllm_cold.compat.patching import Relies

pytestmark = pytest.mark.unit

ROW = Row("worker.x", "in its workers", ("a.B has no c any more", "d is gone"), "x | y", "")


def test_the_installed_vllm_has_broken_nothing() -> None:
    assert broken() == []


def test_a_row_that_broke_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, NOWHERE, Relies("vllm.version:__version__", has="mood"), lost="the mood")
    add(monkeypatch, NOWHERE, Relies("vllm.version:gone"), since="99.0")  # not yet needed
    (row,) = broken()
    assert row.problems == ("vllm.version.__version__ has no mood any more",)
    assert (row.when, row.lost) == (NOWHERE.text, "the mood")
    assert Row.from_json(asdict(row) | {"problems": list(row.problems)}) == row


def test_an_index_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdist, "_pip_settings", dict)
    monkeypatch.setattr(sdist, "NIGHTLY", "http://me:key@127.0.0.1:9/nightly")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    sentence = r"^vllm cannot be had: http://\*\*\*@127.0.0.1:9/nightly: "
    with pytest.raises(SystemExit, match=sentence):
        sdist.fetch_main()


def test_an_issue_has_the_rows_and_the_command() -> None:
    failures = {f"tests/unit/test_{i}.py::test_x": f"assert {i} == 2" for i in range(50)}
    failures |= {f"tests/unit/test_y.py::test_{i}": "d is gone | x" for i in range(2)}
    heading = newest.title("release", "0.99.0")
    text = newest.issue(heading, "release", "0.99.0", [ROW], Result(7, 52, 1), failures)
    assert text.splitlines()[0] == "# vLLM 0.99.0 breaks vllm-cold"
    assert (
        "| `worker.x` | in its workers | a.B has no c any more; d is gone | x \\| y "
        "| contrasts are refused |"
    ) in text
    assert "7 passed, 52 failed, 1 skipped" in text
    shown = [line for line in text.splitlines() if line.startswith("- `tests/")]
    assert shown[0] == "- `tests/unit/test_y.py::test_0` and 1 more: d is gone \\| x"
    assert len(shown) == newest.SHOWN and "- other causes: 1" in text
    assert "`make newest VLLM=0.99.0`" in text
    text = newest.issue(
        newest.title("main", "1.0.dev1"), "main", "1.0.dev1", [], Result(7, 0, 1), {}
    )
    assert text.startswith("# vLLM's main breaks vllm-cold\n\nvLLM 1.0.dev1,")
    assert "All rows" in text and "`make newest VLLM=main`" in text


def test_a_file_that_cannot_be_imported_has_its_path() -> None:
    name = versions._name  # as JUnit's report has it: without a module, or with one
    assert name("", "tests.unit.test_x") == "tests/unit/test_x.py"
    assert name("tests.unit.test_x", "test_y[a.b]") == "tests/unit/test_x.py::test_y[a.b]"


def test_a_wheels_python_part_is_unpacked(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-0.99.0rc1.dev7+g1.cpu-cp38-abi3-manylinux_2_34_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("vllm/__init__.py", "vllm/a/b.py", "vllm/_C.abi3.so", "vllm-1.dist-info/X"):
            archive.writestr(name, "x")
    assert sdist.wheel_version(wheel) == "0.99.0rc1.dev7"
    sdist.unpack_wheel(wheel, tmp_path / "there")
    files = {str(f.relative_to(tmp_path / "there")) for f in (tmp_path / "there").rglob("*.*")}
    assert files == {"__init__.py", os.path.join("a", "b.py")}


@pytest.mark.parametrize("rows", [[], [ROW], None], ids=["holds", "a row", "does not load"])
@pytest.mark.parametrize("failed", [0, 1])
def test_it_fails_if_anything_broke(
    rows: list[Row] | None, failed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def look(python: Path) -> list[Row]:
        if rows is None:
            raise RuntimeError("ImportError: no")
        return rows

    left_out = {}

    def tests(version: str, suite: str, python: Path, without: dict[str, str]) -> object:
        left_out.update(without)
        return Result(9, failed, 0), {"tests/x.py::test": "no"} if failed else {}

    monkeypatch.setattr(sdist, "newest", lambda: "0.99.0")
    monkeypatch.setattr(environments, "python_part", lambda version, wheel: tmp_path / version)
    monkeypatch.setattr(newest, "rows", look)
    monkeypatch.setattr(versions, "tests", tests)
    file = tmp_path / "issue.md"
    broke = rows != [] or failed
    assert newest.main(["--issue", str(file)]) == bool(broke)
    assert file.exists() == bool(broke)
    if rows is None:
        assert "ImportError: no" in file.read_text()
    assert left_out.items() >= versions.EVERYWHERE.items()
