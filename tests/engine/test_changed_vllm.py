# SPDX-License-Identifier: Apache-2.0
"""Regular requests get what vLLM gives them without the package: next to contrastive requests,
where the package is switched off, and where vLLM has changed. There whoever asks for contrastive
decoding is told why.

That the package sees a change, of each kind, is what tests/unit/test_patching.py says. Here it
is told of one, in a fresh process each.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lora
from vllm_cold.cpu import linear_ops

pytestmark = pytest.mark.engine

Result = dict[str, Any]
Run = Callable[..., Result]

# One place for each part that disables itself: when the plugin is loaded, when an engine is made,
# in the worker's LoRA, in what the scheduler relies on.
LOST = (
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
    "vllm.v1.outputs:ModelRunnerOutput.__init__",
    "vllm.lora.layers:BaseLayerWithLoRA.set_mapping",
    "vllm.v1.core.kv_cache_manager:KVCacheManager",
)
ONLINE = "vllm.entrypoints.openai.models.serving:OpenAIServingModels.__init__"
OFFLINE = "vllm:LLM.beam_search"


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """``run(task, lost)``: what a task of ``changed_vllm`` finds, and its "log"."""
    folder = tmp_path_factory.mktemp("changed")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.changed_vllm"])
    fixed = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CACHE_ROOT": str(folder / "cache")}
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:

        def run(
            task: str, lost: str = "", environment: dict[str, str] | None = None, **options: Any
        ) -> Result:
            from tests.engine import changed_vllm

            log = folder / f"{len(list(folder.glob('*.log')))}.log"
            own = fixed | (environment or {})
            result: Result = pool.submit(
                changed_vllm.run, task, tiny, log, lost, own, options
            ).result()
            return result

        yield run


@pytest.fixture(scope="module")
def stock(run: Run) -> Result:
    """The tokens of vLLM without the package."""
    return run("engine", environment={"VLLM_PLUGINS": ""})


@pytest.fixture(scope="module")
def whole(run: Run) -> Result:
    """Those of an engine that lacks nothing."""
    return run("engine")


def check_refused(result: Result, lost: str, *asked: str) -> None:
    """Whoever asked was told, and the log has it once."""
    assert f"{lost.replace(':', '.')} is gone" in result["reason"]
    for way in asked:
        assert result[way] is not None, way
        assert result["reason"] in result[way], way
    # Without its LoRA on CPU, contrasts of adapters are refused, and no others.
    logs = "LoRA on CPU is left to" if lost == LOST[2] else "unavailable; vLLM runs as without it"
    assert result["log"].count(logs) == 1


def check_regular(result: Result, stock: Result) -> None:
    for way in ("base", "adapter", "beam search"):
        assert result[way] == stock[way], way


@pytest.mark.parametrize("lost", ["", LOST[0], ONLINE])
def test_front_end(run: Run, lost: str) -> None:
    """What a server does before its engine starts: options, configuration, requests."""
    result = run("server", lost)
    assert result["base"] is None and result["adapter"] is None
    if lost:
        check_refused(result, lost, "ColdParams", "extra_args")
    else:
        ways = ("--sampler cold", "ColdParams", "extra_args", "reason")
        assert [result[way] for way in ways] == [None] * 4


# Where LoRA is vLLM's own, which cannot be compiled, the model must not be; what else is lost takes
# nothing from LoRA, however late it comes to light (the last one).
@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(lost, marks=pytest.mark.full if lost in LOST[1::2] else ())
        for lost in (*LOST, OFFLINE)
    ],
)
def test_engine(run: Run, stock: Result, lost: str) -> None:
    result = run("engine", lost, enforce_eager=lost not in (LOST[2], OFFLINE))
    check_regular(result, stock)
    check_refused(result, lost, "ColdParams", "extra_args", "additional_config")
    assert result["compiled"] == (lost == OFFLINE)


def test_an_engine_that_lacks_nothing(whole: Result, stock: Result) -> None:
    """It would be seen if one of those above were not the plugin's."""
    assert whole["reason"] is None
    assert whole["ColdParams"] == whole["extra_args"] != stock["adapter"][0]
    check_regular(whole, stock)


def test_it_can_be_switched_off(stock: Result) -> None:
    assert stock["scheduler"].startswith("vllm.")
    assert "VLLM_PLUGINS='' leaves it out" in stock["ColdParams"]


def test_the_contrast_can_be_switched_off_alone(run: Run, stock: Result) -> None:
    """Kernels are ours: the model is compiled, with LoRA in its products."""
    result = run("engine", environment={"VLLM_PLUGINS": "cold_cpu"}, enforce_eager=False)
    assert "VLLM_PLUGINS='cold_cpu' leaves it out" in result["ColdParams"]
    assert result["scheduler"] == stock["scheduler"] and result["compiled"]
    assert result["products"] == (linear_ops.missing() is None)
    check_regular(result, stock)


def test_kernels_can_be_switched_off_alone(run: Run, whole: Result, stock: Result) -> None:
    result = run("engine", environment={"COLD_CPU_KERNELS": "0"})
    assert result["reason"] is None and not result["products"]
    assert "LoRA on CPU falls back to torch operations" in result["log"]
    assert "scoring on cpu falls back to torch" in result["log"]
    assert result["log"].count("COLD_CPU_KERNELS=0 is set") >= 2
    assert result["ColdParams"] == whole["ColdParams"] != stock["adapter"][0]
    check_regular(result, stock)


@pytest.mark.parametrize(
    "enforce_eager",
    [pytest.param(True, id="eager", marks=pytest.mark.full), pytest.param(False, id="compiled")],
)
def test_regular_requests_next_to_others(
    make_llm: Any, tiny: Path, stock: Result, enforce_eager: bool
) -> None:
    """In one batch, and alone: base and adapter, greedy and seeded, among contrastive requests."""
    from vllm import SamplingParams

    from tests.engine.changed_vllm import KINDS, PROMPTS
    from vllm_cold import ColdParams

    llm = make_llm(enforce_eager=enforce_eager)
    asked = [
        (way, kind, i)
        for i in range(len(PROMPTS))
        for way in ("base", "adapter")
        for kind in range(len(KINDS))
    ]

    def generate(chosen: list[tuple[str, int, int]], others: int) -> list[list[int]]:
        params: list[Any] = [SamplingParams(**KINDS[kind]) for _, kind, _ in chosen]
        names = [None if way == "base" else "one" for way, _, _ in chosen]
        prompts = [PROMPTS[i] for _, _, i in chosen] + PROMPTS[:others]
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            params + [ColdParams(beta=2.0, **KINDS[0])] * others,
            lora_request=[lora(tiny, name) for name in [*names, *["one"] * others]],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs[: len(chosen)]]

    expected = [stock[way][kind][i] for way, kind, i in asked]
    assert generate(asked, others=len(PROMPTS)) == expected
    assert [generate([one], others=0)[0] for one in asked[:6]] == expected[:6]
    core = llm.llm_engine.engine_core.engine_core
    modules = list(core.model_executor.driver_worker.worker.model_runner.model.modules())
    if linear_ops.missing() is None:  # products of few rows are ours, LoRA in them
        wrappers = [getattr(module, "punica_wrapper", None) for module in modules]
        assert any(hasattr(module, "_vllm_cold_linears") for module in modules)
        assert any(getattr(wrapper, "is_in_product", False) for wrapper in wrappers)


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


def test_an_option_of_the_same_name_is_vllms(run: Run) -> None:
    asked = ("--sampler", "other", "--cold-alpha", "0.2")
    result = run("server", own=("usual", "other"), arguments=asked)
    assert result["own"] == "other" and result["reason"] is None
    assert result["additional"]["cold"] == {"enabled": False, "alpha": 0.2}
    assert "argument --sampler: invalid choice: 'cold'" in result["--sampler cold"]
