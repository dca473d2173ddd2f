# SPDX-License-Identifier: Apache-2.0
"""Which product of few rows is the fastest with weights of a shape: the kernel's, oneDNN's with the
same packed weights, or vLLM's. Measured when an engine starts; imports no vLLM. The first two give
the same bits; so does vLLM's wherever it was tried, which was not with AMX. So noise costs speed.
"""

import os
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from vllm_cold.compat import environment
from vllm_cold.cpu import linear_ops, memory

UNKNOWN = "oneDNN packs weights, or sums, in a way that the kernel does not know"
_ROWS = (1, 4, 8)  # measured
_STAND_FOR = (0, 0, 1, 1, 2, 2, 2, 2)  # 1 to 8 rows
_REPEATS = 5  # the least counts: others may compute meanwhile
_PART = 16 << 20  # bytes of weights that are measured; of more, a part is as good
_NO_ROWS = (False,) * linear_ops.FEW_ROWS
_TIE = 0.05
_LAST_CACHE = 194  # glibc's _SC_LEVEL3_CACHE_SIZE
_SHARING = 8  # threads, of at least one such cache
_LEAST, _MOST = 64 << 20, 512 << 20  # bytes that are read to clear caches

Product = Callable[[Tensor], Tensor]


class Fastest(NamedTuple):
    """Path and reason as ``cpu_paths`` has them; whether the kernel computes 1 to 8 rows."""

    path: str
    reason: str
    by_kernel: Sequence[bool]


_choices: dict[tuple[object, ...], Fastest] = {}


def choose(weight: Tensor, stock_of: Callable[[Tensor], Product], has_lora: bool) -> Fastest:
    """Measure once for each dtype, shape and number of threads.

    Args:
        weight: [N, K], float32 or bfloat16.
        stock_of: Gives vLLM's product with some weights.
        has_lora: Whether adapters are added: in our product's call, or in one after vLLM's.
    """
    if environment.read(environment.LINEAR) == "packed":
        return Fastest("kernel", f"{environment.LINEAR}=packed", linear_ops.ALL_ROWS)
    key = weight.dtype, *weight.shape, torch.get_num_threads(), has_lora
    if key not in _choices:
        # Blocks of each width; where the whole does not fit the kernel, the part does not, either.
        rows = max(_PART // weight[0].nbytes // 192, 1) * 192 + weight.shape[0] % 16
        with memory.lent():
            _choices[key] = _choose(weight.detach()[:rows], stock_of, has_lora)
    return _choices[key]


def _choose(weight: Tensor, stock_of: Callable[[Tensor], Product], has_lora: bool) -> Fastest:
    packed, also = linear_ops.Weights(weight), linear_ops.Weights(weight, _NO_ROWS)
    if not packed.has_kernel and not has_lora:
        return Fastest("vllm", UNKNOWN, _NO_ROWS)
    ours = [linear_ops.Linear(weights, None) for weights in (packed, also)]
    kernel, onednn, stock = _seconds((*ours, stock_of(weight)), weight)
    limit = stock.sum() * (1 + _TIE if has_lora else 1 - _TIE)
    if torch.minimum(kernel, onednn).sum() > limit:
        return Fastest(
            "vllm", "its products of few rows are the fastest here, or as fast", _NO_ROWS
        )
    if not packed.has_kernel:
        return Fastest("onednn", UNKNOWN, _NO_ROWS)
    if any(faster := (kernel < onednn)[[*_STAND_FOR]].tolist()):
        return Fastest("kernel", "it is the fastest here", faster)
    return Fastest("onednn", "it is faster here than the kernel", _NO_ROWS)


def _seconds(products: Sequence[Product], weight: Tensor) -> Tensor:
    """The least time of each product, [products, rows measured], with weights that no cache has."""
    # Not in the model's dtype, which is the default while it is loaded.
    seconds = torch.empty(1 + _REPEATS, len(products), len(_ROWS), dtype=torch.float64)
    caches = os.sysconf(_LAST_CACHE) * -(-torch.get_num_threads() // _SHARING)
    elsewhere = torch.ones(min(max(2 * caches, _LEAST), _MOST) // 8, dtype=torch.int64)
    for repeat, (column, rows) in product(range(1 + _REPEATS), enumerate(_ROWS)):
        x = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
        elsewhere.sum()
        for index, compute in enumerate(products):
            begin = time.perf_counter()
            compute(x)
            seconds[repeat, index, column] = time.perf_counter() - begin
    return seconds[1:].amin(0)  # the first time, oneDNN prepares
