# SPDX-License-Identifier: Apache-2.0
"""Which implementation of the scoring op serves which device.

One file per backend, ``scoring_<name>.py``, each with the two functions of ``Backend``.
``COLD_SCORING=<name>`` chooses one by hand; so does the ``backend`` argument of the op.
"""

import importlib
import logging
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor

from vllm_cold import environment

# Below "vllm." so that a server's logging shows it.
logger = logging.getLogger("vllm." + __name__)

ENV = environment.SCORING

BACKENDS = {
    "reference": "plain torch in float64, one pair at a time: the truth that the others meet",
    "torch": "torch operations, on any device",
    "cpu": "C++ for CPUs (csrc/cpu)",
    "triton": "Triton for NVIDIA and AMD GPUs",
    "ascend": "AscendC for Ascend NPUs (csrc/ascend)",
}

# By torch's device type (AMD GPUs are "cuda" too), best first. Elsewhere: torch.
AUTOMATIC = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch"), "npu": ("ascend", "torch")}

NOT_FINITE = (
    "CoLD: the logits of an expert or amateur row hold NaN or +inf; no token can be chosen. "
    "Look at the model, the adapter and the dtype (float16 overflows easily)."
)


class Backend(Protocol):
    """What a backend's module offers.

    ``vllm_cold.ops.scoring`` has checked the arguments:

    - ``logits`` [R, V] float32, bfloat16 or float16, its last dimension contiguous, V >= 1;
    - ``expert_rows`` and ``amateur_rows`` [P] int64, P >= 1; ``log_alpha`` and ``beta`` [P]
      float32; ``expert_top_k`` [P] int64, or None, in which case ``max_expert_top_k`` is 0;
      ``adaptive`` [P] bool, or None if no pair is; all contiguous and on the device of ``logits``;
    - ``out`` [P, V] float32, contiguous, or None: the scores are then written over both rows of
      each pair in ``logits``, which is float32, and no row is in two pairs;
    - ``statistics`` [P, 3] int64, contiguous, or None;
    - ``out_scores`` [P, k] float32 and ``out_ids`` [P, k] int64, contiguous, 1 <= k <= 64.

    Nothing may be assumed of what the outputs hold before. Row numbers are checked where that
    needs no host sync. NaN or +inf in a row of a pair raises nothing: what is then written,
    ``vllm_cold.ops.scoring`` says, and the other pairs' results are the same bits as without.
    """

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run on ``device``, in a sentence with the remedy; None if it can."""

    def scores(
        self,
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
        """Write the scores to ``out``, or over both rows; and the statistics, if wanted, without a
        host sync where there is none for the scores.
        """

    def topk(
        self,
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
        """Write the best k scores of each pair and their token ids."""


def load(name: str) -> Backend:
    """The module of a backend.

    Raises:
        ValueError: if there is no backend of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"CoLD: no scoring backend {name!r}; there are {', '.join(BACKENDS)}.")
    return cast(Backend, importlib.import_module(f"vllm_cold.ops.scoring_{name}"))


def choose(device: torch.device, name: str | None = None) -> str:
    """The name of the backend that scores on ``device``.

    Args:
        device: Where the logits are.
        name: The backend to use, whatever is best; None for ``COLD_SCORING``, and if that is
            not set for the best one that runs here.

    Raises:
        ValueError: if a backend asked for by name does not exist.
        RuntimeError: if a backend asked for by name cannot run here.
    """
    return _choose(device.type, name or environment.read(ENV))


@cache
def _choose(device_type: str, name: str | None) -> str:
    device = torch.device(device_type)
    if name is not None:
        reason = load(name).missing(device)
        if reason is not None:
            raise RuntimeError(f"CoLD: the scoring backend {name!r} was asked for. {reason}")
        logger.info("CoLD: scoring on %s: %s, as asked for.", device_type, name)
        return name
    passed_over = []
    for candidate in AUTOMATIC.get(device_type, ("torch",)):
        reason = load(candidate).missing(device)
        if reason is None:
            break
        passed_over.append(f"not {candidate}: {reason}")
    if passed_over:
        logger.warning(
            "CoLD: scoring on %s falls back to %s; %s",
            device_type,
            candidate,
            " ".join(passed_over),
        )
    else:
        logger.info("CoLD: scoring on %s: %s.", device_type, candidate)
    return candidate
