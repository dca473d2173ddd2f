# SPDX-License-Identifier: Apache-2.0
"""The environment variables."""

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.compat import active, environment, hardware

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("value", "off"),
    [
        *((word, True) for word in ("0", "false", "no", "off", "FALSE", "oFf", " 0 ")),
        *((word, False) for word in ("", "1", "true", "on", "00", "of")),
    ],
)
def test_switch(monkeypatch: pytest.MonkeyPatch, value: str, off: bool) -> None:
    monkeypatch.delenv("COLD_ENABLED", raising=False)
    assert not environment.is_off("COLD_ENABLED")
    monkeypatch.setenv("COLD_ENABLED", value)
    assert environment.is_off("COLD_ENABLED") is off
    assert environment.read("COLD_ENABLED") == (value or None)


@pytest.mark.parametrize(
    ("contrast", "scheduler", "lora", "serves"),
    [
        ("", "vllm_cold.scheduler.scheduler.ColdScheduler", None, True),
        ("", None, object(), False),
        ("0", None, object(), True),
        ("0", None, None, False),
    ],
)
def test_whom_kernels_serve(
    contrast: str, scheduler: str | None, lora: Any, serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLD_CONTRAST", contrast)
    engine = SimpleNamespace(scheduler_cls=scheduler)
    assert hardware.serves(SimpleNamespace(scheduler_config=engine, lora_config=lora)) is serves


@pytest.mark.parametrize("name", ["COLD_ENABLED", "COLD_CONTRAST"])
def test_who_asks_is_told_which_switch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    assert active.inactive() == f"{name}=0 is set; unset it to use contrastive decoding."
