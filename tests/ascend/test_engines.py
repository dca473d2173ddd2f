# SPDX-License-Identifier: Apache-2.0
"""Which engines CoLD is in on vllm-ascend, and what the doctor says there."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.vllm import plugin, versions
from vllm_cold.vllm.contracts import CONTRACTS, ContractBroken, check_all, run
from vllm_cold.vllm.frontend.config import is_configured, unsupported

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
        ({"enable_reduce_sample": True}, "enable_reduce_sample splits the vocabulary"),
        ({"xlite_graph_config": {"enabled": True}}, "vllm-ascend's xlite_graph_config is on"),
        ({"SLO_limits_for_dynamic_batch": 50}, "it uses its own scheduler class"),
        ({"enable_balance_scheduling": True}, None),
        ({"enable_async_exponential": True}, None),
        ({"xlite_graph_config": {"enabled": False}}, None),
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


def test_another_lora_class_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    new = classmethod(lambda cls: "vllm_ascend.lora.punica_npu.PunicaWrapperNPU2")
    monkeypatch.setattr(type(current_platform), "get_punica_wrapper", new)
    assert "PunicaWrapperNPU2, which CoLD does not know" in str(unsupported(engine))


def test_contracts_hold() -> None:
    assert [(broken.contract.name, broken.reason) for broken in check_all()] == []


def test_a_vllm_ascend_that_is_not_known_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions.unvalidated() is None
    monkeypatch.setattr(versions, "VALIDATED_ASCEND", ("0.22.0",))
    said = "vllm-ascend 0.23.0 is not among the validated versions (0.22.0)"
    assert versions.unvalidated() == said
    asked: list[str] = []
    monkeypatch.setattr(plugin, "_broken_contracts", lambda: asked.append("contracts"))
    assert plugin._look() is None and asked == ["contracts"]


@pytest.mark.parametrize(
    ("name", "kind", "attribute"),
    [
        ("punica_npu", "lora.punica_npu:PunicaWrapperNPU", "_shrink_decode"),
        ("punica_npu", "lora.punica_npu:PunicaWrapperNPU", "_get_token_lora_indices"),
        ("punica_wrapper_of_npus", "platform:NPUPlatform", "get_punica_wrapper"),
    ],
)
def test_a_contract_of_vllm_ascend_can_fail(
    name: str, kind: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, owner = kind.partition(":")
    found = getattr(importlib.import_module(f"vllm_ascend.{module}"), owner)
    changed = classmethod(lambda cls: "other") if "get_punica" in attribute else lambda self: None
    monkeypatch.setattr(found, attribute, changed)
    (contract,) = (contract for contract in CONTRACTS if contract.name == name)
    assert not contract.note
    with pytest.raises(ContractBroken):
        run(contract)


def test_the_doctor_finds_no_fault() -> None:
    """But where it computes on an NPU, of which there is none."""
    command = [sys.executable, "-m", "vllm_cold.tools.main", "doctor", "--json", "--no-self-test"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    sections = {s["title"]: s["entries"] for s in json.loads(done.stdout)["sections"]}
    problems = [
        (title, entry["name"], entry["value"])
        for title, entries in sections.items()
        for entry in entries
        if entry["status"] in ("problem", "warning") and title != "Scoring"
    ]
    assert problems == []
    said = {e["name"]: e["value"] for entries in sections.values() for e in entries}
    assert said["vLLM's platform"] == "NPUPlatform"
    assert said["CoLD"] == "can be used in it"
    assert said["LoRA"].startswith("bgmv in engines with CoLD, else vllm_ascend.")
