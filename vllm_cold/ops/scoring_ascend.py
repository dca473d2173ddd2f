# SPDX-License-Identifier: Apache-2.0
"""Backend "ascend": AscendC kernels for Atlas A2/A3 NPUs (csrc/ascend).

The library registers its ops with torch when it is loaded: when the backend is chosen.
The kernels report row numbers out of range (``interface.Backend``). With a cap on candidates torch
looks at the rows before them, and does what it does on an NPU.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from vllm_cold.ops.interface import Backend, Groups
from vllm_cold.ops.scoring_torch import expert_floors

_PATH = Path(__file__).with_name("libvllm_cold_ascend.so")


def _missing(device: torch.device) -> str | None:
    """Tell why it cannot run on ``device``; None if it can."""
    if device.type != "npu":
        return f"It runs on Ascend NPUs; the logits are on {device.type!r}: choose another backend."
    if importlib.util.find_spec("torch_npu") is None:
        return "There is no torch_npu in this Python: install the one that fits torch."
    if not _PATH.exists():
        return (
            "Its library was not built: reinstall vllm-cold with pip's --no-build-isolation -v, "
            "CANN's set_env.sh sourced and SOC_VERSION set (https://vllm-cold.github.io/vllm-cold/ascend.html)."
        )
    try:
        torch.ops.load_library(str(_PATH))  # type: ignore[no-untyped-call] # it has no types
    except OSError as error:
        return f"Its library does not load ({error}): reinstall vllm-cold on this machine."
    return None


def _scores(logits: Tensor, groups: Groups, out: Tensor | None, statistics: Tensor | None) -> None:
    floors = expert_floors(logits, groups)
    torch.ops.vllm_cold.ascend_scores(
        logits, groups.rows, groups.weights, groups.log_alpha, floors, out, statistics
    )


BACKEND = Backend(_missing, _scores)
