# SPDX-License-Identifier: Apache-2.0
"""Whether what a rule returned can be used: looked at in each step, without its values."""

import torch
from torch import Tensor

from vllm_cold.ops.interface import describe
from vllm_cold.rules.rule import Choice, Rule


def checked(rule: Rule, returned: Tensor | Choice, groups: int, streams: int) -> Choice:
    """Return what a rule returned as a ``Choice``; raises ValueError for another shape or dtype."""
    choice = returned if isinstance(returned, Choice) else Choice(returned)
    if (choice.state is None) != (rule.state == 0):
        raise ValueError(f"its state is {rule.state} numbers an amateur, and it returns another")
    if choice.done is not None and not rule.retires:
        raise ValueError("it returns amateurs as done, and retires is False")
    wanted = {
        "weights": ((groups, streams - 1), torch.float32),
        "state": ((groups, streams - 1, rule.state), torch.float32),
        "done": ((groups, streams - 1), torch.bool),
    }
    for name, (shape, dtype) in wanted.items():
        part = getattr(choice, name)
        if part is None:
            continue
        if not isinstance(part, Tensor) or part.shape != shape or part.dtype != dtype:
            actual = describe(part) if isinstance(part, Tensor) else repr(part)
            raise ValueError(f"it returns {name} that are {actual}; must be {list(shape)} {dtype}")
    return choice
