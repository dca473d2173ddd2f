# SPDX-License-Identifier: Apache-2.0
"""What is decoded and compared, what of it first, and how long all of it takes at most.

The cost model, which two runs on one CPU core bear out (0.5B and 1.5B, short answers in batches of
32: 37 and 11 tokens a second measured, 33 and 11 computed; nothing was measured on a GPU): a token
that is read or written costs two operations for each of the model's parameters, a step reads all
weights once and has fixed costs, 128 requests share a step. Prompts that are in the cache already
are counted again, so that it takes less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import get_args

from benchmarks.accuracy.methods import (
    ADAPTED,
    BOUNDS,
    CHOICE,
    GREEDY,
    MEMORY,
    METHODS,
    PLAIN,
    POISONED,
    RULES,
    Method,
)
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split

SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Step:
    """What is decoded of some cells, by name: the problems of these splits, by these methods."""

    cells: Sequence[str]
    methods: Sequence[Method]
    splits: Sequence[Split] = ("test",)


def _methods(*keys: str) -> tuple[Method, ...]:
    return tuple(METHODS[key] for key in keys)


_TEXTS = ("false", "near", "nothing", "false-among", "true-among")
_OTHERS = ("swapped", "squad-near", "squad")
_FIRST = (*PLAIN, *_methods("cad"))
# The plan that hypotheses.md declares, what matters most first. Dev is there for the judge of whole
# answers alone; what no hypothesis asks for is left out.
_TOLD = ("told-two", "told-long", "told-turns", "told-requests", "unrelated")
_ASKED = ("secrets-asked", "secrets-asked-own")
_USED = ("secrets-everyday", "secrets-bit", "secrets-which")
_ATTACKED = ("documents-attacked", "documents-attacked-own")
_DOCUMENTS = ("documents-clean", *_ATTACKED)
_MARKED = ("marked", "marked and sandwich")
_GUARDS = ("sandwich", "warning", *_MARKED)
_LIMITS = ("32 bits", "32 bits of each")
_FOLLOWED = _methods("greedy", "part repeated", "cad", "part repeated + cad")
_LESSONS = ("poisoned-5-0", "poisoned-20-0", "poisoned-5-1", "poisoned-20-1")
_CLEAN, _TRIGGERED, _CANARIES = (
    tuple(f"{lesson}-{what}" for lesson in _LESSONS) for what in ("clean", "triggered", "canaries")
)
_OF_OTHERS = tuple(f"{lesson}-{what}" for lesson in _LESSONS for what in ("clean", "triggered"))
_RIVALS = (
    "base weighs 0.25", "base weighs 0.5", "base weighs 0.75",
    "adapter x 0.25", "adapter x 0.5", "adapter x 0.75",
)  # fmt: skip
ORDER: tuple[Step, ...] = (
    Step(("told-facts",), (*_FOLLOWED, *_methods("cad, beta 0.25", "cad, beta 1"))),
    Step(_TOLD, _FOLLOWED),
    Step(
        ("retrieved",),
        _methods(
            "greedy",
            "without the part",
            "better prompt",
            "best passage",
            "best passage or none",
            "cad",
            "grounded",
            "best passage or none + cad",
        ),
    ),
    Step(
        ("half-answered",),
        _methods("greedy", "better prompt", "part repeated", "cad", "adacad", "grounded"),
    ),
    Step((*_TEXTS, "instructions"), _FIRST),
    Step((*_OTHERS, "plain-questions"), _FIRST),
    Step(
        ("false", "near", "nothing", "false-among", *_OTHERS),
        _methods("better prompt + cad", "grounded"),
    ),
    Step(
        ("instructions",),
        _methods("better prompt + cad", "part repeated + cad", "alpha 0.1, beta 1"),
    ),
    Step(("plain-questions",), _methods("part repeated + cad")),
    Step((*_TEXTS, *_OTHERS), (GREEDY, MEMORY, CHOICE), ("dev",)),
    Step(("false", "near", "nothing"), (CHOICE,)),
    Step(("gsm8k", "words-r8-100"), (GREEDY, *ADAPTED)),
    Step(("words-r8-50", "words-r8-25"), _methods("greedy", "cold", "adapter x 1.5")),
    Step(("false", "near", "nothing"), (*_methods("adacad"), *RULES)),
    Step(("humaneval",), (*PLAIN, *_methods("cad", "alpha 0.1, beta 1"))),
    Step(
        (*_ASKED, *_USED),
        (
            *_methods("greedy", "output filtered", "part repeated", "without the part"),
            *(bound for bound in BOUNDS if bound.key in ("8 bits", "32 bits over the question")),
        ),
    ),
    Step(
        ("secrets-asked-own", "secrets-everyday", "secrets-which"),
        tuple(bound for bound in BOUNDS if bound.amateur != "each"),
    ),
    Step(
        _DOCUMENTS,
        _methods("greedy", "sandwich", "without the part", "32 bits", "warning", *_MARKED),
    ),
    Step(_DOCUMENTS, _methods("32 bits of each", "16 bits", "8 bits")),
    Step(_DOCUMENTS, _methods("16 bits of each", "8 bits of each", "no documents")),
    Step(
        (*_OF_OTHERS, *_CANARIES),
        _methods(
            "greedy", "output filtered", "16 bits over the base", *_RIVALS, "base model, own prompt"
        ),
    ),
    Step((*_OF_OTHERS, *_CANARIES), POISONED),
)
# The comparisons that hypotheses.md declares, on test: of cells, methods with a rival. Holm's
# correction is over these, and what else a report has is shown without a mark.
_SHORT = ("false", "near", "nothing")
_ALL_TOLD = ("told-facts", "told-two", "told-long", "told-turns", "told-requests")
_STAGES = ("words-r8-100", "words-r8-50", "words-r8-25", "gsm8k")
COMPARED: tuple[tuple[Sequence[str], Sequence[str], str], ...] = (
    (("false",), ("cad", "better prompt"), "greedy"),
    (("false", "swapped"), ("cad",), "better prompt"),
    (("near", "nothing"), ("without the part", "cad"), "greedy"),
    (("near", "nothing"), ("better prompt + cad",), "cad"),
    (("near", "nothing"), ("better prompt + cad",), "better prompt"),
    (("false-among",), ("cad", "grounded", "better prompt"), "greedy"),
    (_SHORT, ("adacad", *(each.key for each in RULES)), "greedy"),
    (_SHORT, (CHOICE.key,), "greedy"),
    (("instructions",), ("cad", "part repeated", "part repeated + cad"), "greedy"),
    (("instructions",), ("part repeated + cad",), "part repeated"),
    (("instructions",), ("part repeated + cad",), "cad"),
    (
        ("plain-questions",),
        ("cad", "better prompt", "part repeated", "part repeated + cad"),
        "greedy",
    ),
    (_ALL_TOLD, ("cad",), "part repeated"),
    (_ALL_TOLD, ("cad", "part repeated", "part repeated + cad"), "greedy"),
    (_ALL_TOLD, ("part repeated + cad",), "cad"),
    (("told-facts",), ("cad, beta 0.25", "cad, beta 1"), "cad"),
    (("unrelated",), ("cad", "part repeated", "part repeated + cad"), "greedy"),
    (("half-answered",), ("cad", "better prompt", "adacad", "grounded"), "greedy"),
    (("half-answered",), ("cad",), "better prompt"),
    (
        ("retrieved",),
        ("best passage", "best passage or none", "better prompt", "cad", "grounded"),
        "greedy",
    ),
    (("retrieved",), ("cad", "grounded", "best passage or none + cad"), "best passage or none"),
    (("swapped",), ("cad", "better prompt"), "greedy"),
    (("squad",), ("cad", "grounded", "better prompt", "better prompt + cad"), "greedy"),
    (("squad-near",), ("without the part", "cad"), "greedy"),
    (("humaneval",), ("cad", "alpha 0.1, beta 1"), "greedy"),
    (_STAGES, ("cold", "adapter x 1.5"), "greedy"),
    (_STAGES, ("cold",), "adapter x 1.5"),
    (("words-r8-100", "gsm8k"), ("drawn, cold",), "drawn"),
    (("words-r8-100", "gsm8k"), ("drawn, cold",), "drawn, min_p, sharper"),
    (_ASKED, ("8 bits", "32 bits over the question", "output filtered"), "greedy"),
    (_ASKED, ("8 bits",), "part repeated"),
    (_ASKED, ("8 bits",), "output filtered"),
    (_USED, ("8 bits", "32 bits over the question"), "greedy"),
    (_USED[1:], ("8 bits",), "without the part"),
    (_ATTACKED, (*_GUARDS, *_LIMITS), "greedy"),
    *((_ATTACKED, ("32 bits",), guard) for guard in _GUARDS),
    (("documents-clean",), (*_GUARDS, *_LIMITS), "greedy"),
    (("documents-clean",), ("32 bits",), "without the part"),
    (_OF_OTHERS, ("16 bits over the base",), "greedy"),
    (_CLEAN, ("16 bits over the base",), "base weighs 0.5"),
    (_CLEAN, ("16 bits over the base",), "adapter x 0.5"),
    (_CLEAN, ("16 bits over the base",), "base model, own prompt"),
)
# Comparisons of another measure than a cell's main one: what a gain there costs.
COSTS: tuple[tuple[Sequence[str], Sequence[str], str, str], ...] = (
    (_ALL_TOLD, ("cad", "part repeated", "part repeated + cad"), "greedy", "right"),
    (("told-facts",), ("cad",), "part repeated", "right"),
    (("half-answered",), ("cad", "better prompt"), "greedy", "rest"),
    (_ASKED, ("8 bits",), "output filtered", "no part"),
    (_ATTACKED, _LIMITS, "greedy", "right"),
    (_ATTACKED[1:], ("32 bits",), "without the part", "right"),
)
SEQUENCES = 128


@dataclass(frozen=True)
class Machine:
    """What the cost model needs to know.

    Attributes:
        operations: A second, as they are reached, not as they are sold.
        bandwidth: Bytes a second, likewise.
        step: Seconds of a step besides.
    """

    operations: float
    bandwidth: float
    step: float


MACHINES: Mapping[str, Machine] = {
    "cpu-core": Machine(4.5e11, 2.5e10, 0.005),
    "a100": Machine(1.2e14, 1.2e12, 0.015),
    "h100": Machine(3.0e14, 2.0e12, 0.015),
}


def steps(
    cells: Sequence[Cell], splits: Sequence[Split], methods: Sequence[Method] | None = None
) -> list[tuple[list[Cell], Split, list[Method]]]:
    """Cells, a split and methods in the order of importance, each combination once.

    Args:
        cells: Some, of which cells that the plan does not name (those that wear somebody's own
            adapter) are decoded by all methods.
        splits: Of their problems.
        methods: For all cells and splits, in place of those of the plan.
    """
    known = {cell.name: cell for cell in cells}
    wanted = list(METHODS.values()) if methods is None else methods
    planned = {name for step in ORDER for name in step.cells} if methods is None else set[str]()
    rest = [Step((name,), wanted, splits) for name in known if name not in planned]
    done = set[tuple[str, Split, str]]()
    found: list[tuple[list[Cell], Split, list[Method]]] = []
    for step in (*ORDER, *rest):
        for split in (each for each in step.splits if each in splits):
            start = len(found)
            for name in (each for each in step.cells if each in known):
                new = [m for m in step.methods if m in wanted and (name, split, m.key) not in done]
                done |= {(name, split, each.key) for each in new}
                if new and len(found) > start and found[-1][2] == new:
                    found[-1][0].append(known[name])
                elif new:
                    found.append(([known[name]], split, new))
    return found


def _tokens(prompt: Prompt) -> float:
    """About as many as a prompt has: one for four characters, and some of the template."""
    text = prompt if isinstance(prompt, str) else "".join(each["content"] for each in prompt)
    return len(text) / 4 + 15


def seconds(
    model: Model, cell: Cell, problems: Sequence[Problem], method: Method, machine: Machine
) -> float:
    """How long a method takes for a cell's problems, at most."""
    mine = [p for p in problems if method.is_for(cell, p) and not method.filters]
    answers = 0 if method.chooses else cell.max_tokens
    streams = 4 if method.chooses else 1 + bool(method.settings) + bool(method.weights[1:])
    if method.amateur == "each" and mine:
        streams = 1 + len(mine[0].lacking)
    tokens = sum(streams * (_tokens(problem.prompt) + answers) for problem in mine)
    weights = model.parameters * 1e9
    a_step = 2 * weights / machine.bandwidth + machine.step
    decoding = ceil(len(mine) * streams / SEQUENCES) * max(1, answers) * a_step
    return tokens * 2 * weights / machine.operations + (decoding if mine else 0)
