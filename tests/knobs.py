# SPDX-License-Identifier: Apache-2.0
"""The method's settings as the scoring op's reference takes them."""

from vllm_cold.method.settings import ColdSettings


def knobs(
    alpha: float = 0.1, beta: float = 0.5, expert_top_k: int = 0, adaptive: bool = False
) -> ColdSettings:
    """A cap of 0 is none; an adaptive beta is given by its most."""
    cap = expert_top_k or None
    if adaptive:
        return ColdSettings(alpha, "adaptive", beta_max=beta, expert_top_k=cap)
    return ColdSettings(alpha, beta, expert_top_k=cap)
