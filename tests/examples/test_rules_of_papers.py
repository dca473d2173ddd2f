# SPDX-License-Identifier: Apache-2.0
"""The example package's rules against the formulas of their papers, in float64 and without
tensors, and what they promise by trying all that could break it: RobustRAG's certificate by an
attacker's passages, InvisibleInk's privacy by neighbours.
"""

import inspect
import itertools
import json
import math
import random
import re
import subprocess
import sys
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from examples.rule import cold_invisible_ink
from examples.rule.cold_clean_gen import CleanGen
from examples.rule.cold_invisible_ink import InvisibleInk
from examples.rule.cold_robust_rag import RobustRAG
from tests.examples.installed import ROOT
from tests.naive_rules import log_softmax
from vllm_cold.ops import contrastive_scores
from vllm_cold.ops.interface import Groups
from vllm_cold.rules import Choice, Rule, registry
from vllm_cold.rules.check import call
from vllm_cold.rules.rule import Scores
from vllm_cold.rules.statistics import Statistics
from vllm_cold.rules.trial import try_out

pytestmark = pytest.mark.unit

INF = math.inf
PAGE = ROOT / "docs" / "write-a-rule.md"
OURS = (RobustRAG, InvisibleInk, CleanGen)


@pytest.mark.parametrize("rule", OURS)
def test_they_are_rules_of_at_most_25_lines(rule: type[Rule]) -> None:
    try_out(rule())
    assert len(inspect.getsource(rule).splitlines()) <= 25


def statistics_of(
    rule: Rule,
    logits: Tensor,
    parameters: dict[str, Any],
    absent: Sequence[tuple[int, int]] = (),
    temperature: float = 1.0,
    state: Tensor | None = None,
    paid: Tensor | None = None,
) -> tuple[Statistics, Groups, Any]:
    """What a rule is called with for groups [G, S, V]; ``absent``: groups and their amateurs,
    from 0.
    """
    groups, streams, vocabulary = logits.shape
    values = registry.parameters_of(rule, parameters, "parameters", streams - 1)
    rows = torch.arange(groups * streams).view(groups, streams)
    for group, amateur in absent:
        rows[group, 1 + amateur] = -1
    of = Groups(rows, torch.zeros(groups, streams - 1), torch.full((groups,), -INF))
    s = Statistics(
        logits.reshape(-1, vocabulary).float(),
        of,
        torch.zeros(groups, dtype=torch.int64),
        torch.zeros(groups, streams - 1, rule.state) if state is None else state,
        paid,
        torch.full((groups,), temperature),
    )
    p = types.SimpleNamespace(**{n: torch.full((groups, 1), float(v)) for n, v in values.items()})
    return s, of, p


def scores_of(rule: Rule, logits: Tensor, parameters: dict[str, Any], **others: Any) -> Scores:
    s, _, p = statistics_of(rule, logits, parameters, **others)
    scores = call(rule, s, p)
    assert isinstance(scores, Scores)
    return scores


def draw(seed: int, groups: int, streams: int, vocabulary: int) -> Tensor:
    """Logits of streams more or less alike, a tenth of each -inf, but for the last token."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(groups, 1, vocabulary, generator=generator)
    own = torch.randn(groups, streams, vocabulary, generator=generator)
    scale = torch.rand(groups, 1, 1, generator=generator) * 4 + 0.2
    logits = (common + own * torch.rand(groups, 1, 1, generator=generator)) * scale
    forbidden = torch.rand(groups, streams, vocabulary, generator=generator) < 0.1
    forbidden[..., -1] = False
    return logits.masked_fill(forbidden, -INF)


# ---- RobustRAG -----------------------------------------------------------------------------------


def robust_rag(
    logits: Sequence[Sequence[float]], eta: float, corrupted: int
) -> tuple[int, bool, bool]:
    """Secure decoding aggregation, and the cases of its certificate where an attacker may change
    ``corrupted`` passages: the token, whether it is the one that is possible, and whether the
    passages are not believed.
    """
    alone, *passages = logits
    allowed = [z > -INF for z in alone]
    votes = [0.0] * len(alone)
    for passage in passages:
        masked = [z if a else -INF for z, a in zip(passage, allowed, strict=True)]
        for token, log_p in enumerate(log_softmax(masked)):
            votes[token] += math.exp(log_p)
    order = sorted(range(len(votes)), key=lambda token: -votes[token])
    gap = votes[order[0]] - votes[order[1]]
    without = max(range(len(alone)), key=lambda token: alone[token])
    token = order[0] if gap > eta else without
    possible: set[int] = set()  # any
    if gap > eta + 2 * corrupted:
        possible = {order[0]}
    elif gap > abs(eta - 2 * corrupted):
        possible = {order[0], without}
    elif gap <= eta - 2 * corrupted:
        possible = {without}
    assert token in possible or not possible
    return token, len(possible) == 1, gap <= eta


@pytest.mark.parametrize(("eta", "corrupted"), [(0.0, 0), (0.0, 1), (1.0, 1), (4.0, 1), (3.0, 2)])
def test_robust_rag_is_the_papers(eta: float, corrupted: int) -> None:
    """With passages that are not there, too."""
    logits = draw(1, 60, 7, 12) * 2
    absent = [(group, amateur) for group in range(0, 60, 2) for amateur in (1, 5)]
    parameters = {"eta": eta, "corrupted": corrupted}
    scores = scores_of(RobustRAG(), logits, parameters, absent=absent)
    assert scores.costs is not None and scores.limited is not None and scores.left is not None
    outcomes = set()
    for group, streams in enumerate(logits.double().tolist()):
        there = [z for i, z in enumerate(streams) if (group, i - 1) not in absent]
        token, is_certain, is_alone = robust_rag(there, eta, corrupted)
        alone = max(range(12), key=lambda token: streams[0][token])
        assert scores.scores[group].softmax(-1).tolist() == [float(i == token) for i in range(12)]
        costs = scores.costs[group, 0]
        assert costs.tolist() == [float(not is_certain)] * 12
        assert scores.limited[group].tolist() == [is_alone] * 6
        outcomes.add((token == alone, is_certain))
    assert len(outcomes) > 1
    assert not scores.left.any()


def simplex(parts: int) -> Tensor:
    """All distributions over three tokens in steps of 1 / parts."""
    steps = range(parts + 1)
    found = [(a, b, parts - a - b) for a, b in itertools.product(steps, steps) if a + b <= parts]
    return torch.tensor(found) / parts


def tokens_of(distributions: Tensor, eta: float, corrupted: int) -> tuple[Tensor, Tensor]:
    """Tokens and costs of groups [G, S, 3]."""
    parameters = {"eta": eta, "corrupted": corrupted}
    scores = scores_of(RobustRAG(), distributions.log(), parameters)
    assert scores.costs is not None
    return scores.scores.argmax(-1), scores.costs[:, 0, 0]


@pytest.mark.parametrize(
    ("corrupted", "passages", "parts"), [(1, 3, 12), (1, 5, 12), (2, 6, 2), (3, 7, 1)]
)
def test_no_attacker_changes_a_certified_token(corrupted: int, passages: int, parts: int) -> None:
    """Whatever passages it replaces, by whatever their distributions can be. Others it changes."""
    generator = random.Random(corrupted * 10 + passages)
    choices = [*simplex(parts)]
    certified, resisted = set(), 0
    for trial in range(40):
        # Passages that agree, disagree, and are about as sure as not.
        eta = (0.0, 1.0, 2.0 * corrupted + 0.5, 2.0 * passages)[trial % 4]
        peak = torch.nn.functional.one_hot(torch.tensor(generator.randrange(3)), 3)
        sure = generator.random() ** 0.3
        own = torch.stack([choices[generator.randrange(len(choices))] for _ in range(passages)])
        alone = choices[generator.randrange(len(choices))] * 0.9 + 0.1 / 3
        group = torch.cat([alone[None], sure * peak + (1 - sure) * own])
        (token,), (cost,) = tokens_of(group[None], eta, corrupted)
        attacked = []
        for which in itertools.combinations(range(1, passages + 1), corrupted):
            for theirs in itertools.product(choices, repeat=corrupted):
                changed = group.clone()
                changed[list(which)] = torch.stack(theirs)
                attacked.append(changed)
        after, _ = tokens_of(torch.stack(attacked), eta, corrupted)
        if cost == 0:
            assert (after == token).all()
            certified.add((bool(token == alone.argmax()), eta > 2 * corrupted))
        else:
            resisted += bool((after == token).all())
    assert len(certified) > 2, "certified by agreement, and for lack of it"
    assert resisted < 20, "the certificate is not for too few"


# ---- InvisibleInk --------------------------------------------------------------------------------


def invisible_ink(
    public: Sequence[float],
    private: Sequence[Sequence[float]],
    clip: float,
    references: int,
    top_k: int,
    temperature: float,
) -> list[float]:
    """What is sampled from: DClip, then Top-k+."""
    lowest = sorted(public, reverse=True)[min(top_k, len(public)) - 1] - 2 * clip / references
    logits = [
        z + sum(min(max(of[token] - z, -clip), clip) for of in private) / references
        if z > -INF and z >= lowest
        else -INF
        for token, z in enumerate(public)
    ]
    return [math.exp(x) for x in log_softmax([z / temperature for z in logits])]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("clip", "top_k"), [(0.0, 3), (0.5, 3), (1.5, 100), (20.0, 1)])
def test_invisible_ink_is_the_papers(clip: float, top_k: int, temperature: float) -> None:
    """Its cost is (C / (B T))^2 / 2; of an answer it is the sum."""
    logits = draw(2, 30, 5, 12)
    absent = [(group, 3) for group in range(0, 30, 3)]
    parameters = {"clip": clip, "references": 4, "rho": 100.0, "top_k": top_k}
    cost = (clip / 4 / temperature) ** 2 / 2
    scores = scores_of(InvisibleInk(), logits, parameters, absent=absent, temperature=temperature)
    assert scores.costs is not None and scores.limited is not None and scores.left is not None
    sampled = (scores.scores.double() / temperature).softmax(-1)
    numbers = set()
    for group, (public, *private) in enumerate(logits.double().tolist()):
        there = [z for i, z in enumerate(private) if (group, i) not in absent]
        want = invisible_ink(public, there, clip, 4, top_k, temperature)
        assert sampled[group].tolist() == pytest.approx(want, abs=1e-5)
        numbers.add(sum(x > 0 for x in want))
    assert len(numbers) > 1 or clip == 0
    assert torch.allclose(scores.costs, torch.full((30, 4, 12), cost))
    assert not scores.limited.any()


@pytest.mark.parametrize("references", [1, 3, 8])
def test_a_reference_changes_no_score_by_more_than_its_share(references: int) -> None:
    """Neighbours: the same group without one of its references, whatever that says. So the
    mechanism is C^2 / (2 B^2 T^2)-zCDP: of each order, the Renyi divergence is below order * rho.
    """
    clip, temperature = 2.0, 1.2
    rho = (clip / references / temperature) ** 2 / 2
    logits = draw(3, 40, references + 1, 12)
    generator = torch.Generator().manual_seed(references)
    logits[:, 1] = (torch.rand(40, 12, generator=generator) - 0.5) * 1e4  # as far as can be
    logits[:20, 1] = logits[:20, 0] + 9 * torch.randn(20, 12, generator=generator).sign()
    parameters = {"clip": clip, "references": references, "rho": 100.0, "top_k": 6}
    given = scores_of(InvisibleInk(), logits, parameters, temperature=temperature)
    absent = [(group, 0) for group in range(40)]
    without = scores_of(InvisibleInk(), logits, parameters, absent=absent, temperature=temperature)
    kept = given.scores > -INF
    assert torch.equal(kept, without.scores > -INF), "what is kept depends on the public prompt"
    moved = (given.scores - without.scores)[kept].abs()
    assert moved.max() <= clip / references + 1e-5
    assert moved.max() > 0.99 * clip / references
    log_p, log_q = (
        (x.scores.double() / temperature).log_softmax(-1).masked_fill(~kept, 0.0)
        for x in (given, without)
    )
    for order in (1.01, 2.0, 8.0, 64.0):
        for a, b in ((log_p, log_q), (log_q, log_p)):
            terms = (order * a + (1 - order) * b).masked_fill(~kept, -INF)
            divergence = terms.logsumexp(-1) / (order - 1)
            assert divergence.max() <= order * rho * (1 + 1e-5)
    assert scores_rho(given) == pytest.approx(rho)


def scores_rho(scores: Scores) -> float:
    """The one cost of all tokens."""
    assert scores.costs is not None
    (cost,) = set(scores.costs.flatten().tolist())
    return float(cost)


def test_a_budget_ends() -> None:
    """Then the public prompt alone is sampled from, and costs nothing; an amateur's budget is its
    own.
    """
    rule, clip, temperature = InvisibleInk(), 2.0, 0.8
    cost = (clip / 2 / temperature) ** 2 / 2
    parameters = {"clip": clip, "references": 2, "rho": 3.5 * cost, "top_k": 5}
    state, paid = torch.tensor([[[0.0], [2 * cost]]]), torch.zeros(1, 2)
    spent, limited = torch.tensor([[0.0, 2 * cost]]), []
    for step in range(6):
        logits = draw(10 + step, 1, 3, 12)
        scores = scores_of(
            rule, logits, parameters, temperature=temperature, state=state, paid=paid
        )
        assert scores.costs is not None and scores.state is not None
        assert scores.limited is not None and scores.left is not None
        public, *private = logits[0].double().tolist()
        opened = [
            z for z, ends in zip(private, scores.limited[0].tolist(), strict=True) if not ends
        ]
        want = invisible_ink(public, opened, clip, 2, 5, temperature)
        sampled = (scores.scores[0].double() / temperature).softmax(-1)
        assert sampled.tolist() == pytest.approx(want, abs=1e-5)
        assert torch.allclose(scores.left, (3.5 * cost - spent).clamp(min=0), atol=1e-6)
        state, paid = scores.state, scores.costs[:, :, int(scores.scores.argmax())]
        spent = spent + paid
        assert spent.max() <= 3.5 * cost
        limited.append(scores.limited[0].tolist())
    assert limited == [[False, False]] + [[False, True]] * 2 + [[True, True]] * 3


def delta_of(rho: float, epsilon: float) -> float:
    """Of rho-zCDP, by arXiv 2004.00010, proposition 12: the least over the orders."""
    orders = (1 + 10 ** (i / 200) for i in range(-400, 600))
    return math.exp(
        min(
            (a - 1) * (a * rho - epsilon) + a * math.log1p(-1 / a) - math.log(a - 1) for a in orders
        )
    )


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-5), (10.0, 1e-6)])
def test_the_budget_of_epsilon_and_delta(epsilon: float, delta: float) -> None:
    pytest.importorskip("dp_accounting", reason="is the example package's extra 'budget'")
    tokens, references, temperature = 500, 7, 1.1
    found = cold_invisible_ink.budget(epsilon, delta, tokens, references, temperature)
    rho = tokens * (found["clip"] / references / temperature) ** 2 / 2
    assert rho <= found["rho"] and delta_of(rho, epsilon) <= delta
    assert delta_of(1.02 * rho, epsilon) > delta, "and not much less"
    registry.parameters_of(InvisibleInk(), found, "p")


def test_the_command_prints_it() -> None:
    """As the page writes it."""
    pytest.importorskip("dp_accounting", reason="is the example package's extra 'budget'")
    (options,) = re.findall(r"`cold-privacy-budget (.+?)`", PAGE.read_text())
    command = [sys.executable, cold_invisible_ink.__file__, *options.split()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    want = cold_invisible_ink.budget(10.0, 1e-6, 500, 7, 1.1)
    assert json.loads(shown) == pytest.approx(want)


# ---- CleanGen ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 2.0, 20.0])
def test_clean_gen_is_the_papers(ratio: float) -> None:
    """The expert's best token if P(x) / P_reference(x) < alpha, else the reference's."""
    logits = draw(4, 80, 2, 12)
    s, groups, p = statistics_of(CleanGen(), logits, {"ratio": ratio})
    choice = call(CleanGen(), s, p)
    assert isinstance(choice, Choice)
    weighted = Groups(groups.rows, choice.weights, groups.log_alpha)
    found = contrastive_scores(logits.reshape(-1, 12).float(), weighted).argmax(-1).tolist()
    replaced = 0
    for group, (expert, reference) in enumerate(logits.double().tolist()):
        reference = [z if e > -INF else -INF for z, e in zip(reference, expert, strict=True)]
        log_p, log_q = log_softmax(expert), log_softmax(reference)
        best = max(range(12), key=lambda token: log_p[token])
        suspicious = log_p[best] - log_q[best] >= math.log(ratio)
        token = max(range(12), key=lambda token: log_q[token]) if suspicious else best
        assert found[group] == token
        assert choice.weights[group].item() == float(suspicious)
        replaced += token != best
    assert 0 < replaced < 80
