# SPDX-License-Identifier: Apache-2.0
"""LoRA on Ascend NPUs, with vllm-ascend's kernels."""
