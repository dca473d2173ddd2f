# SPDX-License-Identifier: Apache-2.0
"""Which implementation of the scoring op serves which device.

One file per backend, ``scoring_<name>.py``, each with a ``Backend``.
``COLD_SCORING=<name>`` chooses one by hand; so does the ``backend`` argument of the op.
"""

import importlib
import logging
from functools import cache

import torch

from vllm_cold.compat import environment
from vllm_cold.ops.interface import Backend

logger = logging.getLogger("vllm." + __name__)

BACKENDS = {
    "torch": "torch operations, on any device",
    "cpu": "C++ for CPUs (csrc/cpu)",
    "triton": "Triton for NVIDIA and AMD GPUs",
    "ascend": "AscendC for Ascend NPUs (csrc/ascend)",
}

# By torch's device type (AMD GPUs are "cuda" too). Elsewhere, and where it is missing: torch.
AUTOMATIC = {"cpu": "cpu", "cuda": "triton", "npu": "ascend"}


def load(name: str) -> Backend:
    """Return a backend; raises ValueError if there is none of that name."""
    if name not in BACKENDS:
        raise ValueError(
            f"vllm-cold: no scoring backend {name!r}; there are {', '.join(BACKENDS)}."
        )
    backend: Backend = importlib.import_module(f"vllm_cold.ops.scoring_{name}").BACKEND
    return backend


def choose(device: torch.device, name: str | None = None) -> str:
    """Return the name of the backend that scores on ``device``: ``name``, else that of
    ``COLD_SCORING``, else the best one that runs here.

    Raises:
        ValueError: if a backend that is named does not exist.
        RuntimeError: if a backend that is named cannot run here.
    """
    return _choose(device.type, name or environment.read(environment.SCORING))


def path(device: torch.device) -> tuple[str, str]:
    """Return the name of the backend that scores on ``device``, and why; raises what ``choose``
    does.
    """
    chosen, best = choose(device), AUTOMATIC.get(device.type, "torch")
    if environment.read(environment.SCORING):
        return chosen, f"{environment.SCORING}={chosen}"
    if chosen == best:
        return chosen, BACKENDS[chosen]
    return chosen, f"not {best}: {load(best).missing(device)}"


@cache
def _choose(device_type: str, name: str | None) -> str:
    device = torch.device(device_type)
    if name is not None:
        reason = load(name).missing(device)
        if reason is not None:
            raise RuntimeError(f"vllm-cold: the scoring backend {name!r} was asked for. {reason}")
        logger.info("vllm-cold: scoring on %s: %s, as asked for.", device_type, name)
        return name
    best = AUTOMATIC.get(device_type, "torch")
    if (reason := load(best).missing(device)) is None:
        logger.info("vllm-cold: scoring on %s: %s.", device_type, best)
        return best
    logger.warning(
        "vllm-cold: scoring on %s falls back to torch; not %s: %s", device_type, best, reason
    )
    return "torch"
