# SPDX-License-Identifier: Apache-2.0
"""Tries a rule that others have written on made-up logits, before an engine serves it."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from vllm_cold.ops.interface import Groups
from vllm_cold.rules.check import checked
from vllm_cold.rules.interface import Rule
from vllm_cold.rules.statistics import Statistics

_GROUPS, _VOCABULARY = 3, 40


def try_out(rule: Rule) -> None:
    """Raise what the rule raises, or ValueError for what it must not return."""
    streams = 1 + (rule.amateurs or 2)
    try:
        # Has shapes and no values; on a device that takes no tensors of the CPU beside its own.
        with FakeTensorMode():
            _ask(rule, *_made_up(streams, "meta"))
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            "it asks for a value of a tensor (item(), if, or a shape that depends on one), for "
            f"which a device would be waited for: {error}"
        ) from error
    logits, rows = _made_up(streams, "cpu")
    together = _ask(rule, logits, rows)
    for group in range(_GROUPS):
        alone = _ask(rule, logits, rows[group : group + 1])
        for one, all_ in zip(alone, together, strict=True):
            if not torch.allclose(one.float(), all_[group : group + 1].float(), atol=1e-5):
                raise ValueError("what it returns of a group depends on the other groups")


def _made_up(streams: int, device: str) -> tuple[Tensor, Tensor]:
    """Logits [R, V], steep and flat ones with tokens that are not allowed, and rows [G, S] of
    groups, all but the first without their last amateur.
    """
    num_rows = _GROUPS * streams
    numbers = torch.arange(num_rows * _VOCABULARY, device=device)
    steeper = torch.linspace(0.1, 9.0, len(numbers), device=device)
    logits = ((numbers * 0.7).sin() * steeper).view(num_rows, _VOCABULARY)
    rows = numbers[:num_rows].view(_GROUPS, streams)
    gone = (rows > streams) & (rows % streams == streams - 1)
    return logits.masked_fill(numbers[:_VOCABULARY] % 7 == 3, -math.inf), rows.where(~gone, -1)


def _ask(rule: Rule, logits: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Weights and, of rules that have these, state and done, of two steps."""
    (groups, streams), device = rows.shape, rows.device
    amateurs = rows[:, 1:] >= 0
    state = torch.zeros(groups, streams - 1, rule.state, device=device)
    given = {name: of.least() for name, of in rule.parameters.items()}
    p = SimpleNamespace(
        **{name: torch.full((groups, 1), least, device=device) for name, least in given.items()}
    )
    alpha = torch.full((groups,), math.log(0.1), device=device)
    asked = Groups(rows, torch.zeros(groups, streams - 1, device=device), alpha)
    done = torch.zeros_like(amateurs)
    found: tuple[Tensor, ...] = ()
    for step in range(2):
        steps = torch.full((groups,), step, device=device)
        s = Statistics(logits, asked, steps, state)
        choice = checked(rule, rule.weights(s, p), groups, streams)
        if not isinstance(choice.weights, FakeTensor):
            if not choice.weights.isfinite().all():
                raise ValueError(f"it returns weights that are not finite: {choice.weights}")
            if (choice.weights[done & amateurs] != 0).any():
                raise ValueError("an amateur has a weight behind the step where it was done")
        if choice.state is not None:
            state = choice.state
        if choice.done is not None:
            done = choice.done
        found += tuple(part for part in choice if part is not None)
    return found
