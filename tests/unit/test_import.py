# SPDX-License-Identifier: Apache-2.0
"""The core imports no engine; the package itself imports nothing heavy at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PLAIN = [
    "vllm_cold",
    "vllm_cold.adapter_config",
    "vllm_cold.group.lockstep",
    "vllm_cold.settings.table",
    "vllm_cold.group.stream",
]
WITH_TORCH = [
    "vllm_cold.ops",
    "vllm_cold.ops.scoring_reference",
    "vllm_cold.group.rows",
]


def loaded_after(modules: list[str]) -> set[str]:
    """Top-level packages in a fresh process that imported ``modules``."""
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*{{name.partition('.')[0] for name in sys.modules}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_plain_modules_import_neither_vllm_nor_torch() -> None:
    loaded = loaded_after(PLAIN)
    assert "vllm_cold" in loaded
    assert not loaded & {"vllm", "torch", "numpy"}


def test_ops_import_no_vllm() -> None:
    loaded = loaded_after([*PLAIN, *WITH_TORCH])
    assert "torch" in loaded
    assert "vllm" not in loaded
