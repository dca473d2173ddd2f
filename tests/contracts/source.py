# SPDX-License-Identifier: Apache-2.0
"""How vLLM's source is looked at: as syntax, so that comments and line breaks do not matter."""

import ast
import importlib
import inspect
import textwrap
from typing import Any

import pytest

from vllm_cold.compat import versions
from vllm_cold.compat.patching import original_of


def find(where: str) -> Any:
    """What stands at "module:Class.method"; an original where it is wrapped."""
    module, _, path = where.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split(".") if path else ():
        found = inspect.getattr_static(found, name)
    found = getattr(found, "__func__", getattr(found, "fget", found))
    return original_of(found)


def source_of(code: Any) -> str:
    """Source of a function or class in one spelling: no comments, one line a statement."""
    code = inspect.unwrap(code)
    return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(code))))


def in_order(where: str, *parts: str) -> None:
    """Each part is in the source of what stands there, after the one before it."""
    source, position = source_of(find(where)), 0
    for part in parts:
        at = source.find(part, position)
        there = "elsewhere" if part in source else "gone"
        assert at >= 0, f"{where}: `{part}` is not where it was expected ({there})"
        position = at + len(part)


def contains(where: str, *parts: str) -> None:
    """Each part is in the source of what stands there."""
    source = source_of(find(where))
    for part in parts:
        assert part in source, f"{where} does not contain `{part}` any more"


def parameters(where: str) -> list[str]:
    """What a function or method takes, after ``self``."""
    return [p for p in inspect.signature(find(where)).parameters if p not in ("self", "cls")]


def set_in_init(owner: Any) -> dict[str, str]:
    """Attributes that ``__init__`` sets on self, with the code of the last value."""
    found = {}
    (init,) = ast.parse(textwrap.dedent(inspect.getsource(owner.__init__))).body
    for node in ast.walk(init):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    found[target.attr] = ast.unparse(node.value) if node.value else ""
    return found


def since(release: str) -> pytest.MarkDecorator:
    """Of a test of what came with this release."""
    return pytest.mark.skipif(versions.is_before(release), reason=f"came with vLLM {release}")


def until(release: str, reason: str) -> pytest.MarkDecorator:
    """Of a test of what is no longer so from this release on."""
    return pytest.mark.skipif(
        not versions.is_before(release), reason=f"from vLLM {release} on: {reason}"
    )
