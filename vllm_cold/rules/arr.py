# SPDX-License-Identifier: Apache-2.0
"""ARR's rule: towards whichever of both is surer, as strong as they differ."""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules.interface import Parameter, Rule
from vllm_cold.rules.statistics import Statistics


class ARR(Rule):
    """``w = -beta_max * J`` where the expert's best token is likelier than the amateur's, else
    ``+beta_max * J``, J their divergence (arXiv 2606.10298v1 and its authors' code of June 2026,
    where beta_max is 1). What their later code does is ``grd``.
    """

    name = "arr"
    about = "ARR, arXiv 2606.10298v1"
    parameters = {"beta_max": Parameter(1.0, 0.0, 1e6, "the most that a weight is from 0")}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        surer = s.max_probability[:, :1] > s.max_probability[:, 1:]
        weights: Tensor = torch.where(surer, -p.beta_max, p.beta_max) * s.divergence
        return weights
