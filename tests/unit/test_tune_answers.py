# SPDX-License-Identifier: Apache-2.0
"""Answers are kept as they come, and never mixed with those of another run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.questions import content
from vllm_cold.settings.amateurs import Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.tune.answers import Job, Output, open_answers
from vllm_cold.tools.tune.grid import GREEDY, Setting
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit

MADE: dict[str, Any] = {"model": "M", "max_tokens": 8, "stop": ["\n"]}
CHAT = Problem("b", 2, content((("user", "b"),)), "x", args={"cold_without": ("system", 1)})
BETTER = Problem("c", 3, Text("c"), "x", args={"cold_without": 1}, baselines={"no text": Text("C")})
JOBS = [
    Job(GREEDY, Problem("a", 1, Text("a"), "x")),
    Job(GREEDY, CHAT),
    Job(Setting(alpha=0.1, beta=0.5), CHAT),
    Job(Setting(alpha=0.1, rule="adaptive", rule_parameters='{"beta_max": 2.0}'), CHAT),
    Job(Setting("cad"), CHAT),
    Job(Setting(baseline="no text"), BETTER),
]


def opened(folder: Path, **changed: Any) -> Any:
    return open_answers(str(folder), MADE | changed)


def fill(folder: Path) -> Path:
    with opened(folder) as answers:
        for number, job in enumerate(JOBS):
            answers.add(job, Output(f'\u2028"{number}', "stop"))
        return answers.path  # type: ignore[no-any-return]


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    path = fill(tmp_path)
    with opened(tmp_path) as answers:
        assert len(answers) == len(JOBS)
        for number, job in enumerate(JOBS):
            found = answers[job.key]
            assert (found.text, found.finish) == (f'\u2028"{number}', "stop")
    head, *lines = map(
        json.loads, path.read_text().splitlines()[:1] + path.read_text().split("\n")[1:-1]
    )
    assert head == {"vllm-cold tune": 3, **MADE}
    assert lines[2] == {
        "id": "b", "setting": {"alpha": 0.1, "beta": 0.5}, "text": '\u2028"2', "finish": "stop",
        "prompt": [{"role": "user", "content": "b"}],
        "args": {"cold_alpha": 0.1, "cold_beta": 0.5, "cold_without": ["system", 1]},
    }  # fmt: skip
    assert lines[0]["setting"] == "greedy"


@pytest.mark.parametrize(
    ("setting", "changed", "found"),
    [
        (JOBS[2].setting, {"id": "other", "line": 7, "answer": "y"}, True),
        (JOBS[2].setting, {"prompt": Text("another")}, False),
        (JOBS[2].setting, {"args": {"cold_without": 1}}, False),
        (Setting(alpha=0.1, beta=0.25), {}, False),
        (GREEDY, {"args": {"cold_without": 1}}, True),
    ],
)
def test_an_answer_is_known_by_what_was_asked(
    tmp_path: Path, setting: Setting, changed: dict[str, Any], found: bool
) -> None:
    fill(tmp_path)
    problem = replace(CHAT, **changed)
    with opened(tmp_path) as answers:
        assert (Job(setting, problem).key in answers) is found
        # A baseline's answer is known by its prompt, whatever the contrast.
        for text, args, known in (("C", {}, True), ("D", {"cold_without": 1}, False)):
            one = Problem("p", 9, Text("c"), "x", args=args, baselines={"no text": Text(text)})
            assert (Job(Setting(baseline="no text"), one).key in answers) is known


def test_a_line_that_a_kill_cut_off_is_decoded_again(tmp_path: Path) -> None:
    path = fill(tmp_path)
    whole = path.read_bytes()
    damaged = whole[: whole.rindex(b"\n", 0, -1)] + b"\n{}\n"
    for cut in (whole[:-30], whole[: whole.rindex(b"\n", 0, -1) + 2], damaged):
        path.write_bytes(cut)
        with opened(tmp_path) as answers:
            assert len(answers) == len(JOBS) - 1 and JOBS[-1].key not in answers
            answers.add(JOBS[-1], Output("again", "stop"))
        with opened(tmp_path) as answers:
            assert len(answers) == len(JOBS) and answers[JOBS[-1].key].text == "again"
    # Without answers nothing is held against another run.
    path.write_bytes(whole[:40])
    with opened(tmp_path, max_tokens=9), opened(tmp_path / "2"):
        assert json.loads(path.read_bytes())["max_tokens"] == 9


def test_another_run_is_refused_and_said_how_it_differs(tmp_path: Path) -> None:
    path = fill(tmp_path)
    before = path.read_bytes()
    said = r"\(model was 'M' and is 'N'\); choose another --output, or remove"
    with pytest.raises(ToolError, match=said), opened(tmp_path, model="N"):
        pass
    assert path.read_bytes() == before
    path.write_text('{"prompt": "somebody else\'s"}\n')
    said = "was not written by this version of vllm-cold tune"
    with pytest.raises(ToolError, match=said), opened(tmp_path):
        pass
    assert "somebody" in path.read_text()


def test_no_second_process_writes_there(tmp_path: Path) -> None:
    for folder, said in (
        (tmp_path, "if another vllm-cold tune is writing there, wait for it"),
        (tmp_path / "answers.jsonl", r"--output=.*: cannot be written \(File exists"),
    ):
        with opened(tmp_path), pytest.raises(ToolError, match=said), opened(folder):
            pass


def test_what_is_not_kept_is_said(tmp_path: Path) -> None:
    with opened(tmp_path) as answers, open("/dev/full", "ab", buffering=0) as full:
        answers.add(JOBS[0], Output("kept", "stop"))
        with pytest.raises(ToolError, match=r"problem 'b' \(line 2\): was ended with 'abort'"):
            answers.add(JOBS[1], Output("not whole", "abort"))
        assert len(answers) == 1
        answers._file = full
        with pytest.raises(ToolError, match="No space left on device; 1 answers are kept there"):
            answers.add(JOBS[1], Output("lost", "stop"))
