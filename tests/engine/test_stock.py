# SPDX-License-Identifier: Apache-2.0
"""Plain requests beside CoLD requests get what stock vLLM gives them, and the switches work.

Stock means another process in which the plugin is switched off, which it also checks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lora
from vllm_cold.cpu import linear_ops

pytestmark = pytest.mark.engine

PROMPTS = [[(13 * i + 7 * j) % 500 + 4 for j in range(5 + 11 * i)] for i in range(12)]

OTHERS = "interpreted_triton"  # that of tests/v2, which is nobody's on V1

# Base and adapter requests in batches of their own: mixed, stock gives base rows the adapter.
STOCK = """
import json, sys
from pathlib import Path
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm_cold import ColdParams
tiny, prompts = Path(sys.argv[1]), json.loads(sys.argv[2])
llm = LLM(str(tiny / "model"), dtype="float32", enable_lora=True, max_lora_rank=8,
          max_model_len=256, max_num_seqs=32, enforce_eager=True)
core = llm.llm_engine.engine_core.engine_core
result = {"scheduler": type(core.scheduler).__module__}
try:
    llm.generate("w1", ColdParams(max_tokens=1))
except ValueError as error:
    result["refused"] = str(error)
greedy = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
seeded = SamplingParams(temperature=1.0, max_tokens=20, ignore_eos=True, seed=3, top_p=0.9)
inputs = [{"prompt_token_ids": p} for p in prompts]
for name, adapter in (("base", None), ("one", LoRARequest("one", 1, str(tiny / "one")))):
    for kind, params in (("greedy", greedy), ("seeded", seeded)):
        outputs = llm.generate(inputs, params, lora_request=adapter, use_tqdm=False)
        result[f"{name} {kind}"] = [list(o.outputs[0].token_ids) for o in outputs]
print("RESULT" + json.dumps(result))
"""


def run_stock(tiny: Path, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(tiny), json.dumps(PROMPTS)],
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), None)
    assert line is not None, done.stderr[-3000:]
    return json.loads(line.removeprefix("RESULT"))


@pytest.fixture(scope="module")
def stock(tiny: Path) -> dict[str, Any]:
    return run_stock(tiny, VLLM_PLUGINS=OTHERS)


def test_vllm_plugins_switches_it_off(stock: dict[str, Any]) -> None:
    assert stock["scheduler"].startswith("vllm.")
    assert f"VLLM_PLUGINS='{OTHERS}' leaves it out" in stock["refused"]


@pytest.mark.full
def test_vllm_cold_switches_it_off(stock: dict[str, Any], tiny: Path) -> None:
    off = run_stock(tiny, COLD_ENABLED="0")
    assert "COLD_ENABLED=0 is set" in off.pop("refused")
    assert off == {k: v for k, v in stock.items() if k != "refused"}


@pytest.mark.parametrize(
    "enforce_eager",
    [pytest.param(True, id="eager", marks=pytest.mark.full), pytest.param(False, id="compiled")],
)
def test_plain_requests_equal_stock(
    make_llm: Any, tiny: Path, stock: dict[str, Any], enforce_eager: bool, runner: str
) -> None:
    """In one batch, and alone: base and adapter requests, greedy and seeded, beside CoLD's."""
    from vllm import SamplingParams

    from vllm_cold import ColdParams

    common: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True}
    kinds: dict[str, Any] = {
        "greedy": SamplingParams(temperature=0.0, **common),
        "seeded": SamplingParams(temperature=1.0, seed=3, top_p=0.9, **common),
    }
    llm = make_llm(enforce_eager=enforce_eager)
    names, prompts, params, adapters = [], [], [], []
    for i, prompt in enumerate(PROMPTS):
        for adapter in ("base", "one"):
            for kind, plain in kinds.items():
                names.append((f"{adapter} {kind}", i))
                prompts.append({"prompt_token_ids": prompt})
                params.append(plain)
                adapters.append(None if adapter == "base" else lora(tiny, "one"))
        names.append(("", i))
        prompts.append({"prompt_token_ids": prompt})
        params.append(ColdParams(temperature=0.0, beta=2.0, **common))
        adapters.append(lora(tiny, "one"))
    outputs = llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)
    for (name, i), output in zip(names, outputs, strict=True):
        if name:
            assert list(output.outputs[0].token_ids) == stock[name][i], (name, i)
    core = llm.llm_engine.engine_core.engine_core
    modules = list(core.model_executor.driver_worker.worker.model_runner.model.modules())
    if (
        runner == "v1" and linear_ops.missing() is None
    ):  # products of few rows are ours, LoRA in them
        wrappers = [getattr(module, "punica_wrapper", None) for module in modules]
        assert any(hasattr(module, "_vllm_cold_linears") for module in modules)
        assert any(getattr(wrapper, "is_in_product", False) for wrapper in wrappers)
    for one in (0, 1, 2, 3, 8):  # not CoLD's, which are each fifth
        name, i = names[one]
        alone = llm.generate(prompts[one], params[one], lora_request=adapters[one], use_tqdm=False)
        assert list(alone[0].outputs[0].token_ids) == stock[name][i], (name, i)


def test_lora_left_to_stock_refuses_cold(make_llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from vllm_cold import ColdParams

    monkeypatch.setenv("COLD_LORA", "stock")
    llm = make_llm(enforce_eager=False)
    assert llm.llm_engine.vllm_config.compilation_config.mode.name == "NONE"
    worker = llm.llm_engine.model_executor.driver_worker.worker
    (wrapper,) = worker.model_runner.lora_manager._adapter_manager.punica_wrapper_mapping.values()
    assert type(wrapper) is PunicaWrapperCPU
    with pytest.raises(ValueError, match="COLD_LORA=stock leaves LoRA on CPU to vLLM"):
        llm.generate("w1", ColdParams(max_tokens=1), use_tqdm=False)
