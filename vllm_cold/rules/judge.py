# SPDX-License-Identifier: Apache-2.0
"""A judge: a stream that is asked once whether to contrast at all."""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules.interface import Choice, Parameter, Rule
from vllm_cold.rules.statistics import Statistics

_OPEN, _YES, _NO = 0.0, 1.0, 2.0  # what the judge said


class Judge(Rule):
    """The second amateur's prompt asks a question about the request, such as whether its text says
    the answer. If its first word is the token ``token`` with at least the probability
    ``threshold``, the first amateur's weight is ``-beta``, else 0. Then the judge has ended, and so
    has an amateur of weight 0. A judge's prompt that goes on where the expert's ends is in the
    prefix cache up to there.

    A building block: what a small model answers is to be measured first (docs/methods.md).
    """

    name = "judge"
    about = "a building block"
    parameters = {
        "token": Parameter(None, 0.0, 2.0**24 - 1, "id of the token that means yes"),
        "threshold": Parameter(0.5, 0.0, 1.0, "its least probability"),
        "beta": Parameter(0.5, 0.0, 1e6, "strength where the judge says yes"),
    }
    amateurs = 2
    state = 1
    retires = True

    def weights(self, s: Statistics, p: Any) -> Choice:
        token = p.token.long().clamp(max=s.vocabulary - 1)
        sure = s.log_probabilities(2).gather(1, token).exp() >= p.threshold
        yes = sure & (p.token < s.vocabulary)
        said = s.state[:, :1, 0]
        said = torch.where(said == _OPEN, torch.where(yes, _YES, _NO), said)
        weight = torch.where(said == _YES, -p.beta, 0.0)
        never: Tensor = torch.zeros_like(weight)
        return Choice(
            torch.cat([weight, never], 1),
            said.unsqueeze(-1).expand(-1, 2, -1),
            torch.cat([said == _NO, never == 0], 1),
        )
