# SPDX-License-Identifier: Apache-2.0
"""The demo: its parts with stand-ins, and as a person runs it, with a real engine."""

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
from rich.console import Console

from benchmarks.accuracy.problem import split_of
from examples.demo import __main__ as demo
from examples.demo import adapted, documents, instructions
from tests.vllm_parser import serve_parser

ROOT = Path(__file__).parents[2]


@pytest.mark.unit
@pytest.mark.parametrize("beside", [False, True], ids=["contradicts", "does not answer"])
def test_documents(beside: bool) -> None:
    """They say what is false, or something else that is true; held out ones are of other facts."""
    shown, counted = picked(beside)
    if beside:
        held_out = documents.held_out()[:50]
        assert [case.fact for case in counted] == [case.fact for case in held_out]
    assert len({case.fact for case in counted}) == len(counted) == (50 if beside else 100)
    assert {split_of(case.fact.subject) for case in shown} == {"dev"}
    assert {split_of(case.fact.subject) for case in counted} == {"test"}
    assert picked(beside)[1] == counted
    for case in [*shown, *counted]:
        right, wrong = rights(case)
        assert case.right(right) and not case.right(wrong) and not case.right("")
        assert not case.right(f"It is {right}. Or {wrong}.")
        assert (case.fact.subject not in case.document) == beside
        if beside:
            assert case.beside is not None and case.document == case.beside.said()
            assert case.beside.relation == case.fact.relation
        else:
            assert case.claim in case.document


def picked(beside: bool) -> tuple[Any, Any]:
    """The cases that are shown, and those that are counted."""
    if beside:
        return documents.picked_beside(), documents.held_out_beside()
    return documents.picked(), documents.held_out()


def rights(case: Any) -> tuple[str, str]:
    """What is right to answer, and what is wrong."""
    answers = case.claim, case.fact.answers[0]
    return answers if case.beside is None else answers[::-1]


def cells(table: Any) -> list[list[str]]:
    """A table's rows as they are printed, at 80 columns."""
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("beside", "totals"),
    [
        (False, ["10 held out", "6 remembered", "✓ 2 of 10", "✓ 5 of 10"]),
        (True, ["10 held out", "✓ 6 of 10", "✓ 2 of 10", "✓ 5 of 10"]),
    ],
)
def test_the_counts_are_those_of_the_cases(beside: bool, totals: list[str]) -> None:
    shown, counted = picked(beside)
    del counted[10:]
    for i, case in enumerate(counted):
        right, wrong = rights(case)
        case.memory = case.fact.answers[0] if i < 6 else "no idea"
        case.greedy = right if i in (0, 8) else wrong
        case.contrast = right if i in (0, 1, 2, 8, 9) else f"{right} or {wrong}"
    right, wrong = rights(shown[0])
    shown[0].greedy, shown[0].contrast = f"So:\n{wrong}.", f"In {right}."
    rows = cells(documents.table(shown, counted))
    assert totals in rows
    first = next(row for row in rows if len(row) == 4)
    assert first[2].startswith("✗ So: ") and first[3] == f"✓ In {right}."


@pytest.mark.unit
def test_followed_and_right_are_counted() -> None:
    problems = [each for each in instructions.held_out() if each.kind == "title"][:3]
    rights = [each.judged.known.right[0] for each in problems]
    answers = {
        "greedy": [f"<<{rights[0]}>>", rights[1], "<<No idea>>"],
        "contrast": ["<<poem of joy>>", "", f"<<Well>> {rights[2]}"],
    }
    rows = cells(instructions.table(problems, answers))
    assert ["greedy", "2", "2", "1"] in rows and ["contrast", "1", "1", "1"] in rows


@pytest.mark.unit
def test_the_adapters_table_counts_right_answers() -> None:
    items = adapted.items()
    assert [item.task.name for item in items] == ["sorting"] * 3 + ["orders"]
    for i, item in enumerate(items):
        right = item.problem.answer
        item.greedy = SimpleNamespace(token_ids=[i], text=right if i < 3 else "no")
        item.cold = SimpleNamespace(token_ids=[0 if i == 0 else 9], text=right if i < 1 else "no")
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(f"<{i}>" for i in ids))
    rows = cells(adapted.table(items, tokenizer))
    assert ["right", "3 of 4", "1 of 4"] in rows
    found = {cell for row in rows for cell in row}
    assert {"✓ the same", "✗ <9>"} <= found


# As a program


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


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.timeout(600)
class TestAsAProgram:
    def test_fits_the_screen_and_is_the_demos_alone(self, shown: str) -> None:
        from examples.smollm2 import model_path

        wide = [line for line in shown.splitlines() if len(line) > 80]
        assert [line for line in wide if str(model_path()) not in line] == []
        assert not re.search(r"[Ww]arn|[Dd]eprecat|%\||INFO|[Ee]rror|Traceback", shown), shown

    def test_contrast_follows_documents_more_often_answer_or_not(self, shown: str) -> None:
        rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in shown.splitlines()]
        totals = [row[1:] for row in rows if row and row[0] in ("100 held out", "50 held out")]
        gain, harm = ([int(re.search(r"\d+", cell)[0]) for cell in row] for row in totals)  # type: ignore[index]
        assert 20 < gain[0] < 100
        assert gain[1] + 10 < gain[2] <= 100
        assert 10 < harm[0] < 50
        assert harm[2] + 5 < harm[1] <= 50

    def test_instructions_are_followed_more_often_and_cost_right_answers(self, shown: str) -> None:
        rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in shown.splitlines()]
        found = {row[0]: [int(n) for n in row[1:]] for row in rows if row and row[-1].isdigit()}
        greedy, both = found["greedy"], found["repeated, contrast"]
        assert greedy[0] < both[0] and both[1] < greedy[1]
        assert all(row[2] <= min(row[:2]) for row in found.values())

    def test_adapters(self, shown: str) -> None:
        assert re.search(r"right +│ [0-4] of 4 +│ [0-4] of 4 ", shown)

    def test_the_page_is_there(self, shown: str) -> None:
        assert "results/demo.html" in shown
        text = (ROOT / "results" / "demo.html").read_text(encoding="utf-8")
        assert "Text: The city of Chicago is in Germany." in text
        assert "base model without message 0, weight" in text and text.rstrip().endswith("</html>")

    def test_the_three_commands_work(self, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        (amateur,) = describe(parse_request_args(request["vllm_xargs"]))
        assert str(amateur.source) == "without 0"
        done = subprocess.run(["bash", "-c", explain], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("page: results/yours.html")
