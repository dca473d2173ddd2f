# SPDX-License-Identifier: Apache-2.0
"""The environment variables."""

import pytest

from vllm_cold.compat import active, environment

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
    ("name", "value", "says"),
    [
        ("COLD_ENABLED", "0", "COLD_ENABLED=0 is set; unset it to use contrastive decoding."),
        ("VLLM_PLUGINS", "cold_cpu", "VLLM_PLUGINS='cold_cpu' leaves it out; add 'cold' to it."),
        ("VLLM_PLUGINS", "other,cold", "vLLM did not load its entry point; install the package"),
    ],
)
def test_who_asks_is_told_why_it_is_not_active(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active, "is_loaded", False)
    monkeypatch.setenv(name, value)
    assert str(active.inactive()).startswith(says)
