# SPDX-License-Identifier: Apache-2.0
"""Which versions of vLLM and vllm-ascend count as validated: by minor."""

import importlib.metadata
import sys

import pytest

from tests.places import add
from vllm_cold.compat import places, versions
from vllm_cold.compat.patching import Time

pytestmark = pytest.mark.unit


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """vLLM and vllm-ascend in these versions, or not at all (None)."""
    found = dict(zip(("vllm", "vllm-ascend"), request.param, strict=True))

    def version(name: str) -> str:
        if (number := found.get(name)) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return number

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "vllm", None)


def is_installed(vllm: str | None, ascend: str | None = None) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("installed", [(vllm, ascend)], indirect=True)


@pytest.mark.parametrize(
    ("version", "validated"),
    [
        ("0.32.0", True),
        ("0.32.1.post2+cu130", True),  # a patch release
        ("0.33.0rc1", False),
        ("0.23.4", True),
        ("0.3.2", False),
        ("unknown", False),
    ],
)
def test_a_version_counts_by_its_minor(version: str, validated: bool) -> None:
    assert (versions.minor(version) in versions.VALIDATED) == validated


@is_installed("0.23.0+empty", "0.23.0.post1")
def test_023_is_validated_with_vllm_ascend(installed: None) -> None:
    assert versions.unvalidated() is None and versions.is_before("0.31")
    assert versions.RANGE == "0.31 to 0.33 (with vllm-ascend: 0.23)"


@is_installed("0.25.1", "0.25.1rc1")
def test_what_is_not_validated_is_named(installed: None) -> None:
    assert versions.unvalidated() == (
        "vLLM 0.25.1 is not among the validated versions (0.23, 0.32), and vllm-ascend "
        "0.25.1rc1 is not among the validated versions (0.23)"
    )


@is_installed(None)
def test_an_unknown_version_is_not_old(installed: None) -> None:
    assert versions.vllm_version() == "unknown" and not versions.is_before("0.32")


def test_releases_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a time needs came with the first of its rows; several times, with the last of these."""
    nine, thirty_one, one = times = [Time(places.TABLES[0], text) for text in ("a", "b", "c")]
    for when, since in zip((*times, thirty_one), ("0.9", "1.0", "1.0", "0.31"), strict=True):
        add(monkeypatch, when, since=since)
    assert [places.since(when) for when in times] == ["0.9", "0.31", "1.0"]
    assert places.since(nine, thirty_one) == "0.31"
    assert places.since(thirty_one, one) == places.since(*times) == "1.0"
