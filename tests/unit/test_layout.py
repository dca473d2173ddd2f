# SPDX-License-Identifier: Apache-2.0
"""The package's shape: no circle of imports, vLLM hooked where it is said, maps that are right."""

import ast
import graphlib
import re
from functools import cache
from pathlib import Path

import pytest

from tests import __main__ as suite

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vllm_cold"
TABLES = "docs/design.md"
IMPORTS_VLLM = {"vllm", "cpu", "npu", "tools", "hardware", "plugin"}
CORE = {"settings", "rules", "group", "ops"}
# vLLM's SamplingParams and LoRARequest are what ColdParams is made of.
PARAMS = "vllm_cold.settings.params"
GROUND = {"active", "environment", "errors", "adapter_config", "hardware", "patching", "places",
          "cpu_library"}  # fmt: skip


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


def arrows() -> set[tuple[str, str]]:
    """Which room imports which other; ``vllm``'s own name for vLLM."""
    found = {
        (room(name), room(module) if module.startswith("vllm_cold") else "vLLM")
        for name, path in modules().items()
        for module in imported(path)
        if module.startswith("vllm_cold") or (module.partition(".")[0] == "vllm" and name != PARAMS)
    }
    return {(a, b) for a, b in found if a != b and a and b}


def test_vllm_is_imported_under_its_roof_alone() -> None:
    assert {a for a, b in arrows() if b == "vLLM"} <= IMPORTS_VLLM


def test_the_floors() -> None:
    """No arrow runs back up: the plugin puts the contrast and the kernels together."""
    found = arrows()
    for kernels in ("cpu", "npu"):
        assert {b for a, b in found if a == kernels} <= GROUND | {"vLLM"}
        assert (kernels in {b for a, b in found if a == "tools"}) and ("plugin", kernels) in found
    assert {b for a, b in found if a in GROUND} <= GROUND | {"vLLM"}
    assert {b for a, b in found if a in CORE} <= GROUND | CORE
    assert {b for a, b in found if a == "vllm"} <= GROUND | CORE | {"vLLM"}


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
