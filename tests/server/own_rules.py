# SPDX-License-Identifier: Apache-2.0
"""Rules that tests serve by ``--cold-rule tests.server.own_rules:CLASS``."""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules import Choice, Parameter, Rule
from vllm_cold.rules.statistics import Statistics

FAILS_AT = 12


class Fading(Rule):
    """``w = -beta / (1 + n)`` at the n-th step, counted by itself."""

    name = "fading"
    parameters = {"beta": Parameter(1.0, 0.0, 10.0)}
    state = 1

    def weights(self, s: Statistics, p: Any) -> Choice:
        return Choice(-p.beta / (1 + s.state[..., 0]), s.state + 1)


class Breaks(Rule):
    """Passes its trial, which has fewer steps, and is no number at a later one."""

    name = "breaks"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        weight = torch.where(s.step == FAILS_AT, torch.nan, -1.0)
        return weight.unsqueeze(-1).expand(-1, s.num_streams - 1)


class Raises(Rule):
    """The same with an exception, which its trial cannot see either."""

    name = "raises"

    def weights(self, s: Statistics, p: Any) -> Tensor:
        if s.vocabulary > 40:
            raise RuntimeError("only for few tokens")
        return torch.zeros_like(s.divergence)
