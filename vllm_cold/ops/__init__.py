# SPDX-License-Identifier: Apache-2.0
"""The contrastive scoring op, which workers compute scores from logits with: a file for each
backend. Imports without vLLM installed.
"""

from vllm_cold.ops.interface import Groups
from vllm_cold.ops.scoring import contrastive_scores, contrastive_topk

__all__ = ["Groups", "contrastive_scores", "contrastive_topk"]
