# SPDX-License-Identifier: Apache-2.0
"""How a check looks at vLLM: signatures, fields, and the order of statements in its source.

As syntax, so that comments and line breaks do not matter.
"""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

from vllm_cold.vllm.contracts.contract import ContractBroken


def require(condition: object, sentence: str) -> None:
    """Raise ContractBroken with ``sentence`` unless ``condition``."""
    if not condition:
        raise ContractBroken(sentence)


def tree_of(code: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef:
    """Syntax of a function or class."""
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(code)))).body[0]
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    return node


def source_of(code: Any) -> str:
    """Source of a function or class in one spelling: no comments, one line a statement."""
    return ast.unparse(tree_of(code))


def in_order(source: str, where: str, *parts: str) -> None:
    """Each part is in ``source`` after the one before it."""
    position = 0
    for part in parts:
        found = source.find(part, position)
        if found < 0:
            elsewhere = "elsewhere" if part in source else "gone"
            raise ContractBroken(f"{where}: `{part}` is not where it was expected ({elsewhere}).")
        position = found + len(part)


def contains(source: str, where: str, *parts: str) -> None:
    """Each part is in ``source``."""
    for part in parts:
        require(part in source, f"{where} does not contain `{part}` any more.")


def attribute(owner: Any, name: str) -> Any:
    """A class's or module's attribute, as it stands there; it must be there."""
    found = inspect.getattr_static(owner, name, None)
    label = getattr(owner, "__qualname__", getattr(owner, "__name__", owner))
    inherited = name not in vars(owner) if inspect.isclass(owner) else False
    # What only an interface declares is not there.
    gone = found is None or (inherited and getattr(found, "__isabstractmethod__", False))
    require(not gone, f"{label} has no {name} any more.")
    return found


def has_parameters(owner: Any, name: str, *expected: str, exact: bool = False) -> None:
    """A method takes these parameters first (self and cls are left out), or these alone."""
    method = attribute(owner, name)
    function = getattr(method, "__func__", method)
    actual = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    if not exact:
        actual = actual[: len(expected)]
    require(
        actual == list(expected),
        f"{owner.__qualname__}.{name} takes ({', '.join(actual)}), not ({', '.join(expected)}).",
    )


def has_kind(owner: Any, name: str, kind: type | None) -> None:
    """A method is a classmethod or staticmethod, or a plain one."""
    method = attribute(owner, name)
    wanted = kind.__name__ if kind else "plain method"
    is_kind = isinstance(method, kind) if kind else inspect.isfunction(method)
    require(is_kind, f"{owner.__qualname__}.{name} is a {type(method).__name__}, no {wanted}.")


def field_names(owner: Any) -> set[str]:
    """Fields of a dataclass (pydantic's too) or a msgspec struct."""
    if dataclasses.is_dataclass(owner):
        return {f.name for f in dataclasses.fields(owner)}
    return set(owner.__struct_fields__)


def has_fields(owner: Any, *names: str) -> None:
    """A dataclass or struct has these fields."""
    missing = sorted(set(names) - field_names(owner))
    require(not missing, f"{owner.__qualname__} has no field {', '.join(missing)} any more.")


def no_new_fields(owner: Any, known: Iterable[str], consequence: str) -> None:
    """It has no others."""
    new = sorted(field_names(owner) - set(known))
    require(not new, f"{owner.__qualname__} has the new field {', '.join(new)}: {consequence}")


def assigned_in_init(owner: Any) -> dict[str, str]:
    """Attributes that ``__init__`` sets on self, with the code of the last value."""
    assigned = {}
    for node in ast.walk(tree_of(owner.__init__)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                value = getattr(node, "value", None)
                assigned[target.attr] = ast.unparse(value) if value is not None else ""
    return assigned


def loop_over(function: Any, name: str, marks: str) -> str:
    """The smallest while loop of a function that contains ``marks``."""
    loops = [ast.unparse(n) for n in ast.walk(tree_of(function)) if isinstance(n, ast.While)]
    loops = [loop for loop in loops if marks in loop]
    require(loops, f"{function.__qualname__} has no loop over the {name} requests any more.")
    return min(loops, key=len)


def scheduler() -> Any:
    """The scheduler class that is vLLM's own: vllm-ascend puts one derived from it there."""
    return schedulers()[-1]


def schedulers() -> list[Any]:
    """The class that schedulers are built from, and its bases up to vLLM's own."""
    from vllm.v1.core.sched import scheduler

    kinds = scheduler.Scheduler.__mro__
    own = next((i for i, k in enumerate(kinds) if k.__module__ == scheduler.__name__), 0)
    return list(kinds[: own + 1])


def a_request(request_id: str) -> Any:
    """A request, made the way the group scheduler makes amateurs."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    return Request(
        request_id=request_id,
        client_index=0,
        prompt_token_ids=[1, 2, 3],
        prompt_embeds=None,
        prompt_is_token_ids=None,
        sampling_params=SamplingParams(max_tokens=4),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        priority=0,
        block_hasher=None,
    )
