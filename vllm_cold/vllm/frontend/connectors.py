# SPDX-License-Identifier: Apache-2.0
"""Which KV connectors an engine with CoLD may have.

The streams of a request differ in their prompts and in their adapters. A connector that finds KV by
the tokens alone gives a base model's row the KV of an adapter, which vLLM does not notice. vLLM's
block hashes are of both: so a connector must be keyed by them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm_cold.vllm import contracts, versions

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# vLLM's own that ask the requests' block hashes alone.
BY_BLOCK_HASH = ("OffloadingConnector", "SimpleCPUOffloadConnector")
DECLARATION = "keyed_by_block_hash"
"""A class attribute: the connector is keyed by block hash, and loads for requests of the step."""


def unsupported(config: "VllmConfig") -> str | None:
    """Why CoLD cannot work with the engine's KV connector, with the remedy; None if it can, or if
    there is none.
    """
    if config.kv_transfer_config is None or config.kv_transfer_config.kv_connector is None:
        return None
    if versions.is_before(0, 31):
        return (
            f"it has the KV connector {config.kv_transfer_config.kv_connector}, which CoLD "
            "supports with vLLM 0.31 and newer; start it without."
        )
    if (changed := contracts.problems(contracts.OF_CONNECTORS)) is not None:
        return (
            f"it has a KV connector, and this vLLM has changed where vllm-cold takes part: "
            f"{changed}. Start it without, or install vLLM {versions.RANGE}, or a newer vllm-cold."
        )
    model = getattr(config, "model_config", None)
    if getattr(model, "is_hybrid", False) or getattr(model, "is_attention_free", False):
        return (
            "it has a KV connector together with state-space layers, whose states CoLD does not "
            "load; start it without the connector."
        )
    for transfer in _leaves(config.kv_transfer_config):
        name = f"the KV connector {transfer.kv_connector}"
        if transfer.kv_role != "kv_both":
            return (
                f"it has {name} with kv_role={transfer.kv_role!r}: an engine that only prefills or "
                "only decodes hands on the KV of the client's request and not of its amateurs, "
                'which CoLD does not support; set "kv_both", or start it without.'
            )
        # Somebody's own class may have the name of one of vLLM's.
        is_vllms = transfer.kv_connector_module_path is None
        if not (is_vllms and transfer.kv_connector in BY_BLOCK_HASH) and not _declares(transfer):
            return (
                f"it has {name}, which is not known to look KV up by vLLM's block hashes, so that "
                "streams with other adapters might get its KV; CoLD supports "
                f"{', '.join(BY_BLOCK_HASH)}, MultiConnector of these, and classes that declare "
                f"{DECLARATION} = True."
            )
    return None


def _leaves(transfer: Any) -> Iterator[Any]:
    """The connector's configuration, or of a MultiConnector each of its parts."""
    if transfer.kv_connector != "MultiConnector":
        yield transfer
        return
    from vllm.config import KVTransferConfig

    for part in transfer.kv_connector_extra_config.get("connectors", ()):
        yield from _leaves(KVTransferConfig(**part))


def _declares(transfer: Any) -> bool:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    return bool(getattr(KVConnectorFactory.get_connector_class(transfer), DECLARATION, False))
