# SPDX-License-Identifier: Apache-2.0
"""What is decoded first, and how long all of it takes at most.

The cost model, which two runs on one CPU core bear out (0.5B and 1.5B, short answers in batches of
32: 37 and 11 tokens a second measured, 33 and 11 computed; nothing was measured on a GPU): a token
that is read or written costs two operations for each of the model's parameters, a step reads all
weights once and has fixed costs, 128 requests share a step. Prompts that are in the cache already
are counted again, so that it takes less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from benchmarks.accuracy.methods import ADAPTED, CHOICE, CONTRASTS, METHODS, PLAIN, RULES, Method
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt

# Of a kind and step; of all others the cells and methods that are not in the table come last.
_TEXTS = ("false", "near", "nothing", "false-among", "true-among")
_OTHERS = ("swapped", "squad-near", "squad")
_FIRST = (*PLAIN, METHODS["cad"])
_MORE = tuple(each for each in CONTRASTS if each.key not in ("adacad", "alpha 0.1, beta 0.5"))
ORDER: tuple[tuple[Sequence[str], Sequence[Method]], ...] = (
    ((*_TEXTS, "instructions"), _FIRST),
    ((*_OTHERS, "plain-questions"), _FIRST),
    ((*_TEXTS, *_OTHERS, "instructions", "plain-questions"), _MORE),
    ((*_TEXTS, *_OTHERS), (CHOICE,)),
    (("gsm8k", "words-r8-100", "words-r8-50", "words-r8-25"), (PLAIN[0], *ADAPTED)),
    (("humaneval",), (*PLAIN, *CONTRASTS)),
    (_TEXTS, (METHODS["adacad"], *RULES)),
    (_OTHERS, (METHODS["adacad"], *RULES)),
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
    cells: Sequence[Cell], methods: Iterable[Method]
) -> list[tuple[list[Cell], list[Method]]]:
    """Cells and methods in the order of importance, each pair of them once."""
    wanted, known = list(methods), {cell.name: cell for cell in cells}
    done: dict[str, set[str]] = {name: set() for name in known}
    found: list[tuple[list[Cell], list[Method]]] = []
    rest = [((name,), wanted) for name in known]
    for names, some in (*ORDER, *rest):
        for name in names if set(names) & known.keys() else ():
            if name not in known:
                continue
            new = [each for each in some if each in wanted and each.key not in done[name]]
            done[name] |= {each.key for each in new}
            if new and found and found[-1][1] == new:
                found[-1][0].append(known[name])
            elif new:
                found.append(([known[name]], new))
    return found


def _tokens(prompt: Prompt) -> float:
    """About as many as a prompt has: one for four characters, and some of the template."""
    text = prompt if isinstance(prompt, str) else "".join(each["content"] for each in prompt)
    return len(text) / 4 + 15


def seconds(
    model: Model, cell: Cell, problems: Sequence[Problem], method: Method, machine: Machine
) -> float:
    """How long a method takes for a cell's problems, at most."""
    mine = [problem for problem in problems if method.is_for(cell, problem)]
    answers = 0 if method.chooses else cell.max_tokens
    streams = 4 if method.chooses else 1 + bool(method.knobs) + bool(method.weights)
    tokens = sum(streams * (_tokens(problem.prompt) + answers) for problem in mine)
    weights = model.parameters * 1e9
    a_step = 2 * weights / machine.bandwidth + machine.step
    decoding = ceil(len(mine) * streams / SEQUENCES) * max(1, answers) * a_step
    return tokens * 2 * weights / machine.operations + (decoding if mine else 0)
