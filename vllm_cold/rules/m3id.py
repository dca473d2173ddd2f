# SPDX-License-Identifier: Apache-2.0
"""M3ID's schedule: stronger with every token, where the expert is unsure."""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules.interface import Parameter, Rule
from vllm_cold.rules.statistics import Statistics

_MOST = 1e6  # scores stay finite in float32


class M3ID(Rule):
    """``w = -(exp(gamma * t) - 1)`` where ``max p < threshold``, else 0; t = 1 at the first token
    (arXiv 2403.14003, section 4.1, where gamma is lambda and threshold alpha). It grows without
    bound: with the default 6 at 100 tokens, 50 at 200.
    """

    name = "m3id"
    about = "M3ID, arXiv 2403.14003"
    parameters = {
        "gamma": Parameter(0.02, 0.0, 10.0, "growth with each token"),
        "threshold": Parameter(0.3, 0.0, 1.0, "probability of the best token below which it acts"),
    }

    def weights(self, s: Statistics, p: Any) -> Tensor:
        grown = ((s.step + 1).unsqueeze(-1) * p.gamma).expm1().clamp(max=_MOST)
        gate = torch.where(s.max_probability[:, :1] < p.threshold, -grown, 0.0)
        return gate.expand(-1, s.num_streams - 1)
