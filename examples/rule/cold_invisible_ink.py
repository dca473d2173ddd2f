# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import math

import torch

from vllm_cold.rules import Parameter, Rule, Scores
from vllm_cold.rules.rule import LARGEST


class InvisibleInk(Rule):
    """Adds the clipped mean of what private references change to a public prompt's logits."""

    name = "invisible_ink"
    charges = draws = True
    state = 1  # rho that is spent
    parameters = {
        "clip": Parameter(None, 0.0, 100.0, "most that a reference changes a logit, before / B"),
        "references": Parameter(None, 1, 32, "B, how many there are", integer=True),
        "rho": Parameter(None, 0.0, 100.0, "zCDP budget of a reference in an answer"),
        "top_k": Parameter(100, 1, 2**24, "public tokens, besides those near them", integer=True),
    }

    def scores(self, s, p):
        public, share = s.logits(0), p.clip / p.references
        cost = (share / s.temperature[:, None]) ** 2 / 2
        spent = s.state[..., 0] + s.paid
        is_open = spent + cost <= p.rho
        total = torch.zeros_like(public)
        for i in range(1, s.num_streams):
            changes = (s.allowed_logits(i) - public).clamp(-p.clip, p.clip)
            total += changes.masked_fill(~is_open[:, i - 1, None], 0.0)
        scores = top_k_plus(public + total / p.references, public, p.top_k, 2 * share)
        costs = torch.where(is_open, cost, 0.0)[..., None].expand(-1, -1, s.vocabulary)
        return Scores(scores, costs, (p.rho - spent).clamp(min=0), ~is_open, spent[..., None])


def top_k_plus(scores, public, k, margin):
    """Keep the scores of the k best public tokens, and of those at most the margin below."""
    best = public.sort(-1, descending=True).values
    kth = best.gather(1, k.long().clamp(max=best.shape[1]) - 1)
    return scores.masked_fill(public < (kth - margin).clamp(min=-LARGEST), -math.inf)


def budget(epsilon, delta, tokens, references, temperature):
    """The parameters with which an answer of so many tokens is (epsilon, delta)-private."""
    from dp_accounting import ZCDpEvent, calibrate_dp_mechanism
    from dp_accounting.rdp import RdpAccountant

    rho = calibrate_dp_mechanism(RdpAccountant, ZCDpEvent, epsilon, delta)
    clip = temperature * references * math.sqrt(2 * rho / tokens)
    return {"clip": math.floor(clip * 1e4) / 1e4, "references": references, "rho": rho}


def main():
    """Print a request's ``rule_parameters``."""
    parser = argparse.ArgumentParser(description=budget.__doc__)
    for name, kind in (
        ("epsilon", float),
        ("delta", float),
        ("tokens", int),
        ("references", int),
        ("temperature", float),
    ):
        parser.add_argument(f"--{name}", type=kind, required=True)
    print(json.dumps(budget(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
