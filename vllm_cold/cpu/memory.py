# SPDX-License-Identifier: Apache-2.0
"""Memory on huge pages, for weights that are read whole at each step: a page of 4 KiB is read in
less time than it takes to find the next.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

_LINE = 64
_HUGE_PAGE = 2 << 20
_ARENA = 64 << 20

_arena: list[Tensor] = []


def allocate(size: int) -> Tensor:
    """Memory on huge pages, where the system has some: uint8 [at least ``size``], from the start of
    a cache line. The pieces of a process are adjacent, and are freed with the last one.
    """
    size = -(-size // _LINE) * _LINE
    if not _arena or len(_arena[0]) < size:
        room = -(-max(size, _ARENA) // _HUGE_PAGE) * _HUGE_PAGE
        try:
            memory = mmap.mmap(-1, room + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:  # no room for so much more: then as much as is needed, wherever
            return torch.empty(size, dtype=torch.uint8)
        with suppress(AttributeError, OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        with torch.inference_mode(False):  # in which another engine could not write to it
            chunk = torch.frombuffer(memory, dtype=torch.uint8)
        first = -chunk.data_ptr() % _HUGE_PAGE
        _arena[:] = [chunk[first : first + room]]
    piece, _arena[0] = _arena[0][:size], _arena[0][size:]
    return piece


@contextmanager
def lent() -> Iterator[None]:
    """Within it ``allocate`` gives what is used again afterwards: nothing may hold it then."""
    before = _arena[:]
    try:
        yield
    finally:
        _arena[:] = before


def move(tensor: Tensor) -> None:
    """Move a tensor's numbers to ``allocate``'s memory, contiguous; the tensor stays the same."""
    piece = allocate(tensor.nbytes)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    _replace(tensor, piece)


def move_by_columns(tensor: Tensor) -> None:
    """Move [..., N, r] as [..., r, N], with an odd number of cache lines from one r to the next:
    with a power of two of them, few would fit into a cache at a time.
    """
    *outer, rows, columns = tensor.shape
    lines = -(-rows * tensor.element_size() // _LINE) | 1
    count = tensor.numel() // max(rows, 1) * lines * _LINE
    piece = allocate(count)[:count].view(tensor.dtype).view(*outer, columns, -1)
    _replace(tensor, piece[..., :rows].mT)


def _replace(tensor: Tensor, piece: Tensor) -> None:
    piece.copy_(tensor)
    tensor.set_(piece.untyped_storage(), piece.storage_offset(), piece.shape, piece.stride())
