# SPDX-License-Identifier: Apache-2.0
"""A rule of the tests' own that every engine here is started with: it keeps a decision that its
first amateur lives by, and ends the second one.
"""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules import Choice, Parameter, Rule, registry
from vllm_cold.rules.statistics import Statistics

OPEN, YES, NO = 0.0, 1.0, 2.0


class Judge(Rule):
    """The first amateur's weight is ``-beta`` if the second one's first token is ``token``, with at
    least the probability ``threshold``, else 0: then it has ended, as the second has in any case.
    """

    name = "judge"
    parameters = {
        "token": Parameter(None, 0, 2**24 - 1, "an id", integer=True),
        "threshold": Parameter(0.5, 0.0, 1.0),
        "beta": Parameter(0.5, 0.0, 1e6),
    }
    amateurs = 2
    state = 1
    retires = True

    def weights(self, s: Statistics, p: Any) -> Choice:
        token = p.token.long().clamp(max=s.vocabulary - 1)
        yes = s.log_probabilities(2).gather(1, token).exp() >= p.threshold
        verdict = s.state[:, :1, 0]
        verdict = torch.where(verdict == OPEN, torch.where(yes, YES, NO), verdict)
        weight = torch.where(verdict == YES, -p.beta, 0.0)
        never: Tensor = torch.zeros_like(weight)
        return Choice(
            torch.cat([weight, never], 1),
            verdict.unsqueeze(-1).expand(-1, 2, -1),
            torch.cat([verdict == NO, never == 0], 1),
        )


PATH = f"{__name__}:{Judge.__name__}"
registry.add(PATH)  # where requests are made
