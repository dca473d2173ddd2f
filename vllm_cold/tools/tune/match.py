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
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.problems import Problem

Matcher = Callable[[str, Problem], float]

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
    """,
    re.VERBOSE,
)


def numbers(text: str) -> list[Decimal]:
    """All numbers in ``text``, in order, as ``_NUMBER`` finds them."""
    found = []
    for item in _NUMBER.finditer(text):
        sign = "-" if item["sign"] in ("-", "\u2212") else ""
        found.append(Decimal(sign + item["figure"].replace(",", "") + (item["exponent"] or "")))
    return found


_RULES: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda output, answer: output.strip() == answer.strip(),
    "number": lambda output, answer: numbers(output)[-1:] == numbers(answer)[-1:],
    "contains": lambda output, answer: answer.strip() in output,
    "regex": lambda output, answer: re.search(answer, output) is not None,
}


def _check(how: str, answer: str) -> None:
    """Raises ValueError for an answer that the rule cannot use."""
    if how == "regex":
        re.compile(answer)
    if how == "number" and (count := len(numbers(answer))) != 1:
        raise ValueError(f"it has {count or 'no'} numbers, and must have one")


def load_matcher(how: str, problems: Sequence[Problem]) -> Matcher:
    """The scoring rule of ``--match``: a function of an output and its problem, with a score in
    [0, 1].

    Raises:
        ToolError: no such rule, an answer that the rule cannot use, or a callable that cannot be
            imported; the function raises one if a callable fails.
    """
    if ":" in how:
        return _callable_matcher(how, str(Path.cwd()))
    if (rule := _RULES.get(how)) is None:
        raise ToolError(
            f"--match={how!r}: must be one of {', '.join(_RULES)}, or a callable as module:function"
        )
    for problem in problems:
        for answer in problem.answers:
            try:
                _check(how, answer)
            except (ValueError, re.error) as error:
                raise ToolError(
                    f"--match={how}: line {problem.line}: cannot use the answer {answer!r}: {error}"
                ) from None
    return lambda output, problem: float(any(rule(output, one) for one in problem.answers))


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


def _callable_matcher(how: str, folder: str) -> Matcher:
    try:
        with _importable(folder):
            function = pkgutil.resolve_name(how)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ToolError(
            f"--match={how!r}: cannot be imported ({type(error).__name__}: {error}); give "
            "module:function, with the module in the working directory or installed"
        ) from error
    if not callable(function):
        raise ToolError(f"--match={how!r}: is not callable; give module:function")

    def score(output: str, problem: Problem) -> float:
        try:
            with _importable(folder):
                value = function(output, problem.answer)
        except Exception as error:  # whatever the user's function raises
            raise ToolError(
                f"--match={how!r}: raised {type(error).__name__}: {error} on {problem.place} with "
                f"output {output!r}"
            ) from error
        value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
        # NaN compares false.
        if not isinstance(value, (bool, int, float)) or not 0.0 <= value <= 1.0:
            raise ToolError(
                f"--match={how!r}: returned {value!r} on {problem.place}; must be a bool or a "
                "number from 0 to 1"
            )
        return float(value)

    return score
