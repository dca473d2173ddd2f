# SPDX-License-Identifier: Apache-2.0
import math

import torch

from vllm_cold.rules import Parameter, Rule, Scores

ROUNDING = 1e-4  # of sums of probabilities in float32


class RobustRAG(Rule):
    """The token that the passages, each read alone, agree on; else that of the prompt without."""

    name = "robust_rag"
    charges = True
    parameters = {
        "eta": Parameter(0.0, 0.0, 32.0, "margin up to which no passage is believed"),
        "corrupted": Parameter(1, 0, 32, "passages that may be an attacker's", integer=True),
    }

    def scores(self, s, p):
        passages = range(1, s.num_streams)
        votes = sum(s.log_probabilities(i).exp() * s.present[:, i - 1, None] for i in passages)
        values, tokens = votes.topk(2)
        margin = values[:, :1] - values[:, 1:]
        best, alone = tokens[:, :1], s.argmax[:, :1]
        is_believed = margin > p.eta
        reach = 2 * p.corrupted + ROUNDING  # of the attacker: each passage moves a margin by 2
        is_certain = (margin > p.eta + reach) | (margin <= p.eta - reach)
        is_certain |= (best == alone) & (margin > reach - p.eta)
        token = torch.where(is_believed, best, alone)
        scores = torch.full_like(votes, -math.inf).scatter(1, token, 0.0)
        cost = (~is_certain).float().expand(s.present.shape)
        costs = cost[..., None].expand(-1, -1, s.vocabulary)
        return Scores(scores, costs, torch.zeros_like(cost), ~is_believed.expand(cost.shape))
