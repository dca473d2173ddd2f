# SPDX-License-Identifier: Apache-2.0
"""The messages that a user can meet, read from the package's source.

Collected are the sentences of ``raise``, of warnings and errors in the log, those that functions
named ``unsupported``, ``unavailable`` and ``missing`` return, those that end a request in the
scheduler, constants in capitals that are raised, and what the method's knobs say they take. Values
in a message (f-strings, ``%s``) are ``VALUE``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "vllm_cold"
VALUE = "…"

# Answered by the module itself, or for people who change the code: contracts have a page of
# their own (touches.md), and no user of the package reads an attribute that is not there.
_LEFT_OUT = ("vllm/contracts/", "__init__.py")

_REASONS = {
    "unsupported",
    "unsupported_speculation",
    "lacks_seats",
    "missing",
    "unavailable",
    "inactive",
}  # functions that return a sentence
_LOGS = {"warning", "error"}
_HELPERS = {"request_error"}  # wrap another exception

# Errors that carry no sentence for users: of the language's own protocols.
_SILENT = {"AttributeError", "StopIteration"}


@dataclass(frozen=True)
class Message:
    """A sentence with ``VALUE`` for its values, and where it stands."""

    text: str
    where: str


def collect() -> list[Message]:
    """All messages, in the order of the files."""
    found: list[Message] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(_LEFT_OUT):
            continue
        tree = ast.parse(path.read_text())
        constants = _constants(tree)
        for node in _sources(tree):
            for text in _texts(node, constants):
                found.append(Message(text, f"{name}:{node.lineno}"))
    return found + _in_cpp()


def _in_cpp() -> list[Message]:
    """Messages of the C++ code: literals, in as many parts as they take, after the name."""
    found = []
    for path in sorted((PACKAGE.parent / "csrc" / "cpu").glob("*.[ch]*")):
        text = path.read_text()
        for literal in re.finditer(r'"(vllm-cold: (?:[^"\\]|"\s*")*)"', text):
            message = "".join(re.split(r'"\s*"', literal[1]))
            line = text[: literal.start()].count("\n") + 1
            found.append(Message(message, f"{path.name}:{line}"))
    return found


def _constants(tree: ast.Module) -> dict[str, str]:
    """Module-level strings by name."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def _sources(tree: ast.AST) -> Iterator[ast.expr]:
    """Expressions that become messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            if _name(node.exc.func) not in _SILENT:
                yield from _arguments(node.exc)
        elif isinstance(node, ast.Call) and _name(node.func) in _LOGS:
            if isinstance(node.func, ast.Attribute) and _name(node.func.value) == "logger":
                yield from node.args[:1]
        elif isinstance(node, ast.Call) and _name(node.func) == "_knob":
            yield node.args[-1]
        elif isinstance(node, ast.FunctionDef) and node.name.lstrip("_") in _REASONS:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield inner.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            if _name(node.targets[0].value) == "_errors":  # the scheduler's
                yield node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name == "reason" or name == "NOT_FINITE":
                yield node.value


def _arguments(call: ast.Call) -> Iterator[ast.expr]:
    for argument in call.args:
        if isinstance(argument, ast.Call) and _name(call.func) in _HELPERS:
            yield from _arguments(argument)
        else:
            yield argument


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def _texts(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    """The sentence of an expression, if it is one: several words."""
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body, constants)
        yield from _texts(node.orelse, constants)
        return
    text = None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = re.sub(r"%[a-z]", VALUE, node.value)
    elif isinstance(node, ast.Name):
        text = constants.get(node.id)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(_part(part, constants) for part in node.values)
    if text is not None and len(text.replace(VALUE, " ").split()) > 2:
        yield " ".join(text.split())


def _part(part: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    if isinstance(part.value, ast.Name) and part.value.id in constants:
        return constants[part.value.id]
    return VALUE
