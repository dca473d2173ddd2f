# SPDX-License-Identifier: Apache-2.0
"""GRD's rule: at the first conflict it decides once whom to trust."""

from typing import Any

import torch

from vllm_cold.rules.interface import Choice, Parameter, Rule
from vllm_cold.rules.statistics import Statistics

_OPEN, _EXPERT, _AMATEUR = 0.0, 1.0, 2.0  # what was decided


class GRD(Rule):
    """At the first step where the best tokens of expert and amateur differ, the amateur is trusted
    if its best token has more than half of the probability and its entropy is below the expert's,
    else the expert. Trusted, the amateur wins at each conflict, by ``w = 1 - (1 - lam) * tau``
    where at ``w = 1 - tau`` the two tokens tie (the authors' code for arXiv 2606.10298 since July
    2026, "Gated Reversal Decoding"; the paper's first version is ``arr``). Elsewhere w is 0. An
    amateur whose expert is trusted is not needed any more. It reverses nothing unless alpha lets
    the amateur's token in: set alpha to 0.
    """

    name = "grd"
    about = "GRD, the later code of arXiv 2606.10298"
    parameters = {"lam": Parameter(0.75, 0.0, 1.0, "from a tie, 0, to the amateur alone, 1")}
    state = 1
    retires = True

    def weights(self, s: Statistics, p: Any) -> Choice:
        conflict = s.argmax[:, :1] != s.argmax[:, 1:]
        sure = (s.max_probability[:, 1:] > 0.5) & (s.entropy[:, 1:] < s.entropy[:, :1])
        decision = torch.where(sure, _AMATEUR, _EXPERT)
        before = s.state[..., 0]
        trusted = torch.where((before == _OPEN) & conflict, decision, before)

        best = s.log_probability_of_best
        own = best.diagonal(dim1=1, dim2=2)
        expert = own[:, :1] - best[:, 0, 1:]
        amateur = own[:, 1:] - best[:, 1:, 0]
        tau = torch.where(expert + amateur > 1e-9, amateur / (expert + amateur), 1.0)
        weight = torch.where(conflict & (trusted == _AMATEUR), 1 - (1 - p.lam) * tau, 0.0)
        return Choice(weight, trusted.unsqueeze(-1), trusted == _EXPERT)
