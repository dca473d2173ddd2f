# SPDX-License-Identifier: Apache-2.0
"""The naive reference for contrastive LoRA decoding: the truth that the vLLM engine is tested with.

Two forward passes a step through transformers and peft, two KV caches, one score. It is written
to be read, not to be fast, and imports neither vllm nor vllm_cold.

With expert logits e (adapter) and amateur logits a (base model, or another adapter):

    valid = { i : e[i] finite and e[i] >= max(e) + ln(alpha) }; if k is set, also
            e[i] >= the k-th largest e
    s[i]  = (1 + beta) * e[i] - beta * a[i]   for i in valid, -inf otherwise

An adaptive beta is another one at each step, from 0 to the one that was given; see `adapted`.

Source: arXiv 2505.14620, with the scoring of arXiv 2309.09117 and the mask of arXiv 2210.15097.

Two programs add up floats in different orders, so a comparison is fair only up to the first step
that rounding could decide. `Trace.settled` gives that length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache


@dataclass
class Trace:
    """The tokens of one request, with how clear each choice was (one entry a token)."""

    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    """Best score minus second-best score; inf when one token is valid."""
    edges: list[float] = field(default_factory=list)
    """How far the logits must move for a change of the valid set to change the token."""

    def append(self, token: int, margin: float, edge: float) -> None:
        self.tokens.append(token)
        self.margins.append(margin)
        self.edges.append(edge)

    def settled(self, tolerance: float = 1e-4) -> int:
        """How many leading tokens have margin and edge of at least `tolerance`."""
        clear = [min(pair) >= tolerance for pair in zip(self.margins, self.edges, strict=True)]
        return clear.index(False) if False in clear else len(clear)


@dataclass(frozen=True)
class Request:
    """The arguments of `NaiveCold.generate`, as a value, for `NaiveCold.generate_many`."""

    prompt_ids: Sequence[int]
    expert: str
    alpha: float
    beta: float
    max_tokens: int
    amateur: str | None = None
    expert_top_k: int | None = None
    eos_token_id: int | None = None
    adaptive: bool = False


def _threshold(e: Tensor, alpha: float, expert_top_k: int | None) -> Tensor:
    """Return the smallest expert logit that is valid."""
    bar = e.max() + math.log(alpha)
    if expert_top_k is not None and expert_top_k <= e.numel():
        bar = torch.maximum(bar, e.topk(expert_top_k).values[-1])
    return bar


def _contrast(e: Tensor, a: Tensor, beta: float) -> Tensor:
    """Return the scores before the mask; where a is -inf, the penalty beta * a is zero."""
    return (1.0 + beta) * e - torch.where(a == -math.inf, 0.0, beta * a)


def adapted(e: Tensor, a: Tensor, valid: Tensor, beta_max: float) -> float:
    """The adaptive beta of one step: beta_max, times the Jensen-Shannon divergence of the two over
    the valid tokens in bits, times the amateur's best valid probability over its best one.
    """

    def entropy(p: Tensor) -> Tensor:
        return -torch.where(p > 0.0, p * p.log2(), 0.0).sum()

    if valid.sum() < 2 or a[valid].max() == -math.inf:
        return 0.0
    p, q = e[valid].softmax(0), a[valid].softmax(0)
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    reach = (a[valid].max() - a.max()).exp()
    return float(beta_max * reach * divergence.clamp(0.0, 1.0))


def score(
    expert: Tensor,
    amateur: Tensor,
    alpha: float,
    beta: float,
    expert_top_k: int | None = None,
    adaptive: bool = False,
) -> Tensor:
    """Contrastive scores [V], float64, of one step from two logit vectors [V] of any dtype.

    `beta` is the most that it reaches if it is `adaptive`.

    Raises ValueError for NaN or +inf, and for an expert without a finite logit.
    """
    e, a = expert.double(), amateur.double()
    if not (e < math.inf).all() or not (a < math.inf).all():  # NaN compares false
        raise ValueError("logits contain NaN or +inf")
    if e.max() == -math.inf:
        raise ValueError("the expert allows no token")
    valid = (e > -math.inf) & (e >= _threshold(e, alpha, expert_top_k))
    if adaptive:
        beta = adapted(e, a, valid, beta)
    return torch.where(valid, _contrast(e, a, beta), -math.inf)


def margin(scores: Tensor) -> float:
    """Best minus second-best of `scores` [V]; inf when one is finite."""
    best, second = scores.topk(2).values.tolist()
    return float(best - second)


def edge(
    expert: Tensor,
    amateur: Tensor,
    alpha: float,
    beta: float,
    expert_top_k: int | None = None,
    adaptive: bool = False,
) -> float:
    """How far logits must move for the valid set to change in a way that changes the argmax.

    Either the chosen token drops out, or a token comes in that scores higher. An adaptive beta
    jumps whenever the set changes, so there any change counts.
    """
    e, a = expert.double(), amateur.double()
    scores = score(e, a, alpha, beta, expert_top_k, adaptive)
    if adaptive:
        return _change(e, scores > -math.inf, alpha)
    chosen = int(scores.argmax())
    others = torch.cat([e[:chosen], e[chosen + 1 :]])
    drops_out = e[chosen] - _threshold(others, alpha, expert_top_k)
    distance = _threshold(e, alpha, expert_top_k) - e
    comes_in = torch.maximum(distance, scores[chosen] - _contrast(e, a, beta))
    return float(torch.where(scores == -math.inf, comes_in, math.inf).min().minimum(drops_out))


def _change(e: Tensor, valid: Tensor, alpha: float) -> float:
    """How far logits must move for the valid set to change at all; the best token stays in it."""
    bar = e.max() + math.log(alpha)
    least = e[valid].min()
    most = e[~valid].max() if not valid.all() else torch.tensor(-math.inf)
    drops_out = least - bar if valid.sum() > 1 else torch.tensor(math.inf)
    # What the cap keeps out comes in as soon as it passes the last that is in.
    comes_in = (bar if most < bar else least) - most
    return float(torch.minimum(drops_out, comes_in))


def assert_same_tokens(
    got: Sequence[Sequence[int]], expected: Sequence[Trace], tolerance: float = 1e-4
) -> None:
    """Compare token lists with traces, each up to the first step that rounding could decide.

    At least nine tenths of the steps must be comparable, or the check would prove too little.
    """
    compared = 0
    for index, (tokens, trace) in enumerate(zip(got, expected, strict=True)):
        count = trace.settled(tolerance)
        compared += count
        # A trace that is settled to its end must be equal to its end: no token too many.
        stop = None if count == len(trace.tokens) else count
        assert list(tokens[:stop]) == trace.tokens[:stop], f"request {index}"
    total = sum(len(trace.tokens) for trace in expected)
    assert compared >= 0.9 * total, f"only {compared} of {total} steps are comparable"


class NaiveCold:
    """One base model with named LoRA adapters. The name `None` stands for the base model."""

    def __init__(
        self, model: Path, adapters: dict[str, Path], dtype: torch.dtype = torch.float32
    ) -> None:
        # Eager attention is the plain formula, the same for a prompt and for a single token.
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation="eager"
        )
        for name, folder in adapters.items():
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(folder, name, autocast_adapter_dtype=False)
            else:
                self._model = PeftModel.from_pretrained(
                    self._model, folder, name, autocast_adapter_dtype=False
                )
        self._model.eval()

    @torch.inference_mode()
    def _forward(
        self, adapter: str | None, ids: list[list[int]], cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        """Logits [B, V] float32 after the last of `ids` [B, n], and the stream's KV cache."""
        base: AbstractContextManager[Any] = nullcontext()
        if adapter is not None:
            self._model.set_adapter(adapter)
        elif isinstance(self._model, PeftModel):
            base = self._model.disable_adapter()
        with base:
            out = self._model(
                input_ids=torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        return out.logits[:, -1].float(), out.past_key_values

    def greedy(
        self,
        prompt_ids: Sequence[int],
        adapter: str | None,
        max_tokens: int,
        eos_token_id: int | None = None,
    ) -> Trace:
        """Ordinary greedy decoding with one stream; it shares no scoring code with CoLD."""
        trace, ids, cache = Trace(), list(prompt_ids), None
        while len(trace.tokens) < max_tokens:
            logits, cache = self._forward(adapter, [ids], cache)
            token = int(logits[0].argmax())
            trace.append(token, margin(logits[0].double()), math.inf)
            if token == eos_token_id:
                break
            ids = [token]
        return trace

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        expert: str,
        amateur: str | None = None,
        alpha: float,
        beta: float,
        expert_top_k: int | None = None,
        adaptive: bool = False,
        max_tokens: int,
        eos_token_id: int | None = None,
    ) -> Trace:
        """Greedy CoLD for one prompt. The end-of-sequence token, if given, is kept in the trace."""
        trace, ids, e_cache, a_cache = Trace(), list(prompt_ids), None, None
        while len(trace.tokens) < max_tokens:
            e, e_cache = self._forward(expert, [ids], e_cache)
            a, a_cache = self._forward(amateur, [ids], a_cache)
            settings = (alpha, beta, expert_top_k, adaptive)
            scores = score(e[0], a[0], *settings)
            token = int(scores.argmax())
            trace.append(token, margin(scores), edge(e[0], a[0], *settings))
            if token == eos_token_id:
                break
            ids = [token]
        return trace

    def step_distribution(
        self,
        prompt_ids: Sequence[int],
        *,
        expert: str,
        amateur: str | None = None,
        alpha: float,
        beta: float,
        expert_top_k: int | None = None,
        temperature: float,
    ) -> Tensor:
        """softmax(s / temperature) [V], float64, for the first token after the prompt."""
        e, _ = self._forward(expert, [list(prompt_ids)], None)
        a, _ = self._forward(amateur, [list(prompt_ids)], None)
        return (score(e[0], a[0], alpha, beta, expert_top_k) / temperature).softmax(-1)

    def generate_many(self, requests: Sequence[Request], batch_size: int = 64) -> list[Trace]:
        """`generate` for many requests: those with equal prompt length and streams run together."""
        groups: dict[tuple[int, str, str | None], list[int]] = {}
        for index, request in enumerate(requests):
            key = (len(request.prompt_ids), request.expert, request.amateur)
            groups.setdefault(key, []).append(index)
        traces = [Trace() for _ in requests]
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                chosen = group[start : start + batch_size]
                self._generate_batch([requests[i] for i in chosen], [traces[i] for i in chosen])
        return traces

    def _generate_batch(self, requests: list[Request], traces: list[Trace]) -> None:
        """Fill `traces`. Rows that have ended are fed on, unread, until the last one ends."""
        expert, amateur = requests[0].expert, requests[0].amateur
        ids = [list(request.prompt_ids) for request in requests]
        e_cache = a_cache = None
        running = {row for row, request in enumerate(requests) if request.max_tokens > 0}
        while running:
            e, e_cache = self._forward(expert, ids, e_cache)
            a, a_cache = self._forward(amateur, ids, a_cache)
            ids = [[0] for _ in requests]
            for row in sorted(running):
                request, trace = requests[row], traces[row]
                settings = (
                    request.alpha, request.beta, request.expert_top_k, request.adaptive
                )  # fmt: skip
                scores = score(e[row], a[row], *settings)
                token = int(scores.argmax())
                trace.append(token, margin(scores), edge(e[row], a[row], *settings))
                ids[row] = [token]
                if token == request.eos_token_id or len(trace.tokens) == request.max_tokens:
                    running.remove(row)
