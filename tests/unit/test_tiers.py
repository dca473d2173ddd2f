# SPDX-License-Identifier: Apache-2.0
"""Whoever uses an experimental part is told so once, and the page says which they are."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs.blocks import ROOT
from tests.engine_config import config
from vllm_cold.compat import tiers

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, []),
        ({"kv_transfer_config": object()}, [tiers.CONNECTORS]),
        ({"speculative_config": object(), "use_v2_model_runner": False}, []),
        ({"speculative_config": object(), "use_v2_model_runner": True}, [tiers.DRAFTS_V2]),
    ],
)
def test_an_engine_that_uses_one_says_so_once(
    changes: dict[str, Any], parts: list[str], logged: list[logging.LogRecord]
) -> None:
    tiers.warn.cache_clear()
    engine = config()
    vars(engine).update(changes)
    for _ in range(2):
        tiers.warn_of_engine(engine)
    assert len(logged) == len(parts)
    for record, part in zip(logged, parts, strict=True):
        assert f"with {part} is experimental" in record.getMessage()


@pytest.mark.parametrize(("name", "part"), [("cuda", tiers.GPUS), ("npu", tiers.NPUS)])
def test_hardware_that_has_run_nothing(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(
        is_cuda_alike=lambda: name == "cuda",
        is_out_of_tree=lambda: name == "npu",
        is_cpu=lambda: False,
        device_type=name,
    )
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    assert list(tiers._used_by(config())) == [part]


def test_the_page_has_each() -> None:
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("|") and "experimental" in row]
    for part in (tiers.GPUS, tiers.NPUS, tiers.CONNECTORS, tiers.DRAFTS_V2):
        assert any(part.removesuffix(" runner") in row for row in rows), part
