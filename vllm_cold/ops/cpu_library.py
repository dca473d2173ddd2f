# SPDX-License-Identifier: Apache-2.0
"""The library of C++ kernels for CPUs (csrc/cpu): found, checked and loaded.

It is called through ctypes, with the addresses of tensors, and uses torch's threads.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path

import torch

from vllm_cold.compat import environment

# Here and elsewhere below "vllm.", so that a server's logging shows it.
logger = logging.getLogger("vllm." + __name__)

# csrc/cpu/library.h
_INTERFACE = 12
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ISAS = ("portable", "avx2", "avx512", "avx512bf16")

PATH = Path(__file__).parent / "_cpu.so"


@cache
def library() -> ctypes.CDLL:
    """Load the library.

    Raises:
        OSError: if it does not load; says why.
    """
    # torch's OpenMP runtime is in the process by now (torch is imported above) for all to see.
    loaded = ctypes.CDLL(str(PATH))
    interface = getattr(loaded, "vllm_cold_interface", None)
    if interface is None or interface() != _INTERFACE:
        raise OSError("it belongs to another version of this package")
    if not loaded.vllm_cold_has_threads():
        logger.warning(
            "vllm-cold: torch has no OpenMP runtime here: kernels run on one thread; "
            "install a build of torch with OpenMP, as the usual ones are."
        )
    address, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    loaded.vllm_cold_best_isa.restype = number
    loaded.vllm_cold_lora_plan_size.restype = loaded.vllm_cold_lora_plan.restype = integer
    loaded.vllm_cold_lora_plan_size.argtypes = [integer]
    loaded.vllm_cold_lora_plan.argtypes = [address, address, integer]
    loaded.vllm_cold_score.restype = number
    loaded.vllm_cold_score.argtypes = [
        address, integer, integer, integer, number,  # logits
        address, address, address, address, integer, integer,  # groups
        address, address,  # outputs
        number, number,
    ]  # fmt: skip
    return loaded


def missing() -> str | None:
    """Tell why the library cannot be used, with the remedy; None if it can."""
    if environment.is_off(environment.CPU_KERNELS):
        return f"{environment.CPU_KERNELS}=0 is set."
    if not PATH.exists():
        return (
            "Its library was not built: reinstall vllm-cold where a C++ compiler (g++) is; "
            "pip install -v says what went wrong."
        )
    try:
        library()
    except OSError as error:
        return f"Its library does not load ({error}): reinstall vllm-cold on this machine."
    return None


def best_isa() -> int:
    """Return the best instruction set that this CPU has, as an index of ``ISAS``."""
    return int(library().vllm_cold_best_isa())
