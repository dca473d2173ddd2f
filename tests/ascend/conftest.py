# SPDX-License-Identifier: Apache-2.0
"""These tests run in the environment that ``python -m tests.ascend`` makes, and nowhere else."""

import sys
from pathlib import Path
from typing import Any

import pytest

# The plugin of that environment is there before any conftest.py.
collect_ignore_glob = [] if "tests.ascend.on_stub" in sys.modules else ["test_*.py"]


@pytest.fixture(scope="session")
def make_engine(tiny: Path) -> Any:
    """Makes the configuration of an engine, as it is in a process with our plugin: compiled, and
    with LoRA as vLLM has it when nothing is said.
    """
    from tests.front_end import Front
    from vllm_cold import plugin

    plugin.register()

    def make(**options: Any) -> Any:
        defaults = {"max_loras": 1, "enforce_eager": False}
        return Front(tiny / "model", **(defaults | options)).config

    return make


@pytest.fixture
def engine(make_engine: Any) -> Any:
    """The configuration of an engine with contrastive decoding."""
    return make_engine()
