# SPDX-License-Identifier: Apache-2.0
"""CoCoA's gate: between both by the gap of their entropies."""

from typing import Any

from torch import Tensor

from vllm_cold.rules.interface import Parameter, Rule
from vllm_cold.rules.statistics import Statistics


class CoCoA(Rule):
    """``w = 1 - a - gamma`` with ``a = sigmoid(gamma * (H_q - H_p + g))``, from 0.1 to 0.9, and g
    = 1 where ``sum_v q_v / p_v > 2``, else 0: the gate of the authors' code for arXiv 2508.17670.
    That code then sets a to 0.5, which is ``cad`` with beta 0.5, and neither is the paper's
    formula, of which no full text was at hand.
    """

    name = "cocoa"
    about = "CoCoA, the gate in the code of arXiv 2508.17670"
    parameters = {"gamma": Parameter(1.0, 0.0, 100.0, "strength")}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        gap = s.entropy[:, 1:] - s.entropy[:, :1]
        alpha = (p.gamma * (gap + (s.ratio_sum > 2).float())).sigmoid().clamp(0.1, 0.9)
        weights: Tensor = 1 - alpha - p.gamma
        return weights
