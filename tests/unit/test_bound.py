# SPDX-License-Identifier: Apache-2.0
"""The bound on what a part adds: by enumeration of all answers, and by the properties of a step."""

import itertools
import math
import random
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import naive_bound
from tests.docs.blocks import block
from vllm_cold import Amateur, ColdParams
from vllm_cold.errors import ColdError
from vllm_cold.ops.interface import Groups
from vllm_cold.rules import registry
from vllm_cold.rules.check import call
from vllm_cold.rules.rule import Scores
from vllm_cold.rules.statistics import Statistics
from vllm_cold.settings.amateurs import describe
from vllm_cold.settings.arguments import parse_engine_defaults, parse_request_args
from vllm_cold.settings.source_readers import read_source
from vllm_cold.settings.sources import WithoutText

pytestmark = pytest.mark.unit

INF = math.inf
VOCABULARY, LENGTH = 4, 4
BOUND = registry.get("bound")


def step(
    logits: Tensor,
    parameters: dict[str, Any],
    temperature: float = 1.0,
    number: int = 0,
    state: Tensor | None = None,
    paid: Tensor | None = None,
) -> Scores:
    """What the rule says of groups [G, S, V]."""
    groups, streams, vocabulary = logits.shape
    values = registry.parameters_of(BOUND, parameters, "parameters", streams - 1)
    p = types.SimpleNamespace(
        **{
            name: torch.tensor([value] if isinstance(value, list) else [[value]]).expand(
                groups, streams - 1 if BOUND.parameters[name].each else 1
            )
            for name, value in values.items()
        }
    )
    s = Statistics(
        logits.reshape(-1, vocabulary).float(),
        Groups(
            torch.arange(groups * streams).view(groups, streams),
            torch.zeros(groups, streams - 1),
            torch.full((groups,), -INF),
        ),
        torch.full((groups,), number),
        torch.zeros(groups, streams - 1, 1) if state is None else state,
        paid,
        torch.full((groups,), temperature),
    )
    scores = call(BOUND, s, p)
    assert isinstance(scores, Scores)
    return scores


def sampled(scores: Scores, temperature: float = 1.0) -> Tensor:
    """The distribution that vLLM samples from, [G, V] float64; 0 where the answer ends."""
    return (scores.scores.double() / temperature).softmax(-1).nan_to_num(0.0)


CASES = [
    # bits, bits per token, refund
    (0.0, 0.0, 0.0),
    (1.5, 0.0, 0.0),
    (1.5, 0.0, 1.0),
    (1.0, 0.5, 0.0),
    (0.5, 0.25, 1.0),
    ([2.0, 3.0], [0.0, 0.25], 0.0),
    ([1.0, 2.5], 0.0, 1.0),
]


@pytest.mark.parametrize("has_grammar", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("bits", "rate", "refund"), CASES)
def test_all_answers_of_a_tiny_model(
    bits: Any, rate: Any, refund: float, temperature: float, has_grammar: bool
) -> None:
    """Of each answer, and so of each set of answers, P_out <= 2^K Q; each step is the closest
    distribution, and charges what the definition says.
    """
    num = len(bits) if isinstance(bits, list) else 1
    parameters = {"bits": bits, "bits_per_token": rate, "refund": refund}
    # Of each prefix: probability, those by the references, the rule's memory and the naive one's.
    prefixes: dict[tuple[int, ...], Any] = {(): (1.0, [1.0] * num, (None, None), {})}
    cut = ended = 0
    for number in range(LENGTH):
        longer = {}
        for prefix, (probability, references, (state, paid), memory) in prefixes.items():
            logits = model(prefix, num, has_grammar)
            scores = step(logits, parameters, temperature, number, state, paid)
            r = sampled(scores, temperature)[0].tolist()
            mine = dict(memory)
            rows = logits[0].double().tolist()
            want, costs = naive_bound.distribution(rows, parameters, mine, temperature)
            assert r == pytest.approx(want, abs=1e-4)
            assert scores.costs is not None
            ended += max(r) == 0.0
            p = (logits[0, 0] / temperature).softmax(-1).tolist()
            cut += r != pytest.approx(p, abs=1e-5)
            allowed = logits[0, :1] == -INF
            q = (logits[0, 1:].masked_fill(allowed, -INF).double() / temperature).softmax(-1)
            for token in range(VOCABULARY):
                if not r[token]:
                    continue
                # What is charged is what was added, and nearly what the definition has.
                paid_here = scores.costs[:, :, token]
                added = [math.log2(r[token] / float(x)) for x in q[:, token]]
                charged = [max(x, -refund * u) for x, u in zip(added, mine["used"], strict=True)]
                assert paid_here[0].tolist() == pytest.approx(charged, abs=2e-4)
                assert added == pytest.approx([c[token] for c in costs], abs=1e-2)
                after = dict(mine)
                naive_bound.take(scores.costs[0].tolist(), token, parameters, after)
                longer[*prefix, token] = (
                    probability * r[token],
                    [x * float(y) for x, y in zip(references, q[:, token], strict=True)],
                    (scores.state, paid_here),
                    after,
                )
        prefixes = longer
    assert cut > 3  # the limit is reached
    limits = zip(*(naive_bound.of_each(x, num) for x in (bits, rate)), strict=True)
    most = [2 ** (k + (LENGTH - 1) * rho) for k, rho in limits]
    total = 0.0
    for probability, references, *_ in prefixes.values():
        total += probability
        for limit, reference in zip(most, references, strict=True):
            assert probability <= limit * reference * (1 + 1e-4) + 1e-12
    assert total == pytest.approx(1.0, abs=1e-5) or (ended and num > 1 and total < 1)
    tightest = max(
        probability / (limit * reference)
        for probability, references, *_ in prefixes.values()
        for limit, reference in zip(most, references, strict=True)
    )
    assert tightest > 0.3  # and it is no loose bound


def model(prefix: Sequence[int], amateurs: int, has_grammar: bool) -> Tensor:
    """Logits [1, S, V] of a model after these tokens. The expert knows what no amateur does."""
    rng = random.Random(repr(prefix))
    rows = [[rng.gauss(0, 1.5) for _ in range(VOCABULARY)] for _ in range(1 + amateurs)]
    for row in rows[1:]:
        row[:] = [0.7 * x + 0.3 * y for x, y in zip(rows[1], row, strict=True)]
    if has_grammar:
        rows[0][len(prefix) % VOCABULARY] = -INF
    return torch.tensor([rows])


logit = st.one_of(st.floats(-30, 30, width=32), st.just(-INF), st.sampled_from([0.0, 1.0, 5.0]))


@st.composite
def streams(draw: Any) -> Tensor:
    """Logits [1, S, V] of an expert and one or two amateurs, each of which allows something."""
    size, num = draw(st.integers(1, 9)), draw(st.integers(2, 3))
    rows = [draw(st.lists(logit, min_size=size, max_size=size)) for _ in range(num)]
    for row in rows:
        if max(row) == -INF:
            row[draw(st.integers(0, size - 1))] = 0.0
    if max(rows[0]) == -INF:
        rows[0][0] = 0.0
    return torch.tensor([rows])


@given(streams(), st.sampled_from([0.0, 0.5, 3.0, 40.0, 900.0, 1e6]), st.sampled_from([0.3, 1.0]))
@settings(max_examples=400, deadline=None)
def test_properties_of_a_step(logits: Tensor, bits: float, temperature: float) -> None:
    scores = step(logits, {"bits": bits}, temperature)
    r = sampled(scores, temperature)[0]
    expert, *amateurs = (logits[0].double() / temperature).unbind()
    p = expert.softmax(-1)
    qs = [q.masked_fill(expert == -INF, -INF).softmax(-1).nan_to_num(0.0) for q in amateurs]
    most = torch.stack([q * 2.0 ** min(bits, 1000) for q in qs]).amin(0)
    want = naive_bound.closest(p.tolist(), [INF] * len(p) if bits == 1e6 else most.tolist())
    if bits < 1e6 and 1 - 2e-4 < most.sum() < 1:
        return  # rounding decides whether the answer ends
    assert r.tolist() == pytest.approx(want, abs=1e-4)
    if max(want) == 0.0:
        assert scores.scores.max() == -INF  # the answer ends
        assert len(amateurs) > 1 or qs[0].sum() == 0  # with one part only if that allows nothing
        return
    assert float(r.sum()) == pytest.approx(1.0, abs=1e-6)
    if bits < 1e6:
        assert (r <= most * (1 + 1e-4) + 1e-7).all()
    if (p <= most).all() or bits == 1e6:
        assert torch.equal(scores.scores[0], logits[0, 0])  # to the last bit those of stock
    assert scores.costs is not None and scores.costs.isfinite().all()
    assert (scores.costs[0, :, r > 0] <= bits + 1e-3).all()


@given(streams(), st.floats(0, 20), st.floats(0, 20))
@settings(max_examples=100, deadline=None)
def test_more_bits_are_nearer_to_the_expert(logits: Tensor, one: float, other: float) -> None:
    p = logits[0, 0].double().softmax(-1)
    less, more = (sampled(step(logits, {"bits": bits}))[0] for bits in sorted((one, other)))
    if less.sum():  # else the answer ends
        assert (more - p).abs().sum() <= (less - p).abs().sum() + 1e-4


def test_many_tokens_at_their_limits() -> None:
    """Where Newton's method needs many steps, what it lacks is below the limits."""
    size = 4000
    expert = -torch.arange(size) * 0.02
    amateur = torch.arange(size) * 0.02
    scores = step(torch.stack([expert, amateur])[None], {"bits": 3.0})
    r, q = sampled(scores)[0], amateur.double().softmax(-1)
    assert (r <= 8 * q * (1 + 1e-3) + 1e-12).all() and float(r.sum()) == pytest.approx(1.0)


def test_each_amateur_has_its_limit_and_one_that_is_gone_has_none() -> None:
    logits = torch.tensor([[[5.0, 0, 0], [0.0, 5, 0], [5.0, 0, 0]]])
    apart = step(logits, {"bits": [1e6, 0.0]}), step(logits, {"bits": [0.0, 1e6]})
    assert torch.equal(apart[0].scores[0], logits[0, 0])
    assert sampled(apart[1])[0].argmax() == 1
    assert apart[1].limited is not None and apart[1].limited.tolist() == [[True, False]]


def test_one_and_the_same_group_in_any_batch() -> None:
    """The charges of others are not one's own."""
    logits = torch.stack([model((i,), 1, False)[0] for i in range(5)])
    together = step(logits, {"bits": 1.0}, state=torch.arange(5.0).view(5, 1, 1) / 5)
    for i in range(5):
        alone = step(logits[i : i + 1], {"bits": 1.0}, state=torch.tensor([[[i / 5]]]))
        assert torch.allclose(alone.scores[0], together.scores[i], atol=1e-6)


def test_what_reaches_an_answer_by_all_answers_of_equal_length() -> None:
    """An event: that the answer holds a token that the reference finds unlikely."""
    secret, total, reference = 3, 0.0, 0.0
    for answer in itertools.product(range(VOCABULARY), repeat=2):
        out, without, state, paid = 1.0, 1.0, None, None
        for number, token in enumerate(answer):
            logits = torch.tensor([[[0.0, 0, 0, 9], [1.0, 1, 1, -4]]])
            scores = step(logits, {"bits": 4.0}, 1.0, number, state, paid)
            assert scores.costs is not None
            out *= float(sampled(scores)[0, token])
            without *= float(logits[0, 1].double().softmax(-1)[token])
            state, paid = scores.state, scores.costs[:, :, token]
        if secret in answer:
            total, reference = total + out, reference + without
    assert reference < 0.01 and total <= 16 * reference * 1.0001
    assert total > 8 * reference


def test_a_limit_for_each_amateur_or_for_all() -> None:
    def limits(values: Any, amateurs: int) -> Any:
        return registry.parameters_of(BOUND, {"bits": values}, "p", amateurs)["bits"]

    assert (limits(8, 2), limits([8, 4], 2), limits([8], 1)) == (8.0, [8.0, 4.0], [8.0])
    for wrong in ([8], [8, 4, 2], [], [8, -1], [8, "4"], [[8], 4], None, "8"):
        with pytest.raises(ColdError, match="or a list of 2, one for each amateur"):
            limits(wrong, 2)
    with pytest.raises(ColdError, match=r"p\['refund'\]=\[1, 1\]: must be an integer from 0 to 1$"):
        registry.parameters_of(BOUND, {"refund": [1, 1]}, "p", 2)


def test_an_engines_limit_is_for_requests_with_the_rule() -> None:
    """Of others it is none of their rule's parameters, and no error of theirs."""
    engine = parse_engine_defaults({"enabled": False, "bits": 8})
    by_name = {
        name: parse_request_args(said).settings(engine)[0].rule_parameters
        for name, said in (
            ("bound", {"cold_preset": "bound"}),
            ("less", {"cold_preset": "bound", "cold_bits": 2}),
            ("acd", {"cold_rule": "acd"}),
            ("number", {"cold_beta": 0.5}),
        )
    }
    assert by_name["bound"] == {"bits": 8.0, "bits_per_token": 0.0, "refund": 0.0}
    assert by_name["less"] is not None and by_name["less"]["bits"] == 2
    assert by_name["acd"] == {} and by_name["number"] is None


def test_the_pages_parameters() -> None:
    said: dict[str, Any] = {}
    exec(compile(block("docs/bound.md", "bound"), "block", "exec"), said)
    method, weights = said["params"].combine()
    assert (method.rule, method.rule_parameters["bits"], weights) == ("bound", 8.0, (None,))
    for wrong in ({"beta": 1.0}, {"rule": "acd"}):
        with pytest.raises(ValueError, match="preset='bound': is a rule, and"):
            ColdParams.preset("bound", bits=8, **wrong)


SECRET = "The code is 4711."


def test_a_text_is_left_out_where_it_first_stands() -> None:
    """What users say of it later, the reference reads, too; errors do not tell it."""
    source = read_source(None, None, SECRET, None)
    assert isinstance(source, WithoutText)
    assert source.of("f", f"a {SECRET} b {SECRET}") == f"a  b {SECRET}"
    system = {"role": "system", "content": f"Hello. {SECRET}"}
    user = {"role": "user", "content": f"Is it so? {SECRET}"}
    assert source.of_messages("f", [system, user]) == [{**system, "content": "Hello. "}, user]
    parts = {"role": "user", "content": [{"type": "text", "text": x} for x in ("a", SECRET, "b")]}
    (left,) = source.of_messages("f", [parts])
    assert [part["text"] for part in left["content"]] == ["a", "", "b"]
    for wrong in (
        lambda: source.of("cold_without_text", "nothing of it"),
        lambda: source.of("amateur", None),
        lambda: source.of("amateur", SECRET),
        lambda: source.of_messages("amateur", [{"role": "user", "content": "no"}]),
        lambda: describe(parse_request_args({"cold_without_text": SECRET, "cold_without": "user"})),
        lambda: parse_request_args({"cold_without_text": {"a": SECRET}}),
        lambda: Amateur(without_text=SECRET, without="system"),
    ):
        with pytest.raises(ColdError) as raised:
            wrong()
        assert "4711" not in str(raised.value)
