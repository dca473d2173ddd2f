# SPDX-License-Identifier: Apache-2.0
"""Asks each group's rule for the weights of a step (``RuleRows.choose``), and keeps the rules'
state. Fixed weights come with the request, and stand in ``groups.weights`` (``GroupRows.match``).
Needs no vLLM.
"""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vllm_cold.ops.interface import MAX_STREAMS, Groups
from vllm_cold.rules import registry
from vllm_cold.rules.check import checked
from vllm_cold.rules.rule import Rule, by_name
from vllm_cold.rules.statistics import Statistics

logger = logging.getLogger("vllm." + __name__)

# A step may be computed again: where its tokens were dropped, and where a preempted request has
# rows amid its prefill. So many steps back the state is still there; fewer are under way.
_KEPT_STEPS = 16
# Tables have room for so many groups at least.
_LEAST_SLOTS = 16


@dataclass(slots=True)
class RuleStates:
    """What rules keep of groups from step to step, on the device. A group has its slot as long as
    it lives. It sees nothing of the group that had the slot before: at its first step all is 0.

    Args:
        device: Of the logits.
    """

    device: torch.device
    # Of each rule, [slots, _KEPT_STEPS, amateurs, K].
    _tables: dict[str, Tensor] = field(default_factory=dict)

    def read(self, rule: Rule, slots: Tensor, step: Tensor, most: int, amateurs: int) -> Tensor:
        """Return what the rule returned at the steps before, 0 at the first: [n, amateurs, K].

        Args:
            rule: Whose.
            slots: [n] int64, below ``most``.
            step: [n] int64.
            most: How many slots the table must have at least.
            amateurs: S - 1.
        """
        table = self._tables.get(rule.name)
        if table is None or len(table) < most:
            num = max(_LEAST_SLOTS, 1 << (most - 1).bit_length())
            larger = torch.zeros(num, _KEPT_STEPS, MAX_STREAMS - 1, rule.state, device=self.device)
            if table is not None:
                larger[: len(table)] = table
            table = self._tables[rule.name] = larger
        state = table[slots, (step - 1) % _KEPT_STEPS, :amateurs]
        return state.masked_fill((step == 0)[:, None, None], 0.0)

    def write(self, rule: Rule, slots: Tensor, step: Tensor, state: Tensor) -> None:
        """Keep what the rule returned at this step; arguments as in ``read``, and state
        [n, amateurs, K].
        """
        self._tables[rule.name][slots, step % _KEPT_STEPS, : state.shape[1]] = state


class Chosen(NamedTuple):
    """What a rule chose for n groups.

    Attributes:
        weights: [n, S - 1] float32, finite; 0 where there is no amateur.
        failed: [n] bool: the rule has no weights for them.
        done: [n] int64: bit i is set if the rule needs amateur i no more.
    """

    weights: Tensor
    failed: Tensor
    done: Tensor


@dataclass(frozen=True, slots=True)
class RuleRows:
    """Those n groups of a batch that use one rule; tensors are on the logits' device.

    Attributes:
        rule: The rule's name.
        names: Of its parameters.
        parameters: [P, n, 1] float32, theirs.
        at: [n] int64: which groups of the batch they are.
        groups: These groups, with -1 wherever a stream is not there, and the weights of the
            amateurs whose weights are fixed.
        chooses: [n, S - 1] bool: where the rule chooses an amateur's weight; else it is fixed.
        slots: [n] int64, of their states; None for a rule without.
        num_slots: More than any of them.
    """

    rule: str
    names: tuple[str, ...]
    parameters: Tensor
    at: Tensor
    groups: Groups
    chooses: Tensor
    slots: Tensor | None
    num_slots: int

    def choose(self, logits: Tensor, steps: Tensor, states: RuleStates) -> Chosen:
        """Return the weights of this step.

        Args:
            logits: [rows, V] float32.
            steps: [rows] int64: how many tokens the request of each row has got before.
            states: The worker's.
        """
        rows, fixed = self.groups.rows, self.groups.weights
        step = steps[rows[:, 0]]
        num, streams = rows.shape
        state = step.new_zeros(num, streams - 1, 0, dtype=torch.float32)
        absent = rows[:, 1:] < 0
        try:
            rule = registry.get(self.rule)  # which admission knew, and this process may not
            if rule.state and self.slots is None:
                raise RuntimeError(
                    f"rule {self.rule!r} keeps state, and its requests have no slots"
                )
            if self.slots is not None:
                state = states.read(rule, self.slots, step, self.num_slots, streams - 1)
            # Others' code may write: what it gets besides the logits is a copy in each step.
            statistics = Statistics(logits, self.groups, step.clone(), state)
            parameters = by_name(self.names, self.parameters.clone())
            choice = checked(rule, rule.weights(statistics, parameters), num, streams)
            weights = torch.where(self.chooses, choice.weights, fixed)
            if self.slots is not None and choice.state is not None:
                states.write(rule, self.slots, step, choice.state)
            done = torch.zeros_like(step)
            if choice.done is not None:
                bits = 1 << torch.arange(streams - 1, device=done.device)
                done = ((choice.done & self.chooses & ~absent) * bits).sum(-1)
        except Exception:  # others' code: its requests end, the engine lives on
            logger.exception("vllm-cold: rule %r failed", self.rule)
            nothing = torch.zeros_like(fixed)
            return Chosen(nothing, nothing.new_ones(num, dtype=torch.bool), torch.zeros_like(step))
        weights = weights.masked_fill(absent, 0.0)
        failed = ~weights.isfinite().all(-1)
        return Chosen(weights.masked_fill(failed.unsqueeze(-1), 0.0), failed, done)
