# SPDX-License-Identifier: Apache-2.0
"""The block that calls make, and the commits that CONTRIBUTING.md names.

Make's targets take minutes and are run elsewhere: ``examples.demo`` by tests/examples,
``make venv`` by whoever runs this.
"""

import re
import shutil
import subprocess

import pytest

from tests.docs.blocks import ROOT, block

pytestmark = pytest.mark.unit


def test_make() -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    lines = block("README.md", "make").splitlines()
    demo, activate = (line.partition("#")[0].rstrip() for line in lines)
    assert activate == "source .venv/bin/activate"
    done = subprocess.run(
        [*demo.split(), "--dry-run", "--always-make"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search("packaging/set_up.py\n.* -m examples.demo\n", done.stdout), done.stdout


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
