# SPDX-License-Identifier: Apache-2.0
"""A prompt of embeddings, as plain data that crosses process boundaries. Imports no vLLM.

A request of vLLM's carries one tensor, which is the expert's; an amateur's own travels with what
else the scheduler is told of it.
"""

from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    from torch import Tensor


class Embeddings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Embeddings in place of a prompt's tokens.

    Attributes:
        dtype: As torch names it: "float32".
        shape: (tokens, the model's hidden size).
        data: The numbers, row by row.
        is_token_ids: Where it is True, the prompt's token id counts and the row does not; None
            where there are no token ids.
    """

    dtype: str
    shape: tuple[int, int]
    data: bytes
    is_token_ids: list[bool] | None = None

    @classmethod
    def of(cls, tensor: "Tensor", is_token_ids: list[bool] | None = None) -> Self:
        """Those of a tensor of two dimensions."""
        import torch

        rows, columns = tensor.shape
        plain = tensor.detach().cpu().contiguous().view(torch.uint8)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(dtype, (rows, columns), plain.numpy().tobytes(), is_token_ids)

    def tensor(self) -> "Tensor":
        """The tensor, on the CPU."""
        import torch

        flat = torch.frombuffer(bytearray(self.data), dtype=getattr(torch, self.dtype))
        return flat.view(self.shape)
