# SPDX-License-Identifier: Apache-2.0
"""What is relied on in vLLM is looked at where an engine is made, and named if it is gone."""

import abc
import dataclasses
import enum
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from vllm_cold.vllm import availability, contracts, plugin, versions
from vllm_cold.vllm.contracts import OF_CONNECTORS, OF_SPECULATION, OF_V2, Contract
from vllm_cold.vllm.frontend import refusal

pytestmark = pytest.mark.unit

NAME = "a_module_of_vllm"


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Row:
    ids: list[int]
    spare: int = 0


class Struct(msgspec.Struct):
    ids: int


class Base:
    def __init__(self) -> None:
        self.running: list[int] = []


class Owner(Base):
    def __init__(self) -> None:
        super().__init__()
        self.waiting = 1

    def method(self, first: int, second: int, *, third: int = 0) -> None: ...

    @classmethod
    def of_class(cls, first: int) -> None: ...

    def score(self, logits: Any) -> Any:
        renamed = self.mask(logits)  # type: ignore[attr-defined]
        return self.penalties(renamed)  # type: ignore[attr-defined]


class Interface(abc.ABC):
    @abc.abstractmethod
    def method(self, first: int) -> None: ...


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    made = types.ModuleType(NAME)
    for cls in (Colour, Row, Struct, Owner, Interface):
        setattr(made, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, NAME, made)


@pytest.mark.parametrize(
    ("path", "relied_on", "problem"),
    [
        ("", {"has": "Owner Row"}, None),
        ("", {"has": "Owner Gone"}, "has no Gone any more"),
        ("Gone", {"has": "x"}, "is gone"),
        ("Owner.gone", {"uses": "x"}, "is gone"),
        ("Colour", {"has": "RED"}, None),
        ("Colour", {"has": "RED BLUE"}, "has no BLUE any more"),
        ("Owner", {"takes": {"method": "first second", "of_class": "first"}}, None),
        ("Owner", {"takes": {"method": "first third"}}, "has a method that takes (first, second)"),
        ("Owner", {"takes": {"gone": ""}}, "has no gone any more"),
        ("Interface", {"takes": {"method": "first"}}, "only declares method"),
        ("Row", {"fields": "ids"}, None),
        ("Row", {"fields": "ids gone"}, "has no field gone any more"),
        ("Row", {"fields": "ids", "others": "spare gone"}, None),
        ("Row", {"fields": "ids", "others": ""}, "has the new field spare"),
        ("Struct", {"fields": "ids", "others": ""}, None),
        ("Struct", {"fields": "gone"}, "has no field gone any more"),
        ("Owner", {"sets": "running waiting"}, None),
        ("Owner", {"sets": "running gone"}, "sets no gone any more"),
        ("Owner.score", {"uses": "mask penalties"}, None),
        ("Owner.score", {"uses": "penalties mask"}, "uses (mask, penalties), not (penalties, mask) "
         "in this order"),
        ("Owner.score", {"uses": "mask gone"}, "uses (mask), not (mask, gone) in this order"),
        ("Owner", {"fields": "ids"}, "has no field ids any more"),
    ],
)  # fmt: skip
def test_problem(module: None, path: str, relied_on: Any, problem: str | None) -> None:
    where = f"{NAME}:{path}" if path else NAME
    found = Contract(where, **relied_on).problem()
    if problem is None:
        assert found is None
    else:
        label = f"{NAME}.{path}" if path else NAME
        assert str(found).startswith(f"{label} {problem}") and "\n" not in str(found)


def test_a_module_that_moved_or_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Contract("no_such_module:Owner").problem() == "no_such_module.Owner is gone"

    def fails(name: str) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(contracts.importlib, "import_module", fails)
    said = "m.Owner cannot be looked at (RuntimeError: no such device)"
    assert Contract("m:Owner").problem() == said


@pytest.mark.parametrize(
    "contract",
    (*contracts.needed(), *OF_SPECULATION, *OF_V2, *OF_CONNECTORS),
    ids=lambda contract: contract.where,
)
def test_the_installed_vllm_has_all_of_it(contract: Contract) -> None:
    later = contract in (*OF_V2, *OF_CONNECTORS) and versions.is_before(0, 31)
    if later or (contract in OF_SPECULATION and versions.is_before(0, 32)):
        pytest.skip("came with a later vLLM")
    assert contract.problem() is None


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin is loaded, nothing is known about this vLLM yet, and nothing of it is changed."""
    monkeypatch.setattr(availability, "_look", plugin._look)
    monkeypatch.setattr(availability, "_reason", None)
    monkeypatch.setattr(availability, "_verified", False)
    monkeypatch.setattr(availability, "without_speculation", None)
    monkeypatch.setattr(refusal, "PATCH_POINTS", ())
    yield


@pytest.mark.usefixtures("undecided")
def test_an_engine_is_not_made_with_a_vllm_that_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever its version is, also one that was validated."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    monkeypatch.setattr(versions, "vllm_version", lambda: "0.32.0")
    monkeypatch.delattr(KVCacheManager, "evict_blocks")
    said = "vllm.v1.core.kv_cache_manager.KVCacheManager has no evict_blocks any more. Install vLLM"
    assert said in str(availability.verify())


@pytest.mark.usefixtures("undecided")
def test_what_speculation_alone_relies_on_takes_cold_from_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.sample import metadata

    @dataclasses.dataclass
    class SamplingMetadata(metadata.SamplingMetadata):
        mood: Any = None

    monkeypatch.setattr(metadata, "SamplingMetadata", SamplingMetadata)
    assert availability.verify() is None
    assert "has the new field mood" in str(availability.without_speculation)


@pytest.mark.usefixtures("undecided")
def test_a_processor_that_lacks_what_vllm_wants_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_cold.vllm.worker.processor_v1 import ColdLogitsProcessorV1

    monkeypatch.setattr(ColdLogitsProcessorV1, "__abstractmethods__", frozenset({"reset"}))
    assert "vLLM wants reset of ColdLogitsProcessorV1, too" in str(availability.verify())


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("version", ["0.32.7", "0.34.0"])
def test_a_vllm_that_is_not_validated_is_warned_of(
    version: str, monkeypatch: pytest.MonkeyPatch, logged: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: version)
    assert availability.verify() is None
    messages = [record.getMessage() for record in logged if record.levelno >= logging.WARNING]
    assert len(messages) == (version == "0.34.0")
    assert all(f"vLLM {version} is not among" in m and "vllm-cold doctor" in m for m in messages)
