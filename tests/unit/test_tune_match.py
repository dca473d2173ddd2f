# SPDX-License-Identifier: Apache-2.0
"""Outputs are scored by rules that are exact to the character."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.settings.sources import Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.tune.match import load_matcher, numbers
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit


def score(how: str, output: str, *answers: Any) -> float:
    problem = Problem("p", 3, Text("prompt"), answers[0] if len(answers) == 1 else list(answers))
    return load_matcher(how, [problem])(output, problem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234,567.50", "1234567.50"),
        ("1,23", "1 23"),  # no group of three
        ("x=-5 \u22125 -\u20ac5", "-5 -5 -5"),
        ("10-5", "10 5"),
        ("(10)-5 %-5", "10 5 5"),
        (".5", "0.5"),
        ("1.2.3", "1.2 3"),
        ("2.5E-3", "0.0025"),
        ("1e9999", "1"),  # no exponent of more than three digits
        ("-$3.50", "-3.50"),
        ("42km", "42"),
        ("GPT4 and w17, x2", ""),  # part of a word
        ("\u0664", ""),  # an Arabic figure
    ],
)
def test_what_a_number_is(text: str, expected: str) -> None:
    assert " ".join(map(str, numbers(text))) == expected


@pytest.mark.parametrize(
    ("how", "output", "answer", "right"),
    [
        ("number", "first 3, then 4.00", "4", True),
        ("number", "0.10000000000000000000000000000000001", "0.1", False),  # beyond a float
        ("exact", " Paris\n", "Paris", True),
        ("exact", "paris", "Paris", False),
        ("contains", "It is Paris.", "Paris ", True),
        ("regex", "It is paris.", "(?i)PARIS", True),
        ("regex", "a\nb", r"\Aa$", False),
        # Two things at once, as the page has it.
        ("regex", '"It is Baghdad."', '^".*Baghdad.*"$', True),
        ("regex", "It is Baghdad.", '^".*Baghdad.*"$', False),
    ],
)
def test_rules(how: str, output: str, answer: str, right: bool) -> None:
    assert score(how, output, answer) == right


def test_what_is_no_rule() -> None:
    with pytest.raises(
        ToolError, match="^--match='fuzzy': must be one of exact, number, contains, regex, or a ca"
    ):
        score("fuzzy", "output", "a")


def test_one_of_several_answers_is_enough() -> None:
    assert score("number", "2", 1, "2") == 1.0


@pytest.mark.parametrize(
    ("how", "answer", "message"),
    [
        ("regex", "(", r"'\(': missing \), unterm"),
        ("number", "3/4", "'3/4' must have exactly one number, and has 2"),
        ("exact", [], r"\[\]: an empty list"),
        ("exact", True, "True: must be text that is not empty, a number, or a list"),
        ("contains", math.nan, "nan: must be text"),
    ],
)
def test_answers_that_a_rule_cannot_use(how: str, answer: Any, message: str) -> None:
    with pytest.raises(
        ToolError, match=f"^--match='{how}': line 3: cannot use the answer: {message}"
    ):
        score(how, "output", answer)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scoring_of_mine.py").write_text(
        """
import numpy
def half(output, answer): return 0.5
def right(output, answer): return output == answer
def array(output, answer): return numpy.float32(0.25)
def many(output, answer): return isinstance(answer, list) and output in answer
def given(output, answer): return answer == {"a": [1]}
def large(output, answer): return 2
def nan(output, answer): return float("nan")
def nothing(output, answer): pass
def fails(output, answer): return 1 / 0
def late(output, answer):
    import late_of_mine
    return late_of_mine.VALUE
class Rules:
    inner = staticmethod(right)
value = 3
"""
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_callable(here: Path) -> None:
    for name, output, expected in (("half", "", 0.5), ("array", "", 0.25), ("Rules.inner", "b", 0)):
        found = score(f"scoring_of_mine:{name}", output, "a")
        assert type(found) is float and found == expected
    # It gets a list where the file has one.
    assert score("scoring_of_mine:many", "b", "a", "b") == 1.0
    assert score("scoring_of_mine:many", "a", "a") == 0.0
    assert score("scoring_of_mine:given", "x", {"a": [1]}) == 1.0  # any JSON


def test_a_callable_imports_its_neighbours_when_it_is_called(here: Path) -> None:
    (here / "late_of_mine.py").write_text("VALUE = 0.75\n")
    before = list(sys.path)
    assert score("scoring_of_mine:late", "", "a") == 0.75
    assert sys.path == before  # vLLM must not find the user's files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scoring_of_mine:missing", r"cannot be imported \(AttributeError"),
        ("no_such_module_here:f", r"cannot be imported \(ModuleNotFoundError"),
        ("scoring_of_mine:value", r"is not callable"),
        ("scoring_of_mine:fails", r"raised ZeroDivisionError.* on problem 'p' \(line 3\)"),
        ("scoring_of_mine:large", r"returned 2 on problem 'p' \(line 3\); must be a bool or"),
        ("scoring_of_mine:nan", r"returned nan on problem 'p'"),
    ],
)
def test_a_callable_that_fails(here: Path, name: str, message: str) -> None:
    with pytest.raises(ToolError, match=f"--match='{name}': {message}"):
        score(name, "output", "a")
