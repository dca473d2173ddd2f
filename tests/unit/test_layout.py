# SPDX-License-Identifier: Apache-2.0
"""The package's shape: no circle of imports, vLLM hooked where it is said, maps that are right."""

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests import __main__ as suite
from tests.places import TABLES as TABLES_OF_PLACES
from tests.places import hooks
from vllm_cold.compat.patching import Reference

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vllm_cold"
TABLES = "docs/design.md"
PROCESSES = {"frontend", "scheduler", "worker"}
KERNELS = {"cpu", "npu"}
WITHOUT_VLLM = {"settings", "rules", "ops", "wire", "errors"}
# What the rest stands on.
GROUND = WITHOUT_VLLM | {"compat", "params"}
# The one file of it that leads into a process, once an engine or a request asks.
DOOR = "vllm_cold.compat.start_hooks"
# Files of a process's folder that run without vLLM, and are tested so.
PLAIN = {
    "scheduler": {"lockstep", "drafting", "output_checks", "explain_steps"},
    "worker": {"group_rows", "rule_weights", "explain_step"},
    "frontend": {"adapter_config"},
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """What a file imports anywhere in it: at its top, in a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            known = below & modules().keys()
            found |= known
            if len(known) < len(below):
                found.add(node.module)
    return found


def test_no_module_imports_itself_by_a_detour() -> None:
    """Lazy imports count too: one whose only purpose is to hide a circle would be one."""
    graph = {name: imported(path) & modules().keys() - {name} for name, path in modules().items()}
    assert len(graph) > 80 and sum(map(len, graph.values())) > 200
    graphlib.TopologicalSorter(graph).prepare()  # names a circle


def room(module: str) -> str:
    """A file or folder right below the package."""
    return module.split(".")[1] if "." in module else ""


def is_vllm(module: str) -> bool:
    return module.partition(".")[0] == "vllm"


@cache
def arrows() -> set[tuple[str, str]]:
    """Which room imports which other."""
    found = {
        (room(name), room(module))
        for name, path in modules().items()
        for module in imported(path)
        if module.startswith("vllm_cold") and (name, room(module)) != (DOOR, "frontend")
    }
    return {(a, b) for a, b in found if a != b and a and b}


def test_no_process_imports_another() -> None:
    """What crosses between them is in ``wire``."""
    for process in PROCESSES:
        assert {b for a, b in arrows() if a == process} <= GROUND


def test_what_has_no_vllm_imports_none() -> None:
    plain = {f"vllm_cold.{folder}.{name}" for folder, names in PLAIN.items() for name in names}
    assert plain <= modules().keys()
    for name, path in modules().items():
        if room(name) in WITHOUT_VLLM or name in plain:
            assert not any(map(is_vllm, imported(path))), name


def test_the_ground_knows_no_process() -> None:
    assert {b for a, b in arrows() if a in GROUND} <= GROUND
    assert {b for a, b in arrows() if a in WITHOUT_VLLM} <= WITHOUT_VLLM | {"compat"}


def test_kernels_and_contrast_do_not_know_each_other() -> None:
    for kernels in KERNELS:
        assert {b for a, b in arrows() if a == kernels} <= {"compat", "ops"}
        assert {a for a, b in arrows() if b == kernels} <= {"plugin", "tools"}


def test_each_name_of_a_file_stands_once() -> None:
    names = [path.stem for path in modules().values() if path.stem != "__init__"]
    assert sorted(names) == sorted(set(names))


def table_rows(page: str, heading: str) -> list[str]:
    """The first cells of the table under a heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    return [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize(
    ("page", "heading"), [("CONTRIBUTING.md", "## Map"), (TABLES, "## The way of a request")]
)
def test_a_map_shows_the_tree(page: str, heading: str) -> None:
    """Every path is there, and no part of the package is left out."""
    named = [name for cell in table_rows(page, heading) for name in re.findall(r"`([^`]+)`", cell)]
    assert [name for name in named if not (ROOT / name).exists()] == []
    mapped = tuple(PACKAGE / name.removeprefix("vllm_cold/") for name in named)
    own = [p for p in modules().values() if p.name != "__init__.py"]
    outside = [p for p in own if not any(p == m or m in p.parents for m in mapped)]
    assert [str(p.relative_to(ROOT)) for p in outside] == []


def test_each_test_is_in_a_step_of_make_test() -> None:
    """Engines and servers are tested in the folders of their step; its first two have no units."""
    marks = re.compile(r"^(?:@|pytestmark = ).*mark\.(engine|server|unit)\b", re.M)
    for path in (ROOT / "tests").rglob("test_*.py"):
        name, found = path.relative_to(ROOT).as_posix(), set(marks.findall(path.read_text()))
        if found & {"engine", "server"}:
            assert name.startswith(suite.ENGINES), name
        if name.startswith(suite.ENGINES[:2]):
            assert "unit" not in found, name


def test_every_class_has_a_name_of_its_own() -> None:
    names = [
        node.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))


def test_hooks_say_what_they_wrap() -> None:
    """Each is a function of its own name, beside what its docstring says that it wraps."""
    wrapped = [(h.file, place) for h in hooks() for place in h.wraps]
    for file, place in wrapped:
        assert isinstance(place.hook, Reference)
        name = place.hook.where.partition(":")[2]
        assert name.startswith("wrap_") and place.hook.where.startswith(f"vllm_cold.{file}:"), file
        method = re.split(r"[.:]", place.where)[-1]
        assert method in str(place.load_hook().__doc__) or method.strip("_") in name, name
    names = {place.hook.where for _, place in wrapped}
    assert len({name.partition(":")[2] for name in names}) == len(names)


@pytest.mark.parametrize("table", TABLES_OF_PLACES)
def test_a_table_names_its_files(table: str) -> None:
    """Unloaded: they are no imports, and stand for what they are called."""
    files = {n: f for n, f in vars(import_module(table)).items() if isinstance(f, Reference)}
    assert files
    for name, file in files.items():
        assert file.where in modules() and file.where.endswith(f".{name}"), name
        assert room(file.where) in GROUND | {room(table)}, name


def bindings() -> Iterator[str]:
    """Each name that the package binds: variables, attributes, parameters, functions, classes."""
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    yield name
                case ast.AsyncFunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                    yield name
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    yield name


def test_names_say_what_they_hold() -> None:
    """These nine held a dozen things each."""
    vague = {"one", "found", "each", "said", "asked", "given", "told", "own", "made"}
    names = [name.strip("_") for name in bindings()]
    assert sum(name in vague for name in names) < 0.01 * len(names)
