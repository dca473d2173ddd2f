# SPDX-License-Identifier: Apache-2.0
"""How an output is scored against the reference answers: 0 for wrong, 1 for right.

With several answers the best score counts. What the rules are, exactly:

- ``exact``: equal, but for white space at both ends.
- ``contains``: the answer, without white space at its ends, occurs in the output.
- ``regex``: the answer is a pattern of Python's ``re`` that is found somewhere in the output.
- ``number``: the last number of the output equals the number in the answer; see ``numbers``.
- ``ifeval``: it follows all instructions in the answer, IFEval's (arXiv 2311.07911), as
  if-verifiable checks them. An answer is what IFEval's own data have: names of instructions and the
  arguments of each. Strict: the output as it is follows all of them, and an empty one follows none.
  The checks' quirks are IFEval's: keywords are patterns, for one.
- ``module:function``: called with the output and the answer as the file gives it.

``--keep`` has the same rules, for what a row has as ``keep``.
"""

import math
import pkgutil
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import msgspec

from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.tune.problems import Problem

Matcher = Callable[[str, Problem], float]
Judge = Callable[[str], Any]  # of an output

KEEP = "contains"  # the rule where rows have something to keep, and --keep is not given

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


def load_matcher(how: str, problems: Sequence[Problem], option: str = "match") -> Matcher:
    """Return the scoring rule of an option: a function of an output and its problem, with a score
    in [0, 1].

    Raises:
        ToolError: no such rule, an answer that the rule cannot use, or a callable that cannot be
            imported; the function raises one if a callable fails.
    """
    where, field = f"--{option}={how!r}", "answer" if option == "match" else "keep"
    judge_of = _judge_of(how, where)
    judges = dict[str, Judge]()
    for problem in problems:
        try:
            judges[problem.id] = judge_of(getattr(problem, field))
        except ValueError as error:
            raise ToolError(
                f"{where}: line {problem.line}: cannot use the {field}: {error}"
            ) from None

    def score(output: str, problem: Problem) -> float:
        try:
            value = judges[problem.id](output)
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


def load_keeper(how: str | None, problems: Sequence[Problem]) -> Matcher | None:
    """Return the scoring rule of ``--keep``; None where nothing is to be kept.

    Raises:
        ToolError: as ``load_matcher``, or not all rows have what the rule needs.
    """
    having = [problem for problem in problems if problem.keep is not None]
    lacking = [problem for problem in problems if problem.keep is None]
    if having and lacking:
        raise ToolError(
            f'line {lacking[0].line}: has no "keep", and line {having[0].line} has one; give it to '
            "all rows, or to none"
        )
    if not having:
        if how is None:
            return None
        if ":" not in how:
            raise ToolError(
                f'--keep={how!r}: no row has a "keep" (what its output must also have); add one to '
                "each row, or give a callable as module:function, which needs none"
            )
    return load_matcher(how or KEEP, problems, "keep")


def _judge_of(how: str, where: str) -> Callable[[Any], Judge]:
    """Return what makes a judge of a row's answer; ValueError from it if the rule cannot use it."""
    if ":" in how:
        function = _import(how, where)
        return lambda answer: lambda output: function(output, answer)
    if how in _RULES:
        return partial(_by_answers, how)
    if how != "ifeval":
        raise ToolError(
            f"{where}: must be one of {', '.join(_RULES)}, ifeval, or a callable as module:function"
        )
    try:
        known = instruction_kinds()
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        raise ToolError(f"{where}: needs {name}: pip install 'vllm-cold[ifeval]'") from error
    return lambda answer: partial(_follows, _checkers(answer, known))


def _by_answers(how: str, answer: Any) -> Judge:
    if answer == []:
        raise ValueError("[]: an empty list can never be matched; give at least one answer")
    texts = [_as_text(item) for item in (answer if isinstance(answer, list) else [answer])]
    for text in texts:
        if how == "regex":
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f"{text!r}: {error}") from None
        if how == "number" and (count := len(numbers(text))) != 1:
            raise ValueError(f"{text!r} must have exactly one number, and has {count or 'none'}")
    return lambda output: any(_RULES[how](output, text) for text in texts)


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


def instruction_kinds() -> Mapping[str, Any]:
    """Return the checker of each kind of instruction, by its name; ModuleNotFoundError without the
    extra ``ifeval``.
    """
    import langdetect  # type: ignore[import-untyped,unused-ignore]
    from if_verifiable.ifeval import (  # type: ignore[import-untyped,unused-ignore]
        instructions_registry,
    )

    langdetect.DetectorFactory.seed = 0  # else a text has another language each time
    return instructions_registry.INSTRUCTION_DICT  # type: ignore[no-any-return]


class _Instructions(msgspec.Struct):
    instruction_id_list: Annotated[list[Any], msgspec.Meta(min_length=1)]
    kwargs: list[dict[str, Any]]


def _checkers(answer: Any, known: Mapping[str, Any]) -> list[Any]:
    """Make what checks an answer's instructions, of ``known`` checkers by kind; ValueError if it is
    no such answer, or no output could be checked by it.
    """
    try:
        row = msgspec.convert(answer, _Instructions)
        pairs = list(zip(row.instruction_id_list, row.kwargs, strict=True))
    except ValueError:
        raise ValueError(
            'must be an object as in IFEval\'s data: "instruction_id_list", names of instructions, '
            'and "kwargs", an object for each'
        ) from None
    return [_checker(*pair, known) for pair in pairs]


def _checker(name: Any, kwargs: dict[str, Any], known: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{name!r}: must be one of {', '.join(known)}")
    checker = known[name](name)
    needed = checker.get_instruction_args_keys()
    # Where data are a table, each row has all columns.
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if kwargs.keys() != set(needed):
        raise ValueError(
            f"{name}: kwargs must be {', '.join(needed) or 'none'}, and are "
            f"{', '.join(kwargs) or 'none'}"
        )
    try:
        before = random.getstate()
        checker.build_description(**kwargs)
        # A checker replaces arguments that it refuses by random ones, and a text by its letters.
        used = checker.get_instruction_args() or {}
        kept = (isinstance(used[key], list) == isinstance(kwargs[key], list) for key in kwargs)
        if random.getstate() != before or not all(kept):
            raise ValueError(f"does not take {kwargs}")
        # With the arguments in it, so that each pattern is looked for.
        checker.check_following(f"an answer {kwargs}")
    except Exception as error:  # whatever a checker raises for what it cannot use
        if type(error) is LookupError:
            raise ValueError(
                f"{name}: needs a file of NLTK's: python -m nltk.downloader punkt_tab"
            ) from None
        problem = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: {problem}") from None
    return checker


def _follows(checkers: Sequence[Any], output: str) -> bool:
    """Whether an output follows all instructions."""
    try:
        return bool(output.strip()) and all(checker.check_following(output) for checker in checkers)
    except RecursionError:  # JSON of a thousand open brackets
        return False
