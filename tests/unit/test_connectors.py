# SPDX-License-Identifier: Apache-2.0
"""Which KV connectors are refused, and why."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.contracts.source import since
from vllm_cold.frontend.kv_connectors import unsupported

pytestmark = [pytest.mark.unit, since("0.31")]


def transfer(name: str, role: str = "kv_both", **fields: Any) -> dict[str, Any]:
    return {"kv_connector": name, "kv_role": role, **fields}


def several(*parts: dict[str, Any]) -> dict[str, Any]:
    return transfer("MultiConnector", kv_connector_extra_config={"connectors": list(parts)})


def config(asked: dict[str, Any] | None) -> Any:
    from vllm.config import KVTransferConfig

    return SimpleNamespace(kv_transfer_config=None if asked is None else KVTransferConfig(**asked))


OWN = {"kv_connector_module_path": "tests.scheduler.connector"}


@pytest.mark.parametrize(
    "asked",
    [
        None,
        {},
        transfer("SimpleCPUOffloadConnector"),
        transfer("StandIn", **OWN),
        several(transfer("StandIn", **OWN), transfer("StandIn", "kv_consumer", **OWN)),
        several(transfer("SimpleCPUOffloadConnector"), transfer("OffloadingConnector")),
        transfer("NixlConnector", "kv_producer"),
        transfer("RequestConnector", kv_connector_module_path="tests.engine.folder_connector"),
    ],
    ids=str,
)
def test_connectors_that_find_what_is_a_streams_own(asked: Any) -> None:
    assert unsupported(config(asked)) is None


class OffloadingConnector:
    """A class of somebody else with a name of vLLM's, which declares nothing."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None: ...


@pytest.mark.parametrize(
    "asked",
    [
        *map(transfer, ("NixlPushConnector", "MooncakeConnector", "LMCacheConnectorV1")),
        transfer("ExampleConnector"),
        transfer("OffloadingConnector", kv_connector_module_path=__name__),
    ],
    ids=str,
)
def test_others_are_not_known(asked: Any) -> None:
    for whole in (asked, several(transfer("StandIn", **OWN), asked)):
        said = str(unsupported(config(whole)))
        assert f"it has the KV connector {asked['kv_connector']}, which is not known to fin" in said
        assert "vllm-cold supports OffloadingConnector, Sim" in said
        assert "keyed_by_block_hash or keyed_by_request = True" in said


def test_what_stores_and_what_loads_must_know_of_each_other() -> None:
    both = several(transfer("StandIn", **OWN), transfer("SimpleCPUOffloadConnector"))
    assert "MultiConnector of vLLM's connectors and one of your own" in str(
        unsupported(config(both))
    )
