# SPDX-License-Identifier: Apache-2.0
"""Asks each group's rule for the weights or scores of a step (``RuleRows.choose``), and keeps the
rules' state and what tokens cost. Fixed weights come with the request, and stand in
``groups.weights`` (``GroupRows.match``). Needs no vLLM.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vllm_cold.ops.interface import MAX_STREAMS, Groups
from vllm_cold.rules import registry
from vllm_cold.rules.check import call
from vllm_cold.rules.rule import Choice, Rule, Scores, by_name
from vllm_cold.rules.statistics import Statistics
from vllm_cold.wire.step_stats import StepStats

logger = logging.getLogger("vllm." + __name__)

# A step may be computed again: where its tokens were dropped, and where a preempted request has
# rows amid its prefill. So many steps back the state is still there; fewer are under way.
_KEPT_STEPS = 16
# Tables have room for so many groups at least.
_LEAST_SLOTS = 16
# Of logits, about what fits into a cache.
_NUMBERS_AT_ONCE = 2**18


@dataclass(slots=True)
class RuleStates:
    """What rules keep of groups from step to step, on the device. A group has its slot as long as
    it lives. It sees nothing of the group that had the slot before: at its first step all is 0.

    Args:
        device: Of the logits.
    """

    device: torch.device
    # Of each rule, [slots, _KEPT_STEPS, amateurs, K + 1]: its state, and what a step's token cost.
    _tables: dict[str, Tensor] = field(default_factory=dict)
    # Of this step, until it is known which tokens were taken.
    unsettled: "tuple[StepStats, list[tuple[RuleRows, Charges]]] | None" = None

    def read(self, rule: Rule, slots: Tensor, step: Tensor, most: int, amateurs: int) -> Tensor:
        """Return what the rule returned at the steps before and their tokens cost, 0 at the first:
        [n, amateurs, K + 1].

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
            size = num, _KEPT_STEPS, MAX_STREAMS - 1, rule.state + 1
            larger = torch.zeros(size, device=self.device)
            if table is not None:
                larger[: len(table)] = table
            table = self._tables[rule.name] = larger
        state = table[slots, (step - 1) % _KEPT_STEPS, :amateurs]
        return state.masked_fill((step == 0)[:, None, None], 0.0)

    def write(self, rule: str, slots: Tensor, step: Tensor, state: Tensor, at: slice) -> None:
        """Keep columns of this step; arguments as in ``read``, and state [n, amateurs, columns]."""
        self._tables[rule][slots, step % _KEPT_STEPS, : state.shape[1], at] = state

    def settle(self, tokens: Tensor) -> None:
        """Charge the groups of this step for the tokens that were taken; ``tokens`` [rows]."""
        unsettled, self.unsettled = self.unsettled, None
        if unsettled is None:
            return
        stats, charges = unsettled
        width = max(of_rule.left.shape[1] for _, of_rule in charges)
        table = torch.zeros(len(stats.ids), width, 3, device=self.device)
        for rule, of_rule in charges:
            paid = rule.charge(of_rule, tokens, self)
            table[rule.at, : paid.shape[1]] = paid
        stats.charge(table, [i for rule, _ in charges for i in rule.indices])


class Charges(NamedTuple):
    """What the tokens of n groups would cost, until it is known which was taken.

    Attributes:
        costs: [n, S - 1, V] float32.
        left: [n, S - 1] float32.
        limited: [n, S - 1] bool.
        step: [n] int64.
    """

    costs: Tensor
    left: Tensor
    limited: Tensor
    step: Tensor


class Chosen(NamedTuple):
    """What a rule chose for n groups.

    Attributes:
        weights: [n, S - 1] float32, finite; 0 where there is no amateur.
        failed: [n] bool: the rule has no weights or scores for them.
        done: [n] int64: bit i is set if the rule needs amateur i no more.
        scores: [n, V] float32 of a rule of scores, else None; finite where ``failed`` or ``ends``.
        ends: [n] bool: their answers end before this token. With ``scores``.
        charges: None for a rule that does not charge.
    """

    weights: Tensor
    failed: Tensor
    done: Tensor
    scores: Tensor | None = None
    ends: Tensor | None = None
    charges: Charges | None = None


@dataclass(frozen=True, slots=True)
class RuleRows:
    """Those n groups of a batch that use one rule; tensors are on the logits' device.

    Attributes:
        rule: The rule's name.
        names: Of its parameters.
        parameters: Theirs, [n, 1] float32, or [n, S - 1] of those that are the amateurs' own.
        at: [n] int64: which groups of the batch they are.
        indices: The same on the host.
        groups: These groups, with -1 wherever a stream is not there, and the weights of the
            amateurs whose weights are fixed.
        temperatures: [n] float32, 1 for greedy requests.
        chooses: [n, S - 1] bool: where the rule chooses an amateur's weight; else it is fixed.
        slots: [n] int64, of their states; None for a rule without.
        num_slots: More than any of them.
    """

    rule: str
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    at: Tensor
    indices: tuple[int, ...]
    groups: Groups
    temperatures: Tensor
    chooses: Tensor
    slots: Tensor | None
    num_slots: int

    def choose(self, logits: Tensor, steps: Tensor, states: RuleStates) -> Chosen:
        """Return the weights or scores of this step.

        Args:
            logits: [rows, V] float32.
            steps: [rows] int64: how many tokens the request of each row has got before.
            states: The worker's.
        """
        step = steps[self.groups.rows[:, 0]]
        try:
            return self._choose(logits, step, states)
        except Exception:  # others' code: its requests end, the engine lives on
            logger.exception("vllm-cold: rule %r failed", self.rule)
            nothing = torch.zeros_like(self.groups.weights)
            return Chosen(nothing, torch.ones_like(step, dtype=torch.bool), torch.zeros_like(step))

    def _choose(self, logits: Tensor, step: Tensor, states: RuleStates) -> Chosen:
        rule = registry.get(self.rule)  # which admission knew, and this process may not
        absent = self.groups.rows[:, 1:] < 0
        num, amateurs = absent.shape
        kept = logits.new_zeros(num, amateurs, rule.state + 1)
        if rule.keeps_state:
            if self.slots is None:
                raise RuntimeError(
                    f"rule {self.rule!r} keeps state, and its requests have no slots"
                )
            kept = states.read(rule, self.slots, step, self.num_slots, amateurs)
        choice = self._ask(rule, logits, step, kept)
        if self.slots is not None and choice.state is not None:
            states.write(self.rule, self.slots, step, choice.state, slice(rule.state))
        done = torch.zeros_like(step)
        if choice.done is not None:
            bits = 1 << torch.arange(amateurs, device=done.device)
            done = ((choice.done & self.chooses & ~absent) * bits).sum(-1)
        if isinstance(choice, Choice):
            weights = torch.where(self.chooses, choice.weights, self.groups.weights)
            weights = weights.masked_fill(absent, 0.0)
            failed = ~weights.isfinite().all(-1)
            return Chosen(weights.masked_fill(failed.unsqueeze(-1), 0.0), failed, done)
        scores = choice.scores
        highest = scores.amax(-1)  # NaN where one is
        ends = highest == -math.inf
        failed = ~(highest < math.inf)
        charges = None
        if choice.costs is not None and choice.left is not None and choice.limited is not None:
            costs = choice.costs.masked_fill(absent[..., None], 0.0)
            left = choice.left.masked_fill(absent, 0.0)
            for numbers in (costs, left):
                failed = failed | ~numbers.isfinite().flatten(1).all(1)
            charges = Charges(costs, left, choice.limited & ~absent, step)
        # What is sampled there is not given to anybody, and must not stop the sampler.
        scores = scores.masked_fill((ends | failed).unsqueeze(-1), 0.0)
        return Chosen(torch.zeros_like(self.groups.weights), failed, done, scores, ends, charges)

    def _ask(self, rule: Rule, logits: Tensor, step: Tensor, kept: Tensor) -> Choice | Scores:
        """Return what the rule says, on CPUs of a few groups at a time: memory that is new in each
        step takes longer to get there than what is computed in it.
        """
        num, on_cpu = len(step), logits.device.type == "cpu"
        at_once = max(_NUMBERS_AT_ONCE // logits.shape[1], 1) if on_cpu else num
        parts = []
        for start in range(0, num, at_once):
            part = slice(start, start + at_once)
            # Others' code may write: what it gets besides the logits is a copy in each step.
            statistics = Statistics(
                logits,
                self.groups.at(part),
                step[part].clone(),
                kept[part, :, : rule.state],
                kept[part, :, rule.state],
                self.temperatures[part].clone(),
            )
            parameters = by_name(self.names, [values[part].clone() for values in self.parameters])
            parts.append(call(rule, statistics, parameters))
        if len(parts) == 1:
            return parts[0]
        columns = zip(parts[0]._fields, zip(*parts, strict=True), strict=True)
        whole = {name: torch.cat(of) for name, of in columns if isinstance(of[0], Tensor)}
        return parts[0]._replace(**whole)

    def charge(self, charges: Charges, tokens: Tensor, states: RuleStates) -> Tensor:
        """Keep what the tokens that were taken cost.

        Args:
            charges: Of this step.
            tokens: [rows] int64: the token that was taken in each row.
            states: The worker's.

        Returns:
            [n, S - 1, 3] float32: the costs, what was left before, whether that was a limit.
        """
        taken = tokens[self.groups.rows[:, 0]].long()[:, None, None]
        taken = taken.expand(-1, charges.costs.shape[1], 1)
        paid = charges.costs.gather(-1, taken.clamp(0, charges.costs.shape[-1] - 1))
        if self.slots is not None:
            states.write(self.rule, self.slots, charges.step, paid, slice(-1, None))
        return torch.stack([paid[..., 0], charges.left, charges.limited.float()], -1)
