# SPDX-License-Identifier: Apache-2.0
"""How an output is scored against the reference answers: 0 for wrong, 1 for right.

With several answers the best score counts. What the rules are, exactly:

- ``exact``: equal, but for white space at both ends.
- ``contains``: the answer, without white space at its ends, occurs in the output.
- ``regex``: the answer is a pattern of Python's ``re`` that is found somewhere in the output.
- ``number``: the last number of the output equals the number in the answer; see ``numbers``.
- ``module:function``: called with the output and the answer as the file gives it.
"""

import math
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.tune.problems import Problem

Matcher = Callable[[str, Problem], float]

_NUMBER = re.compile(
    r"""
    (?<![A-Za-z0-9_])                       # not inside a word: "w17" and "x2" hold no number
    (?:(?<![)\]}%])[-+\u2212])?             # "10-5" and "(2)-5" end in 5, "= -5" in -5
    [$\u20ac\u00a3\u00a5]?                  # a currency sign may stand between
    (?:
        (?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]) | [0-9]+)   # 1,234,567 or 1234567
        (?:\.[0-9]+)?
      | (?<![0-9])\.[0-9]+                  # .5
    )
    (?:[eE][-+]?[0-9]{1,3}(?![0-9]))?
    """,
    re.VERBOSE,
)


def numbers(text: str) -> list[Decimal]:
    """Find all numbers in ``text``, in order."""
    currency = str.maketrans("\u2212", "-", ",$\u20ac\u00a3\u00a5")
    return [Decimal(match[0].translate(currency)) for match in _NUMBER.finditer(text)]


_RULES: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda output, answer: output.strip() == answer.strip(),
    "number": lambda output, answer: numbers(output)[-1:] == numbers(answer)[-1:],
    "contains": lambda output, answer: answer.strip() in output,
    "regex": lambda output, answer: re.search(answer, output) is not None,
}


def load_matcher(how: str, problems: Sequence[Problem]) -> Matcher:
    """Return the scoring rule of ``--match``: a function of an output and its problem, with a score
    in [0, 1].

    Raises:
        ToolError: no such rule, an answer that the rule cannot use, or a callable that cannot be
            imported; the function raises one if a callable fails.
    """
    where = f"--match={how!r}"
    if ":" in how:
        judge = _import(how, where)
    elif how in _RULES:
        judge = partial(_is_right, how)
        for problem in problems:
            try:
                _check(how, problem.answer)
            except ValueError as error:
                raise ToolError(
                    f"{where}: line {problem.line}: cannot use the answer: {error}"
                ) from None
    else:
        raise ToolError(
            f"{where}: must be one of {', '.join(_RULES)}, or a callable as module:function"
        )

    def score(output: str, problem: Problem) -> float:
        try:
            value = judge(output, problem.answer)
        except Exception as error:  # whatever a callable raises
            raise ToolError(
                f"{where}: raised {type(error).__name__}: {error} on {problem.place} with "
                f"output {output!r}"
            ) from error
        value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
        # NaN compares false.
        if not isinstance(value, (bool, int, float)) or not 0.0 <= value <= 1.0:
            raise ToolError(
                f"{where}: returned {value!r} on {problem.place}; must be a bool or a "
                "number from 0 to 1"
            )
        return float(value)

    return score


def _is_right(how: str, output: str, answer: Any) -> bool:
    return any(_RULES[how](output, text) for text in _texts(answer))


def _check(how: str, answer: Any) -> None:
    """Raise ValueError if a rule cannot use an answer."""
    for text in _texts(answer):
        if how == "regex":
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f"{text!r}: {error}") from None
        if how == "number" and (count := len(numbers(text))) != 1:
            raise ValueError(f"{text!r} must have exactly one number, and has {count or 'none'}")


def _texts(answer: Any) -> list[str]:
    if answer == []:
        raise ValueError("[]: an empty list can never be matched; give at least one answer")
    return [_as_text(item) for item in (answer if isinstance(answer, list) else [answer])]


def _as_text(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(f"{value!r}: must be text that is not empty, a number, or a list of these")


def _import(how: str, where: str) -> Callable[[str, Any], Any]:
    """Import the user's function."""
    # An installed command does not look in the working directory by itself. Only meanwhile: vLLM's
    # imports must not find the user's files.
    importable = patch.object(sys, "path", [str(Path.cwd()), *sys.path])
    try:
        with importable:
            function = pkgutil.resolve_name(how)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ToolError(
            f"{where}: cannot be imported ({type(error).__name__}: {error}); give "
            "module:function, with the module in the working directory or installed"
        ) from error
    if not callable(function):
        raise ToolError(f"{where}: is not callable; give module:function")

    def call(output: str, answer: Any) -> Any:
        with importable:  # it may import its neighbours
            return function(output, answer)

    return call
