# SPDX-License-Identifier: Apache-2.0
"""Results survive a crash at any byte, and are not mixed with those of another run."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.command import write_atomically
from vllm_cold.tools.tune.fingerprint import cached_commit, file_digests, file_stamps
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.store import Output, open_store

pytestmark = pytest.mark.unit

NAME = "results.sqlite"
FINGERPRINT: dict[str, Any] = {"--max-tokens": 8, "problems": "a" * 64, "stop": ["\n"]}
KEYS = [
    (None, "a"),
    (Setting(0.1, 0.5), "a"),
    (Setting(0.05, 1.0), "line-2"),
    (Setting(0.1, "adaptive", 2.0), "a"),
    (Setting(0.1, "adaptive", 1.0), "a"),
    (Setting(0.0, 0.5, preset="dexperts", weights=(1.0, -1.0)), "a"),
]
OUTPUTS = [
    Output("one\nline \u2028 \ud800", 3, "stop"),
    Output("", 0, "length"),
    Output("ä", 1, "stop"),
    Output("up to 2", 3, "stop"),
    Output("up to 1", 3, "stop"),
    Output("two amateurs", 3, "stop"),
]


def fill(folder: Path) -> Path:
    with open_store(str(folder), FINGERPRINT) as store:
        assert store.found == 0
        for (setting, problem), output in zip(KEYS, OUTPUTS, strict=True):
            store.add(setting, problem, output)
        store.add_analysis({"match": "exact"})
        store.note_penalties({"repetition_penalty": 1.1})
    assert os.listdir(folder) == [NAME]
    return folder / NAME


def change(file: Path, statement: str) -> None:
    """Change a results file by hand."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


def refused(folder: Path, message: str, restart: bool = False, **changed: Any) -> None:
    """Check that the results cannot be opened."""
    with (
        pytest.raises(ToolError, match=message),
        open_store(str(folder), FINGERPRINT | changed, restart),
    ):
        pass


def test_what_is_added_is_found_again(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.outputs == dict(zip(KEYS, OUTPUTS, strict=True))
        assert store.found == len(KEYS)
        assert store.analyses == [{"match": "exact"}]
        assert store.penalties == {"repetition_penalty": 1.1}


def test_any_sqlite_can_read_it(tmp_path: Path) -> None:
    query = "SELECT setting, problem, text FROM output WHERE setting != 'null'"
    with contextlib.closing(sqlite3.connect(fill(tmp_path))) as connection:
        rows = connection.execute(query).fetchall()
    assert [row[0] for row in rows] == [
        '{"alpha": 0.1, "beta": 0.5}',
        '{"alpha": 0.05, "beta": 1.0}',
        '{"alpha": 0.1, "beta": "adaptive", "beta_max": 2.0}',
        '{"alpha": 0.1, "beta": "adaptive", "beta_max": 1.0}',
        '{"alpha": 0.0, "beta": 0.5, "preset": "dexperts", "weights": [1.0, -1.0]}',
    ]
    assert rows[1][1:] == ("line-2", "ä")


@pytest.mark.parametrize("synced", [0, 2])
@pytest.mark.parametrize("tail", [b"", bytes(5000), b"garbage\n" * 999])
def test_a_crash_at_any_byte_loses_what_was_under_way_and_no_more(
    tmp_path: Path, synced: int, tail: bytes
) -> None:
    """The journal ends anywhere, or in what file systems leave there when the power fails."""
    with open_store(str(tmp_path), FINGERPRINT) as store:
        for number, (key, output) in enumerate(zip(KEYS, OUTPUTS, strict=True)):
            if number == synced:
                store.sync()
            store.add(*key, output)
        whole = (tmp_path / NAME).read_bytes()
        journal = (tmp_path / f"{NAME}-wal").read_bytes()
    found = []
    for size in [*range(0, len(journal), 1021), len(journal)]:
        (tmp_path / NAME).write_bytes(whole)
        (tmp_path / f"{NAME}-wal").write_bytes(journal[:size] + tail)
        with open_store(str(tmp_path), FINGERPRINT) as store:
            found.append(store.found)
            assert list(store.outputs.items()) == list(zip(KEYS, OUTPUTS, strict=True))[: found[-1]]
            store.add(None, "new", Output("new", 1, "stop"))
        with open_store(str(tmp_path), FINGERPRINT) as store:
            assert store.found == found[-1] + 1
    assert found == sorted(found)
    assert set(found) == set(range(synced, len(KEYS) + 1))


def test_a_killed_process_leaves_all_that_it_added(tmp_path: Path) -> None:
    script = f"""
import os, signal
from tests.unit.test_tune_store import FINGERPRINT, KEYS, OUTPUTS, open_store
with open_store({str(tmp_path)!r}, FINGERPRINT) as store:
    for key, output in zip(KEYS, OUTPUTS):
        store.add(*key, output)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.outputs == dict(zip(KEYS, OUTPUTS, strict=True))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE output SET setting = '[0.1]' WHERE setting = 'null'",
        """UPDATE output SET setting = '{"alpha": 3}' WHERE setting = 'null'""",
        "UPDATE output SET setting = '[0.1' WHERE setting = 'null'",
        "UPDATE note SET value = '[]' WHERE name = 'fingerprint'",
        "UPDATE note SET value = '1' WHERE name = 'analyses'",
        "DELETE FROM note",
    ],
)
def test_what_cannot_be_read_is_damaged(tmp_path: Path, statement: str) -> None:
    change(fill(tmp_path), statement)
    refused(tmp_path, f"{NAME}: damaged; remove it to decode everything again, or choose another")


def test_a_damaged_page_is_noticed(tmp_path: Path) -> None:
    file = fill(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    for restart in (False, True):
        refused(tmp_path, "damaged; remove it", restart)
    file.unlink()
    fill(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--max-tokens": 9}, r"\(--max-tokens was 8 and is 9\); choose another --output, or"),
        ({"problems": "b" * 64}, r"\(problems changed\)"),
        ({"stop": []}, r"\(stop changed\)"),
        ({"new": 1, "--max-tokens": 9}, r"--max-tokens was 8 and is 9; new was None and is 1"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    file = fill(tmp_path)
    whole = file.read_bytes()
    refused(tmp_path, message, **changed)
    assert file.read_bytes() == whole
    with open_store(str(tmp_path), FINGERPRINT | changed, restart=True) as store:
        assert store.found == 0
        assert not store.analyses
        store.add(None, "a", OUTPUTS[1])
    with open_store(str(tmp_path), FINGERPRINT | changed) as store:
        assert store.outputs == {(None, "a"): OUTPUTS[1]}
        assert not store.analyses
        assert not store.penalties


def test_another_version_is_refused(tmp_path: Path) -> None:
    change(fill(tmp_path), "PRAGMA user_version = 99")
    refused(tmp_path, r"\(written by another version of vllm-cold tune\)")
    with open_store(str(tmp_path), FINGERPRINT, restart=True):
        pass
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.found == 0


def test_a_run_without_outputs_binds_nobody(tmp_path: Path) -> None:
    with open_store(str(tmp_path), {"max_num_seqs": 0}) as store:
        store.note_penalties({"repetition_penalty": 1.1})
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert not store.penalties
        store.add(None, "a", OUTPUTS[0])
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.found == 1
        assert not store.penalties


@pytest.mark.parametrize(
    "text", ['{"score": 1}\n{"score": 2}\n', '{"score": 1}\n', "[]", "\n\n \n", "x" * 9999]
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    for restart in (False, True):
        refused(tmp_path, f"{NAME}: was not written by vllm-cold tune; choose another", restart)
    assert (tmp_path / NAME).read_text() == text


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    change(tmp_path / NAME, "CREATE TABLE output (mine)")
    whole = (tmp_path / NAME).read_bytes()
    for restart in (False, True):
        refused(tmp_path, "was not written by vllm-cold tune", restart)
    assert (tmp_path / NAME).read_bytes() == whole


def test_two_processes_do_not_write_at_once(tmp_path: Path) -> None:
    script = f"""
from vllm_cold.tools.tune.store import open_store
with open_store({str(tmp_path)!r}, {FINGERPRINT!r}):
    pass
"""
    second = [sys.executable, "-c", script]
    with open_store(str(tmp_path), FINGERPRINT) as store:
        refused(tmp_path, "another vllm-cold tune is writing there")
        store.add(None, "a", OUTPUTS[0])
        store.sync()
        done = subprocess.run(second, check=False, capture_output=True, text=True)
        assert "another vllm-cold tune is writing there" in done.stderr
        store.add(None, "b", OUTPUTS[0])
    subprocess.run(second, check=True)


@pytest.mark.parametrize("name", ["SQLITE_IOERR_LOCK", "SQLITE_BUSY"])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Locked(sqlite3.Connection):
        def execute(self, *_: Any) -> Any:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = name
            raise error

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Locked))
    refused(tmp_path, "cannot be locked: .* or its file system has no locks; wait for it, or")


def test_two_revisions_of_a_hubs_model_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path)
    for commit in (None, "a" * 40, None, "a" * 40):  # not known before the first download
        with open_store(str(tmp_path), FINGERPRINT) as store:
            store.note_commit(commit)
    with (
        pytest.raises(ToolError, match=r"another run \(the model's commit (was|changed)"),
        open_store(str(tmp_path), FINGERPRINT) as store,
    ):
        assert store.commit == "a" * 40
        store.note_commit("b" * 40)
    with open_store(str(tmp_path), FINGERPRINT, restart=True) as store:
        store.note_commit("b" * 40)


def test_the_commit_is_that_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert cached_commit("org/model", {}) is None
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    (refs / "v2").write_text("b" * 40)
    assert cached_commit("org/model", {"revision": None}) == "a" * 40
    assert cached_commit("org/model", {"revision": "v2"}) == "b" * 40
    assert cached_commit("org/model", {"download_dir": str(tmp_path / "other")}) is None
    assert cached_commit(str(tmp_path), {}) is None  # a folder has stamps


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    fill(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (9, 999, 9999):
        with (
            pytest.raises(
                ToolError, match=r"cannot be written: disk I/O error; \d outputs are kept"
            ),
            open_store(str(tmp_path), FINGERPRINT) as store,
        ):
            assert store.found == len(KEYS)
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
                store.add(None, "new", Output("new" * 9999, 1, "stop"))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.outputs == dict(zip(KEYS, OUTPUTS, strict=True))


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "--output=.*: cannot be written: File exists")
    (tmp_path / "folder" / NAME).mkdir(parents=True)
    refused(tmp_path / "folder", "--output=.*: cannot be written: unable to open database file")


def test_stamps_and_digests_see_a_change(tmp_path: Path) -> None:
    assert file_stamps("org/model-on-a-hub") == "org/model-on-a-hub"
    (tmp_path / "weights").write_bytes(b"1234")
    stamps, digests = file_stamps(str(tmp_path)), file_digests(str(tmp_path))
    assert stamps == file_stamps(str(tmp_path))
    os.utime(tmp_path / "weights", ns=(1, 1))
    assert file_stamps(str(tmp_path)) != stamps
    assert file_digests(str(tmp_path)) == digests
    (tmp_path / "weights").write_bytes(b"1235")
    assert file_digests(str(tmp_path)) != digests


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    target = tmp_path / "report.json"
    write_atomically(target, b"old")

    def fail(self: Path, other: Path) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(Path, "replace", fail)
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.json"]
