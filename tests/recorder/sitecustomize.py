# SPDX-License-Identifier: Apache-2.0
"""Records what vllm_cold's code reads, sets and passes by name of vLLM's objects: each attribute of
an object, class or module, each imported name, each keyword of a call.

Python imports this file at start from a folder on ``PYTHONPATH``, also in engines and servers that
a test starts. It changes the package's modules as they are loaded, in memory: ``x.name`` becomes
``_seen(x, "name").name``. What was seen goes into a file for each process in ``COLD_RECORD``, a
line ``where<TAB>name<TAB>file`` for each, at once, as processes may be killed.
"""

import ast
import dis
import os
import sys
from functools import cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any

FOLDER = "COLD_RECORD"
_PACKAGE = "vllm_cold"
_known: set[tuple[Any, str, str]] = set()


def _is_compiling() -> bool:
    """Whether torch traces the code, which takes none of what is done here. Torch's own takes this
    place as soon as it is loaded.
    """
    return False


def _is_vllms(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in ("vllm", "vllm_ascend")


def _write(where: str, name: str, file: str) -> None:
    with open(f"{os.environ[FOLDER]}/{os.getpid()}", "a") as stream:
        stream.write(f"{where}\t{name}\t{file}\n")


@cache
def _stored(cls: type) -> frozenset[str]:
    """Return the names that methods of a class set on an object."""
    codes: list[CodeType] = []
    for value in vars(cls).values():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(function, FunctionType):
            codes.append(function.__code__)
    return frozenset(
        i.argval for code in codes for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"
    )


def _declares(cls: type, name: str) -> bool:
    return name in vars(cls) or name in vars(cls).get("__annotations__", ()) or name in _stored(cls)


def _owners(value: Any, kind: Any, name: str) -> list[str]:
    """Return the classes or the module of vLLM's that declare an attribute of an object."""
    if isinstance(kind, ModuleType):
        return [kind.__name__] if _is_vllms(kind.__name__) else []
    if isinstance(value, super):
        start = value.__self__ if isinstance(value.__self__, type) else type(value.__self__)
        classes = start.__mro__[start.__mro__.index(value.__thisclass__) + 1 :]
    else:
        classes = kind.__mro__ if isinstance(kind, type) else ()
    found = [c for c in classes if _is_vllms(c.__module__) and _declares(c, name)]
    return [f"{c.__module__}:{c.__qualname__}" for c in found]


def _seen(value: Any, name: str, file: str = "") -> Any:
    if _is_compiling():
        return value
    kind = value if isinstance(value, (type, ModuleType)) else type(value)
    if (key := (kind, name, file)) not in _known:
        _known.add(key)
        if not (name.startswith("__") and name.endswith("__")):
            for where in _owners(value, kind, name)[:1]:
                _write(where, name, file)
    return value


def _called(function: Any, names: tuple[str, ...], file: str) -> Any:
    if _is_compiling():
        return function
    target = function
    if isinstance(function, type):
        where = f"{function.__module__}:{function.__qualname__}"
    else:
        target = getattr(function, "__func__", function)
        where = f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"
    if _is_vllms(getattr(target, "__module__", None)) and "<" not in where:
        for name in names:
            if (where, name, file) not in _known:
                _known.add((where, name, file))
                _write(where, f"{name}=", file)
    return function


def _with_name(access: Any, file: str) -> Any:
    def recorded(value: Any, name: str, *rest: Any) -> Any:
        _seen(value, name, file)
        return access(value, name, *rest)

    return recorded


class _Rewriting(ast.NodeTransformer):
    def __init__(self, file: str) -> None:
        self.file = file

    def _call(self, function: str, *arguments: ast.expr) -> ast.Call:
        return ast.Call(ast.Name(function, ast.Load()), [*arguments, ast.Constant(self.file)], [])

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        node.value = self._call("_seen", node.value, ast.Constant(node.attr))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr"):
            node.func = ast.Name(f"_{node.func.id}", ast.Load())
        self.generic_visit(node)
        if names := [ast.Constant(k.arg) for k in node.keywords if k.arg]:
            node.func = self._call("_called", node.func, ast.Tuple(names, ast.Load()))
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if not _is_vllms(node.module):
            return node
        seen = [
            ast.Expr(self._call("_imported", ast.Constant(node.module), ast.Constant(alias.name)))
            for alias in node.names
        ]
        return [node, *seen]

    def visit_MatchValue(self, node: ast.MatchValue) -> ast.AST:
        return node  # a pattern takes no call

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node


def _imported(module: str, name: str, file: str) -> None:
    if f"{module}.{name}" not in sys.modules:
        _write(module, name, file)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:  # never a cached file
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        file = path[path.rindex(f"/{_PACKAGE}/") + len(_PACKAGE) + 2 :]
        body = [_Rewriting(file).visit(node) for node in tree.body]
        flat = [part for node in body for part in (node if isinstance(node, list) else [node])]
        tree.body = flat
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        if "torch" in sys.modules:
            globals()["_is_compiling"] = sys.modules["torch"].compiler.is_compiling
        file = self.path[self.path.rindex(f"/{_PACKAGE}/") + len(_PACKAGE) + 2 :]
        module.__dict__.update(
            _seen=_seen,
            _called=_called,
            _imported=_imported,
            **{f"_{f.__name__}": _with_name(f, file) for f in (getattr, hasattr, setattr)},
        )
        super().exec_module(module)


class _Finder:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != _PACKAGE or "/ops/" in str(path) or ".ops" in name:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if type(spec.loader) is SourceFileLoader:
                    spec.loader = _Loader(name, spec.loader.path)
                return spec
        return None


if FOLDER in os.environ:
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
