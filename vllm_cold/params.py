# SPDX-License-Identifier: Apache-2.0
"""``ColdParams``: vLLM's SamplingParams plus the knobs of CoLD."""

from typing import Any, Literal

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams

from vllm_cold.method.settings import DEFAULT_ALPHA, DEFAULT_BETA, KNOBS, ColdSettings
from vllm_cold.vllm import availability


class ColdParams(SamplingParams, kw_only=True, omit_defaults=True, dict=True):  # type: ignore
    """Sampling parameters of a request that is decoded with CoLD.

    Everything that ``SamplingParams`` has keeps its meaning and applies to the contrastive
    scores: temperature, top_p, n, seed, stop, penalties, logprobs (the expert's), structured
    outputs and so on. The five fields of CoLD are keyword arguments only.

    At each step a token is a candidate if the expert (the request's adapter) gives it at least
    ``alpha`` times the probability of its best token; candidates are scored
    ``(1 + beta) * expert - beta * amateur`` in logits (arXiv 2505.14620). An adaptive beta is, at
    each step, ``beta_max`` times the Jensen-Shannon divergence (in bits, 0 to 1) of expert and
    amateur over the candidates, times the amateur's probability of its best candidate relative to
    that of its best token.

    Attributes:
        alpha: Plausibility threshold in (0, 1]; default 0.1. 1 equals greedy.
        beta: Contrast strength, >= 0 (at most 1e6); default 0.5. 0 equals the adapter alone.
            "adaptive": chosen at each step, from 0 to ``beta_max``.
        beta_max: The most that an adaptive beta reaches, >= 0 (at most 1e6); None for
            ``settings.DEFAULT_BETA_MAX``. An error where beta is a number.
        expert_top_k: Optional cap on the candidates: the expert's k most probable tokens.
        amateur: What to contrast with: None for the base model, or another adapter.

    Raises:
        ValueError: names the field, the value and the allowed range.

    Example:
        >>> from vllm_cold import ColdParams
        >>> params = ColdParams(alpha=0.1, beta=0.5, max_tokens=64)
    """

    alpha: float = DEFAULT_ALPHA
    beta: float | Literal["adaptive"] = DEFAULT_BETA
    beta_max: float | None = None
    expert_top_k: int | None = None
    amateur: LoRARequest | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings()
        if self.amateur is not None and not isinstance(self.amateur, LoRARequest):
            raise ValueError(
                f"amateur={self.amateur!r}: must be a LoRARequest, or None for the base model"
            )

    def settings(self) -> ColdSettings:
        """The method's knobs, checked (fields may have been assigned after construction)."""
        return ColdSettings(**{name: getattr(self, name) for name in KNOBS})

    def verify(self, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM at admission. Refuses to run where the plugin is not active, because
        there the request would silently be decoded without contrast.
        """
        availability.require_active()
        super().verify(*args, **kwargs)

    def __repr__(self) -> str:
        knobs = ", ".join(f"{name}={getattr(self, name)!r}" for name in KNOBS)
        amateur = self.amateur and self.amateur.lora_name
        rest = super().__repr__().removeprefix("SamplingParams(")
        return f"ColdParams({knobs}, amateur={amateur!r}, {rest}"
