# SPDX-License-Identifier: Apache-2.0
"""What is said about vllm-ascend, where it is not: tests/ascend has its own classes."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.test_engine_config import config
from vllm_cold.npu_lora import npu_platform
from vllm_cold.vllm import versions
from vllm_cold.vllm.frontend import ascend
from vllm_cold.vllm.frontend.config import unsupported

pytestmark = pytest.mark.unit


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were vllm-ascend's platform."""
    monkeypatch.setattr(npu_platform, "is_npu", lambda: True)
    monkeypatch.setattr(npu_platform, "named", lambda: npu_platform.STOCK)
    for variable in ascend._VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


def engine(additional: Any = None, ranks: int = 1, **lora: Any) -> Any:
    made = config()
    made.additional_config = additional
    made.parallel_config.tensor_parallel_size = ranks
    made.lora_config = SimpleNamespace(**{"max_lora_rank": 16, "max_loras": 1, **lora})
    return made


SHARDED = {"fully_sharded_loras": True}
ON = [  # with LoRA, on two ranks
    {"xlite_graph_config": {"enabled": True}},
    {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 2}},
    {"enable_flashcomm1": True},
    {"scheduler_config": {"enable_flashcomm2_parallel_size": 2}},
    {"enable_shared_expert_dp": True},
    {"scheduler_config": {"short_request_first_config": {"enabled": True}}},
]
OFF = [
    None,
    {},
    {"xlite_graph_config": {"enabled": False, "full_mode": True}},
    {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 0}},
    {"enable_flashcomm1": False, "scheduler_config": None},
    {"enable_balance_scheduling": True, "enable_async_exponential": True},
]


@pytest.mark.parametrize("additional", ON, ids=str)
def test_options_that_cannot(npu: None, additional: dict[str, Any]) -> None:
    said = str(unsupported(engine(additional, ranks=2)))
    name = list(additional.get("scheduler_config", additional))[0]
    assert said.startswith(f"vllm-ascend's {name} is on") and said.endswith(".")


@pytest.mark.parametrize("additional", OFF, ids=str)
def test_options_that_can(npu: None, additional: Any) -> None:
    assert unsupported(engine(additional, ranks=2)) is None


def test_options_that_need_ranks_or_lora(npu: None) -> None:
    assert unsupported(engine({"enable_flashcomm1": True})) is None
    prompts_alone = engine({"cold": True, "xlite_graph_config": {"enabled": True}})
    prompts_alone.lora_config = None
    assert unsupported(prompts_alone) is None
    prompts_alone.additional_config["short_request_first_config"] = {"enabled": True}
    assert "short_request_first_config is on" in str(unsupported(prompts_alone))


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("0", False), ("", False), ("2", True)])
def test_options_of_the_environment(
    npu: None, value: str, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option, variable in ascend._VARIABLES.items():
        monkeypatch.setenv(variable, value)
        said = unsupported(engine(ranks=2))
        assert f"vllm-ascend's {option} is on" in str(said) if is_on else said is None
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("ranks", "lora", "fits"),
    [
        (1, {"max_lora_rank": 1}, False),
        (1, {"max_lora_rank": 8}, True),
        (4, {"max_lora_rank": 8}, True),
        (4, {"max_lora_rank": 16, **SHARDED}, False),
        (2, {"max_lora_rank": 16, **SHARDED}, True),
    ],
)
def test_ranks_of_adapters(npu: None, ranks: int, lora: dict[str, Any], fits: bool) -> None:
    said = unsupported(engine(ranks=ranks, **lora))
    assert said is None if fits else "kernels need 8 or more on each device" in str(said)


def test_other_lora_and_context_parallelism(npu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    made.parallel_config.prefill_context_parallel_size = 2
    assert "prefill context parallelism is on" in str(unsupported(made))
    monkeypatch.setattr(npu_platform, "named", lambda: "vllm_ascend.Other")
    assert "LoRA with vllm_ascend.Other, which CoLD does not know" in str(unsupported(engine()))


def test_nothing_of_it_counts_elsewhere() -> None:
    assert not npu_platform.is_npu() and npu_platform.places() == ()
    for additional in ON:
        assert unsupported(engine(additional, ranks=2, max_lora_rank=1)) is None


@pytest.mark.parametrize(
    ("vllm", "installed", "said"),
    [
        ("0.23.0", None, None),
        ("0.23.0+empty", "0.23.0", None),
        ("0.23.0", "0.23.0.post1", "vllm-ascend 0.23.0.post1 is not among the validated versions"),
        ("0.23.1", "0.23.0", "vLLM 0.23.1 is not among the validated versions"),
    ],
)
def test_what_is_validated(
    vllm: str, installed: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "vllm-ascend" and installed:
            return installed
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(versions, "vllm_version", lambda: vllm)
    found = versions.unvalidated()
    assert found is None if said is None else str(found).startswith(said)
