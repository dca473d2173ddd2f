# SPDX-License-Identifier: Apache-2.0
"""AdaCAD's rule: as strong as expert and amateur differ."""

from typing import Any

from torch import Tensor

from vllm_cold.rules.interface import Parameter, Rule
from vllm_cold.rules.statistics import Statistics


class Adaptive(Rule):
    """``w = -beta_max * r * D``: the divergence of expert and amateur over the candidates in bits,
    times how near the amateur comes to choosing one of them. What an amateur that wants something
    else altogether says about the candidates is the noise of its tail. Without a mask r is 1, and
    this is AdaCAD's (arXiv 2409.07394, equations 3 and 4), whose released code has D in nats: ln 2
    as beta_max.
    """

    name = "adaptive"
    about = "AdaCAD, arXiv 2409.07394"
    parameters = {"beta_max": Parameter(1.0, 0.0, 1e6, "the most that a contrast reaches")}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        weights: Tensor = -p.beta_max * s.reach * s.candidate_divergence
        return weights
