# SPDX-License-Identifier: Apache-2.0
"""pytest plugin of ``make versions``: the vLLM that is imported is the one that was asked for."""

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

WANTED = "VLLM_COLD_TESTED_VLLM"


def pytest_sessionstart() -> None:
    """After conftest.py, which sets what vLLM reads when it is imported."""
    import vllm

    from vllm_cold.bindings.plugin import vllm_version

    wanted = os.environ[WANTED]
    file = Path(vllm.__file__)
    versions = {vllm.__version__, vllm_version(), importlib.metadata.version("vllm")}
    if not file.is_relative_to(sys.prefix) or {v.split("+")[0] for v in versions} != {wanted}:
        pytest.exit(f"vLLM {wanted} was wanted; {file} is {sorted(versions)}", returncode=3)
    print(f"vLLM {', '.join(sorted(versions))}: {file}")
