# SPDX-License-Identifier: Apache-2.0
"""Products of few rows with a linear layer's weights, at the memory's speed (csrc/cpu/linear.h).
Imports no vLLM.

``torch.ops.vllm_cold.linear(x, table, outputs)`` is ``x @ weight.T + bias``: up to 8 rows by a
kernel that reads the weights once, more by oneDNN. Both read the same memory: the weights as oneDNN
packs them, on huge pages, which is what makes the difference. How they lie and in which order
oneDNN sums is found out when they are packed, so the result is the same bit for bit; where either
is not, oneDNN's is taken. ``linear_lora(x, table, outputs, layer, scale)`` is ``linear`` and then
``lora_linear`` with the table ``layer`` (``vllm_cold.cpu.lora_ops``), in one call.
"""

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from vllm_cold.compat import environment
from vllm_cold.cpu import memory, operators
from vllm_cold.ops import cpu_library

FEW_ROWS = 8
ALL_ROWS = (True,) * FEW_ROWS
_HINT = 64  # rows that oneDNN packs for
_WIDTHS = (16, 32, 48, 64)  # adjacent outputs
_BLOCKS = 64  # of so many, one is compared
# How many inputs oneDNN sums before it adds the sum to those before, as seen so far.
_SUMMED = (512, 1024, 256, 2048, 4096, 128, 64)
_TRIALS = 50  # of each number of rows
_LEAST_TRIALS = 5  # or the last order that is left may agree by chance


@cache
def missing() -> str | None:
    """Why it cannot run here; None if it can. Then the operators are there."""
    if (reason := operators.missing()) is not None:
        return reason
    if cpu_library.best_isa() < cpu_library.ISAS.index("avx2"):
        return "This CPU has no AVX2."
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
    isa = {torch.float32: "avx512", torch.bfloat16: "avx512bf16"}.get(weight.dtype)
    if isa is None or cpu_library.best_isa() < cpu_library.ISAS.index(isa):
        return False
    outputs, inputs = weight.shape
    return outputs % _WIDTHS[0] == 0 and inputs % (64 // weight.dtype.itemsize) == 0


class Weights:
    """A linear layer's weights as oneDNN packs them, and no others.

    Attributes:
        few_rows: int64 [9], the C++ struct of the same name: the width of the packing, and for 1 to
            8 rows how many inputs to sum at a time; 0 where oneDNN computes.
    """

    def __init__(self, weight: Tensor, by_kernel: Sequence[bool] = ALL_ROWS) -> None:
        """Pack and copy; the original is not needed afterwards.

        Args:
            weight: [N, K], float32 or bfloat16, not empty.
            by_kernel: For 1 to 8 rows, whether the kernel may compute.

        Raises:
            RuntimeError: oneDNN does not pack them.
        """
        self.dtype, (self.outputs, self.inputs) = weight.dtype, weight.shape
        packed, data = _pack(weight)
        self._layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
        self.memory = memory.allocate(data.numel())[: data.numel()]
        self.memory.copy_(data)
        self.handle = _Handle(self.memory.data_ptr(), weight, packed)
        self.few_rows = torch.zeros(1 + FEW_ROWS, dtype=torch.int64)
        if not any(by_kernel) or not fits(weight):
            return
        widths = [width for width in _WIDTHS if _lies(data, weight, width)]
        if len(widths) == 1:  # numbers that repeat themselves, such as zeros, tell of none
            self.few_rows[0] = widths[0]
            key = self.dtype, *weight.shape, torch.get_num_threads()
            if key not in _summed:
                _summed[key] = _find_summed(self)
            self.few_rows[1:] = torch.tensor(_summed[key]) * torch.tensor(by_kernel)

    @property
    def has_kernel(self) -> bool:
        """Whether the kernel computes some number of rows."""
        return bool(self.few_rows[1:].any())

    def load(self, weight: Tensor) -> None:
        """Take other numbers, of the same dtype and shape; addresses stay.

        Raises:
            ValueError: oneDNN packs them in another way than those before.
        """
        packed, data = _pack(weight)
        if not torch.equal(torch.ops.mkldnn._get_mkldnn_serialized_md(packed), self._layout):
            raise ValueError("oneDNN packs a layer's new weights in another way than those before.")
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
        self._bias_handle = None if bias is None else _Handle(bias.data_ptr(), bias)
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
                weights.few_rows.data_ptr(),
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
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _HINT)
    count, address = torch.ops.mkldnn._nbytes(packed), torch.ops.mkldnn.data_ptr(packed)
    memory_of = (ctypes.c_uint8 * count).from_address(address)
    return packed, torch.frombuffer(memory_of, dtype=torch.uint8)


def _lies(data: Tensor, weight: Tensor, width: int) -> bool:
    """Whether the bytes of packed weights lie as csrc/cpu/linear.h says, with such blocks; compares
    each 64th and the last.
    """
    numbers = weight.detach().contiguous().view(torch.int32)  # an input each, or a pair
    (outputs, groups), count = numbers.shape, -(-len(numbers) // width)
    if len(data) != 4 * count * groups * width:
        return False
    blocks, some = data.view(torch.int32).view(count, groups, width), range(0, count, _BLOCKS)
    return all(
        torch.equal(blocks[i, :, : outputs - i * width].t(), numbers[i * width :][:width])
        for i in (*some, count - 1)
    )


_summed: dict[tuple[object, ...], list[int]] = {}


def _find_summed(weights: Weights) -> list[int]:
    """For 1 to 8 rows, how many inputs to sum at a time for oneDNN's exact results, as in
    csrc/cpu/linear.h; 0: none.

    A bias that cancels nearly all of a result shows the last bits of its sum, which rounding to
    bfloat16 hides.
    """
    bias = torch.zeros(weights.outputs, dtype=weights.dtype)
    linear, generator, sums = Linear(weights, bias), torch.Generator().manual_seed(0), []
    sizes = [size for size in _SUMMED if size < weights.inputs] + [weights.inputs]
    if weights.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        sizes += [-size for size in sizes]
    for rows in range(1, FEW_ROWS + 1):
        left, summed = sizes, weights.few_rows[rows : rows + 1]
        for trial in range(_TRIALS):
            x = torch.randn(rows, weights.inputs, generator=generator).to(weights.dtype)
            summed.zero_()
            bias.zero_()
            bias.copy_(-linear(x)[0])
            right = linear(x)
            left = [size for size in left if torch.equal(_with(summed, size, linear, x), right)]
            if not left or (len(left) == 1 and trial >= _LEAST_TRIALS):
                break
        sums.append(left[0] if len(left) == 1 else 0)
    return sums


def _with(summed: Tensor, size: int, linear: Linear, x: Tensor) -> Tensor:
    summed.fill_(size)
    return linear(x)


class _Handle:
    """A tensor of torch's C interface, over memory that something else keeps."""

    def __init__(self, data: int, like: Tensor, packed: Tensor | None = None) -> None:
        """``data``: an address, of a tensor like ``like``; or of bytes that lie as oneDNN's, which
        ``packed`` has.
        """
        library, address = operators.torch_library(), ctypes.c_void_p()
        sizes = (ctypes.c_int64 * like.dim())(*like.shape)
        strides = (ctypes.c_int64 * like.dim())(*like.stride())
        about = torch.empty(0, dtype=torch.uint8)
        layout = library.aoti_torch_layout_strided()
        if packed is not None:
            about = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
            layout = library.aoti_torch_layout__mkldnn()
        status = library.aoti_torch_create_tensor_from_blob_v2(
            ctypes.c_void_p(data),
            ctypes.c_int64(like.dim()),
            sizes,
            strides,
            ctypes.c_int64(0),
            operators.dtype_number(like.dtype),
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
