# SPDX-License-Identifier: Apache-2.0
"""States of layers (Mamba, linear attention) as vLLM's workers keep them, in blocks.

A state is that of all tokens up to a position: here the hash of that position. Without prefix
caching (mode "none") a request has one block in each KV cache group with states. With it ("align")
the state after a step is in the block of its last token: before the step, workers copy it there
from the block of the step before, or from the one found in the cache; so it stays behind at a
block's end. A step that goes on from a state which is not there, or is another's, ends in an error.
"""

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_cold.compat.versions import vllm_version


@dataclass(frozen=True)
class StateLayers:
    """The KV cache groups of SSM layers of a model.

    Attributes:
        mode: vLLM's ``mamba_cache_mode``, "none" or "align".
        groups: How many there are.
        checkpoints: Whether a step leaves the state at the last boundary before its end, too.
        retention: vLLM's ``prefix_cache_retention_interval``: 0 keeps the states at the end of
            prompts, None all.
        attention: Whether there are layers with attention, too.
        unit: vLLM's ``prefix_match_unit``: with less than a block, a state within one is found, and
            copied for who finds it.
    """

    mode: str
    groups: int = 1
    checkpoints: bool = False
    retention: int | None = 0
    attention: bool = True
    unit: int | None = None

    def blocks_of_a_stream(self, depth: int) -> int:
        """The most blocks that a stream has for them, with so many steps under way."""
        if self.mode == "none":
            return self.groups
        copied = self.unit is not None  # also of attention
        return self.groups * (1 + depth + self.checkpoints + copied) + copied

    def spec(self, block_size: int, max_model_len: int) -> Any:
        """As a model's layers describe it."""
        import torch
        from vllm.v1.kv_cache_interface import MambaSpec

        return MambaSpec(
            block_size=block_size if self.mode == "align" else max_model_len,
            shapes=((1,),),
            dtypes=(torch.float32,),
            mamba_cache_mode=self.mode,
            num_prefill_checkpoint_blocks=int(self.checkpoints),
            prefill_checkpoint_alignment=1 if self.checkpoints else None,
        )


def supported() -> bool:
    """vllm-cold takes models with SSM layers since vLLM 0.32."""
    return tuple(int(part) for part in vllm_version().split(".")[:2]) >= (0, 32)


class StateRow(Protocol):
    """What is known here of a request."""

    state_blocks: list[list[int]]  # of each group
    state_at: int | None  # the column of the block with its state

    def hash_at(self, position: int) -> int: ...  # noqa: D102


class States:
    """The states in one engine's blocks.

    Args:
        layers: The model's.
        block_size: Tokens of a block.
        kv: The KV of the same blocks, by block and offset: a block holds the one or the other.
    """

    def __init__(
        self, layers: StateLayers, block_size: int, kv: MutableMapping[tuple[int, int], int]
    ) -> None:
        self.layers, self.block_size, self.kv = layers, block_size, kv
        self.held: dict[tuple[int, int], int] = {}  # by group and block

    def drop(self, block: int) -> None:
        """The block holds something else now."""
        for group in range(self.layers.groups):
            self.held.pop((group, block), None)

    def copy(self, source: int, target: int) -> None:
        """A whole block is copied."""
        self.drop(target)
        for group in range(self.layers.groups):
            if (group, source) in self.held:
                self.held[group, target] = self.held[group, source]

    def prepare(self, rows: Iterable[tuple[StateRow, int, int]]) -> None:
        """Before a step's forward pass: states go where this step leaves its own.

        Args:
            rows: Each request of the step, its first position and that after its last one.
        """
        for row, start, end in rows:
            before = row.state_at
            if self.layers.mode == "none":
                before = row.state_at = 0
            if before is None:
                before = (start - 1) // self.block_size
            row.state_at = self._column(end)
            if before in (-1, row.state_at):
                continue
            for group, ids in enumerate(row.state_blocks):
                value = self.held.get((group, ids[before]))
                self._write(group, ids[row.state_at], value)

    def compute(self, name: str, row: StateRow, start: int, end: int) -> None:
        """A step of one request, from the state at ``start`` to that at ``end``."""
        at = row.state_at
        assert at is not None
        for group, ids in enumerate(row.state_blocks):
            if start:
                found = self.held.get((group, ids[at]))
                assert found is not None, f"{name} finds no state at {start}"
                assert found == row.hash_at(start - 1), f"{name} goes on from a wrong state"
            if (checkpoint := self._checkpoint(start, end)) is not None:
                position, column = checkpoint
                if ids[column]:  # vLLM's kernels leave the null block alone
                    self._write(group, ids[column], row.hash_at(position - 1))
            self._write(group, ids[at], row.hash_at(end - 1))

    def _column(self, end: int) -> int:
        return 0 if self.layers.mode == "none" else (end - 1) // self.block_size

    def _checkpoint(self, start: int, end: int) -> tuple[int, int] | None:
        """The position and the column of the state that a step leaves behind on its way."""
        if not self.layers.checkpoints or self.layers.mode == "none":
            return None
        from vllm.model_executor.layers.mamba.checkpoint import compute_mamba_prefill_checkpoints

        size, unit = self.block_size, self.layers.unit or self.block_size
        (offset,), (column,) = compute_mamba_prefill_checkpoints(
            [end], [end - start], unit, size, 1, False, unit
        )
        return (start + offset, column) if offset else None

    def _write(self, group: int, block: int, value: int | None) -> None:
        assert block, "the null block holds no state"
        for offset in range(self.block_size):
            self.kv.pop((block, offset), None)
        self.drop(block)
        if value is not None:
            self.held[group, block] = value
