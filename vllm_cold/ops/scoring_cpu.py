# SPDX-License-Identifier: Apache-2.0
"""Backend "cpu": C++ with AVX-512 and AVX2 paths, chosen at run time (csrc/cpu).

See ``cpu_library`` for the library and how it is called.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from vllm_cold.ops import cpu_library

# csrc/cpu/scoring.h
ISAS = ("portable", "avx2", "avx512")
_ROW_OUTSIDE, _NO_MEMORY = 1, 2


@cache
def _library() -> ctypes.CDLL:
    library = cpu_library.library()
    address, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.vllm_cold_score.restype = number
    library.vllm_cold_score.argtypes = [
        address, integer, integer, integer, number,  # logits
        address, address, address, address, address, address, integer,  # pairs
        address, address, address, integer, address,  # outputs
        number, number,
    ]  # fmt: skip
    return library


def missing(device: torch.device) -> str | None:
    """Why it cannot run on ``device``; None if it can."""
    if device.type != "cpu":
        return f"It runs on CPUs; the logits are on {device.type!r}: choose another backend."
    return cpu_library.missing()


def best_isa() -> str:
    """The instruction set in use: the best of ``ISAS`` that this CPU has."""
    return ISAS[min(cpu_library.best_isa(), len(ISAS) - 1)]


def _run(
    logits: Tensor,
    expert_rows: Tensor,
    amateur_rows: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    expert_top_k: Tensor | None,
    adaptive: Tensor | None,
    out: Tensor | None,
    out_scores: Tensor | None,
    out_ids: Tensor | None,
    isa: str | None = None,
    statistics: Tensor | None = None,
) -> None:
    library = _library()
    num_rows, vocab = logits.shape
    status = library.vllm_cold_score(
        logits.data_ptr(),
        num_rows,
        logits.stride(0),
        vocab,
        cpu_library.DTYPES[logits.dtype],
        expert_rows.data_ptr(),
        amateur_rows.data_ptr(),
        log_alpha.data_ptr(),
        beta.data_ptr(),
        None if expert_top_k is None else expert_top_k.data_ptr(),
        None if adaptive is None else adaptive.data_ptr(),
        len(beta),
        None if out is None else out.data_ptr(),
        None if out_scores is None else out_scores.data_ptr(),
        None if out_ids is None else out_ids.data_ptr(),
        0 if out_scores is None else out_scores.shape[1],
        None if statistics is None else statistics.data_ptr(),
        cpu_library.best_isa() if isa is None else ISAS.index(isa),
        torch.get_num_threads(),
    )
    if status == _ROW_OUTSIDE:
        raise IndexError(
            f"contrastive scoring: expert_rows {expert_rows.tolist()} and amateur_rows "
            f"{amateur_rows.tolist()} must be from 0 to {num_rows - 1}, the rows of logits"
        )
    if status == _NO_MEMORY:
        raise MemoryError("contrastive scoring: no memory for intermediate results")


def scores(
    logits: Tensor,
    expert_rows: Tensor,
    amateur_rows: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    expert_top_k: Tensor | None,
    max_expert_top_k: int,
    adaptive: Tensor | None,
    out: Tensor | None,
    statistics: Tensor | None = None,
) -> None:
    """See ``registry.Backend``."""
    pairs = expert_rows, amateur_rows, log_alpha, beta, expert_top_k, adaptive
    _run(logits, *pairs, out, None, None, statistics=statistics)


def topk(
    logits: Tensor,
    expert_rows: Tensor,
    amateur_rows: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    expert_top_k: Tensor | None,
    max_expert_top_k: int,
    adaptive: Tensor | None,
    out_scores: Tensor,
    out_ids: Tensor,
) -> None:
    """See ``registry.Backend``."""
    pairs = expert_rows, amateur_rows, log_alpha, beta, expert_top_k, adaptive
    _run(logits, *pairs, None, out_scores, out_ids)
