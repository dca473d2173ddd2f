# SPDX-License-Identifier: Apache-2.0
"""The core imports no engine; the package itself imports nothing heavy at all."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PLAIN = [
    "vllm_cold",
    "vllm_cold.frontend.adapter_config",
    "vllm_cold.settings.table",
    "vllm_cold.wire.stream",
]
WITHOUT_VLLM = [
    "vllm_cold.scheduler.lockstep",
    "vllm_cold.ops",
    "vllm_cold.ops.scoring_torch",
    "vllm_cold.worker.group_rows",
]


@pytest.mark.parametrize(
    ("modules", "absent"), [(PLAIN, {"vllm", "torch", "numpy"}), (WITHOUT_VLLM, {"vllm"})]
)
def test_what_is_not_imported(modules: list[str], absent: set[str]) -> None:
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*{{name.partition('.')[0] for name in sys.modules}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert "vllm_cold" in loaded and not loaded & absent
