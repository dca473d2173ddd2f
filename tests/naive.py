# SPDX-License-Identifier: Apache-2.0
"""The naive reference for contrastive decoding: the truth that the vLLM engine is tested with.

One forward pass a stream and step through transformers and peft, a KV cache for each stream, one
score. It is written to be read, not to be fast, and imports no vLLM.

With the expert's logits e and those of its amateurs a_1, a_2, ..., each a stream with an adapter
(or the base model), a prompt and a weight w of its own:

    valid = { i : e[i] finite and e[i] >= max(e) + ln(alpha) }; if k is set, also
            e[i] >= the k-th largest e. alpha = 0 is no mask: all finite ones
    s[i]  = e[i] + sum_j w_j * (a_j[i] - e[i])   for i in valid, -inf otherwise

CoLD is a pair, one amateur with the expert's prompt and w = -beta: (1 + beta) * e - beta * a.

An adaptive weight is another one at each step, from 0 to the one that was given
(``adaptive_weight`` of ``vllm_cold.ops.scoring_reference``).

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

from vllm_cold.ops.scoring_reference import adaptive_weight, group_scores


@dataclass(frozen=True, slots=True)
class Step:
    """A choice of a token.

    Attributes:
        scores: [V] float64, -inf for what is no candidate.
        margin: Best minus second-best score; inf with one candidate.
        edge: How far logits must move for a change of the candidates to change the token: the
            chosen one drops out, or one comes in that scores higher. An adaptive weight jumps
            whenever they change, so there any change counts.
    """

    scores: Tensor
    margin: float
    edge: float


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

    def choose(self, step: Step) -> int:
        token = int(step.scores.argmax())
        self.append(token, step.margin, step.edge)
        return token

    def settled(self, tolerance: float = 1e-4) -> int:
        """How many leading tokens have margin and edge of at least `tolerance`."""
        clear = [min(pair) >= tolerance for pair in zip(self.margins, self.edges, strict=True)]
        return clear.index(False) if False in clear else len(clear)


@dataclass(frozen=True)
class Amateur:
    """What a group's expert is compared with.

    Attributes:
        weight: Of its difference from the expert, -beta for a contrast; if it is adaptive, the
            farthest from 0 that it can be.
        adapter: Its name, None for the base model.
        prompt_ids: None for the expert's.
        adaptive: Whether the weight adapts itself at every step.
    """

    weight: float
    adapter: str | None = None
    prompt_ids: Sequence[int] | None = None
    adaptive: bool = False


@dataclass(frozen=True)
class Group:
    """A request: the expert, which may be the base model, and its amateurs."""

    prompt_ids: Sequence[int]
    expert: str | None
    amateurs: Sequence[Amateur]
    alpha: float
    max_tokens: int
    expert_top_k: int | None = None
    eos_token_id: int | None = None

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """Of each stream."""
        return (self.expert, *(a.adapter for a in self.amateurs))

    @property
    def prompts(self) -> list[list[int]]:
        """Of each stream."""
        own = [self.prompt_ids if a.prompt_ids is None else a.prompt_ids for a in self.amateurs]
        return [list(ids) for ids in (self.prompt_ids, *own)]


@dataclass(frozen=True)
class Request:
    """A pair: a group whose only amateur has the expert's prompt and the weight -beta."""

    prompt_ids: Sequence[int]
    expert: str
    alpha: float
    beta: float
    max_tokens: int
    amateur: str | None = None
    expert_top_k: int | None = None
    eos_token_id: int | None = None
    adaptive: bool = False

    @property
    def group(self) -> Group:
        """The same in general terms."""
        amateur = Amateur(-self.beta, self.amateur, adaptive=self.adaptive)
        return Group(
            self.prompt_ids,
            self.expert,
            [amateur],
            self.alpha,
            self.max_tokens,
            self.expert_top_k,
            self.eos_token_id,
        )


def step(logits: Sequence[Tensor], group: Group) -> Step:
    """Score one step from the logits [V] of each stream, of any dtype.

    Raises ValueError for NaN or +inf, and for an expert without a finite logit.
    """
    if not all((z < math.inf).all() for z in logits):  # NaN compares false
        raise ValueError("logits contain NaN or +inf")
    if logits[0].max() == -math.inf:
        raise ValueError("the expert allows no token")
    expert, *amateurs = (z.double() for z in logits)
    log_alpha = math.log(group.alpha) if group.alpha > 0.0 else -math.inf
    cap, adaptive = group.expert_top_k or 0, [one.adaptive for one in group.amateurs]
    weights = [
        adaptive_weight(expert, z, log_alpha, one.weight, cap) if one.adaptive else one.weight
        for z, one in zip(amateurs, group.amateurs, strict=True)
    ]
    scores = group_scores(expert, amateurs, log_alpha, weights, cap)
    valid = scores > -math.inf
    if any(adaptive):
        edge = _change(expert, valid, log_alpha)
    else:
        chosen = int(scores.argmax())
        rest = torch.cat([expert[:chosen], expert[chosen + 1 :]])
        drops_out = expert[chosen] - _threshold(rest, log_alpha, cap)
        gain = scores[chosen] - group_scores(expert, amateurs, -math.inf, weights)
        comes_in = torch.maximum(_threshold(expert, log_alpha, cap) - expert, gain)
        never = valid | (expert == -math.inf)
        edge = float(torch.where(never, math.inf, comes_in).min().minimum(drops_out))
    return Step(scores, margin(scores), edge)


def _threshold(expert: Tensor, log_alpha: float, cap: int) -> Tensor:
    """The smallest of the expert's logits that is a candidate's."""
    bar = expert.max() + log_alpha
    return bar.maximum(expert.topk(cap).values[-1]) if 0 < cap <= expert.numel() else bar


def _change(expert: Tensor, valid: Tensor, log_alpha: float) -> float:
    """How far logits must move for the candidates to change at all; the best one stays."""
    bar = float(expert.max()) + log_alpha
    drops_out = float(expert[valid].min()) - bar if valid.sum() > 1 else math.inf
    if bool(valid.all()):
        return drops_out
    # What the cap keeps out comes in as soon as it passes the last that is in.
    most = float(expert[~valid].max())
    return min(drops_out, (bar if most < bar else float(expert[valid].min())) - most)


def group_score(logits: Sequence[Tensor], group: Group) -> Tensor:
    """Scores [V], float64, of one step."""
    return step(logits, group).scores


def edge(logits: Sequence[Tensor], group: Group) -> float:
    """How far logits must move for a change of the valid set to change the choice."""
    return step(logits, group).edge


def score(
    expert: Tensor,
    amateur: Tensor,
    alpha: float,
    beta: float,
    expert_top_k: int | None = None,
    adaptive: bool = False,
) -> Tensor:
    """`group_score` of a pair; `beta` is the most that it reaches if it is `adaptive`."""
    pair = Request((), "", alpha, beta, 0, None, expert_top_k, None, adaptive)
    return group_score([expert, amateur], pair.group)


def margin(scores: Tensor) -> float:
    """Best minus second-best of `scores` [V]; inf when one is finite."""
    best, second = scores.topk(2).values.tolist()
    return float(best - second)


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
        """Ordinary greedy decoding with one stream; it shares no scoring code with groups."""
        trace, ids, cache = Trace(), list(prompt_ids), None
        while len(trace.tokens) < max_tokens:
            logits, cache = self._forward(adapter, [ids], cache)
            token = int(logits[0].argmax())
            trace.append(token, margin(logits[0].double()), math.inf)
            if token == eos_token_id:
                break
            ids = [token]
        return trace

    def decode(self, group: Group) -> Trace:
        """Greedy decoding of a group. The end-of-sequence token, if given, is kept in the trace."""
        trace, ids = Trace(), group.prompts
        caches: list[Cache | None] = [None] * len(ids)
        while len(trace.tokens) < group.max_tokens:
            logits = []
            for stream, adapter in enumerate(group.adapters):
                z, caches[stream] = self._forward(adapter, [ids[stream]], caches[stream])
                logits.append(z[0])
            token = trace.choose(step(logits, group))
            if token == group.eos_token_id:
                break
            ids = [[token]] * len(ids)
        return trace

    def generate(self, prompt_ids: Sequence[int], **settings: Any) -> Trace:
        """`decode` of a pair; `settings` are the other arguments of `Request`."""
        return self.decode(Request(prompt_ids, **settings).group)

    def distribution(self, group: Group, temperature: float) -> Tensor:
        """softmax(s / temperature) [V], float64, for the first token after the prompts."""
        streams = zip(group.adapters, group.prompts, strict=True)
        logits = [self._forward(adapter, [ids], None)[0][0] for adapter, ids in streams]
        return (group_score(logits, group) / temperature).softmax(-1)

    def step_distribution(
        self, prompt_ids: Sequence[int], *, temperature: float, **settings: Any
    ) -> Tensor:
        """`distribution` of a pair; `settings` are the other arguments of `Request`."""
        return self.distribution(Request(prompt_ids, **settings, max_tokens=1).group, temperature)

    def generate_many(
        self, requests: Sequence[Request | Group], batch_size: int = 64
    ) -> list[Trace]:
        """`decode` for many requests: those whose streams have equal adapters and prompt lengths
        run together.
        """
        groups = [r.group if isinstance(r, Request) else r for r in requests]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, group in enumerate(groups):
            key = (group.adapters, *map(len, group.prompts))
            alike.setdefault(key, []).append(index)
        traces = [Trace() for _ in groups]
        for indices in alike.values():
            for start in range(0, len(indices), batch_size):
                chosen = indices[start : start + batch_size]
                self._decode_batch([groups[i] for i in chosen], [traces[i] for i in chosen])
        return traces

    def _decode_batch(self, groups: list[Group], traces: list[Trace]) -> None:
        """Fill `traces`. Rows that have ended are fed on, unread, until the last one ends."""
        adapters = groups[0].adapters
        ids = [list(rows) for rows in zip(*(group.prompts for group in groups), strict=True)]
        caches: list[Cache | None] = [None] * len(adapters)
        running = {row for row, group in enumerate(groups) if group.max_tokens > 0}
        while running:
            rows = []
            for stream, adapter in enumerate(adapters):
                z, caches[stream] = self._forward(adapter, ids[stream], caches[stream])
                rows.append(z)
            tokens = [[0] for _ in groups]
            for row in sorted(running):
                group, trace = groups[row], traces[row]
                logits = [z[row] for z in rows]
                token = trace.choose(step(logits, group))
                tokens[row] = [token]
                if token == group.eos_token_id or len(trace.tokens) == group.max_tokens:
                    running.remove(row)
            ids = [tokens] * len(adapters)
