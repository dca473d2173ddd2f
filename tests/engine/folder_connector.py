# SPDX-License-Identifier: Apache-2.0
"""KV connectors of engines that share a folder: one prefills, another decodes.

They are ``memory_connector``, whose blocks are files here.
"""

import os
from pathlib import Path
from typing import Any

import torch

from tests.engine.memory_connector import MemoryConnector
from tests.scheduler.connector import Load, Meta


class Folder:
    """Blocks by their hash, each a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _file(self, block_hash: bytes) -> Path:
        return self._path / f"{block_hash.hex()}.pt"

    def __contains__(self, block_hash: bytes) -> bool:
        return self._file(block_hash).exists()

    def __getitem__(self, block_hash: bytes) -> Any:
        return torch.load(self._file(block_hash))

    def setdefault(self, block_hash: bytes, parts: list[torch.Tensor]) -> Any:
        if block_hash not in self:
            unfinished = self._path / f"{block_hash.hex()}.{os.getpid()}"
            torch.save(parts, unfinished)
            unfinished.rename(self._file(block_hash))
        return self[block_hash]


class FolderConnector(MemoryConnector):
    """Loads only in an engine that may consume, and stores only in one that may produce."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.transfer = vllm_config.kv_transfer_config
        self.store: Any = Folder(Path(self.transfer.kv_connector_extra_config["folder"]))

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        found = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return found if self.transfer.is_kv_consumer else (0, False)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        meta = super().build_connector_meta(scheduler_output)
        if not self.transfer.is_kv_producer:
            meta.stores.clear()
        return meta


class RequestConnector(FolderConnector):
    """As NIXL's, it hands on whole requests: the engine that prefilled one says its name, and the
    request to the one that decodes has it. Blocks are kept until they are written.
    """

    keyed_by_block_hash = False
    keyed_by_request = True

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.stores: list[tuple[str, int, int, bytes]] = []

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        told = request.kv_transfer_params or {}
        self.asked[request.request_id] = num_computed_tokens // self.block_size
        count = request.num_prompt_tokens - num_computed_tokens
        return (count, True) if told.get("do_remote_prefill") and count > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if not num_external_tokens:
            return
        told, first = request.kv_transfer_params, self.asked[request.request_id]
        told["do_remote_prefill"] = False
        ids = list(enumerate(blocks.get_block_ids()[0]))[first:]
        filled = [(block, _key(told["remote_request_id"], at)) for at, block in ids]
        self.planned.append(Load(request.request_id, filled, late=True))

    def build_connector_meta(self, scheduler_output: Any) -> Meta:
        meta = Meta(self.planned, self.stores, self.saves)
        self.planned, self.stores, self.saves = [], [], []
        return meta

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, Any]:
        super().request_finished(request, block_ids)
        name, told = request.request_id, request.kv_transfer_params or {}
        ends = request.status.name in ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED")
        if not ends or not told.get("do_remote_decode"):
            return False, None
        self.stores += [(name, at, block, _key(name, at)) for at, block in enumerate(block_ids)]
        self.saves.append(name)
        return True, {"do_remote_prefill": True, "remote_request_id": name}

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        for _, _, block, key in self._meta().stores:
            self.store.setdefault(key, [part.clone() for part in self._parts(block)])
        super().start_load_kv(forward_context, **kwargs)

    def wait_for_save(self) -> None:
        pass


def _key(request_id: str, at: int) -> bytes:
    return f"{request_id} {at}".encode()
