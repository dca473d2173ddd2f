# SPDX-License-Identifier: Apache-2.0
"""What a rule may know of the groups of a step, each computed when it is first read."""

import math
from functools import cached_property

import torch
from torch import Tensor

from vllm_cold.ops.interface import Groups
from vllm_cold.ops.scoring_torch import expert_floors

_LARGEST = torch.finfo(torch.float32).max
# Of a probability; what is less counts as so much. CPUs take twenty times as long for exp where it
# underflows, and for log of 0.
_LEAST_LOG = -80.0
_NOISE = 1e-5  # of a divergence in bits, by rounding


class Statistics:
    """Statistics of G groups of up to S streams, stream 0 the expert; float32, as the logits.

    Where a group has no such amateur (any more), its columns are those of an amateur that equals
    the expert, and the rule's weight for it is not used. p and q are the distributions of expert
    and amateur over the vocabulary, entropies are in nats, divergences in bits.

    Args:
        logits: [R, V] float32.
        groups: Their rows, with -1 wherever there is no stream, and settings.
        step: [G] int64: how many tokens the group has got before this one.
        state: [G, S - 1, K]: what the rule returned at the step before, 0 at the first one.
        paid: [G, S - 1]: what the token that was taken there cost, 0 at the first one; None for a
            rule that does not charge.
        temperature: [G] float32, the requests', 1 for greedy ones; None where all are greedy.
    """

    def __init__(
        self,
        logits: Tensor,
        groups: Groups,
        step: Tensor,
        state: Tensor,
        paid: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> None:
        self.step, self.state = step, state
        self.paid = state.new_zeros(state.shape[:2]) if paid is None else paid
        self.temperature = state.new_ones(len(state)) if temperature is None else temperature
        self._logits, self._groups = logits, groups
        self._rows = torch.where(groups.rows < 0, groups.rows[:, :1], groups.rows)
        self._cached: dict[int, Tensor] = {}

    @property
    def num_streams(self) -> int:
        """S."""
        return self._rows.shape[1]

    @property
    def vocabulary(self) -> int:
        """V."""
        return self._logits.shape[1]

    @property
    def present(self) -> Tensor:
        """[G, S - 1] bool: the amateurs that are there."""
        return self._groups.rows[:, 1:] >= 0

    def logits(self, stream: int) -> Tensor:
        """Return [G, V] logits of each group's ``stream``; -inf where a token is not allowed."""
        return self._logits[self._rows[:, stream]]

    def allowed_logits(self, stream: int) -> Tensor:
        """Return [G, V] logits of each group's ``stream``, -inf where the expert may not take a
        token: a grammar is the expert's alone.
        """
        logits = self.logits(stream)
        return logits.masked_fill(self._forbidden, -math.inf) if stream else logits

    def log_probabilities(self, stream: int) -> Tensor:
        """Return [G, V] ln of each token's probability at temperature 1, -80 or more, among those
        that the expert may take.
        """
        if stream not in self._cached:
            self._cached[stream] = _log_softmax(self.allowed_logits(stream))
        return self._cached[stream]

    @cached_property
    def _forbidden(self) -> Tensor:
        return self.logits(0) == -math.inf

    def _streams(self) -> list[Tensor]:
        return [self.log_probabilities(i) for i in range(self.num_streams)]

    @cached_property
    def max_probability(self) -> Tensor:
        """[G, S] probability of each stream's best token."""
        return torch.stack([x.amax(-1) for x in self._streams()], 1).exp()

    @cached_property
    def argmax(self) -> Tensor:
        """[G, S] int64 each stream's best token; of several the one with the lowest id."""
        return torch.stack([x.argmax(-1) for x in self._streams()], 1)

    @cached_property
    def entropy(self) -> Tensor:
        """[G, S] Shannon entropy of each stream, in nats."""
        return torch.stack([_entropy(x.exp(), x) for x in self._streams()], 1)

    @cached_property
    def log_probability_of_best(self) -> Tensor:
        """[G, S, S] ln of the probability that stream i gives to the best token of stream j."""
        return torch.stack([x.gather(-1, self.argmax) for x in self._streams()], 1)

    @cached_property
    def divergence(self) -> Tensor:
        """[G, S - 1] Jensen-Shannon divergence of p and each q, in bits: 0 to 1."""
        return _divergences(self._streams())

    @cached_property
    def ratio_sum(self) -> Tensor:
        """[G, S - 1] ``sum_v q_v / p_v`` over the tokens that the amateur allows."""
        p, *others = self._streams()
        sums = [(q - p).exp().masked_fill(q == _LEAST_LOG, 0.0).sum(-1) for q in others]
        return torch.stack(sums, 1)

    @cached_property
    def candidates(self) -> Tensor:
        """[G, V] bool: the tokens that are scored, by alpha and the cap."""
        e = self.logits(0)
        lowest = (e.amax(-1) + self._groups.log_alpha).clamp(min=-_LARGEST)
        if (floors := expert_floors(self._logits, self._groups)) is not None:
            lowest = lowest.maximum(floors)
        return e >= lowest.unsqueeze(-1)

    @cached_property
    def _candidate_logits(self) -> list[Tensor]:
        """Of each stream [G, V]; -inf for what is no candidate."""
        others = ~self.candidates
        return [self.logits(i).masked_fill(others, -math.inf) for i in range(self.num_streams)]

    @cached_property
    def candidate_divergence(self) -> Tensor:
        """[G, S - 1] ``divergence`` of the distributions over the candidates alone; 0 where the
        amateur is -inf on all of them.
        """
        return _divergences([_log_softmax(x) for x in self._candidate_logits])

    @cached_property
    def reach(self) -> Tensor:
        """[G, S - 1] probability of each amateur's best candidate relative to that of its best
        token; 1 without a mask.
        """
        best = torch.stack([x.amax(-1) for x in self._candidate_logits[1:]], 1)
        most = torch.stack([self.logits(i).amax(-1) for i in range(1, self.num_streams)], 1)
        return (best - most).exp()


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).clamp(min=_LEAST_LOG)


def _entropy(p: Tensor, log_p: Tensor) -> Tensor:
    """Return the entropy of a distribution, in nats."""
    return -(p * log_p).sum(-1)


def _divergences(streams: list[Tensor]) -> Tensor:
    """Return the divergence of the first and each other distribution, of which these are the log
    probabilities: the entropy of their mean less the mean of their entropies. 0 where one is none.
    """
    p, *others = (x.exp() for x in streams)
    p_entropy, *entropies = (_entropy(x, log) for x, log in zip((p, *others), streams, strict=True))
    nats = []
    for q, q_entropy in zip(others, entropies, strict=True):
        mean = (p + q) / 2
        nats.append(_entropy(mean, mean.log()) - (p_entropy + q_entropy) / 2)
    bits = (torch.stack(nats, 1) / math.log(2)).clamp(max=1.0)
    return torch.where(bits > _NOISE, bits, 0.0)
