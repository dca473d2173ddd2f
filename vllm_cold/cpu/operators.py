# SPDX-License-Identifier: Apache-2.0
"""Kernels of the C++ library as torch operators, ``torch.ops.vllm_cold``, that compiled models can
call (csrc/cpu/torch_ops.h).
"""

import ctypes
import secrets
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vllm_cold.compat.patching import Place, named
from vllm_cold.ops import cpu_library

# Their kernels are the library's ``vllm_cold_{name}_op``; ``lora_ops`` and ``linear_ops`` say what
# they compute.
_OPERATORS = {
    "lora_linear": "(Tensor(a!) y, Tensor x, Tensor layer, float scale) -> ()",
    "lora_shrink": "(Tensor(a!) hidden, Tensor x, Tensor layer, float scale) -> ()",
    "lora_expand": "(Tensor(a!) y, Tensor hidden, Tensor layer, int column, bool add) -> ()",
    "linear": "(Tensor x, Tensor linear, int outputs) -> Tensor",
    "linear_lora": "(Tensor x, Tensor linear, int outputs, Tensor layer, float scale) -> Tensor",
}
# struct Torch, in its order.
_TORCH_FUNCTIONS = (
    "get_data_ptr",
    "get_dim",
    "get_sizes",
    "get_strides",
    "get_dtype",
    "delete_tensor_object",
    "check",
    "empty_strided",
    "cpu__linear_pointwise",
)
_OF_ONEDNN = "cpu__linear_pointwise"  # not in every torch; LoRA does not need it
# torch keeps the addresses of these names.
_NAMESPACE, _DEVICE, _FILE = b"vllm_cold", b"CPU", __file__.encode()
# Tables hold addresses: one from another process, in a compiled model, must not be used.
PROCESS = secrets.randbits(63)


@cache
def torch_library() -> ctypes.CDLL:
    """Torch's own library, whose C interface is ``aoti_torch_*``.

    Raises:
        OSError: it is not where it is expected.
    """
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


def has_onednn() -> bool:
    """Whether torch's C interface offers oneDNN's products."""
    return hasattr(torch_library(), f"aoti_torch_{_OF_ONEDNN}")


def dtype_number(dtype: torch.dtype) -> int:
    """Torch's number for a dtype, in its C interface."""
    return int(getattr(torch_library(), f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")())


def succeed(status: int, what: str) -> None:
    """Raise RuntimeError unless a function of torch's C interface returned success."""
    if status != 0:
        raise RuntimeError(f"torch {torch.__version__} refused to {what}; please report this")


@cache
def of_vllm() -> Any:
    """The module of vLLM's own operators for CPUs."""
    return named(Place("vllm._cpu_ops", before="vllm._custom_ops").here)


@cache
def missing() -> str | None:
    """Why they cannot run here, in a sentence with the remedy; None if torch has them."""
    if sys.byteorder != "little":
        return "They are written for little-endian machines: LoRA is computed by torch operations."
    if (reason := cpu_library.missing()) is not None:
        return reason
    try:
        _register()
    except (OSError, AttributeError, RuntimeError) as error:
        return (
            f"torch {torch.__version__} does not take its operators ({error}): use 2.10 or later."
        )
    return None


@cache
def _register() -> tuple[object, object]:
    """Define the operators, and give torch their kernels.

    Returns:
        What has to live as long as the operators.

    Raises:
        OSError, AttributeError, RuntimeError: this torch lacks a function, or refuses.
    """
    library, kernels = cpu_library.library(), ctypes.c_void_p()
    _connect(library)
    # torch.library is untyped.
    definitions = torch.library.Library("vllm_cold", "FRAGMENT")  # type: ignore[no-untyped-call]
    status = torch_library().aoti_torch_library_init_impl(
        _NAMESPACE, _DEVICE, _FILE, 0, ctypes.byref(kernels)
    )
    succeed(status, "take a library of operators")
    for name, signature in _OPERATORS.items():
        definitions.define(name + signature)  # type: ignore[no-untyped-call]
        traced = _result if signature.endswith("Tensor") else (lambda *_: None)
        torch.library.register_fake(f"vllm_cold::{name}", traced, lib=definitions)
        kernel = _address(getattr(library, f"vllm_cold_{name}_op"))
        status = torch_library().aoti_torch_library_impl(kernels, name.encode(), kernel)
        succeed(status, "register a kernel")
    return definitions, kernels


def _connect(library: ctypes.CDLL) -> None:
    """Give torch's functions to the library."""
    functions = (ctypes.c_void_p * len(_TORCH_FUNCTIONS))(
        *(
            _address(getattr(torch_library(), f"aoti_torch_{name}"))
            for name in _TORCH_FUNCTIONS
            if name != _OF_ONEDNN or has_onednn()
        )
    )
    dtypes = (ctypes.c_int32 * 3)(*map(dtype_number, cpu_library.DTYPES))
    connect, number = library.vllm_cold_connect, ctypes.c_int32
    connect.argtypes = [ctypes.c_void_p, ctypes.c_void_p, number, number, ctypes.c_int64]
    cpu = torch_library().aoti_torch_device_type_cpu()
    connect(functions, dtypes, cpu, cpu_library.best_isa(), PROCESS)


def _result(x: torch.Tensor, linear: torch.Tensor, outputs: int, *lora: object) -> torch.Tensor:
    """The result's shape, for tracing."""
    return x.new_empty(x.shape[0], outputs)


def _address(function: object) -> ctypes.c_void_p:
    return ctypes.cast(function, ctypes.c_void_p)  # type: ignore[arg-type]
