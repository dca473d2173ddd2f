# SPDX-License-Identifier: Apache-2.0
"""The environment variables, and their names of before."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from vllm_cold import environment

pytestmark = pytest.mark.unit

NAMES = {
    environment.ENABLED: "VLLM_COLD",
    environment.SCORING: "VLLM_COLD_SCORING",
    environment.LORA: "VLLM_COLD_LORA",
}


@pytest.fixture(autouse=True)
def none_is_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*NAMES, *NAMES.values()):
        monkeypatch.delenv(name, raising=False)
    environment._note.cache_clear()
    yield
    environment._note.cache_clear()


@pytest.mark.parametrize(
    ("value", "off"),
    [
        *((word, True) for word in ("0", "false", "no", "off", "FALSE", "No", "oFf", " 0 ")),
        *((word, False) for word in ("", "1", "true", "yes", "on", "00", "of", "none")),
    ],
)
@pytest.mark.parametrize("name", [environment.ENABLED, NAMES[environment.ENABLED]])
def test_switch(monkeypatch: pytest.MonkeyPatch, name: str, value: str, off: bool) -> None:
    assert not environment.switched_off()
    monkeypatch.setenv(name, value)
    assert environment.switched_off() is off


@pytest.mark.parametrize(("name", "old"), NAMES.items())
def test_an_old_name_works_with_a_note(
    monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord], name: str, old: str
) -> None:
    assert environment.read(name) is None
    monkeypatch.setenv(old, "torch")
    assert environment.read(name) == environment.read(name) == "torch"
    note = f"vllm-cold: {old} is now called {name}; use that name."
    assert [record.getMessage() for record in logged] == [note]
    monkeypatch.setenv(name, "cpp")
    assert environment.read(name) == "cpp"
    monkeypatch.setenv(name, "")  # as if it were not there, and nor is the old one
    assert environment.read(name) is None
    assert len(logged) == 1


@pytest.mark.parametrize("name", NAMES)
def test_names_are_none_of_vllms(name: str) -> None:
    """vLLM warns of variables that begin with VLLM_ and that it does not know."""
    assert not name.startswith("VLLM_")
