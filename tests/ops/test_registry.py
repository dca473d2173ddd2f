# SPDX-License-Identifier: Apache-2.0
"""Which backend is picked, and what the op says to arguments that it does not take."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_cold.compat import environment
from vllm_cold.ops import (
    Groups,
    backend_registry,
    contrastive_scores,
    contrastive_topk,
    cpu_library,
    scoring_cpu,
)

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Choices are made once in a process."""
    monkeypatch.delenv(environment.SCORING, raising=False)
    backend_registry._choose.cache_clear()
    yield
    backend_registry._choose.cache_clear()


def test_the_kernel_is_built_here() -> None:
    assert scoring_cpu.BACKEND.missing(CPU) is None
    assert backend_registry.choose(CPU) == "cpu"
    assert backend_registry.path(CPU) == ("cpu", backend_registry.BACKENDS["cpu"])


def test_a_fallback_is_logged_once_with_its_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = replace(scoring_cpu.BACKEND, missing=lambda device: "It is not built: build it.")
    monkeypatch.setattr(scoring_cpu, "BACKEND", missing)
    for _ in range(3):
        assert backend_registry.choose(CPU) == "torch"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "vllm-cold: scoring on cpu falls back to torch; not cpu: It is not built: build it.",
        )
    ]
    assert backend_registry.path(CPU) == ("torch", "not cpu: It is not built: build it.")


def test_a_missing_library_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    another = next(Path(torch.__file__).parent.glob("lib/libc10.so")).read_bytes()
    for content, says in (
        (None, "not built: reinstall"),
        (b"no library", "does not load"),
        (another, "another version"),
    ):
        path = tmp_path / "_cpu.so"
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setattr(cpu_library, "PATH", path)
        cpu_library.library.cache_clear()
        try:
            assert says in str(scoring_cpu.BACKEND.missing(CPU))
        finally:
            cpu_library.library.cache_clear()


def test_a_backend_asked_for_is_used_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_registry.choose(CPU, "torch") == "torch"
    for name in ("ascend", "triton"):
        with pytest.raises(RuntimeError, match=f"backend '{name}' was asked for"):
            backend_registry.choose(CPU, name)
    with pytest.raises(ValueError, match="'cuda'; there are torch, cpu, triton, ascend"):
        backend_registry.choose(CPU, "cuda")
    monkeypatch.setenv(environment.SCORING, "torch")
    assert backend_registry.choose(CPU) == "torch"
    assert backend_registry.path(CPU) == ("torch", f"{environment.SCORING}=torch")
    assert backend_registry.choose(CPU, "cpu") == "cpu"
    monkeypatch.setenv(environment.SCORING, "triton")
    with pytest.raises(RuntimeError, match="backend 'triton' was asked for"):
        backend_registry.choose(CPU)


def test_each_device_has_its_own() -> None:
    assert {"torch", *backend_registry.AUTOMATIC.values()} == set(backend_registry.BACKENDS)
    assert backend_registry.choose(torch.device("meta")) == "torch"
    for name in ("cpu", "triton", "ascend"):
        assert backend_registry.load(name).missing(torch.device("meta"))


def arguments(logits: Tensor | None = None, **changes: Any) -> dict[str, Any]:
    groups = {
        "rows": torch.tensor([[0, 1], [2, 3]]),
        "weights": torch.zeros(2, 1),
        "log_alpha": torch.zeros(2),
        **changes,
    }
    return {"logits": torch.zeros(4, 9) if logits is None else logits, "groups": Groups(**groups)}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"logits": torch.zeros(4)}, r"logits is \[4\] torch.float32 on cpu; it must be \[R, V\]"),
    ({"logits": torch.zeros(4, 9, dtype=torch.float64)}, "logits is .*float64"),
    ({"logits": torch.zeros(4, 0)}, r"logits is \[4, 0\]"),
    ({"rows": torch.zeros(2, 2, dtype=torch.int32)}, "rows is .*int32"),
    ({"rows": torch.tensor(0)}, r"rows is \[\] .* it must be \[0, 2\]"),
    ({"rows": torch.tensor([0, 2])}, r"rows is \[2\] .* it must be \[2, 2\]"),
    ({"rows": torch.tensor([[0], [2]])}, r"rows is \[2, 1\] .* it must be \[2, 2\]"),
    ({"rows": torch.zeros(2, 34, dtype=torch.int64)}, r"rows is \[2, 34\] .* must be \[2, 33\]"),
    ({"rows": torch.zeros(2, 4, dtype=torch.int64)[:, ::2]}, "rows .* contiguous"),
    ({"weights": torch.zeros(2)}, r"weights is \[2\] .* it must be \[2, 1\]"),
    ({"rows": torch.zeros(2, 3, dtype=torch.int64)}, r"weights is \[2, 1\] .* must be \[2, 2\]"),
    ({"weights": torch.zeros(2, 1, device="meta")}, "weights is .* on meta; .* on cpu"),
    ({"log_alpha": torch.zeros(2, dtype=torch.float64)}, "log_alpha is .*float64"),
    ({"log_alpha": torch.zeros(4)[::2]}, "log_alpha .* contiguous"),
    ({"expert_top_k": torch.tensor([1, 2, 3]), "max_expert_top_k": 3}, r"expert_top_k is \[3\]"),
    ({"expert_top_k": torch.tensor([1, 2])}, "max_expert_top_k is 0"),
    ({"max_expert_top_k": 3}, "max_expert_top_k is 3"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        contrastive_scores(**arguments(**changes))
    with pytest.raises(ValueError, match=says):
        contrastive_topk(**arguments(**changes), k=3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"statistics": torch.zeros(2, 3)}, "statistics is .*float32"),
        ({"statistics": torch.zeros(2, 6, dtype=torch.int64)[:, ::2]}, "is .* contiguous"),
        ({"statistics": torch.zeros(2, dtype=torch.int64)}, r"statistics is \[2\] .* be \[2, 3\]"),
        ({"inplace": True, "logits": torch.zeros(4, 9).bfloat16()}, "it must be float32"),
        ({"inplace": True, "logits": torch.zeros(1, 9).expand(4, 9)}, r"\(0, 1\).* not overlap"),
        ({"inplace": True, "logits": torch.zeros(9, 4).t()}, r"\(1, 4\).* be contiguous"),
    ],
)
def test_outputs_that_do_not_fit_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        contrastive_scores(**arguments() | changes)


@pytest.mark.parametrize("k", [0, 65, -1])
def test_k_is_limited(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; it must be from 1 to 64"):
        contrastive_topk(**arguments(), k=k)
