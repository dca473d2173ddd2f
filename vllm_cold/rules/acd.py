# SPDX-License-Identifier: Apache-2.0
"""ACD's rule: each as much as the other one is unsure."""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules.interface import Rule
from vllm_cold.rules.statistics import Statistics

_NONE = 1e-20  # nats, of two that are certain


class ACD(Rule):
    """``w = H_p / (H_p + H_q)``: a mixture of both, in which the less certain one counts less
    (arXiv 2408.01084, section 3); 0 where both are certain, which the paper does not say.
    """

    name = "acd"
    about = "ACD, arXiv 2408.01084"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        p_entropy, q_entropy = s.entropy[:, :1], s.entropy[:, 1:]
        both = p_entropy + q_entropy
        return torch.where(both > _NONE, p_entropy / both, 0.0)
