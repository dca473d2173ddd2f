# SPDX-License-Identifier: Apache-2.0
"""How an output is scored against the reference answers: 0 for wrong, 1 for right.

With several answers the best score counts. What the rules are, exactly:

- ``exact``: equal, but for white space at both ends.
- ``contains``: the answer, without white space at its ends, occurs in the output.
- ``regex``: the answer is a pattern of Python's ``re`` that is found somewhere in the output.
- ``number``: the last number of the output equals the number in the answer; see ``numbers``.
- ``module:function``: called with the output and the answer as the file gives it.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.data import Problem

Matcher = Callable[[str, Problem], float]
NAMES = ("exact", "number", "contains", "regex")

_NUMBER = re.compile(
    r"""
    (?<![A-Za-z0-9_])                       # not inside a word: "w17" and "x2" hold no number
    (?P<sign>(?<![)\]}%])[-+\u2212])?       # "10-5" and "(2)-5" end in 5, "= -5" in -5
    [$\u20ac\u00a3\u00a5]?                  # a currency sign may stand between
    (?P<figure>
        (?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]) | [0-9]+)   # 1,234,567 or 1234567
        (?:\.[0-9]+)?
      | (?<![0-9])\.[0-9]+                  # .5
    )
    (?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?
    (?:[ \u00a0\u202f]?(?P<percent>%))?
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Number:
    """A number as it is written: ``12.5 %`` has the figure 12.5 and ``percent`` set."""

    figure: Decimal
    percent: bool = False

    def equals(self, other: Number) -> bool:
        """Whether both mean the same.

        Two percentages, or two plain numbers, must have equal figures. A percentage equals a
        plain number of the same figure or of a hundredth of it: 50 % is 50, and 0.5.
        """
        if self.figure == other.figure:
            return True
        if self.percent == other.percent:
            return False
        whole, plain = (self, other) if self.percent else (other, self)
        return _hundredth(whole.figure) == plain.figure


def _hundredth(value: Decimal) -> Decimal:
    # By the exponent: a division would round to the context's precision.
    sign, digits, exponent = value.as_tuple()
    return Decimal((sign, digits, int(exponent) - 2))


def numbers(text: str) -> list[Number]:
    """All numbers in ``text``, in order.

    A number is an optional sign (+, -, U+2212) that does not follow a word, a figure or a closing
    bracket, an optional currency sign ($, €, £, ¥), ASCII digits, either plain or in groups of
    three separated by commas, an optional fraction after a point (``.5`` is one, too), an optional
    exponent (``e-3``), and an optional percent sign. Digits that follow a letter directly are part
    of a word.
    """
    found = []
    for item in _NUMBER.finditer(text):
        sign = "-" if item["sign"] in ("-", "\u2212") else ""
        figure = sign + item["figure"].replace(",", "") + (item["exponent"] or "")
        found.append(Number(Decimal(figure), item["percent"] is not None))
    return found


def match_exact(output: str, answer: str) -> bool:
    """Equal, but for white space at both ends."""
    return output.strip() == answer.strip()


def match_contains(output: str, answer: str) -> bool:
    """The answer occurs in the output."""
    return answer.strip() in output


def match_regex(output: str, answer: str) -> bool:
    """The pattern is found somewhere in the output."""
    return re.search(answer, output) is not None


def match_number(output: str, answer: str) -> bool:
    """The output's last number equals the answer's number."""
    found = numbers(output)
    return bool(found) and found[-1].equals(numbers(answer)[-1])


def _check_regex(answer: str) -> None:
    try:
        re.compile(answer)
    except re.error as error:
        raise ValueError(f"the answer {answer!r} is no regular expression: {error}") from None


def _check_number(answer: str) -> None:
    count = len(numbers(answer))
    if count != 1:
        raise ValueError(f"the answer {answer!r} has {count or 'no'} numbers, and must have one")


_RULES: dict[str, tuple[Callable[[str, str], bool], Callable[[str], None] | None]] = {
    "exact": (match_exact, None),
    "number": (match_number, _check_number),
    "contains": (match_contains, None),
    "regex": (match_regex, _check_regex),
}


def load_matcher(how: str, problems: Sequence[Problem]) -> Matcher:
    """The scoring rule of ``--match``, after a look at all reference answers.

    Returns:
        A function of an output and its problem that returns a score in [0, 1].

    Raises:
        ToolError: no such rule, an answer that the rule cannot use, or a callable that cannot be
            imported; the function raises one if a callable fails, with the problem's id.
    """
    if ":" in how:
        here = str(Path.cwd())
        return _wrap(how, _load_callable(how, here), here)
    if how not in _RULES:
        raise ToolError(
            f"--match={how!r}: must be one of {', '.join(NAMES)}, or a callable as module:function"
        )
    rule, check = _RULES[how]
    for problem in problems if check is not None else ():
        for answer in problem.answers:
            try:
                check(answer)  # type: ignore[misc]
            except ValueError as error:
                raise ToolError(f"--match={how}: line {problem.line}: {error}") from None

    def score(output: str, problem: Problem) -> float:
        return float(any(rule(output, answer) for answer in problem.answers))

    return score


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """The modules of ``folder`` can be imported, before all others, while the block runs.

    An installed command does not look into the working directory by itself; ``python -m`` does.
    Not for good: vLLM's imports must not find the user's files.
    """
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the user's code may have changed it
            sys.path.remove(folder)


def _load_callable(how: str, folder: str) -> Callable[[str, Any], Any]:
    name, _, attribute = how.partition(":")
    try:
        with _importable(folder):
            found: Any = importlib.import_module(name)
            for part in attribute.split("."):
                found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ToolError(
            f"--match={how!r}: cannot be imported ({type(error).__name__}: {error}); give "
            "module:function, with the module in the working directory or installed"
        ) from error
    if not callable(found):
        raise ToolError(f"--match={how!r}: is not callable; give module:function")
    return found  # type: ignore[no-any-return]


def _wrap(how: str, function: Callable[[str, Any], Any], folder: str) -> Matcher:
    def score(output: str, problem: Problem) -> float:
        try:
            with _importable(folder):
                value = function(output, problem.answer)
        except Exception as error:  # whatever the user's function raises
            raise ToolError(
                f"--match={how!r}: raised {type(error).__name__}: {error} on problem "
                f"{problem.id!r} (line {problem.line}) with output {output!r}"
            ) from error
        value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
        # NaN compares false.
        if not isinstance(value, (bool, int, float)) or not 0.0 <= value <= 1.0:
            raise ToolError(
                f"--match={how!r}: returned {value!r} on problem {problem.id!r} (line "
                f"{problem.line}); must be a bool or a number from 0 to 1"
            )
        return math.fabs(value)  # without a negative zero

    return score
