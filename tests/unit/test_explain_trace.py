# SPDX-License-Identifier: Apache-2.0
"""The numbers of ``vllm-cold explain`` against the scoring op's reference and scipy."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from tests.browser.reports import weight_of
from vllm_cold.method.settings import ColdSettings, Weight
from vllm_cold.ops.scoring_reference import adaptive_weight, group_scores
from vllm_cold.tools.explain import account, visible
from vllm_cold.tools.explain.trace import (
    COLD,
    EXACT,
    GREEDY,
    LEAST,
    MOST,
    Answer,
    Logprob,
    Row,
    Step,
)

pytestmark = pytest.mark.unit

VOCAB = 60


def logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expert = 3 * torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    amateur = expert + torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    return expert, amateur


def ln(alpha: float) -> float:
    return math.log(alpha) if alpha else -math.inf


def row(values: torch.Tensor) -> dict[int, Logprob]:
    """All ln-probabilities of a row of logits."""
    return {i: Logprob(x, f"t{i}") for i, x in enumerate(values.log_softmax(0).tolist())}


def made_step(
    token: int,
    text: str,
    expert: Row,
    amateur: Row,
    *,
    amateur_limit: float | None,
    settings: ColdSettings,
    **options: Any,
) -> Step:
    """Of one amateur, whose weight beta says."""
    one = account.Contrasted(amateur, weight_of(settings), amateur_limit)
    return account.make_step(token, text, expert, [one], settings=settings, **options)


def step(
    expert: torch.Tensor,
    amateur: torch.Tensor,
    settings: ColdSettings,
    token: int = 0,
    known: int = VOCAB,
    **options: object,
) -> Step:
    given_options = {"vocab_size": VOCAB, "amateur_limit": None, "listed": [], "most": 1000}
    return made_step(
        token,
        "",
        row(expert),
        row(amateur),
        known=known,
        settings=settings,
        **{**given_options, **options},  # type: ignore[arg-type]
    )


@given(
    seed=st.integers(0, 10**6),
    alpha=st.just(0.0) | st.floats(1e-4, 1.0),
    beta=st.floats(0.0, 4.0),
    cap=st.none() | st.integers(1, VOCAB + 5),
)
def test_scores_are_those_of_the_op_up_to_a_constant(
    seed: int, alpha: float, beta: float, cap: int | None
) -> None:
    expert, amateur = logits(seed)
    got = step(expert, amateur, ColdSettings(alpha, beta, expert_top_k=cap))
    expected = group_scores(expert, [amateur], ln(alpha), [-beta], cap or 0)
    valid = {c.token for c in got.candidates if c.valid}
    assert valid == set((expected > -math.inf).nonzero().flatten().tolist())
    assert got.valid_size == len(valid)
    assert got.valid_complete
    assert got.winner == int(expected.argmax())
    assert got.greedy == int(expert.argmax())
    constant = -(1 + beta) * expert.logsumexp(0) + beta * amateur.logsumexp(0)
    for candidate in got.candidates:
        if candidate.valid:
            assert candidate.score == pytest.approx(float(expected[candidate.token] + constant))


@given(
    seed=st.integers(0, 10**6),
    alpha=st.just(0.0) | st.floats(1e-4, 1.0),
    beta_max=st.floats(0.0, 40.0),
    cap=st.none() | st.integers(1, VOCAB + 5),
    excluded=st.sampled_from([0, 20, VOCAB]),
)
def test_an_adaptive_beta_is_that_of_the_op(
    seed: int, alpha: float, beta_max: float, cap: int | None, excluded: int
) -> None:
    expert, amateur = logits(seed)
    amateur[torch.arange(VOCAB) < excluded] = -math.inf
    amateur[expert.argmin()] = 1.0  # a softmax needs one
    settings = ColdSettings(alpha, "adaptive", expert_top_k=cap, beta_max=beta_max)
    got = step(expert, amateur, settings)
    beta = -adaptive_weight(expert, amateur, ln(alpha), -beta_max, cap or 0)
    assert got.beta == pytest.approx(beta, rel=1e-9, abs=1e-12 * (1 + beta_max))
    knobs = ln(alpha), [-beta_max], cap or 0
    expected = group_scores(expert, [amateur], *knobs, adaptive=[True])
    constant = -(1 + beta) * expert.logsumexp(0) + beta * amateur.logsumexp(0)
    for candidate in got.candidates:
        if candidate.valid and amateur[candidate.token] > -math.inf:
            assert candidate.score == pytest.approx(float(expected[candidate.token] + constant))
    if excluded == 0:
        assert got.winner == int(expected.argmax())


def test_an_adaptive_beta_that_is_not_known_is_not_guessed() -> None:
    expert, amateur = logits(7)
    settings = ColdSettings(0.02, "adaptive", beta_max=9.0)
    known = step(expert, amateur, settings)
    assert known.valid_size > 2 and known.differs and known.beta is not None
    best = row(expert)
    some = {t: best[t] for t in sorted(best, key=lambda t: -best[t].value)[:2]}
    incomplete = made_step(
        known.winner or 0, "", best, row(amateur), known=2, amateur_limit=None, vocab_size=None,
        settings=settings, listed=[],
    )  # fmt: skip
    bounded = made_step(
        known.winner or 0, "", best, {t: Logprob(-3.0) for t in some}, known=VOCAB,
        amateur_limit=-5.0, vocab_size=VOCAB, settings=settings, listed=[],
    )  # fmt: skip
    for made in (incomplete, bounded):
        assert made.beta is None and made.winner is None and not made.differs
        assert all(c.score is None for c in made.candidates)
        order = [c.expert for c in made.candidates if c.valid]
        assert order == sorted(order, reverse=True)  # type: ignore[type-var]
        answer = Answer(COLD, "", "stop", (known, made))
        assert answer.unknown_betas == (1,)
        assert 1 not in [m.index for m in answer.mismatches]
    # What beta cannot depend on need not be known.
    for other in (ColdSettings(1.0, "adaptive"), ColdSettings(0.02, "adaptive", beta_max=0.0)):
        alone = made_step(
            0, "", best, {}, known=VOCAB, amateur_limit=-5.0, vocab_size=VOCAB,
            settings=other, listed=[],
        )  # fmt: skip
        assert alone.beta == 0.0 and alone.winner == alone.greedy


def test_an_amateur_of_zero_probability_is_no_penalty() -> None:
    expert, amateur = logits(1)
    amateur[:30] = -math.inf
    got = step(expert, amateur, ColdSettings(1e-3, 0.7))
    expected = group_scores(expert, [amateur], math.log(1e-3), [-0.7])
    assert got.winner == int(expected.argmax())
    assert account.score(-math.inf, [-1.0], [-0.7]) == -math.inf


def test_the_divergence_is_jensen_shannon() -> None:
    expert, amateur = logits(2)
    e, a = expert.log_softmax(0), amateur.log_softmax(0)
    whole = jensenshannon(e.exp().numpy(), a.exp().numpy(), base=2) ** 2
    assert whole > 0.01
    assert account.divergence_bits(e.tolist(), a.tolist()) == pytest.approx(whole)
    some = e.topk(7).indices
    p, q = e[some].exp(), a[some].exp()
    merged = [torch.cat([x, 1 - x.sum().reshape(1)]).numpy() for x in (p, q)]
    part = account.divergence_bits(e[some].tolist(), a[some].tolist())
    assert part == pytest.approx(jensenshannon(*merged, base=2) ** 2)
    assert part < whole  # merging tokens hides some of it
    assert account.divergence_bits([0.0, -math.inf], [-math.inf, 0.0]) == 1.0
    assert account.divergence_bits([-0.5, -2.0], [-0.5, -2.0]) == 0.0
    assert account.divergence_bits([], []) == 0.0


def test_the_valid_set_is_complete_only_if_a_token_outside_of_it_is_known() -> None:
    expert = {i: Logprob(-0.1 * i) for i in range(10)}
    settings = ColdSettings(alpha=math.exp(-0.55))
    assert account.valid_tokens(expert, 10, None, settings) == ({0, 1, 2, 3, 4, 5}, True)
    # Only the five best are certain: there may be others at -0.45 that are not listed.
    assert account.valid_tokens(expert, 5, None, settings) == ({0, 1, 2, 3, 4, 5}, False)
    five = {i: expert[i] for i in range(5)}
    assert account.valid_tokens(five, 5, None, settings)[1] is False
    assert account.valid_tokens(five, 5, 5, settings)[1] is True  # the whole vocabulary
    capped = ColdSettings(alpha=settings.alpha, expert_top_k=3)
    assert account.valid_tokens(five, 5, None, capped) == ({0, 1, 2}, True)
    tied = {**five, 3: Logprob(-0.2)}
    assert account.valid_tokens(tied, 5, None, capped) == ({0, 1, 2, 3}, True)


def test_a_bound_is_marked_and_kept_out_of_the_divergence() -> None:
    expert = {0: Logprob(math.log(0.6), "a"), 1: Logprob(math.log(0.3), "b")}
    amateur = {0: Logprob(math.log(0.5), "a")}
    made = made_step(
        0,
        "a",
        expert,
        amateur,
        known=2,
        amateur_limit=math.log(0.01),
        vocab_size=None,
        settings=ColdSettings(0.1, 1.0),
        listed=[],
    )
    bound = made.find(1)
    assert bound is not None
    assert bound.bounds == (True,)
    assert bound.score == pytest.approx(2 * math.log(0.3) - math.log(0.01))
    divergence = account.divergence_bits([math.log(0.6)], [math.log(0.5)])
    assert made.divergence == pytest.approx(divergence)
    assert not made.valid_complete


def test_a_token_that_the_numbers_do_not_explain() -> None:
    expert, amateur = logits(5)
    amateur[expert.argmax()] += 4.0  # so CoLD takes another token than greedy
    settings = ColdSettings(0.05, 1.0)
    right = step(expert, amateur, settings)
    assert right.differs
    second = [c for c in right.candidates if c.valid][1]
    last = int(expert.argmin())
    steps = [
        step(expert, amateur, settings, token)
        for token in (right.winner, second.token, last, right.greedy)
    ]
    cold = Answer(COLD, "", "stop", tuple(steps)).mismatches
    assert [m.index for m in cold if m.margin is None] == [2]
    assert cold[0].index == 1
    best = right.find(right.winner)
    assert best is not None
    assert cold[0].margin == pytest.approx(best.score - second.score)  # type: ignore[operator]
    greedy = Answer(GREEDY, "", "stop", tuple(steps)).mismatches
    assert [m.index for m in greedy] == [0, 1, 2]
    assert all(m.expected == right.greedy and m.margin and m.margin > 0 for m in greedy)


def test_many_candidates_are_cut_but_not_those_that_matter() -> None:
    expert, amateur = torch.zeros(VOCAB).double(), torch.arange(VOCAB).double()
    got = step(expert, amateur, ColdSettings(0.5, 1.0), token=VOCAB - 1, most=5)
    assert got.valid_size == VOCAB
    assert [c.token for c in got.candidates] == [0, 1, 2, 3, 4, VOCAB - 1]
    assert got.winner == got.greedy == 0  # equal logits: the lowest id, as argmax has it


@pytest.mark.parametrize(
    ("bits", "level"), [(0.0, 0), (0.00999, 0), (0.01, 1), (0.1, 3), (0.399, 4), (0.4, 5), (1, 5)]
)
def test_levels(bits: float, level: int) -> None:
    assert Step(0, "", (), 1, True, (bits,), 0, 0, (-0.5,)).level == level


def test_pieces_get_their_space_back() -> None:
    assert account.spread("The capital", ["The", "capital", "</s>"]) == ["The", " capital", "</s>"]
    assert account.spread(" a b", [" a", " b"]) == [" a", " b"]
    assert account.spread("a漢b", ["a", "", "漢", "b"]) == ["a", "", "漢", "b"]
    assert "".join(account.spread("x  y", ["x", " ", "y"])) == "x  y"


def test_visible() -> None:
    assert visible.in_text(" a b", 1) == " a b"
    assert visible.in_text("a\n\n", 1) == "a⏎\n⏎\n"
    assert visible.in_text("  ", 1) == "␣␣"
    assert visible.in_text("", 17) == visible.alone("", 17) == "⟨17⟩"
    assert visible.alone(" a\n\t", 1) == "␣a⏎⇥"
    assert visible.in_text("\x1b[31m\u202e\u00a0", 1) == "⟨U+001B⟩[31m⟨U+202E⟩⟨U+00A0⟩"
    assert visible.alone("é漢🙂", 1) == "é漢🙂"


def contrasted(
    amateurs: Sequence[torch.Tensor], weights: Sequence[Weight]
) -> list[account.Contrasted]:
    found = zip(amateurs, weights, strict=True)
    return [account.Contrasted(row(values), weight) for values, weight in found]


WEIGHTS = st.builds(Weight, st.floats(-30.0, 3.0), st.booleans())


@given(
    seed=st.integers(0, 10**6),
    alpha=st.just(0.0) | st.floats(1e-4, 1.0),
    weights=st.lists(WEIGHTS, min_size=1, max_size=4),
    cap=st.none() | st.integers(1, VOCAB + 5),
)
def test_several_amateurs_are_those_of_the_op(
    seed: int, alpha: float, weights: list[Weight], cap: int | None
) -> None:
    expert, _ = logits(seed)
    amateurs = [logits(seed + 1 + i)[1] for i in range(len(weights))]
    got = account.make_step(
        0, "", row(expert), contrasted(amateurs, weights), known=VOCAB, vocab_size=VOCAB,
        settings=ColdSettings(alpha, expert_top_k=cap), listed=[], most=1000,
    )  # fmt: skip
    values, adaptive = [w.weight for w in weights], [w.adaptive for w in weights]
    expected = group_scores(expert, amateurs, ln(alpha), values, cap or 0, adaptive)
    assert got.winner == int(expected.argmax()) and not got.told
    strengths = [
        adaptive_weight(expert, a, ln(alpha), w.weight, cap or 0) if w.adaptive else w.weight
        for a, w in zip(amateurs, weights, strict=True)
    ]
    assert got.weights == pytest.approx(strengths, rel=1e-9, abs=1e-9)
    assert got.beta == pytest.approx(-max(strengths, key=abs), rel=1e-9, abs=1e-9)
    constant = -expert.logsumexp(0)
    for a, w in zip(amateurs, strengths, strict=True):
        constant += w * (expert.logsumexp(0) - a.logsumexp(0))
    for candidate in got.candidates:
        if candidate.valid:
            score = float(expected[candidate.token] + constant)
            assert candidate.score == pytest.approx(score, rel=1e-6, abs=1e-6)
            at = [float(a.log_softmax(0)[candidate.token]) for a in amateurs]
            assert candidate.amateurs == pytest.approx(at)
    assert got.divergence == max(got.divergences) and len(got.divergences) == len(weights)


@given(
    seed=st.integers(0, 10**6),
    alpha=st.sampled_from([0.0, 0.01, 0.1]),
    weights=st.lists(st.floats(-3.0, 1.0), min_size=1, max_size=3),
    known=st.integers(2, 12),
    tells=st.sampled_from(["nothing", "the truth"]),
)
def test_what_is_not_known_is_never_wrong(
    seed: int, alpha: float, weights: list[float], known: int, tells: str
) -> None:
    """With the ``known`` best tokens of each stream: the truth, or nothing."""
    expert, _ = logits(seed)
    amateurs = [logits(seed + 1 + i)[1] for i in range(len(weights))]
    expected = group_scores(expert, amateurs, ln(alpha), weights)
    truth = int(expected.argmax())

    def best(values: torch.Tensor) -> dict[int, Logprob]:
        whole = row(values)
        return {t: whole[t] for t in {*values.topk(known).indices.tolist(), truth}}

    limits = [float(a.log_softmax(0).topk(known).values[-1]) for a in amateurs]
    others = [
        account.Contrasted(best(a), Weight(w, False), limit)
        for a, w, limit in zip(amateurs, weights, limits, strict=True)
    ]
    got = account.make_step(
        truth, "", best(expert), others, known=known, vocab_size=VOCAB,
        settings=ColdSettings(alpha), listed=[],
        told=None if tells == "nothing" else truth,
    )  # fmt: skip
    assert got.winner in ((None, truth) if tells == "nothing" else (truth,))
    for c in got.candidates:
        if c.score is None:
            continue
        exact = float(expert.log_softmax(0)[c.token])
        for a, w in zip(amateurs, weights, strict=True):
            exact += w * float(a.log_softmax(0)[c.token] - expert.log_softmax(0)[c.token])
        difference = exact - c.score
        assert {EXACT: abs(difference), LEAST: -difference, MOST: difference}[c.score_is] < 1e-9


def test_a_token_that_is_not_known_may_win_unless_nothing_is_taken_away() -> None:
    """Without a mask, ten tokens of sixty."""
    expert, amateur = logits(3)
    whole = row(expert)
    ten = {t: whole[t] for t in expert.topk(10).indices.tolist()}
    settings = ColdSettings(0.0)

    def made(*weights: float, told: int | None = None) -> Step:
        others = contrasted([amateur] * len(weights), [Weight(w, False) for w in weights])
        return account.make_step(
            int(expert.argmax()), "", ten, others, known=10, vocab_size=VOCAB, settings=settings,
            listed=[], told=told,
        )  # fmt: skip

    assert made(-0.5).winner is None
    assert made(0.5, -0.01).winner is None
    assert made(1.5).winner is None  # the expert itself is taken away
    for weights in ((0.0,), (0.25,), (0.0, 0.1)):
        step = made(*weights)
        assert step.winner is not None and not step.told and not step.valid_complete
    told = made(-0.5, told=made(-0.5).candidates[0].token)
    assert told.told and told.winner == told.candidates[0].token
    # A listed token that is better for certain contradicts what the engine took.
    worse = told.candidates[3].token
    wrong = made(-0.5, told=worse)
    assert (wrong.winner, wrong.told) == (told.winner, False)
    stranger = next(t for t in range(VOCAB) if t not in ten)
    other = made(-0.5, told=stranger)
    assert (other.winner, other.told) == (stranger, True)
    assert Answer(COLD, "", "stop", (told, made(0.0))).told == (0,)


def test_a_weight_that_is_not_known_leaves_no_scores() -> None:
    expert, amateur = logits(3)
    whole = row(expert)
    ten = {t: whole[t] for t in expert.topk(10).indices.tolist()}
    others = contrasted([amateur, amateur], [Weight(-1.0, True), Weight(0.5, False)])
    made = account.make_step(
        0, "", {**ten, 0: whole[0]}, others, known=10, vocab_size=VOCAB,
        settings=ColdSettings(0.0), listed=[], told=0,
    )  # fmt: skip
    assert made.weights == (None, 0.5) and made.beta is None
    assert (made.winner, made.told) == (0, True)
    assert all(c.score is None for c in made.candidates)
