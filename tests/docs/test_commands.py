# SPDX-License-Identifier: Apache-2.0
"""The blocks that call make. Their targets take minutes and are run elsewhere: ``examples.demo`` by
tests/examples, the site by ``test_site.py``, the tests by whoever reads this.
"""

import re
import shutil
import subprocess

import pytest

from tests.docs.blocks import ROOT, block

pytestmark = pytest.mark.unit

# What a target does in the end.
DOES = {
    "demo": ["-m examples.demo"],
    "docs": ["-m docs.pictures", "-m mkdocs build --strict"],
    "test": ["-m ruff check .", "-m mypy", "-m pytest", "'(engine or server) and not full'"],
}


@pytest.mark.parametrize(
    "text", [block("README.md", "make"), block("docs/index.md", "make")], ids=["README", "index"]
)
def test_make(text: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    for line in text.splitlines():
        target = re.match(r"make (\w+)(?: +#.*)?$", line)
        assert target, line
        done = subprocess.run(
            ["make", "--dry-run", target[1]], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert all(part in done.stdout for part in DOES[target[1]]), done.stdout
