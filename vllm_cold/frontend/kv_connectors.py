# SPDX-License-Identifier: Apache-2.0
"""Which KV connectors an engine with contrastive decoding may have.

The streams of a request differ in their prompts and in their adapters. A connector that finds KV by
the tokens alone gives a base model's row the KV of an adapter, which vLLM does not notice. So a
connector must be keyed by vLLM's block hashes, which are of both. An engine that prefills and one
that decodes may share what such a connector keeps: each finds the KV of every stream.
"""

from collections.abc import Iterator
from typing import Any

from vllm.config import VllmConfig

from vllm_cold.compat.engine import has_connector

# vLLM's own that find KV by the requests' block hashes alone.
BY_BLOCK_HASH = ("OffloadingConnector", "SimpleCPUOffloadConnector")
# Those that load what a request's kv_transfer_params name, as the engine that prefilled it said:
# with them the amateurs' are named.
BY_REQUEST = ("NixlConnector", "NixlPullConnector")
DECLARATIONS = ("keyed_by_block_hash", "keyed_by_request")
"""A class attribute: the connector finds KV so, and loads for requests of the step."""


def unsupported(config: VllmConfig) -> str | None:
    """Say why vllm-cold cannot work with the engine's KV connector, with the remedy; None if it
    can, or if there is none.
    """
    if not has_connector(config):
        return None
    whose = set()
    for transfer in _leaves(config.kv_transfer_config):
        # Somebody's own class may have the name of one of vLLM's.
        is_vllms = transfer.kv_connector_module_path is None
        whose.add(is_vllms)
        known = is_vllms and transfer.kv_connector in (*BY_BLOCK_HASH, *BY_REQUEST)
        if not (known or _declares(transfer)):
            return (
                f"it has the KV connector {transfer.kv_connector}, which is not known to find the "
                "KV of each stream: by tokens alone another adapter's may be found, and what a "
                "client's request names is not its amateurs'. vllm-cold supports "
                f"{', '.join((*BY_BLOCK_HASH, *BY_REQUEST))}, MultiConnector of these, and classes "
                f"that declare {' or '.join(DECLARATIONS)} = True."
            )
    if len(whose) > 1:
        # Seen with SimpleCPUOffloadConnector: vLLM's assertion about the block's hash fails.
        return (
            "it has a MultiConnector of vLLM's connectors and one of your own: where a request "
            "ends while the one loads for it, vllm-cold takes blocks out of the prefix cache that "
            "the other may be storing, and the engine would end. Use connectors of one kind."
        )
    return None


def _leaves(transfer: Any) -> Iterator[Any]:
    """Yield the connector's configuration, or of a MultiConnector each of its parts."""
    if transfer.kv_connector != "MultiConnector":
        yield transfer
        return
    from vllm.config import KVTransferConfig

    for part in transfer.kv_connector_extra_config.get("connectors", ()):
        yield from _leaves(KVTransferConfig(**part))


def _declares(transfer: Any) -> bool:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    connector = KVConnectorFactory.get_connector_class(transfer)
    return any(getattr(connector, name, False) for name in DECLARATIONS)
