# SPDX-License-Identifier: Apache-2.0
"""MTI's gate: a contrast where the expert is unsure, and none elsewhere."""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules.interface import Parameter, Rule
from vllm_cold.rules.statistics import Statistics


class MTI(Rule):
    """``w = -beta`` where ``H_p > tau``, else 0 (arXiv 2510.13940 and its authors' code, where
    beta is ``guidance_scale - 1``; the values there are placeholders, the defaults here are ours).
    The paper's amateur is its expert with a few tokens appended; here it is a stream.
    """

    name = "mti"
    about = "MTI's gate, arXiv 2510.13940"
    parameters = {
        "beta": Parameter(0.5, 0.0, 1e6, "strength where it contrasts"),
        "tau": Parameter(1.0, 0.0, 100.0, "entropy of the expert above which it does, in nats"),
    }

    def weights(self, s: Statistics, p: Any) -> Tensor:
        gate = torch.where(s.entropy[:, :1] > p.tau, -p.beta, 0.0)
        return gate.expand(-1, s.num_streams - 1)
