# SPDX-License-Identifier: Apache-2.0
"""The demo: its questions, and as a person runs it, with real engines."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.demo import __main__ as demo
from examples.demo import bound, questions, speed
from tests.vllm_parser import serve_parser


@pytest.mark.unit
def test_questions() -> None:
    """A text answers its own question, and none about a capital."""
    private, beside = questions.private(), questions.beside()
    assert len({(case.text, case.question) for case in private}) == len(private) == 60
    assert len({case.question for case in beside}) == len(beside) == 60
    assert all(case.right(case.text) and not case.right(case.question) for case in private)
    assert not any(case.right(case.text) for case in beside)
    private[7].cad = private[7].text
    assert questions.example(private) is private[7]
    assert questions.count(private, "cad") == "1 of 60"


@pytest.mark.unit
def test_what_is_counted() -> None:
    assert bound.tells("It is a-b-c 23 45.", "ABC-2345")
    assert not bound.tells("It is ABC-2354.", "ABC-2345")
    assert [speed.common([1, 2, 3], other) for other in ([1, 2, 3], [1, 5, 3])] == [3, 1]


@pytest.mark.unit
def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(demo, "quiet", lambda: None)  # it changes this process's environment
    demo.check_memory(int(demo.NEEDED_GIB * 2**30))
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: SimpleNamespace(available=int(1.26 * 2**30))
    )
    monkeypatch.setattr(demo, "show", lambda *_: pytest.fail("started"))
    assert demo.main() == 2
    assert capsys.readouterr().err.startswith("error: 1.3 GiB of memory are free, and the ")


@pytest.mark.unit
def test_the_three_commands() -> None:
    """A server decodes regularly what does not ask by name."""
    from vllm_cold.compat import patching, places

    patching.install(places.rows(places.START))
    serve, curl, tune = (
        shlex.split(command.replace("\\\n", " ")) for _, command in demo.commands()
    )
    options = serve_parser().parse_args(serve[2:])
    assert (options.served_model_name, options.sampler) == (["base"], None)
    request = json.loads(curl[-1])
    assert request["model"] == "base:cad"
    assert [message["role"] for message in request["messages"]] == ["tool", "user"]
    assert tune[1:3] == ["tune", "cold-example/problems.jsonl"]


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.timeout(900)
def test_what_a_person_sees(tmp_path: Path) -> None:
    """It fits the screen; contrast follows texts more often, whether or not they answer; a regular
    request keeps its tokens, and a limit the secret.
    """
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=tmp_path,
        env={
            **os.environ,
            "COLUMNS": "80",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) <= 45
    binaries = str(Path(sys.executable).parent)
    assert [line for line in lines if len(line) > 80 and binaries not in line] == []
    assert not re.search(r"[Ww]arn|[Dd]eprecat|%\||INFO|[Ee]rror|Traceback", done.stdout)
    shown = " ".join(done.stdout.split())
    gain, harm = re.findall(r"regular (\d+) of 60, cad (\d+) of 60, .*? (\d+) of 60", shown)
    assert int(gain[2]) < int(gain[0]) < int(gain[1]) - 10
    assert int(harm[1]) < int(harm[0]) < int(harm[2])
    told = re.search(r"attempts: regular (\d+), .*? 0\. Of 30 .*? (\d+), bound (\d+)\.", shown)
    assert told is not None and int(told[1]) > 10 and int(told[3]) >= int(told[2]) - 2
    assert f"{speed.TOKENS} of {speed.TOKENS} as in vLLM without the plugin" in shown
    here, there = re.findall(r"tokens a second: (\d+) here, (\d+) without", shown)[0]
    assert int(here) > int(there)
    assert re.search(r"judges: Use .* held-out problems", shown)
