# SPDX-License-Identifier: Apache-2.0
"""Products of few rows with a linear layer's weights, at the memory's speed (csrc/cpu/linear.h).
Imports no vLLM.

``torch.ops.vllm_cold.linear(x, table, outputs)`` is ``x @ weight.T + bias``: up to 8 rows by a
kernel that reads the weights once, more by oneDNN. Both read the same memory: the weights as oneDNN
packs them, on huge pages, which is what makes the difference. The kernel sums in oneDNN's order,
which is found out when the weights are packed, so the result is the same bit for bit; where it is
not, oneDNN's is taken. ``linear_lora(x, table, outputs, layer, scale)`` is ``linear`` and then
``lora_linear`` with the table ``layer`` (``vllm_cold.cpu.lora_ops``), in one call.
"""

import ctypes
import weakref
from functools import cache

import torch
from torch import Tensor

from vllm_cold.compat import environment
from vllm_cold.cpu import memory, operators
from vllm_cold.ops import cpu_library

FEW_ROWS = 8
_BLOCK = 64  # adjacent outputs
# How many inputs oneDNN sums before it adds the sum to those before, as seen so far.
_SUMMED = (512, 1024, 256, 2048, 4096, 128, 64)
_TRIALS = 50  # of each number of rows


@cache
def missing() -> str | None:
    """Why it cannot run here; None if it can. Then the operators are there."""
    if (reason := operators.missing()) is not None:
        return reason
    if cpu_library.best_isa() < cpu_library.ISAS.index("avx512"):
        return "This CPU has no AVX-512."
    if not operators.has_onednn():
        return "torch was built without oneDNN."
    return None


def problem() -> str | None:
    """Why products are left to vLLM in this process; None if they are not.

    Raises:
        ValueError: ``COLD_LINEAR`` has an unknown value.
    """
    if (choice := environment.read(environment.LINEAR)) not in (None, "packed", "stock"):
        raise ValueError(f"{environment.LINEAR}={choice!r}: must be packed or stock.")
    return f"{environment.LINEAR}=stock" if choice == "stock" else missing()


def fits(weight: Tensor) -> bool:
    """Whether the kernel takes weights [N, K] of this dtype and shape."""
    has_bf16 = cpu_library.best_isa() >= cpu_library.ISAS.index("avx512bf16")
    multiple = {torch.float32: 16, torch.bfloat16: 32 if has_bf16 else 0}.get(weight.dtype, 0)
    outputs, inputs = weight.shape
    return multiple > 0 and outputs % _BLOCK == 0 and inputs % multiple == 0 and inputs > 0


class Weights:
    """A linear layer's weights as oneDNN packs them, and no others."""

    def __init__(self, weight: Tensor) -> None:
        """Pack and copy; the original is not needed afterwards.

        Args:
            weight: [N, K], of which ``fits`` is true.

        Raises:
            ValueError: oneDNN packs them in another way than the kernel reads.
        """
        self.dtype, (self.outputs, self.inputs) = weight.dtype, weight.shape
        packed, data = _pack(weight)
        self.memory = memory.allocate(data.numel())
        self.memory.copy_(data)
        self.handle = _Handle(self.memory.view(self.dtype).view(weight.shape), packed)
        self.summed = [0] * FEW_ROWS
        key = self.dtype, self.outputs, self.inputs, torch.get_num_threads()
        self.summed = _summed.get(key) or _find_summed(self)
        if all(self.summed):
            _summed[key] = self.summed

    def load(self, weight: Tensor) -> None:
        """Take other numbers, of the same dtype and shape; addresses stay.

        Raises:
            ValueError: see ``Weights``.
        """
        _, data = _pack(weight)
        self.memory.copy_(data)


class Linear:
    """The weights of one layer with its bias, for the operator.

    Attributes:
        table: int64, the C++ struct of the same name. It is good as long as this object lives.
    """

    def __init__(self, weights: Weights, bias: Tensor | None) -> None:
        """Both stay where they are; ``bias``: [N] of the weights' dtype, contiguous, or None.

        Raises:
            ValueError: the bias does not fit.
        """
        right = (weights.dtype, (weights.outputs,))
        if bias is not None and ((bias.dtype, bias.shape) != right or not bias.is_contiguous()):
            raise ValueError("The bias is not like the output, or not contiguous.")
        self.weights, self.bias = weights, bias
        self._bias_handle = None if bias is None else _Handle(bias)
        self.table = torch.tensor(
            [
                operators.PROCESS,
                cpu_library.DTYPES[weights.dtype],
                weights.outputs,
                weights.inputs,
                weights.memory.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                weights.handle.address,
                0 if self._bias_handle is None else self._bias_handle.address,
                *weights.summed,
            ],
            dtype=torch.int64,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``; x: [T, K] of the weights' dtype, rows contiguous."""
        result: Tensor = torch.ops.vllm_cold.linear(x, self.table, self.weights.outputs)
        return result


def _pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as oneDNN packs them, and their bytes, which live as long as the former."""
    weight = weight.detach().contiguous()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _BLOCK)
    count, address = torch.ops.mkldnn._nbytes(packed), torch.ops.mkldnn.data_ptr(packed)
    memory_of = (ctypes.c_uint8 * count).from_address(address)
    data = torch.frombuffer(memory_of, dtype=torch.uint8)
    if not _lies_as_expected(data, weight):
        raise ValueError("oneDNN packs weights in another way on this machine.")
    return packed, data


_summed: dict[tuple[object, ...], list[int]] = {}


def _find_summed(weights: Weights) -> list[int]:
    """For 1 to 8 rows, how many inputs to sum at a time for oneDNN's exact results; 0: none.

    A bias that cancels nearly all of a result shows the last bits of its sum, which rounding to
    bfloat16 hides.
    """
    bias = torch.zeros(weights.outputs, dtype=weights.dtype)
    linear, generator, sums = Linear(weights, bias), torch.Generator().manual_seed(0), []
    sizes = [size for size in _SUMMED if size < weights.inputs] + [weights.inputs]
    for rows in range(1, FEW_ROWS + 1):
        left, summed = sizes, linear.table[-FEW_ROWS:][rows - 1 : rows]
        for _ in range(_TRIALS):
            x = torch.randn(rows, weights.inputs, generator=generator).to(weights.dtype)
            summed.zero_()
            bias.zero_()
            bias.copy_(-linear(x)[0])
            right = linear(x)
            left = [size for size in left if torch.equal(_with(summed, size, linear, x), right)]
            if len(left) <= 1:
                break
        sums.append(left[0] if len(left) == 1 else 0)
    return sums


def _with(summed: Tensor, size: int, linear: Linear, x: Tensor) -> Tensor:
    summed.fill_(size)
    return linear(x)


class _Handle:
    """A tensor of torch's C interface, over memory that something else keeps."""

    def __init__(self, memory: Tensor, like: Tensor | None = None) -> None:
        """``like``: packed by oneDNN, as the memory is; None for a strided tensor."""
        library, address = operators.torch_library(), ctypes.c_void_p()
        sizes = (ctypes.c_int64 * memory.dim())(*memory.shape)
        strides = (ctypes.c_int64 * memory.dim())(*memory.stride())
        about = torch.empty(0, dtype=torch.uint8)
        layout = library.aoti_torch_layout_strided()
        if like is not None:
            about = torch.ops.mkldnn._get_mkldnn_serialized_md(like)
            layout = library.aoti_torch_layout__mkldnn()
        status = library.aoti_torch_create_tensor_from_blob_v2(
            ctypes.c_void_p(memory.data_ptr()),
            ctypes.c_int64(memory.dim()),
            sizes,
            strides,
            ctypes.c_int64(0),
            operators.dtype_number(memory.dtype),
            library.aoti_torch_device_type_cpu(),
            0,
            ctypes.byref(address),
            layout,
            ctypes.c_void_p(about.data_ptr()),
            ctypes.c_int64(about.numel()),
        )
        operators.succeed(status, "take a tensor")
        self.address = address.value or 0
        weakref.finalize(self, library.aoti_torch_delete_tensor_object, address)


def _lies_as_expected(data: Tensor, weight: Tensor) -> bool:
    """Whether packed weights are ordered as in linear.h; compares each 64th block and the last."""
    (outputs, inputs), side = weight.shape, 4 // weight.dtype.itemsize
    if data.numel() != weight.nbytes:
        return False
    blocks = data.view(weight.dtype).view(outputs // _BLOCK, inputs // side, _BLOCK, side)
    expected = weight.view(outputs // _BLOCK, _BLOCK, inputs // side, side).transpose(1, 2)
    some = [*range(0, len(blocks), _BLOCK), len(blocks) - 1]
    return torch.equal(blocks[some], expected[some])
