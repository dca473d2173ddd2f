# SPDX-License-Identifier: Apache-2.0
"""What ``cold_explain`` tells a client of each token: the best candidates, and the logits and
weights that their scores follow from. Needs no vLLM.

A worker computes it for the groups whose clients ask (``explain``), next to the scores that tokens
are sampled from. The scheduler turns it into plain data (``StepExplainer``), which goes with the
tokens.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vllm_cold.ops import contrastive_scores
from vllm_cold.ops.interface import Groups
from vllm_cold.ops.scoring import best
from vllm_cold.rules.statistics import Statistics
from vllm_cold.wire.step_stats import Explained

_AT_ONCE = 16  # groups: each takes some eight rows of the vocabulary for the time of it


def explain(
    logits: Tensor, groups: Groups, at: Sequence[int], k: int, of_rules: Mapping[int, Tensor]
) -> Explained:
    """Explain some groups, before scores replace their experts' logits; no host sync. Many groups
    are explained in slices, which bounds the memory.

    Args:
        logits: [rows, V] float32.
        groups: All that are scored, with their weights.
        at: Which of them.
        k: How many tokens.
        of_rules: The scores [V] of the groups whose rules give them.
    """
    parts = []
    for start in range(0, len(at), _AT_ONCE):
        part = at[start : start + _AT_ONCE]
        which = torch.tensor(part).to(logits.device, non_blocking=True)
        parts.append(_explain(logits, groups.at(which), k, [of_rules.get(i) for i in part]))
    return Explained(*map(torch.cat, zip(*parts, strict=True)))


def _explain(
    logits: Tensor, groups: Groups, k: int, of_rules: Sequence[Tensor | None]
) -> Explained:
    scores = contrastive_scores(logits, groups, check=False)
    for i, of_rule in enumerate(of_rules):
        if of_rule is not None:
            scores[i] = of_rule
    rows = torch.where(groups.rows < 0, groups.rows[:, :1], groups.rows)
    tokens = torch.cat([best(row, k)[1] for row in (scores, logits[rows[:, 0]])], 1)
    ids = tokens.clamp(min=0)
    of_tokens = logits[rows.unsqueeze(2), ids.unsqueeze(1)]
    no_step = torch.zeros_like(groups.rows[:, 0])
    statistics = Statistics(logits, groups, no_step, of_tokens[:, 1:, :0])
    return Explained(
        tokens=tokens,
        scores=scores.gather(1, ids),
        logits=of_tokens,
        log_sums=logits[rows, statistics.argmax] - statistics.max_probability.log(),
        weights=groups.weights,
        divergences=statistics.divergence,
    )
