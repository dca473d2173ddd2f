# SPDX-License-Identifier: Apache-2.0
"""The weights that rules choose for the groups of a batch, and the state that they keep of them.
Needs no vLLM.
"""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vllm_cold.group.slots import Slot
from vllm_cold.group.step_stats import RULE_FAILED
from vllm_cold.ops.interface import MAX_STREAMS, Groups
from vllm_cold.rules.check import checked
from vllm_cold.rules.interface import Rule, by_name
from vllm_cold.rules.statistics import Statistics

logger = logging.getLogger("vllm." + __name__)

# A step may be computed again: where its tokens were dropped, and where a request that lost its
# place has rows amid its prefill. So many steps back the state is still there; fewer are under way.
_KEPT_STEPS = 16
# Tables grow and shrink by so many slots at least.
_SLOTS_AT_ONCE = 16


@dataclass(slots=True)
class RuleStates:
    """What rules keep of groups from step to step, on the device. A slot is a group's as long as it
    lives, and nothing of the one before it is seen: at its first step all is 0. There is room for
    the slots that are in use, and for twice as many at most.

    Args:
        device: Of the logits.
    """

    device: torch.device
    _latest: Slot | None = None
    # Of each rule, [slots, _KEPT_STEPS, amateurs, K].
    _tables: dict[str, Tensor] = field(default_factory=dict)

    def read(self, rule: Rule, slots: Tensor, step: Tensor, latest: Slot, amateurs: int) -> Tensor:
        """[n, amateurs, K] what the rule returned at the steps before; 0 at the first, and for a
        slot that is ``missing``.

        Args:
            rule: Whose.
            slots: [n] int64.
            step: [n] int64.
            latest: Of these slots.
            amateurs: S - 1.
        """
        if self._latest is None or latest.nth > self._latest.nth:
            self._latest = latest
            for name, kept in self._tables.items():
                self._resize(name, kept)
        if (table := self._tables.get(rule.name)) is None:
            shape = 0, _KEPT_STEPS, MAX_STREAMS - 1, rule.state
            table = torch.empty(shape, device=self.device)
        if len(table) < self._latest.in_use:
            self._resize(rule.name, table)
        table, unknown = self._tables[rule.name], step == 0
        if (missing := self.missing(rule, slots)) is not None:
            if not len(table):
                return table.new_zeros(len(slots), amateurs, rule.state)
            slots, unknown = slots.masked_fill(missing, 0), unknown | missing
        found = table[slots, (step - 1) % _KEPT_STEPS, :amateurs]
        return found.masked_fill(unknown[:, None, None], 0.0)

    def missing(self, rule: Rule, slots: Tensor) -> Tensor | None:
        """[n] bool: there is no memory for this slot; None where there is for all."""
        assert self._latest is not None
        num = len(self._tables[rule.name])
        if num >= self._latest.in_use or not (found := slots >= num).any():
            return None
        return found

    def _resize(self, name: str, table: Tensor) -> None:
        """Make room for what is in use; without memory for that, what there is stays as it is."""
        assert self._latest is not None
        num = -(-self._latest.in_use // _SLOTS_AT_ONCE) * _SLOTS_AT_ONCE
        if not num <= len(table) <= 2 * num:
            try:
                other = torch.zeros(num, *table.shape[1:], device=self.device)
                other[: len(table)] = table[:num]
                table = other
            except RuntimeError:  # torch's of memory are some
                logger.exception(
                    "vllm-cold: no memory for what rule %r keeps of %d requests", name, num
                )
        self._tables[name] = table

    def write(self, rule: Rule, slots: Tensor, step: Tensor, state: Tensor) -> None:
        """Keep what the rule returned at this step; arguments as in ``read``, and state
        [n, amateurs, K].
        """
        if (missing := self.missing(rule, slots)) is not None:
            slots, step, state = slots[~missing], step[~missing], state[~missing]
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
        rule: The rule.
        names: Of its parameters.
        parameters: [P, n, 1] float32, theirs.
        at: [n] int64: which groups of the batch they are.
        groups: They themselves, with -1 wherever a stream is not there, and the weights of the
            amateurs whose weights are fixed.
        chooses: [n, S - 1] bool: the others.
        slots: [n] int64, of their states; None for a rule without.
        latest: Of these slots.
    """

    rule: Rule
    names: tuple[str, ...]
    parameters: Tensor
    at: Tensor
    groups: Groups
    chooses: Tensor
    slots: Tensor | None
    latest: Slot | None

    def choose(self, logits: Tensor, steps: Tensor, states: RuleStates) -> Chosen:
        """The weights of this step.

        Args:
            logits: [rows, V] float32.
            steps: [rows] int64: how many tokens the request of each row has got before.
            states: The worker's.
        """
        rows, fixed, rule = self.groups.rows, self.groups.weights, self.rule
        step = steps[rows[:, 0]]
        num, streams = rows.shape
        state = step.new_zeros(num, streams - 1, 0, dtype=torch.float32)
        absent = rows[:, 1:] < 0
        try:
            if self.slots is not None and self.latest is not None:
                state = states.read(rule, self.slots, step, self.latest, streams - 1)
            # Others' code may write: what it gets beside the logits is a copy in each step.
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
            logger.exception("vllm-cold: rule %r failed", rule.name)
            nothing = torch.zeros_like(fixed)
            return Chosen(nothing, nothing.new_ones(num, dtype=torch.bool), torch.zeros_like(step))
        weights = weights.masked_fill(absent, 0.0)
        failed = ~weights.isfinite().all(-1)
        if self.slots is not None and (missing := states.missing(rule, self.slots)) is not None:
            failed |= missing
        return Chosen(weights.masked_fill(failed.unsqueeze(-1), 0.0), failed, done)


def mark_failed(statistics: Tensor, at: Tensor, failed: Tensor) -> None:
    """Say in ``statistics`` [G, 3] of groups ``at`` [n] that their rule ``failed`` [n]; where their
    logits are no numbers that is the reason, and stays.
    """
    nonfinite = statistics[at, 2]
    statistics[at, 2] = torch.where(failed & (nonfinite == 0), RULE_FAILED, nonfinite)
