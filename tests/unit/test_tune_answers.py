# SPDX-License-Identifier: Apache-2.0
"""Answers are kept as they come, and never mixed with those of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_cold.method.amateurs import Text
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.answers import Answer, open_answers
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit

MADE: dict[str, Any] = {"model": "M", "max_tokens": 8, "stop": ["\n"]}
CHAT = Problem("b", 2, (("user", "b"),), ("x",), args={"cold_without": ("system", 1)})
PROBLEMS = [Problem("a", 1, "a", ("x",)), CHAT]
SETTINGS = [
    None,
    Setting(alpha=0.1, beta=0.5),
    Setting(alpha=0.1, beta="adaptive", rule_parameters='{"beta_max": 2.0}'),
    Setting("cad"),
]


def opened(folder: Path, **changed: Any) -> Any:
    made = {**MADE, **changed}
    return open_answers(str(folder), lambda: made, PROBLEMS)


def fill(folder: Path) -> Path:
    with opened(folder) as answers:
        for number, setting in enumerate(SETTINGS):
            for problem in PROBLEMS:
                answers.add(setting, problem, Answer(f"{problem.id}{number}", "stop"))
        return answers.path  # type: ignore[no-any-return]


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    path = fill(tmp_path)
    with opened(tmp_path) as answers:
        assert len(answers) == 8
        for number, setting in enumerate(SETTINGS):
            for problem in PROBLEMS:
                assert answers[setting, problem.id] == Answer(f"{problem.id}{number}", "stop")
        assert (Setting(alpha=0.1, beta=0.25), "a") not in answers
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head == {"vllm-cold tune": 1, **MADE}
    assert lines[3] == {
        "id": "b", "setting": {"alpha": 0.1, "beta": 0.5}, "text": "b1", "finish": "stop",
        "prompt": [["user", "b"]], "contrast": {"cold_without": ["system", 1]},
    }  # fmt: skip
    assert lines[0]["setting"] == "greedy"


@given(st.text(), st.sampled_from(["\ud800", "\u2028", '"', ""]))
def test_any_text_is_kept(tmp_path_factory: pytest.TempPathFactory, text: str, more: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    with opened(folder) as answers:
        answers.add(None, CHAT, Answer(text + more, "length"))
    with opened(folder) as answers:
        assert answers[None, "b"] == Answer(text + more, "length")


def test_a_line_that_a_kill_cut_off_is_decoded_again(tmp_path: Path) -> None:
    path = fill(tmp_path)
    whole = path.read_bytes()
    for cut in (whole[:-1], whole[:-30], whole[: whole.rindex(b"\n", 0, -1) + 2]):
        path.write_bytes(cut)
        with opened(tmp_path) as answers:
            assert len(answers) == 7
            answers.add(SETTINGS[3], CHAT, Answer("again", "stop"))
        with opened(tmp_path) as answers:
            assert len(answers) == 8 and answers[SETTINGS[3], "b"].text == "again"
    path.write_bytes(whole[:40])  # of the first line
    with opened(tmp_path, max_tokens=9) as answers:
        assert len(answers) == 0


def test_another_run_is_refused_and_said_how_it_differs(tmp_path: Path) -> None:
    path = fill(tmp_path)
    before = path.read_bytes()
    for changed, said in (
        ({"model": "N"}, r"\(model was 'M' and is 'N'\); choose another --output, or remove"),
        ({"max_tokens": 9, "stop": []}, r"\(max_tokens was 8 and is 9\)"),
        ({"files": {}}, r"\(files was None and is {}\)"),
    ):
        with pytest.raises(ToolError, match=said), opened(tmp_path, **changed):
            pass
    assert path.read_bytes() == before


def test_a_problem_that_changed_is_decoded_again_and_no_other(tmp_path: Path) -> None:
    path = fill(tmp_path)
    before = path.read_bytes()
    for changed in (
        Problem("b", 7, "another", ("x",)),
        Problem("b", 7, CHAT.prompt, ("x",), args={"cold_without": 1}),
    ):
        with open_answers(str(tmp_path), lambda: MADE, [PROBLEMS[0], changed]) as answers:
            assert {problem for _, problem in answers} == {"a"}
    # Of a plain prompt it is that which counts, and no contrast.
    better = Setting(plain="a better prompt")
    for number, (reads, args) in enumerate([("x", {}), ("x", {"cold_without": 1}), ("y", {})]):
        one = Problem("p", 9, "p", ("x",), args=args, plain={str(better): Text(reads)})
        with open_answers(str(tmp_path), lambda: MADE, [one]) as answers:
            assert len(answers) == (number == 1)
            if not answers:
                answers.add(better, one, Answer("short", "stop"))
    path.write_bytes(before)
    # Fewer problems and another reference answer are nothing new.
    with open_answers(str(tmp_path), lambda: MADE, [Problem("a", 1, "a", ("y",))]) as answers:
        assert len(answers) == 4
        assert path.read_bytes() == before
    with open_answers(str(tmp_path), lambda: MADE, [changed]) as answers:
        answers.add(None, changed, Answer("again", "stop"))
        assert dict(answers) == {(None, "b"): Answer("again", "stop")}
    # What was there of other problems stays.
    with opened(tmp_path) as answers:
        assert len(answers) == 8


def test_files_that_are_not_ours_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "somebody else\'s"}\n')
    said = "was not written by this version of vllm-cold tune"
    with pytest.raises(ToolError, match=said), opened(tmp_path):
        pass
    path.unlink()
    fill(tmp_path)
    lines = path.read_bytes().split(b"\n")
    bad = (b"", b"{", b"[]", b'{"id": "a"}', lines[3].replace(b"0.1", b'"x"', 1))
    for line in bad:
        path.write_bytes(b"\n".join([*lines[:4], line, *lines[4:]]))
        said = r"answers.jsonl:5: damaged \(.*; remove that line"
        with pytest.raises(ToolError, match=said), opened(tmp_path):
            pass
    path.write_bytes(b"\n".join([lines[0][:-1], *lines[1:]]))
    with pytest.raises(ToolError, match="answers.jsonl:1: damaged"), opened(tmp_path):
        pass


def test_no_second_process_writes_there(tmp_path: Path) -> None:
    with opened(tmp_path):
        said = "cannot be locked: another vllm-cold tune is writing there"
        with pytest.raises(ToolError, match=said), opened(tmp_path):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolError, match="--output=.*cannot be written"), opened(tmp_path / "file"):
        pass


def test_a_full_disk_is_said_with_what_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as answers:
        answers.add(None, CHAT, Answer("kept", "stop"))
        answers._file.close()
        answers._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        with pytest.raises(ToolError, match="No space left on device; 1 answers are kept there"):
            answers.add(None, PROBLEMS[0], Answer("lost", "stop"))
        answers._file.close()
