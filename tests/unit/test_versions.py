# SPDX-License-Identifier: Apache-2.0
"""Which versions of vLLM and vllm-ascend count as supported and as validated: by minor."""

import importlib.metadata
import sys

import pytest

from vllm_cold.vllm import versions

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
        ("0.32.0+cpu", True),
        ("0.32.1", True),  # a patch release
        ("0.32.1.post2+cu130", True),
        ("0.23.4", True),
        ("0.31.0", False),
        ("0.33.0", False),
        ("0.3.2", False),
        ("1.32.0", False),
        ("unknown", False),
    ],
)
def test_a_version_is_validated_by_its_minor(version: str, validated: bool) -> None:
    assert versions.is_validated(version) == validated


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("0.30.2", False),
        ("0.31.0", True),
        ("0.32.9+cpu", True),
        ("0.33.0rc1", True),
        ("0.34.0", False),
        ("0.28.0", False),
        ("0.23.0", False),
        ("0.1.dev9", False),
        ("unknown", False),
    ],
)
@is_installed("0.32.0")
def test_three_minors_are_supported(installed: None, version: str, supported: bool) -> None:
    assert versions.in_supported_range(version) == supported


@is_installed("0.23.0+empty", "0.23.0.post1")
def test_023_is_supported_under_vllm_ascend_alone(installed: None) -> None:
    assert versions.in_supported_range("0.23.0") and versions.in_supported_range("0.23.1")
    assert not versions.in_supported_range("0.24.0")
    assert versions.RANGE == "0.31 to 0.33 (with vllm-ascend: 0.23)"


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (("0.32.1", None), None),
        (("0.23.0+empty", "0.23.0.post1"), None),
        (("0.33.0", None), "vLLM 0.33.0 is not among the validated versions (0.23, 0.32)"),
        (
            ("0.25.1", "0.25.1rc1"),
            "vLLM 0.25.1 is not among the validated versions (0.23, 0.32), and vllm-ascend "
            "0.25.1rc1 is not among the validated versions (0.23)",
        ),
        ((None, None), "vLLM unknown is not among the validated versions (0.23, 0.32)"),
    ],
    indirect=["installed"],
)
def test_what_is_not_validated_is_named(installed: None, said: str | None) -> None:
    assert versions.unvalidated() == said


@pytest.mark.parametrize(
    ("installed", "before"),
    [(("0.31.5", None), True), (("0.32.0", None), False), ((None, None), False)],
    indirect=["installed"],
)
def test_is_before(installed: None, before: bool) -> None:
    assert versions.is_before(0, 32) == before
