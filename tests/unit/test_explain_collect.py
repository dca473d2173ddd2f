# SPDX-License-Identifier: Apache-2.0
"""``explain`` with a made-up model whose every probability is known."""

import math
import random
from collections.abc import Mapping, Sequence

import pytest
import torch

from vllm_cold.method.settings import ColdSettings
from vllm_cold.ops.scoring_reference import adaptive_weight, group_scores
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, trace
from vllm_cold.tools.explain.replies import Entry
from vllm_cold.tools.explain.server import pack
from vllm_cold.tools.explain.sources import (
    AMATEUR,
    EXPERT,
    MAX_NAMED,
    Decoded,
    Description,
    read_rows,
)
from vllm_cold.tools.explain.trace import Logprob, Row

pytestmark = pytest.mark.unit

VOCAB = 400


class Model:
    """A Source: the next token's distribution is drawn from the text before it."""

    def __init__(self, spread: float = 3.0, largest: int = 20, can_look_up: bool = True) -> None:
        self.description = Description("model", "adapter", "base model", "made up")
        self.max_model_len: int | None = 64
        self.vocab_size: int | None = VOCAB
        self.spread, self.largest, self.can_look_up = spread, largest, can_look_up
        self.scored: list[tuple[str, int, int]] = []
        self.looked_up = 0

    def logprobs(self, stream: str, text: Sequence[int]) -> list[float]:
        rng = random.Random(str(list(text)))
        logits = [rng.gauss(0, self.spread) for _ in range(VOCAB)]
        if stream == AMATEUR:
            logits = [value + rng.gauss(0, 3.0) for value in logits]
        total = math.log(math.fsum(map(math.exp, logits)))
        return [value - total for value in logits]

    def encode(self, prompts: Sequence[str], chat: bool) -> list[list[int]]:
        return [[ord(c) for c in prompt] for prompt in prompts]

    def decode(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, settings: ColdSettings | None
    ) -> list[Decoded]:
        answers = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(max_tokens):
                e = self.logprobs(EXPERT, ids)
                scores = e
                if settings is not None:
                    expert, amateur = torch.tensor([e, self.logprobs(AMATEUR, ids)]).double()
                    knobs = math.log(settings.alpha), [-settings.strength]
                    adaptive = [settings.adaptive]
                    found = group_scores(expert, [amateur], *knobs, adaptive=adaptive)
                    scores = found.tolist()
                ids.append(scores.index(max(scores)))
            answers.append(Decoded(tuple(ids[len(prompt) :]), "", "length"))
        return answers

    def score(self, stream: str, texts: Sequence[Sequence[int]], top: int) -> list[list[Row]]:
        assert top <= max(self.largest, 20)
        self.scored.append((stream, len(texts), top))
        found = []
        for text in texts:
            rows: list[Row] = []
            for end in range(1, len(text)):
                values = self.logprobs(stream, text[:end])
                best = sorted(range(VOCAB), key=lambda t: -values[t])[:top]  # noqa: B023
                rows.append({t: Logprob(values[t], f"t{t}") for t in {*best, text[end]}})
            found.append(rows)
        return found

    def largest_top(self) -> int:
        return self.largest

    def look_up(
        self, stream: str, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        found = []
        for text, ids in asked:
            assert len(ids) <= MAX_NAMED
            self.looked_up += len(ids)
            values = self.logprobs(stream, text)
            found.append({t: values[t] for t in ids} if self.can_look_up else {})
        return found


def check(model: Model, report: trace.Report, settings: ColdSettings) -> None:
    """Every number of the report is the model's."""
    for prompt, explanation in zip(("ab", "c"), report.explanations, strict=True):
        for answer in (explanation.cold, explanation.greedy):
            assert answer.mismatches == ()
            ids = [ord(c) for c in prompt]
            for step in answer.steps:
                e, a = model.logprobs(EXPERT, ids), model.logprobs(AMATEUR, ids)
                valid = {t for t in range(VOCAB) if e[t] >= max(e) + math.log(settings.alpha)}
                assert step.valid_size == len(valid)
                assert step.valid_complete
                assert step.greedy == e.index(max(e))
                listed = {c.token for c in step.candidates}
                favourites = sorted(range(VOCAB), key=lambda t: -a[t])[:5]  # noqa: B023
                if len(valid) < 50:  # a page does not list hundreds
                    assert listed >= {*valid, *favourites}
                for c in step.candidates:
                    assert (c.expert, c.amateur) == (e[c.token], a[c.token])
                    assert c.valid == (c.token in valid)
                    assert not c.amateur_is_bound
                ids.append(step.token)


def test_every_number_is_exact() -> None:
    model, settings = Model(spread=6.0), ColdSettings(0.1, 1.0)
    report = collect.explain(model, ["ab", "c"], settings, max_tokens=6, listed=5)
    assert model.looked_up > 0  # the case is one where something was missing
    check(model, report, settings)
    assert any(step.differs for e in report.explanations for step in e.cold.steps)
    assert any(e.parting is not None for e in report.explanations)


def test_an_adaptive_beta() -> None:
    model, settings = Model(spread=6.0), ColdSettings(0.02, "adaptive", beta_max=400.0)
    report = collect.explain(model, ["ab", "c"], settings, max_tokens=6, listed=5)
    check(model, report, settings)
    betas = []
    for prompt, explanation in zip(("ab", "c"), report.explanations, strict=True):
        for answer in (explanation.cold, explanation.greedy):
            ids = [ord(c) for c in prompt]
            for step in answer.steps:
                rows = [torch.tensor(model.logprobs(s, ids)).double() for s in (EXPERT, AMATEUR)]
                expected = -adaptive_weight(rows[0], rows[1], math.log(0.02), -400.0)
                assert step.beta == pytest.approx(expected, rel=1e-4, abs=1e-9)
                betas.append(expected)
                ids.append(step.token)
    assert max(betas) > 0.1
    assert any(step.differs for e in report.explanations for step in e.cold.steps)


def test_an_adaptive_beta_that_the_source_does_not_tell_enough_for() -> None:
    settings = ColdSettings(0.02, "adaptive")
    for model in (Model(spread=1.0, largest=20), Model(spread=3.0, can_look_up=False)):
        report = collect.explain(model, ["ab", "c"], settings, max_tokens=6, listed=5)
        answers = [a for e in report.explanations for a in (e.cold, e.greedy)]
        assert any(answer.unknown_betas for answer in answers)
        assert all(answer.mismatches == () for answer in answers)


def test_more_is_asked_for_until_the_valid_set_is_complete() -> None:
    model, settings = Model(spread=1.0, largest=400), ColdSettings(0.02, 0.3)
    report = collect.explain(model, ["ab", "c"], settings, max_tokens=4, listed=5)
    assert max(step.valid_size for e in report.explanations for step in e.cold.steps) > 128
    check(model, report, settings)
    assert {top for stream, _, top in model.scored if stream == EXPERT} == {20, 80, 320, VOCAB}
    assert {top for stream, _, top in model.scored if stream == AMATEUR} == {20}


def test_a_limit_is_told() -> None:
    model, settings = Model(spread=1.0, largest=20), ColdSettings(0.02, 0.0)
    report = collect.explain(model, ["ab"], settings, max_tokens=4)
    steps = report.explanations[0].cold.steps
    assert all(not step.valid_complete and step.valid_size >= 20 for step in steps)
    assert report.explanations[0].cold.mismatches == ()  # beta 0: the best of 20 is the best


def test_without_look_up_the_amateur_is_bounded() -> None:
    model, settings = Model(can_look_up=False), ColdSettings(0.05, 1.0)
    report = collect.explain(model, ["ab"], settings, max_tokens=6)
    ids = [ord(c) for c in "ab"]
    bounds = 0
    for step in report.explanations[0].cold.steps:
        a = model.logprobs(AMATEUR, ids)
        for c in step.candidates:
            assert c.amateur is not None
            if c.amateur_is_bound:
                bounds += 1
                assert c.amateur > a[c.token]
            else:
                assert c.amateur == a[c.token]
        ids.append(step.token)
    assert bounds > 0


def test_what_does_not_fit_is_refused_before_anything_is_decoded() -> None:
    model = Model()
    collect.explain(model, ["ab"], ColdSettings(), max_tokens=61)
    with pytest.raises(ToolError, match=r"--max-tokens=62: the prompt 'ab' has 2 tokens"):
        collect.explain(Model(), ["ab"], ColdSettings(), max_tokens=62)
    with pytest.raises(ToolError, match="give a prompt with text"):
        collect.explain(Model(), [""], ColdSettings(), max_tokens=2)


def test_pack_puts_neighbours_together() -> None:
    asked = [([i], list(range(10 * i, 10 * i + 20))) for i in range(40)]
    packed = list(pack(asked))
    assert [text for texts, _ in packed for text in texts] == [[i] for i in range(40)]
    assert all(len(ids) <= MAX_NAMED for _, ids in packed)
    assert len(packed) < 6
    for texts, ids in packed:
        for text in texts:
            assert set(asked[text[0]][1]) <= set(ids)
    assert list(pack([])) == []


def test_rows_that_hold_no_logprobs_are_refused() -> None:
    with pytest.raises(ToolError, match="--logprobs-mode"):
        read_rows([None, {5: Entry(logprob=12.5, decoded_token="a")}])
