# SPDX-License-Identifier: Apache-2.0
"""The demo: its parts with stand-ins, and as a person runs it, with a real engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
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


def drawn(table: Any, width: int = 80) -> str:
    """A table as it is printed."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# Documents


@pytest.mark.unit
def test_cases_are_false_and_apart() -> None:
    shown, counted = documents.picked(), documents.held_out()
    assert len(counted) == 100 and len({case.fact for case in counted}) == 100
    assert {split_of(case.fact.subject) for case in shown} == {"dev"}
    assert {split_of(case.fact.subject) for case in counted} == {"test"}
    assert documents.held_out() == counted
    for case in [*shown, *counted]:
        assert case.right(case.claim)
        assert not case.right(case.fact.answers[0])
        assert case.claim in case.document


@pytest.mark.unit
def test_documents_of_a_harm_are_true_and_do_not_answer() -> None:
    shown, counted = documents.picked_beside(), documents.held_out_beside()
    assert [case.fact for case in counted] == [case.fact for case in documents.held_out()[:50]]
    assert {split_of(case.fact.subject) for case in shown} == {"dev"}
    assert documents.held_out_beside() == counted
    for case in [*shown, *counted]:
        assert case.beside is not None and case.document == case.beside.said()
        assert case.beside.relation == case.fact.relation
        assert case.fact.subject not in case.document
        assert case.right(case.fact.answers[0]) and not case.right(case.claim)


@pytest.mark.unit
def test_an_answer_that_names_both_is_not_right() -> None:
    for case, right in (
        (documents.picked()[0], "It is in Germany."),
        (documents.picked_beside()[0], "It is Paris."),
    ):
        assert case.right(right) and not case.right("")
        assert not case.right(f"{right} Or {case.claim}, or {case.fact.answers[0]}.")


def answered(
    cases: Any, known: Sequence[int], greedy: Sequence[int], contrast: Sequence[int]
) -> Any:
    """Cases, of which those with these numbers are remembered, and right."""
    for i, case in enumerate(cases):
        right, wrong = case.claim, case.fact.answers[0]
        if case.beside is not None:
            right, wrong = wrong, right
        case.memory = case.fact.answers[0] if i in known else "no idea"
        case.greedy = right if i in greedy else wrong
        case.contrast = right if i in contrast else f"{right} or {wrong}"
    return cases


def cells(table: Any) -> list[list[str]]:
    """A drawn table's rows."""
    text = drawn(table)
    assert max(map(len, text.splitlines())) <= 80
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in text.splitlines()]


@pytest.mark.unit
def test_the_counts_are_those_of_the_cases() -> None:
    shown = documents.picked()
    shown[0].greedy, shown[0].contrast = "It is\nin the United States.", "In Germany."
    counted = answered(documents.held_out(10), range(6), [0, 8], [0, 1, 2, 8, 9])
    rows = cells(documents.table(shown, counted))
    assert ["10 held out", "6 remembered", "✓ 2 of 10", "✓ 5 of 10"] in rows
    first = next(row for row in rows if len(row) == 4)
    assert first[2].startswith("✗ It is in the") and first[3] == "✓ In Germany."

    shown = documents.picked_beside()
    shown[0].memory = shown[0].greedy = "It is Paris."
    shown[0].contrast = "Maputo."
    counted = answered(documents.held_out_beside(10), range(6), [0, 1, 2, 8], [8])
    rows = cells(documents.table(shown, counted))
    assert ["10 held out", "✓ 6 of 10", "✓ 4 of 10", "✓ 1 of 10"] in rows
    first = next(row for row in rows if len(row) == 4)
    assert first[1:] == ["✓ It is Paris.", "✓ It is Paris.", "✗ Maputo."]


# Instructions


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


# Adapters


def output(ids: list[int], text: str) -> Any:
    return SimpleNamespace(token_ids=ids, text=text)


@pytest.mark.unit
def test_the_adapters_table_counts_right_answers() -> None:
    items = adapted.items()
    assert [item.task.name for item in items] == ["sorting"] * 3 + ["orders"]
    for i, item in enumerate(items):
        item.greedy = output([i], item.problem.answer if i < 3 else "no")
        item.cold = output([i if i == 0 else 9], item.problem.answer if i < 1 else "no")
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(f"<{i}>" for i in ids))
    text = drawn(adapted.table(items, tokenizer))
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"right +│ 3 of 4 +│ 1 of 4 ", text), text
    assert "✓ the same" in text and "✗ <9>" in text


# What is left behind


def words(command: str, program: str) -> list[str]:
    """A command's words after the program's path."""
    joined = shlex.split(command.replace("\\\n", " "))
    found = [word for word in joined if not re.match(r"VLLM_\w+=", word)]
    assert Path(found[0]).name == program
    return found[1:]


def check_serve(command: str, model: str) -> None:
    from vllm_cold import patching, places

    patching.install(places.rows(places.START))
    verb, *rest = words(command, "vllm")
    options = serve_parser().parse_args(rest)
    assert verb == "serve" and options.model_tag == model and options.sampler == "cold"


def check_curl(command: str) -> dict[str, Any]:
    from vllm_cold.settings.amateurs import describe
    from vllm_cold.settings.arguments import parse_request_args

    file = Path(words(command, "curl")[-1].removeprefix("@"))
    request: dict[str, Any] = json.loads(file.read_text())
    (amateur,) = describe(parse_request_args(request["vllm_xargs"]).given)
    assert str(amateur.source) == "without 0"
    return request


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

        _, *blocks = re.split(r"^# .*\n", shown.partition("6. What")[2], flags=re.M)
        explain, serve, curl = blocks
        check_serve(serve, str(model_path()))
        monkeypatch.chdir(ROOT)
        check_curl(curl)
        done = subprocess.run(
            ["bash", "-c", explain], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("page: results/yours.html")
