# SPDX-License-Identifier: Apache-2.0
"""The example package of rules: once installed, they have names. (tests/server/test_rules.py serves
one, test_rules_of_papers.py has what they do.)
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.installed import ROOT, install

pytestmark = pytest.mark.unit

FIND = """
from vllm_cold.rules import registry

rule = registry.get("conflict")
print(type(rule).__module__, "conflict" in registry.names(), registry.parameters_of(rule, {}, "p"))
print(*(registry.get(name).name for name in registry.names() if name not in registry.BUILT_IN))
"""


def find(*folders: Path) -> subprocess.CompletedProcess[str]:
    """Ask for the rule in a new process that sees these folders."""
    path = os.pathsep.join(map(str, folders))
    command = [sys.executable, "-c", FIND]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )


def test_an_installed_rule_has_a_name(tmp_path: Path) -> None:
    found = find(install(tmp_path), ROOT)
    assert found.returncode == 0, found.stderr
    rule, names, _ = found.stdout.split("\n")
    assert rule == "cold_conflict True {'beta': 0.5}"
    assert names.split() == ["clean_gen", "conflict", "invisible_ink", "robust_rag"]
    without = find(ROOT)
    assert without.returncode != 0
    assert "rule='conflict': must be the name of a rule: acd, " in without.stderr
