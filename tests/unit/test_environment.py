# SPDX-License-Identifier: Apache-2.0
"""The environment variables."""

from __future__ import annotations

import pytest

from vllm_cold import environment

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
    assert not environment.switched_off()
    monkeypatch.setenv("COLD_ENABLED", value)
    assert environment.switched_off() is off
    assert environment.read("COLD_ENABLED") == (value or None)
