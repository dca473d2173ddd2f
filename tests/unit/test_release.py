# SPDX-License-Identifier: Apache-2.0
"""What a release is made from: versions, the page on the index, workflows, what is packed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from vllm_cold import __version__

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of packaging/, which is no package, to leave its name to PyPI's."""
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "packaging" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_files_name_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert script("release_check", monkeypatch).released()[0] == __version__


def test_links_are_absolute_on_the_index() -> None:
    """The index shows README.md without the repository around it."""
    command = [sys.executable, "-W", "ignore", "setup.py", "--long-description"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    links = re.findall(r"""(?:\]\(|(?:src|srcset|href)=")([^)"\s]+)""", page)
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    here = 0
    for link in links:
        kind, _, path = link.partition(f"/vllm-cold/vllm-cold/{'blob/' * ('/blob/' in link)}v")
        here += bool(path)
        if path:
            version, _, name = path.partition("/")
            assert version == __version__ and (ROOT / name.partition("#")[0]).exists(), link
            picture = name.endswith((".svg", ".png"))
            assert kind == f"https://{'raw.githubusercontent' if picture else 'github'}.com"
    assert here > 10  # links to files, by that name of the repository


WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_our_scripts_and_pinned_actions(path: Path) -> None:
    text = path.read_text()
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    for action in re.findall(r"uses: (.+)", text):
        assert re.fullmatch(r"\./\S+|[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), action
        assert not action.startswith("./") or (ROOT / action).is_file()
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
    for job in yaml.safe_load(text)["jobs"].values():
        for command in (step["run"] for step in job.get("steps", ()) if "run" in step):
            for target in re.findall(r"\bmake (\S+)", command):
                assert target in targets
            for name in re.findall(r"(?:packaging/|\.ci/)\S+", command):
                assert (ROOT / name).is_file()
