# SPDX-License-Identifier: Apache-2.0
"""The contrastive scoring op, with one file per backend. Imports without vLLM installed."""

from vllm_cold.ops.interface import Groups
from vllm_cold.ops.scoring import contrastive_scores, contrastive_topk

__all__ = ["Groups", "contrastive_scores", "contrastive_topk"]
