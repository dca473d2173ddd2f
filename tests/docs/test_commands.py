# SPDX-License-Identifier: Apache-2.0
"""The block that calls make, and the commits that CONTRIBUTING.md names.

Make's targets take minutes and are run elsewhere: ``examples.demo`` by tests/examples,
``make venv`` by whoever runs this.
"""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.docs.blocks import ROOT, block

pytestmark = pytest.mark.unit

# What a target does in the end.
DOES = {
    "demo": ["-m examples.demo"],
    "venv": ["-m venv .venv", "-r requirements.lock", "-e ."],
}


def test_make() -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    index, venv, activate, demo = block("README.md", "make").splitlines()
    assert index == f"export PIP_EXTRA_INDEX_URL={workflow['env']['PIP_EXTRA_INDEX_URL']}"
    assert activate == "source .venv/bin/activate"
    for line in (venv, demo):
        target = re.match(r"make (\w+)(?: +#.*)?$", line)
        assert target, line
        done = subprocess.run(
            ["make", "--dry-run", "--always-make", target[1]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(part in done.stdout for part in DOES[target[1]]), done.stdout


def test_commits_to_follow() -> None:
    """Each that CONTRIBUTING.md names is there, and is called so."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`([0-9a-f]{7})` (.+?)(?=;| \|)", page)
    assert len(named) >= 8
    history = subprocess.run(
        ["git", "log", "--format=%h %s", "--abbrev=7"], cwd=ROOT, capture_output=True, text=True
    )
    commits = dict(line.split(" ", 1) for line in history.stdout.splitlines())
    if named[-1][0] not in commits:
        pytest.skip("not the whole history")  # a release's sources, or a shallow clone
    for commit, subject in named:
        assert commits[commit].startswith(subject), f"{commit}: {commits[commit]}"
