# SPDX-License-Identifier: Apache-2.0
"""Backend "cpu": C++ with AVX-512 and AVX2 paths, chosen at run time (csrc/cpu).

See ``cpu_library`` for the library and how it is called.
"""

import torch
from torch import Tensor

from vllm_cold.ops import cpu_library
from vllm_cold.ops.interface import Backend, Groups, row_outside

_ROW_OUTSIDE, _NO_MEMORY = 1, 2  # csrc/cpu/scoring.h


def _missing(device: torch.device) -> str | None:
    """Tell why it cannot run on ``device``; None if it can."""
    if device.type != "cpu":
        return f"It runs on CPUs; the logits are on {device.type!r}: choose another backend."
    return cpu_library.missing()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _scores(logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None) -> None:
    num_rows, vocab = logits.shape
    status = cpu_library.library().vllm_cold_score(
        logits.data_ptr(),
        num_rows,
        logits.stride(0),
        vocab,
        cpu_library.DTYPES[logits.dtype],
        groups.rows.data_ptr(),
        groups.weights.data_ptr(),
        groups.log_alpha.data_ptr(),
        _address(groups.expert_top_k),
        len(groups),
        groups.num_streams,
        _address(out),
        _address(statistics),
        cpu_library.best_isa(),
        torch.get_num_threads(),
    )
    if status == _ROW_OUTSIDE:
        raise row_outside(logits, groups)
    if status == _NO_MEMORY:
        raise MemoryError("contrastive scoring: no memory for intermediate results")


BACKEND = Backend(_missing, _scores)
