# SPDX-License-Identifier: Apache-2.0
"""Whether what a rule returned can be used: looked at in each step, without its values."""

from typing import Any

import torch
from torch import Tensor

from vllm_cold.ops.interface import describe
from vllm_cold.rules.rule import Choice, Rule, Scores
from vllm_cold.rules.statistics import Statistics


def _checked(
    rule: Rule, returned: Tensor | Choice | Scores, groups: int, streams: int, vocabulary: int
) -> Choice | Scores:
    """Return what a rule returned as a ``Choice``, or of a rule of scores as ``Scores``; raises
    ValueError for another shape or dtype.
    """
    kind: type[Choice | Scores] = Scores if rule.is_of_scores else Choice
    choice = returned if isinstance(returned, (Choice, Scores)) else kind(returned)
    if not isinstance(choice, kind):
        raise ValueError(f"it returns {type(choice).__name__}; must be {kind.__name__}")
    if (choice.state is None) != (rule.state == 0):
        raise ValueError(f"its state is {rule.state} numbers an amateur, and it returns another")
    if choice.done is not None and not rule.retires:
        raise ValueError("it returns amateurs as done, and retires is False")
    if isinstance(choice, Scores):
        parts = choice.costs, choice.left, choice.limited
        if {part is None for part in parts} != {not rule.charges}:
            raise ValueError(
                f"charges is {rule.charges}, and of costs, left and limited it returns "
                f"{sum(part is not None for part in parts)}; must be all or none"
            )
    of_amateurs = groups, streams - 1
    wanted = {
        "weights": (of_amateurs, torch.float32),
        "scores": ((groups, vocabulary), torch.float32),
        "costs": ((*of_amateurs, vocabulary), torch.float32),
        "left": (of_amateurs, torch.float32),
        "limited": (of_amateurs, torch.bool),
        "state": ((*of_amateurs, rule.state), torch.float32),
        "done": (of_amateurs, torch.bool),
    }
    for name, part in choice._asdict().items():
        shape, dtype = wanted[name]
        if part is None:
            continue
        if not isinstance(part, Tensor) or part.shape != shape or part.dtype != dtype:
            actual = describe(part) if isinstance(part, Tensor) else repr(part)
            raise ValueError(f"it returns {name} that are {actual}; must be {list(shape)} {dtype}")
    return choice


def call(rule: Rule, s: Statistics, p: Any) -> Choice | Scores:
    """Return what a rule chooses or computes, checked."""
    returned = rule.scores(s, p) if rule.is_of_scores else rule.weights(s, p)
    return _checked(rule, returned, len(s.step), s.num_streams, s.vocabulary)
