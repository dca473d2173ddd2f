# SPDX-License-Identifier: Apache-2.0
import torch

from vllm_cold.rules import Parameter, Rule


class Conflict(Rule):
    """A contrast where expert and amateur want different tokens."""

    name = "conflict"
    parameters = {"beta": Parameter(0.5, 0.0, 10.0, "strength where it contrasts")}

    def weights(self, s, p):
        return torch.where(s.argmax[:, :1] == s.argmax[:, 1:], 0.0, -p.beta)
