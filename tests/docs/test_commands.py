# SPDX-License-Identifier: Apache-2.0
"""The block that calls make.

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
    lines = block("docs/install.md", "make").splitlines()
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
