# SPDX-License-Identifier: Apache-2.0
"""Which engines vllm-cold is in on vllm-ascend, and what the doctor says there."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.compat.engine import is_configured
from vllm_cold.frontend.support import unsupported

ROOT = Path(__file__).parents[2]


def test_an_engine_that_nothing_is_said_about_is_prepared(engine: Any) -> None:
    """It is compiled, asynchronous, and has one slot for adapters."""
    assert is_configured(engine)
    assert engine.compilation_config.mode.name == "VLLM_COMPILE"
    assert engine.scheduler_config.async_scheduling and engine.lora_config.max_loras == 1
    assert engine.scheduler_config.scheduler_cls.endswith(".ColdAsyncScheduler")


@pytest.mark.parametrize(
    ("additional", "reason"),
    [
        ({"enable_reduce_sample": True}, "enable_reduce_sample is on"),
        ({"xlite_graph_config": {"enabled": True}}, "vllm-ascend's xlite_graph_config is on"),
        ({"SLO_limits_for_dynamic_batch": 50}, "it uses its own scheduler class"),
        ({"enable_balance_scheduling": True}, None),
        ({"enable_async_exponential": True}, None),
        ({"xlite_graph_config": {"enabled": False, "full_mode": True}}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_of_vllm_ascend(
    make_engine: Any, additional: dict[str, Any], reason: str | None
) -> None:
    engine = make_engine(additional_config=additional)
    assert is_configured(engine) == (reason is None)
    said = unsupported(engine)
    assert said is None if reason is None else reason in str(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, True),
        ({"compilation_config": {"cudagraph_mode": "PIECEWISE"}}, False),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, False),
    ],
    ids=["as it is", "piecewise", "without contrastive decoding"],
)
def test_full_graphs_are_warned_of(
    make_engine: Any, options: dict[str, Any], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logger = "vllm.vllm_cold.frontend.ascend"
    caplog.set_level(logging.WARNING, logger)
    logging.getLogger(logger).addHandler(caplog.handler)
    make_engine(**options)
    logging.getLogger(logger).removeHandler(caplog.handler)
    warnings = [r.getMessage() for r in caplog.records if r.name == logger]
    assert len(set(warnings)) == said
    assert all("vllm-ascend 0.23.0 keeps one list" in warning for warning in warnings)


def test_the_doctor_finds_no_problem() -> None:
    """But where it computes on an NPU, of which there is none."""
    command = [sys.executable, "-m", "vllm_cold.tools.main", "doctor", "--json", "--no-self-test"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    sections = json.loads(done.stdout)["sections"]
    problems = [
        (title, entry["name"], entry["value"])
        for title, entries in sections.items()
        for entry in entries
        if entry["status"] in ("problem", "warning") and entry["name"] != "scoring"
    ]
    assert problems == []
    said = {e["name"]: e["value"] for entries in sections.values() for e in entries}
    assert said["vLLM's platform"] == "NPUPlatform"
    assert said["contrastive decoding"] == "available in this process"
    assert said["LoRA"].startswith("bgmv (in engines with contrastive decoding, else vllm_ascend.")
