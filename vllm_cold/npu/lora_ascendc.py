# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM Ascend: ``PunicaWrapperNPU``, whose layers are computed by our own kernels if
``COLD_LORA=ascendc`` asks for them.

Why: vllm-ascend's kernels give a row to one core, read an adapter once for each of its rows, and
take three launches for each slice of a layer. Ours share each row among the cores and each read
among rows, and take two launches for all slices. They have never run on an NPU, so nobody gets them
unasked.
Since: vllm-ascend 0.23. Can go: when vllm-ascend's own are as good.
"""

from typing import Any

import torch

from vllm_cold.npu import lora_ops
from vllm_cold.npu.lora_bgmv import BgmvPunicaWrapperNPU


class AscendcPunicaWrapperNPU(BgmvPunicaWrapperNPU):
    """LoRA of linear layers and logits by our kernels; what they do not take, by BGMV."""

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Add a layer's adapters to ``y``; see ``lora_ops.shrink_expand``."""
        rows, out = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        ours = buffer is None and add_inputs
        if ours and lora_ops.takes(out, rows, lora_a_stacked, lora_b_stacked, output_slices):
            adapters = self._get_token_lora_indices(rows)
            lora_ops.shrink_expand(out, rows, lora_a_stacked, lora_b_stacked, adapters, scale)
            return
        if not add_inputs:
            kwargs["add_inputs"] = add_inputs
        super().add_lora_linear(
            y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, buffer=buffer, **kwargs
        )

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """The same for the logits of the rows that are sampled from."""
        rows, out = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        a, b = (lora_a_stacked,), (lora_b_stacked,)
        if buffer is None and lora_ops.takes(out, rows, a, b, (lora_b_stacked.shape[-2],)):
            adapters = torch.narrow(self._sampler_indices, 0, 0, rows.size(0))
            lora_ops.shrink_expand(out, rows, a, b, adapters, scale)
            return
        super().add_lora_logits(
            y, x, lora_a_stacked, lora_b_stacked, scale, buffer=buffer, **kwargs
        )
