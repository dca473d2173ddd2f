# SPDX-License-Identifier: Apache-2.0
"""The demo: its documents, and as a person runs it, with a real engine."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.accuracy.problem import split_of
from examples.demo import __main__ as demo
from examples.demo import documents
from tests.vllm_parser import serve_parser

ROOT = Path(__file__).parents[2]


@pytest.mark.unit
@pytest.mark.parametrize("beside", [False, True], ids=["contradicts", "does not answer"])
def test_documents(beside: bool) -> None:
    """They say what is false, or something else that is true; held out ones are of other facts."""
    if beside:
        shown, counted = documents.picked_beside(), documents.held_out_beside()
    else:
        shown, counted = documents.picked(), documents.held_out()
    assert len({case.fact for case in counted}) == len(counted) == (50 if beside else 100)
    assert {split_of(case.fact.subject) for case in shown} == {"dev"}
    assert {split_of(case.fact.subject) for case in counted} == {"test"}
    for case in [*shown, *counted]:
        right, wrong = case.claim, case.fact.answers[0]
        if beside:
            right, wrong = wrong, right
        assert case.right(right) and not case.right(wrong) and not case.right("")
        assert not case.right(f"It is {right}. Or {wrong}.")
        assert (case.fact.subject not in case.document) == beside


@pytest.mark.unit
def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(demo, "quiet", lambda: None)  # it changes this process's environment
    monkeypatch.setenv("TQDM_DISABLE", "1")
    demo.check_memory(int(demo.NEEDED_GIB * 2**30))
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: SimpleNamespace(available=int(1.26 * 2**30))
    )
    monkeypatch.setattr(demo, "show", lambda *_: pytest.fail("started"))
    assert demo.main() == 2
    assert capsys.readouterr().err.startswith("error: 1.3 GiB of memory are free, and the ")


@pytest.fixture(scope="module")
def shown() -> Iterator[str]:
    """What a person sees who runs it at 80 columns."""
    file = ROOT / "results" / "demo.html"
    file.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    yield done.stdout


def numbers(rows: list[list[str]], *names: str) -> list[list[int]]:
    """The first of each cell, of rows that have one in each."""
    counts = {row[0]: re.findall(r"^\D*(\d+)", "\n".join(row[1:]), re.M) for row in rows if row}
    return [[int(count) for count in counts[name]] for name in names]


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.timeout(600)
def test_what_a_person_sees(shown: str) -> None:
    """It fits the screen, and contrast follows documents and instructions more often, whether or
    not that answers the question.
    """
    from examples.smollm2 import model_path

    lines = shown.splitlines()
    assert [line for line in lines if len(line) > 80 and str(model_path()) not in line] == []
    assert not re.search(r"[Ww]arn|[Dd]eprecat|%\||INFO|[Ee]rror|Traceback", shown), shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    gain, harm = numbers(rows, "100 held out", "50 held out")
    assert 20 < gain[0] < 100 and gain[1] + 10 < gain[2] <= 100
    assert 10 < harm[0] < 50 and harm[2] + 5 < harm[1] <= 50
    greedy, both = numbers(rows, "greedy", "repeated, contrast")
    assert greedy[0] < both[0] and both[1] < greedy[1]
    assert all(row[2] <= min(row[:2]) for row in (greedy, both))
    assert re.search(r"right +│ [0-4] of 4 +│ [0-4] of 4 ", shown)
    assert "results/demo.html" in shown
    text = (ROOT / "results" / "demo.html").read_text(encoding="utf-8")
    assert "Text: The city of Chicago is in Germany." in text
    assert "base model without message 0, weight" in text and text.rstrip().endswith("</html>")


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_three_commands_work(shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.smollm2 import model_path
    from vllm_cold.compat import patching, places
    from vllm_cold.settings.amateurs import describe
    from vllm_cold.settings.arguments import parse_request_args

    monkeypatch.chdir(ROOT)
    _, *blocks = re.split(r"^# .*\n", shown.partition("6. What")[2], flags=re.M)
    explain, serve, curl = blocks
    patching.install(places.rows(places.START))
    words = shlex.split(serve.replace("\\\n", " "))
    options = serve_parser().parse_args(words[words.index("serve") + 1 :])
    assert (options.model_tag, options.sampler) == (str(model_path()), "cold")
    request = json.loads(Path(shlex.split(curl)[-1].removeprefix("@")).read_text())
    (amateur,) = describe(parse_request_args(request["vllm_xargs"]).given)
    assert str(amateur.source) == "without 0"
    done = subprocess.run(["bash", "-c", explain], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("page: results/yours.html")
