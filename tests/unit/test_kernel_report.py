# SPDX-License-Identifier: Apache-2.0
"""What is said of the kernels of an engine on CPU: no more than it uses, in one line of the log."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.compat import hardware
from vllm_cold.compat.engine import SCHEDULER
from vllm_cold.compat.patching import bind
from vllm_cold.cpu import cpu_paths, cpu_platform, kernel_report
from vllm_cold.ops import backend_registry

pytestmark = pytest.mark.unit

PATHS = (
    ("products", "kernel", "it is the fastest here"),
    ("products", "vllm", "another kernel than oneDNN's"),
    ("lora", "inside", "one call"),
    ("experts", "torch", "none else takes adapters"),
)


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a process that has loaded a model."""
    monkeypatch.setattr(
        cpu_paths, "take", lambda names: [path for path in PATHS if path[0] in names]
    )
    monkeypatch.setattr(cpu_platform, "is_loaded", True)
    monkeypatch.setattr(backend_registry, "path", lambda device: ("cpu", f"C++ on {device}"))
    monkeypatch.setattr(hardware, "kernels", [])


def engine(lora: bool = True, experts: bool = False, contrast: bool = True) -> Any:
    """As much of a VllmConfig as is looked at."""
    return SimpleNamespace(
        lora_config=object() if lora else None,
        model_config=SimpleNamespace(is_moe=experts),
        scheduler_config=SimpleNamespace(scheduler_cls=SCHEDULER if contrast else None),
    )


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (None, ["products", "products", "lora", "experts", "scoring"]),
        (engine(), ["products", "products", "lora", "scoring"]),
        (engine(experts=True), ["products", "products", "lora", "experts", "scoring"]),
        (engine(contrast=False), ["products", "products", "lora"]),
        (engine(lora=False, experts=True), ["products", "products", "scoring"]),
    ],
)
def test_what_an_engine_uses(config: Any, names: list[str]) -> None:
    assert [name for name, _, _ in kernel_report.kernels(config)] == names


def test_without_the_plugin_it_is_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_platform, "is_loaded", False)
    *rows, scoring = kernel_report.kernels(engine())
    assert [row[:2] for row in rows] == [("products", "vllm"), ("lora", "vllm")]
    assert all("cold_cpu" in reason for _, _, reason in rows)
    assert scoring == ("scoring", "cpu", "C++ on cpu")


def test_one_line_of_the_log(
    logged: list[logging.LogRecord], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, kernel_report.logger.name)
    start = bind(kernel_report.wrap_initialize_from_config, lambda self, configs: configs)
    assert start(SimpleNamespace(vllm_config=engine()), 1) == 1
    (record,) = logged
    assert record.getMessage() == (
        "vllm-cold: kernels: products: kernel (it is the fastest here); products: vllm (another "
        "kernel than oneDNN's); LoRA: inside (one call); scoring: cpu (C++ on cpu)."
    )
    assert hardware.kernels == kernel_report.kernels(engine())
    logged.clear()
    start(SimpleNamespace(vllm_config=engine(lora=False, contrast=False)), 1)
    assert logged == []  # of an engine that is vLLM's alone
