# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels for CPUs in vLLM's layers: LoRA of mixed batches, and small-M GEMM.
Their plugin is loaded in every process (``cpu_platform.register``); they run in workers.

LoRA: ``cpu_platform`` chooses. ``lora_wrapper`` with ``lora_ops`` (C++, compiled) is the usual one,
``lora_fallback`` (torch) is for machines without the C++ library. ``moe_lora`` lets vLLM's kernels
for mixtures of experts take adapters, in torch.
Linear layers: ``linear_ops`` has the operator and the weights, ``linear_layers`` gives them to
vLLM's where ``linear_probe`` finds them faster.
``cpu_paths`` tells what layers got.
Nothing here knows of the contrast.
"""
