# SPDX-License-Identifier: Apache-2.0
"""What is said about vllm-ascend, where it is not: tests/ascend has its own classes."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine_config import config
from vllm_cold import plugin
from vllm_cold.compat import availability, hardware, places, versions
from vllm_cold.frontend import ascend
from vllm_cold.frontend.support import unsupported
from vllm_cold.npu import npu_platform

pytestmark = pytest.mark.unit


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were vllm-ascend's platform."""
    monkeypatch.setattr(hardware, "is_on", lambda platform: platform == "npu")
    monkeypatch.setattr(availability, "_adapters", plugin._unsupported_adapters)
    monkeypatch.setattr(npu_platform, "named", lambda: npu_platform.STOCK)
    monkeypatch.setattr(npu_platform, "computes_with_torch", lambda rank: rank >= 128)
    monkeypatch.setattr(versions, "ascend_version", lambda: "0.23.0")
    for variable in (*ascend._VARIABLES.values(), "COLD_LORA", "VLLM_COLD_LORA"):
        monkeypatch.delenv(variable, raising=False)


def engine(additional: Any = None, ranks: int = 1, **lora: Any) -> Any:
    made = config()
    made.additional_config = additional
    made.parallel_config.tensor_parallel_size = ranks
    plain = {"max_lora_rank": 16, "max_loras": 1, "fully_sharded_loras": False}
    made.lora_config = SimpleNamespace(**plain | lora)
    return made


SHARDED = {"fully_sharded_loras": True}
ON = [  # with LoRA, on two ranks
    {"xlite_graph_config": {"enabled": True}},
    {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 2}},
    {"enable_flashcomm1": True},
    {"scheduler_config": {"enable_flashcomm2_parallel_size": 2}},
    {"enable_shared_expert_dp": True},
    {"scheduler_config": {"short_request_first_config": {"enabled": True, "threshold": 256}}},
]
OFF = [
    None,
    {},
    {"xlite_graph_config": {"enabled": False, "full_mode": True}},
    {"xlite_graph_config": {"full_mode": True}},
    {"scheduler_config": {"short_request_first_config": {"threshold": 256}}},
    {"finegrained_tp_config": {"lmhead_tensor_parallel_size": 0}},
    {"enable_flashcomm1": False, "scheduler_config": None},
    {"enable_balance_scheduling": True, "enable_async_exponential": True},
]


def test_options_that_cannot(npu: None) -> None:
    for additional in ON:
        said = str(unsupported(engine(additional, ranks=2)))
        name = list(additional.get("scheduler_config", additional))[0]
        assert said.startswith(f"vllm-ascend's {name} is on") and said.endswith(".")
    for additional in OFF:
        assert unsupported(engine(additional, ranks=2)) is None


def test_options_that_need_ranks_or_lora(npu: None) -> None:
    assert unsupported(engine({"enable_flashcomm1": True})) is None
    prompts_alone = engine({"cold": True, "xlite_graph_config": {"enabled": True}})
    prompts_alone.lora_config = None
    assert unsupported(prompts_alone) is None
    prompts_alone.additional_config["short_request_first_config"] = {"enabled": True}
    assert "short_request_first_config is on" in str(unsupported(prompts_alone))


@pytest.mark.parametrize(
    ("ranks", "lora", "reason"),
    [
        (1, {"max_lora_rank": 7}, "kernels need 8 or more on each device"),
        (4, {"max_lora_rank": 8}, None),
        (4, {"max_lora_rank": 16, **SHARDED}, "kernels need 8 or more on each device"),
        (2, {"max_lora_rank": 16, **SHARDED}, None),
        (32, {"max_lora_rank": 128, **SHARDED}, "give rows of the base model an adapter; set it"),
    ],
)
def test_ranks_of_adapters(npu: None, ranks: int, lora: dict[str, Any], reason: str | None) -> None:
    said = unsupported(engine(ranks=ranks, **lora))
    assert said is None if reason is None else reason in str(said)


@pytest.mark.parametrize("asked", ["cpp", "ascendc"])
def test_a_choice_of_lora_that_cannot_be_is_refused(
    npu: None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ascendc`` named kernels of an earlier version."""
    monkeypatch.setenv("COLD_LORA", asked)
    remedy = "on NPUs it may only be bgmv, the default; unset it."
    assert unsupported(engine()) == f"COLD_LORA={asked!r}: {remedy}"
    prompts_alone = engine({"cold": True})
    prompts_alone.lora_config = None
    assert unsupported(prompts_alone) is None
    monkeypatch.setenv("COLD_LORA", "bgmv")
    assert unsupported(engine()) is None


def test_other_lora_and_context_parallelism(npu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    made.parallel_config.prefill_context_parallel_size = 2
    assert "prefill context parallelism is on" in str(unsupported(made))
    monkeypatch.setattr(npu_platform, "named", lambda: "vllm_ascend.Other")
    assert "LoRA takes part: it is vllm_ascend.Other. Install" in str(unsupported(engine()))


def test_nothing_of_it_counts_elsewhere() -> None:
    assert "npu" not in {hook.platform for hook in places.rows()}
    for additional in ON:
        assert unsupported(engine(additional, ranks=2, max_lora_rank=1)) is None
