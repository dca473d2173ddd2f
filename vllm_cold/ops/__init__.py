# SPDX-License-Identifier: Apache-2.0
"""The contrastive scoring op. Imports without vLLM installed.

``naive`` holds the plain reference that every implementation is compared with.
"""

from vllm_cold.ops.scoring import contrastive_scores_

__all__ = ["contrastive_scores_"]
