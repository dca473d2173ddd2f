# SPDX-License-Identifier: Apache-2.0
"""Whether an output follows IFEval's instructions (arXiv 2311.07911), as if-verifiable checks them.

An answer is what IFEval's own data have: names of instructions and the arguments of each. Strict:
the output as it is follows all of them, and an empty one follows none. The checks' quirks are
IFEval's: keywords are patterns, for one.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any


def kinds() -> Mapping[str, Any]:
    """Return the checker of each kind of instruction, by its name; ModuleNotFoundError without the
    extra ``ifeval``.
    """
    import langdetect  # type: ignore[import-untyped,unused-ignore]
    from if_verifiable.ifeval import (  # type: ignore[import-untyped,unused-ignore]
        instructions_registry,
    )

    langdetect.DetectorFactory.seed = 0  # else a text has another language each time
    checkers_by_kind: Mapping[str, Any] = instructions_registry.INSTRUCTION_DICT
    return checkers_by_kind


def checkers(answer: Any, known: Mapping[str, Any]) -> list[Any]:
    """Make what checks an answer's instructions, of ``known`` checkers by kind; ValueError if it is
    no such answer, or no output could be checked by it.
    """
    answer = answer if isinstance(answer, dict) else {}
    names, several = answer.get("instruction_id_list"), answer.get("kwargs")
    if not (
        isinstance(names, list)
        and isinstance(several, list)
        and 0 < len(names) == len(several)
        and all(isinstance(arguments, dict) for arguments in several)
    ):
        raise ValueError(
            'must be an object as in IFEval\'s data: "instruction_id_list", names of instructions, '
            'and "kwargs", an object for each'
        )
    return [_checker(*pair, known) for pair in zip(names, several, strict=True)]


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


def follows(checkers: Sequence[Any], output: str) -> bool:
    """Whether an output follows all instructions."""
    try:
        return bool(output.strip()) and all(checker.check_following(output) for checker in checkers)
    except RecursionError:  # JSON of a thousand open brackets
        return False
