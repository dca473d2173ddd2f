# SPDX-License-Identifier: Apache-2.0
"""The naive reference for contrastive decoding: the truth that the vLLM engine is tested with.

One forward pass a stream and step through transformers and peft, a KV cache for each stream, one
score. It is written to be read, not to be fast, and imports no vLLM.

With the expert's logits e and those of its amateurs a_1, a_2, ..., each a stream with an adapter
(or the base model), a prompt and a weight w of its own:

    valid = { i : e[i] finite and e[i] >= max(e) + ln(alpha) }; if k is set, also
            e[i] >= the k-th largest e. alpha = 0 is no mask: all finite ones
    s[i]  = e[i] + sum_j w_j * (a_j[i] - e[i])   for i in valid, -inf otherwise

contrastive decoding is a pair, one amateur with the expert's prompt and w = -beta: (1 + beta) * e -
beta * a.

A weight that a rule chooses is another one at each step (`naive_rules`).

Source: arXiv 2505.14620, with the scoring of arXiv 2309.09117 and the mask of arXiv 2210.15097.

Two programs add up floats in different orders, so a comparison is fair only up to the first step
that rounding could decide. `Trace.settled` gives that length.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from tests import naive_bound, naive_rules
from tests.formula import group_scores, threshold

# How often and how far logits are moved, to see whether rounding could decide.
_MOVES, _MOVED = 4, 2e-4


@dataclass(frozen=True, slots=True)
class Step:
    """A choice of a token.

    Attributes:
        scores: [V] float64, -inf for what is no candidate.
        margin: Best minus second-best score; inf with one candidate.
        edge: How far logits must move for a change of the candidates to change the token: the
            chosen one drops out, or one comes in that scores higher. With a rule, 0 if logits
            that are moved a little give another token, or the rule another state.
    """

    scores: Tensor
    margin: float
    edge: float


class Answer(list[int]):
    """An engine's tokens, and what it says that they cost of each amateur's bits."""

    spent: Sequence[float] = ()


@dataclass
class Trace:
    """The tokens of one request, with how clear each choice was (one entry a token)."""

    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    """Best score minus second-best score; inf when one token is valid."""
    edges: list[float] = field(default_factory=list)
    """How far the logits must move for a change of the valid set to change the token."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the group's rule keeps."""

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
        weight: Of its difference from the expert, -beta for a contrast; None if the group's rule
            chooses it.
        adapter: Its name, None for the base model.
        prompt_ids: None for the expert's.
    """

    weight: float | None
    adapter: str | None = None
    prompt_ids: Sequence[int] | None = None


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
    rule: str | None = None
    rule_parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """Of each stream."""
        return (self.expert, *(a.adapter for a in self.amateurs))

    @property
    def prompts(self) -> list[list[int]]:
        """Of each stream."""
        own = [self.prompt_ids if a.prompt_ids is None else a.prompt_ids for a in self.amateurs]
        return [list(ids) for ids in (self.prompt_ids, *own)]


def pair(
    prompt_ids: Sequence[int],
    expert: str,
    alpha: float,
    beta: float,
    max_tokens: int,
    amateur: str | None = None,
    expert_top_k: int | None = None,
    eos_token_id: int | None = None,
    rule: str | None = None,
    rule_parameters: Mapping[str, float] | None = None,
) -> Group:
    """A group whose only amateur has the expert's prompt and the weight -beta, or the rule's."""
    return Group(
        prompt_ids,
        expert,
        [Amateur(-beta if rule is None else None, amateur)],
        alpha,
        max_tokens,
        expert_top_k,
        eos_token_id,
        rule,
        rule_parameters or {},
    )


def step(
    logits: Sequence[Tensor], group: Group, number: int = 0, memory: dict[str, Any] | None = None
) -> Step:
    """Score one step from the logits [V] of each stream, of any dtype.

    Args:
        logits: Of each stream.
        group: The request.
        number: How many tokens it has got before.
        memory: What its rule keeps, empty before the first step; changed.

    Raises ValueError for NaN or +inf, and for an expert without a finite logit.
    """
    if not all((z < math.inf).all() for z in logits):  # NaN compares false
        raise ValueError("logits contain NaN or +inf")
    if logits[0].max() == -math.inf:
        raise ValueError("the expert allows no token")
    expert, *amateurs = (z.double() for z in logits)
    log_alpha = math.log(group.alpha) if group.alpha > 0.0 else -math.inf
    cap, weights = group.expert_top_k or 0, [one.weight or 0.0 for one in group.amateurs]
    if group.rule is not None:
        memory = {} if memory is None else memory
        before = copy.deepcopy(memory)
        scores = _by_rule([expert, *amateurs], group, log_alpha, number, memory)
        edge = math.inf
        for seed in range(_MOVES):
            noise = torch.Generator().manual_seed(seed)
            moved = [
                z + _MOVED * torch.randn(z.shape, generator=noise, dtype=z.dtype)
                for z in (expert, *amateurs)
            ]
            kept = copy.deepcopy(before)
            other = _by_rule(moved, group, log_alpha, number, kept)
            if other.argmax() != scores.argmax() or kept != memory:
                edge = 0.0
        return Step(scores, margin(scores), edge)
    scores = group_scores(expert, amateurs, log_alpha, weights, cap)
    valid = scores > -math.inf
    chosen = int(scores.argmax())
    rest = torch.cat([expert[:chosen], expert[chosen + 1 :]])
    drops_out = expert[chosen] - threshold(rest, log_alpha, cap)
    gain = scores[chosen] - group_scores(expert, amateurs, -math.inf, weights)
    comes_in = torch.maximum(threshold(expert, log_alpha, cap) - expert, gain)
    never = valid | (expert == -math.inf)
    edge = float(torch.where(never, math.inf, comes_in).min().minimum(drops_out))
    return Step(scores, margin(scores), edge)


def _by_rule(
    rows: Sequence[Tensor], group: Group, log_alpha: float, number: int, memory: dict[str, Any]
) -> Tensor:
    """Scores with the weights that the group's rule chooses, or by its distribution."""
    if group.rule == "bound":
        logits, parameters = [row.tolist() for row in rows], group.rule_parameters
        r, costs = naive_bound.distribution(logits, parameters, memory)
        scores = torch.tensor([math.log(x) if x > 0 else -math.inf for x in r], dtype=torch.float64)
        naive_bound.take(costs, int(scores.argmax()), parameters, memory)
        return scores
    cap = group.expert_top_k or 0
    valid = (rows[0] >= threshold(rows[0], log_alpha, cap)) & (rows[0] > -math.inf)
    chosen = naive_rules.weights(
        str(group.rule), group.rule_parameters, rows, valid, number, memory
    )
    weights = [
        of_rule if one.weight is None else one.weight
        for one, of_rule in zip(group.amateurs, chosen, strict=True)
    ]
    return group_scores(rows[0], rows[1:], log_alpha, weights, cap)


def group_score(logits: Sequence[Tensor], group: Group) -> Tensor:
    """Scores [V], float64, of one step."""
    return step(logits, group).scores


def score(
    expert: Tensor,
    amateur: Tensor,
    alpha: float,
    beta: float,
    expert_top_k: int | None = None,
) -> Tensor:
    """`group_score` of a pair."""
    return group_score([expert, amateur], pair((), "", alpha, beta, 0, None, expert_top_k))


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
        if stop is None and isinstance(tokens, Answer):
            pairs = zip(tokens.spent, trace.memory.get("spent", []), strict=True)
            assert all(abs(one - other) < 0.05 for one, other in pairs), f"request {index}"
    total = sum(len(trace.tokens) for trace in expected)
    assert compared >= 0.9 * total, f"only {compared} of {total} steps are comparable"


def load(model: Path) -> Any:
    """A model in float32, which may also read images or sounds."""
    config = AutoConfig.from_pretrained(model)
    more = hasattr(config, "vision_config") or hasattr(config, "audio_config")
    kind = AutoModelForMultimodalLM if more else AutoModelForCausalLM
    # Eager attention is the plain formula, the same for a prompt and for a single token.
    return kind.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")


class NaiveCold:
    """One base model with named LoRA adapters. The name `None` stands for the base model."""

    def __init__(self, model: Path, adapters: dict[str, Path]) -> None:
        self._model = load(model)
        for name, folder in adapters.items():
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(folder, name, autocast_adapter_dtype=False)
            else:
                self._model = PeftModel.from_pretrained(
                    self._model, folder, name, autocast_adapter_dtype=False
                )
        self._model.eval()

    @contextmanager
    def _using(self, adapter: str | None) -> Iterator[Any]:
        """The model with an adapter, or without."""
        if adapter is not None:
            self._model.set_adapter(adapter)
            yield self._model
        elif isinstance(self._model, PeftModel):
            with self._model.disable_adapter():
                yield self._model
        else:
            yield self._model

    @torch.inference_mode()
    def _forward(self, adapter: str | None, ids: list[list[int]], cache: Any) -> tuple[Tensor, Any]:
        """Logits [B, V] float32 after the last of `ids` [B, n], and the stream's KV cache."""
        read = torch.tensor(ids)
        with self._using(adapter) as model:
            out = model(input_ids=read, past_key_values=cache, use_cache=True, logits_to_keep=1)
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

    def decode(self, group: Group, prompts: Sequence[Any] = ()) -> Trace:
        """Greedy decoding of a group. The end-of-sequence token, if given, is kept in the trace.

        Args:
            group: The request.
            prompts: Of each stream, in place of the group's: ids, or what else ``_forward`` takes.
        """
        trace = Trace()
        read = [p if isinstance(p, dict) else [list(p)] for p in prompts or group.prompts]
        self._decode([group], [trace], read)
        return trace

    def generate(self, prompt_ids: Sequence[int], **settings: Any) -> Trace:
        """`decode` of a pair; `settings` are the other arguments of `pair`."""
        return self.decode(pair(prompt_ids, **settings))

    def distribution(self, group: Group, temperature: float) -> Tensor:
        """softmax(s / temperature) [V], float64, for the first token after the prompts."""
        streams = zip(group.adapters, group.prompts, strict=True)
        logits = [self._forward(adapter, [ids], None)[0][0] for adapter, ids in streams]
        return (group_score(logits, group) / temperature).softmax(-1)

    def step_distribution(
        self, prompt_ids: Sequence[int], *, temperature: float, **settings: Any
    ) -> Tensor:
        """`distribution` of a pair; `settings` are the other arguments of `pair`."""
        return self.distribution(pair(prompt_ids, **settings, max_tokens=1), temperature)

    def generate_many(self, groups: Sequence[Group]) -> list[Trace]:
        """`decode` for many groups: those whose streams have equal adapters and prompt lengths
        run together.
        """
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, group in enumerate(groups):
            key = (group.adapters, *map(len, group.prompts))
            alike.setdefault(key, []).append(index)
        traces = [Trace() for _ in groups]
        for chosen in alike.values():
            some = [groups[i] for i in chosen]
            ids = [list(rows) for rows in zip(*(group.prompts for group in some), strict=True)]
            self._decode(some, [traces[i] for i in chosen], ids)
        return traces

    def _decode(self, groups: list[Group], traces: list[Trace], read: Sequence[Any]) -> None:
        """Fill `traces` of groups with equal adapters. Rows that have ended are fed on, unread,
        until the last one ends.

        Args:
            groups: The requests.
            traces: Of each, still empty.
            read: Of each stream, what ``_forward`` takes for all requests.
        """
        caches: list[Any] = [None] * len(read)
        running = {row for row, group in enumerate(groups) if group.max_tokens > 0}
        while running:
            rows = []
            for stream, adapter in enumerate(groups[0].adapters):
                z, caches[stream] = self._forward(adapter, read[stream], caches[stream])
                rows.append(z)
            tokens = [[0] for _ in groups]
            for row in sorted(running):
                group, trace = groups[row], traces[row]
                logits = [z[row] for z in rows]
                scored = step(logits, group, len(trace.tokens), trace.memory)
                if scored.scores.max() == -math.inf:  # its rule ends it
                    trace.edges[-1:] = [min(edge, scored.edge) for edge in trace.edges[-1:]]
                    running.remove(row)
                    continue
                token = trace.choose(scored)
                tokens[row] = [token]
                if token == group.eos_token_id or len(trace.tokens) == group.max_tokens:
                    running.remove(row)
            read = [tokens] * len(read)
