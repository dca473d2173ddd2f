# SPDX-License-Identifier: Apache-2.0
"""The built-in rules, by the papers' names: p and q are the distributions of expert and amateur, H
their entropies, w the amateur's weight in ``z0 + w * (z1 - z0)``.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vllm_cold.rules.rule import Choice, Parameter, Rule, Scores
from vllm_cold.rules.statistics import Statistics

_CERTAIN = 1e-20  # nats, of two that are certain
_MOST = 1e6  # scores stay finite in float32
NO_LIMIT = 1e6  # bits
_LEAST_LOG = -80.0  # of a probability that counts as one: CPUs take long where exp underflows
_SEEN = 0.01  # of the probability: a limit that moves less has changed nothing
_ROUNDING = 1e-5  # of a sum over the vocabulary
_STEPS = 10
_OPEN, _EXPERT, _AMATEUR = 0.0, 1.0, 2.0  # whom GRD trusts from now on


class ACD(Rule):
    """``w = H_p / (H_p + H_q)``: a mixture of both, in which the less certain one counts less
    (arXiv 2408.01084, section 3); 0 where both are certain, which the paper does not say.
    """

    name = "acd"
    mixes = True

    def weights(self, s: Statistics, p: Any) -> Tensor:
        p_entropy, q_entropy = s.entropy[:, :1], s.entropy[:, 1:]
        both = p_entropy + q_entropy
        return torch.where(both > _CERTAIN, p_entropy / both, 0.0)


class Adaptive(Rule):
    """``w = -beta_max * r * D``: the divergence of expert and amateur over the candidates in bits,
    times how near the amateur comes to choosing one of them. What an amateur that wants something
    else altogether says about the candidates is the noise of its tail. Without a mask r is 1, and
    this is AdaCAD's (arXiv 2409.07394, equations 3 and 4), whose released code has D in nats: ln 2
    as beta_max.
    """

    name = "adaptive"
    parameters = {"beta_max": Parameter(1.0, 0.0, 1e6, "the most that a contrast reaches")}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        weights: Tensor = -p.beta_max * s.reach * s.candidate_divergence
        return weights


class ARR(Rule):
    """``w = -beta_max * J`` where the expert's best token is likelier than the amateur's, else
    ``+beta_max * J``, J their divergence (arXiv 2606.10298v1 and its authors' code of June 2026,
    where beta_max is 1). What their later code does is ``grd``.
    """

    name = "arr"
    mixes = True
    parameters = {"beta_max": Parameter(1.0, 0.0, 1e6, "the most that a weight is from 0")}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        surer = s.max_probability[:, :1] > s.max_probability[:, 1:]
        weights: Tensor = torch.where(surer, -p.beta_max, p.beta_max) * s.divergence
        return weights


class PartBound(Rule):
    """Limits what each amateur's part may add: sampled is the distribution r that is closest to p,
    by KL in either direction, among those with ``r <= 2**B q`` for each amateur: ``r = min(c * p,
    2**B_1 * q_1, ...)``, c such that r sums to 1 (docs/bound.md has the proofs). p and q are at the
    request's temperature. B is what is left of the amateur's bits: a token costs ``log2(r / q)``,
    below 0 nothing unless there is a refund, and with each step ``bits_per_token`` come back, in
    all never more than there were. Where no token is within the limits of several amateurs, the
    answer ends.
    """

    name = "bound"
    charges = True
    state = 1  # bits that are used up
    parameters = {
        "bits": Parameter(NO_LIMIT, 0.0, NO_LIMIT, "what a part may add to the answer", each=True),
        "bits_per_token": Parameter(0.0, 0.0, NO_LIMIT, "and with each token", each=True),
        "refund": Parameter(0, 0, 1, "1 to have what costs below 0 bits give back", integer=True),
    }

    def scores(self, s: Statistics, p: Any) -> Scores:
        ln2, temperature = math.log(2), s.temperature[:, None]
        used = (s.state[..., 0] + s.paid - p.bits_per_token).clamp(min=0)
        left = (p.bits - used).clamp(min=0)
        log_p, *log_q = (
            (s.allowed_logits(i) / temperature).log_softmax(-1).nan_to_num_(-math.inf, 0, -math.inf)
            for i in range(s.num_streams)
        )
        nats = (left * ln2).masked_fill(~s.present | (p.bits >= NO_LIMIT), math.inf)
        limits = [
            (q + nats[:, i, None]).nan_to_num_(math.inf, math.inf, -math.inf)
            for i, q in enumerate(log_q)
        ]
        most = torch.stack(limits).amin(0) if len(limits) > 1 else limits[0]
        log_r = _closest(log_p, most)
        is_cut = (log_p > most).any(-1, keepdim=True)
        costs = torch.stack([((log_r - q) / ln2).nan_to_num_(0.0, NO_LIMIT, 0.0) for q in log_q], 1)
        cut = [(_exp(log_p) - _exp(limit)).clamp_(min=0).sum(-1) for limit in limits]
        return Scores(
            torch.where(is_cut, temperature * log_r, s.logits(0)),  # or those of a regular request
            costs.maximum((-p.refund * used).unsqueeze(-1)),
            left,
            torch.stack(cut, 1) > _SEEN,
            used[..., None],
        )


def _exp(log_x: Tensor) -> Tensor:
    return log_x.clamp(_LEAST_LOG, 0).exp_()


def _closest(log_p: Tensor, log_most: Tensor) -> Tensor:
    """Return ln of ``min(c * p, most)`` that sums to 1, [G, V]; -inf where ``most`` sums to less.

    The sum is concave in c and linear between the tokens' thresholds. So Newton's method, from
    below, never passes the solution, and after a few steps has it. What it lacks then is shared out
    below the limits, which hold in any case.
    """
    on_host = log_p.device.type == "cpu"  # where nothing is waited for
    log_p = log_p.clamp(min=_LEAST_LOG)
    p, most = _exp(log_p), _exp(log_most)
    room = most.sum(-1, keepdim=True)
    c = torch.ones_like(room)
    for left in reversed(range(_STEPS)):
        r = (c * p).minimum(most)
        missing = 1 - r.sum(-1, keepdim=True)
        # Rounding's part is left, or it would be much for tokens of little probability.
        missing = torch.where(missing > _ROUNDING, missing, 0.0)
        if not left or (on_host and not missing.any()):
            break
        free = p.masked_fill(r == most, 0.0).sum(-1, keepdim=True)
        c = torch.where(free > 0, c + missing / free, c)
    log_r = (log_p + c.log()).minimum(log_most)
    if not on_host or missing.any():
        share = (missing / (room - 1 + missing).clamp(min=_ROUNDING)).clamp(max=1)
        shared = (r + share * (most - r)).log().minimum(log_most)
        log_r = torch.where(share > 0, shared, log_r)
    return log_r.masked_fill_(room < 1 - 10 * _ROUNDING, -math.inf)


class CoCoA(Rule):
    """``w = 1 - a - gamma`` with ``a = sigmoid(gamma * (H_q - H_p + g))``, from 0.1 to 0.9, and g
    = 1 where ``sum_v q_v / p_v > 2``, else 0: the gate of the authors' code for arXiv 2508.17670.
    That code then sets a to 0.5, which is ``cad`` with beta 0.5, and neither is the paper's
    formula, of which no full text was at hand.
    """

    name = "cocoa"
    parameters = {"gamma": Parameter(1.0, 0.0, 100.0, "strength")}

    def weights(self, s: Statistics, p: Any) -> Tensor:
        gap = s.entropy[:, 1:] - s.entropy[:, :1]
        alpha = (p.gamma * (gap + (s.ratio_sum > 2).float())).sigmoid().clamp(0.1, 0.9)
        weights: Tensor = 1 - alpha - p.gamma
        return weights


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
    mixes = True
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
        peak = best.diagonal(dim1=1, dim2=2)
        expert = peak[:, :1] - best[:, 0, 1:]
        amateur = peak[:, 1:] - best[:, 1:, 0]
        tau = torch.where(expert + amateur > 1e-9, amateur / (expert + amateur), 1.0)
        weight = torch.where(conflict & (trusted == _AMATEUR), 1 - (1 - p.lam) * tau, 0.0)
        return Choice(weight, trusted.unsqueeze(-1), trusted == _EXPERT)


class M3ID(Rule):
    """``w = -(exp(gamma * t) - 1)`` where ``max p < threshold``, else 0; t = 1 at the first token
    (arXiv 2403.14003, section 4.1, where gamma is lambda and threshold alpha). It grows without
    bound: with the default 6 at 100 tokens, 50 at 200.
    """

    name = "m3id"
    parameters = {
        "gamma": Parameter(0.02, 0.0, 10.0, "growth with each token"),
        "threshold": Parameter(0.3, 0.0, 1.0, "probability of the best token below which it acts"),
    }

    def weights(self, s: Statistics, p: Any) -> Tensor:
        grown = ((s.step + 1).unsqueeze(-1) * p.gamma).expm1().clamp(max=_MOST)
        gate = torch.where(s.max_probability[:, :1] < p.threshold, -grown, 0.0)
        return gate.expand(-1, s.num_streams - 1)


class MTI(Rule):
    """``w = -beta`` where ``H_p > tau``, else 0 (arXiv 2510.13940 and its authors' code, where
    beta is ``guidance_scale - 1``; the values there are placeholders, the defaults here are ours).
    The paper's amateur is its expert with a few tokens appended; here it is a stream.
    """

    name = "mti"
    parameters = {
        "beta": Parameter(0.5, 0.0, 1e6, "strength where it contrasts"),
        "tau": Parameter(1.0, 0.0, 100.0, "entropy of the expert above which it does, in nats"),
    }

    def weights(self, s: Statistics, p: Any) -> Tensor:
        gate = torch.where(s.entropy[:, :1] > p.tau, -p.beta, 0.0)
        return gate.expand(-1, s.num_streams - 1)
