# SPDX-License-Identifier: Apache-2.0
"""Which engines CoLD is in on vllm-ascend, and what the doctor says there."""

import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.vllm import plugin, versions
from vllm_cold.vllm.contracts import CONTRACTS, ContractBroken, ascend, check_all, run
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


def test_balance_scheduling_of_a_release_that_no_test_ran_on_is_refused(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(additional_config={"enable_balance_scheduling": True})
    monkeypatch.setattr(versions, "VALIDATED_ASCEND", ("0.22.0",))
    assert "tested with on vllm-ascend 0.22.0 only" in str(unsupported(engine))


def test_a_choice_of_lora_that_is_none_is_refused_where_the_engine_is_made(
    make_engine: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLD_LORA", "cpp")  # one of a CPU's
    assert str(unsupported(engine)).startswith("COLD_LORA='cpp': on NPUs it must be one of")
    assert not is_configured(make_engine())
    monkeypatch.setenv("COLD_LORA", "ascendc")
    assert str(unsupported(engine)).startswith("COLD_LORA=ascendc was asked for. ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, True),
        ({"enforce_eager": True}, False),
        ({"compilation_config": {"cudagraph_mode": "PIECEWISE"}}, False),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, False),
    ],
    ids=["as it is", "eager", "piecewise", "without CoLD"],
)
def test_full_graphs_are_warned_of(
    make_engine: Any, options: dict[str, Any], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logger = "vllm.vllm_cold.vllm.frontend.ascend"
    caplog.set_level(logging.WARNING, logger)
    logging.getLogger(logger).addHandler(caplog.handler)
    make_engine(**options)
    logging.getLogger(logger).removeHandler(caplog.handler)
    warnings = [r.getMessage() for r in caplog.records if r.name == logger]
    assert len(set(warnings)) == said
    assert all("vllm-ascend 0.23.0 keeps one list" in warning for warning in warnings)


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


BY_NAME = {contract.name: contract for contract in CONTRACTS}
# Contract, and a text in what it looks at with what a vllm-ascend might have instead.
CHANGES = [
    (
        "punica_npu",
        "self.bgmv_shrink(x, w_t_all, y, self._get_token",
        "self.bgmv(x, self._get_token",
    ),
    ("punica_npu", "self.bgmv_expand(x, w_t_all, y, ", "self.bgmv_expand(y, x, w_t_all, "),
    ("punica_npu", "self.bgmv_expand_slice(x, w_t_all, y, ", "self.bgmv_expand(x, w_t_all, y, "),
    ("punica_npu", "narrow(self._token_lora_indices, 0, 0, x.size(0))", "indices(x)"),
    ("punica_npu", "self._shrink_prefill if self.is_prefill else ", ""),
    ("punica_npu", "self._expand_slice_prefill if self.is_prefill else ", ""),
    ("punica_npu", "self._expand_prefill if self.is_prefill else ", ""),
    ("punica_npu", "from vllm.lora.ops.torch_ops import", "from vllm_ascend.ops import"),
    ("punica_npu", "self.bgmv_shrink = bgmv_shrink", "self.shrink = bgmv_shrink"),
    ("punica_npu_layers", "self._sampler_indices", "self.sampler_indices"),
    ("ascend_scheduler", "not self._balance_enabled", "not self._disable_preemption"),
    ("ascend_scheduler", "return super().schedule(", "return self.other_schedule("),
]


@pytest.mark.parametrize(("name", "there", "instead"), CHANGES)
def test_a_changed_vllm_ascend_is_noticed(
    name: str, there: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, look = [], ascend.source_of

    def source_of(function: Any) -> str:
        source = look(function)
        changed.extend([function] * (there in source))
        return source.replace(there, instead)

    monkeypatch.setattr(ascend, "source_of", source_of)
    assert not BY_NAME[name].note
    with pytest.raises(ContractBroken, match="does not contain"):
        run(BY_NAME[name])
    assert changed, "the text is not there"


def test_another_class_or_signature_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.config
    from vllm_ascend.lora.punica_npu import PunicaWrapperNPU
    from vllm_ascend.patch.platform.patch_balance_schedule import BalanceScheduler
    from vllm_ascend.platform import NPUPlatform

    def breaks(name: str, match: str) -> None:
        with pytest.raises(ContractBroken, match=match):
            run(BY_NAME[name])

    for name in ("add_lora_linear", "add_lora_logits"):
        with monkeypatch.context() as patch:
            other = inspect.signature(lambda self, y, x, lora_a_stacked, scale: None)
            method = getattr(PunicaWrapperNPU, name)
            patch.setattr(method, "__signature__", other, raising=False)
            breaks("punica_npu_layers", f"{name} takes")
    with monkeypatch.context() as patch:
        patch.setattr(BalanceScheduler, "add_request", lambda self, request: None, raising=False)
        breaks("ascend_scheduler", "BalanceScheduler has add_request of its own")
    with monkeypatch.context() as patch:
        patch.delattr(vllm.config, "get_current_vllm_config_or_none")
        breaks("punica_wrapper_of_npus", "has no get_current_vllm_config_or_none any more")
    monkeypatch.setattr(NPUPlatform, "get_punica_wrapper", classmethod(lambda cls: "other"))
    breaks("punica_wrapper_of_npus", "is other, not")


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
