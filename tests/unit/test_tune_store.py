# SPDX-License-Identifier: Apache-2.0
"""Results survive a crash at any byte, and are not mixed with those of another run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.store import (
    Output,
    cached_commit,
    file_digests,
    file_stamps,
    open_store,
    write_atomically,
)

pytestmark = pytest.mark.unit

FINGERPRINT: dict[str, Any] = {"--max-tokens": 8, "problems": "a" * 64, "stop": ["\n"]}
KEYS = [
    (None, "a"),
    (Setting(0.1, 0.5), "a"),
    (Setting(0.05, 1.0), "line-2"),
    (Setting(0.1, "adaptive", 2.0), "a"),
    (Setting(0.1, "adaptive", 1.0), "a"),
]
OUTPUTS = [
    Output("one\nline \u2028 \ud800", 3, "stop"),
    Output("", 0, "length"),
    Output("ä", 1, "stop"),
    Output("up to 2", 3, "stop"),
    Output("up to 1", 3, "stop"),
]


def fill(folder: Path) -> Path:
    with open_store(str(folder), FINGERPRINT) as store:
        assert store.found == 0
        for (setting, problem), output in zip(KEYS, OUTPUTS, strict=True):
            store.add(setting, problem, output)
        store.add_analysis({"match": "exact"})
        store.note_penalties({"repetition_penalty": 1.1})
    return folder / "results.jsonl"


def test_what_is_added_is_found_again(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.outputs == dict(zip(KEYS, OUTPUTS, strict=True))
        assert store.found == len(KEYS)
        assert store.analyses == [{"match": "exact"}]
        assert store.penalties == {"repetition_penalty": 1.1}


def test_a_crash_at_any_byte_loses_the_line_under_way_and_no_other(tmp_path: Path) -> None:
    file = fill(tmp_path)
    whole = file.read_bytes()
    starts = [0] + [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with open_store(str(tmp_path), FINGERPRINT) as store:
            lines = sum(start <= size for start in starts[1:])
            assert len(store.outputs) == min(max(lines - 1, 0), len(KEYS)), size
            store.add(None, "new", Output("new", 1, "stop"))
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
        assert records[0]["kind"] == "run"
        assert records[-1]["text"] == "new"


def test_a_last_line_of_garbage_is_cut_off_and_one_in_the_middle_is_not(tmp_path: Path) -> None:
    file = fill(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0\0\0\0\n")  # as file systems leave it when the power fails
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.found == len(KEYS)
    assert file.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    file.write_bytes(lines[0] + b"garbage\n" + b"".join(lines[1:]))
    with (
        pytest.raises(ToolError, match="line 2: damaged; use --restart"),
        open_store(str(tmp_path), FINGERPRINT),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--max-tokens": 9}, r"\(--max-tokens was 8 and is 9\); choose another --output, or"),
        ({"problems": "b" * 64}, r"\(problems changed\)"),
        ({"stop": []}, r"\(stop changed\)"),
        ({"new": 1, "--max-tokens": 9}, r"--max-tokens was 8 and is 9; new was None and is 1"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = fill(tmp_path)
    whole = file.read_bytes()
    with (
        pytest.raises(ToolError, match=message),
        open_store(str(tmp_path), FINGERPRINT | change),
    ):
        pass
    assert file.read_bytes() == whole
    with open_store(str(tmp_path), FINGERPRINT | change, restart=True) as store:
        assert store.found == 0
    assert len(file.read_bytes().splitlines()) == 1


def test_a_run_without_outputs_binds_nobody(tmp_path: Path) -> None:
    with open_store(str(tmp_path), {"max_num_seqs": 0}) as store:
        store.note_penalties({"repetition_penalty": 1.1})
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert not store.penalties
        store.add(None, "a", OUTPUTS[0])
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.found == 1


@pytest.mark.parametrize(
    "text", ['{"score": 1}\n{"score": 2}\n', '{"score": 1}\n', "[]", "\n\n \n", "kind\n"]
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.jsonl").write_text(text)
    for restart in (False, True):
        with (
            pytest.raises(ToolError, match="was not written by vllm-cold tune"),
            open_store(str(tmp_path), FINGERPRINT, restart),
        ):
            pass
    assert (tmp_path / "results.jsonl").read_text() == text


def test_two_processes_do_not_write_at_once(tmp_path: Path) -> None:
    with (
        open_store(str(tmp_path), FINGERPRINT),
        pytest.raises(ToolError, match="another vllm-cold tune is writing there"),
        open_store(str(tmp_path), FINGERPRINT),
    ):
        pass
    with open_store(str(tmp_path), FINGERPRINT):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(ToolError, match="cannot be locked against a second process: No locks"),
        open_store(str(tmp_path), FINGERPRINT),
    ):
        pass


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
    file = fill(tmp_path)
    whole = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(ToolError, match=r"cannot be written: File too large; 5 outputs are kept"),
        open_store(str(tmp_path), FINGERPRINT) as store,
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, limits[1]))
            store.add(None, "new", Output("new", 1, "stop"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(file.read_bytes()) == len(whole) + 9  # a part of the line
    with open_store(str(tmp_path), FINGERPRINT) as store:
        assert store.found == len(KEYS)
    assert file.read_bytes() == whole


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ToolError, match="--output=.*: cannot be written"),
        open_store(str(tmp_path / "file"), FINGERPRINT),
    ):
        pass


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
