# SPDX-License-Identifier: Apache-2.0
"""``explain`` with a made-up model whose every probability is known."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from tests.asked import asked
from vllm_cold.method.amateurs import Text
from vllm_cold.method.settings import ColdSettings
from vllm_cold.ops.scoring_reference import adaptive_weight, group_scores
from vllm_cold.tools.contrast import Content
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, trace
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.replies import Entry
from vllm_cold.tools.explain.server import pack
from vllm_cold.tools.explain.sources import (
    MAX_NAMED,
    Decoded,
    Description,
    Read,
    read,
    read_rows,
)
from vllm_cold.tools.explain.trace import Logprob, Row

pytestmark = pytest.mark.unit

VOCAB = 400
EXPERT, AMATEUR = "adapter", None  # adapters' names: the amateur is the base model


def make(field: str, reads: Content) -> list[int]:
    """One token a character."""
    if isinstance(reads, Text):
        return [ord(c) for c in reads.value]
    return [ord(c) for message in reads.value for c in "#" + message["content"]]


class Model:
    """A Source: the next token's distribution is drawn from the text before it."""

    def __init__(self, spread: float = 3.0, largest: int = 20, can_look_up: bool = True) -> None:
        self.description = Description("model", "adapter", "made up")
        self.max_model_len: int | None = 64
        self.vocab_size: int | None = VOCAB
        self.spread, self.largest, self.can_look_up = spread, largest, can_look_up
        self.scored: list[tuple[str | None, int, int]] = []
        self.looked_up = 0

    def logprobs(self, stream: str | None, text: Sequence[int]) -> list[float]:
        rng = random.Random(str(list(text)))
        logits = [rng.gauss(0, self.spread) for _ in range(VOCAB)]
        if stream == AMATEUR:
            logits = [value + rng.gauss(0, 3.0) for value in logits]
        total = math.log(math.fsum(map(math.exp, logits)))
        return [value - total for value in logits]

    def read(self, prompts: Sequence[Asked]) -> list[Read]:
        return [read(one, make, EXPERT, "base", ["adapter", "other"]) for one in prompts]

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Decoded]:
        answers = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(max_tokens):
                e = self.logprobs(EXPERT, ids)
                ids.append(e.index(max(e)))
            answers.append(Decoded(tuple(ids[len(prompt) :]), "", "length"))
        return answers

    def cold(self, prompts: Sequence[Read], max_tokens: int) -> list[Decoded]:
        answers = []
        for prompt in prompts:
            tokens: list[int] = []
            for _ in range(max_tokens):
                scores = self.scores(prompt.after(tokens))
                tokens.append(int(scores.argmax()))
            text = f"t{tokens[0]}" if max_tokens == 1 else ""
            answers.append(Decoded(tuple(tokens), text, "length"))
        return answers

    def scores(self, text: Read) -> torch.Tensor:
        """By the op's reference."""
        settings, weights = text.asked.contrast.settings, text.asked.contrast.weights
        expert, *amateurs = (
            torch.tensor(self.logprobs(s.adapter, s.ids), dtype=torch.float64) for s in text.streams
        )
        log_alpha = math.log(settings.alpha) if settings.alpha else -math.inf
        return group_scores(
            expert,
            amateurs,
            log_alpha,
            [weight.weight for weight in weights],
            settings.expert_top_k or 0,
            [weight.adaptive for weight in weights],
        )

    def choose(self, texts: Sequence[Read]) -> list[Decoded | None]:
        if not self.can_look_up:
            return [None] * len(texts)
        return [*self.cold(texts, 1)]

    def score(
        self, stream: str | None, texts: Sequence[Sequence[int]], top: int
    ) -> list[list[Row]]:
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
        self, stream: str | None, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
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
                    assert (c.expert, *c.amateurs) == (e[c.token], a[c.token])
                    assert c.valid == (c.token in valid)
                    assert c.bounds == (False,)
                ids.append(step.token)


def test_every_number_is_exact() -> None:
    model, settings = Model(spread=6.0), ColdSettings(0.1, 1.0)
    report = collect.explain(model, asked(["ab", "c"], settings), max_tokens=6, listed=5)
    assert model.looked_up > 0  # the case is one where something was missing
    check(model, report, settings)
    assert any(step.differs for e in report.explanations for step in e.cold.steps)
    assert any(e.parting is not None for e in report.explanations)


def test_an_adaptive_beta() -> None:
    model, settings = Model(spread=6.0), ColdSettings(0.02, "adaptive", beta_max=400.0)
    report = collect.explain(model, asked(["ab", "c"], settings), max_tokens=6, listed=5)
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
        report = collect.explain(model, asked(["ab", "c"], settings), max_tokens=6, listed=5)
        answers = [a for e in report.explanations for a in (e.cold, e.greedy)]
        assert any(answer.unknown_betas for answer in answers)
        assert all(answer.mismatches == () for answer in answers)


def test_more_is_asked_for_until_the_valid_set_is_complete() -> None:
    model, settings = Model(spread=1.0, largest=400), ColdSettings(0.02, 0.3)
    report = collect.explain(model, asked(["ab", "c"], settings), max_tokens=4, listed=5)
    assert max(step.valid_size for e in report.explanations for step in e.cold.steps) > 128
    check(model, report, settings)
    assert {top for stream, _, top in model.scored if stream == EXPERT} == {20, 80, 320, VOCAB}
    assert {top for stream, _, top in model.scored if stream == AMATEUR} == {20}


def test_a_limit_is_told() -> None:
    model, settings = Model(spread=1.0, largest=20), ColdSettings(0.02, 0.0)
    report = collect.explain(model, asked(["ab"], settings), max_tokens=4)
    steps = report.explanations[0].cold.steps
    assert all(not step.valid_complete and step.valid_size >= 20 for step in steps)
    assert report.explanations[0].cold.mismatches == ()  # beta 0: the best of 20 is the best


def test_without_look_up_the_amateur_is_bounded() -> None:
    model, settings = Model(can_look_up=False), ColdSettings(0.05, 1.0)
    report = collect.explain(model, asked(["ab"], settings), max_tokens=6)
    ids = [ord(c) for c in "ab"]
    bounds = 0
    for step in report.explanations[0].cold.steps:
        a = model.logprobs(AMATEUR, ids)
        for c in step.candidates:
            [value], [bound] = c.amateurs, c.bounds
            assert value is not None
            if bound:
                bounds += 1
                assert value > a[c.token]
            else:
                assert value == a[c.token]
        ids.append(step.token)
    assert bounds > 0


def test_what_does_not_fit_is_refused_before_anything_is_decoded() -> None:
    model = Model()
    collect.explain(model, asked(["ab"], ColdSettings()), max_tokens=61)
    with pytest.raises(ToolError, match=r"--max-tokens=62: the prompt 'ab' has 2 tokens"):
        collect.explain(Model(), asked(["ab"], ColdSettings()), max_tokens=62)
    with pytest.raises(ToolError, match="give a prompt with text"):
        collect.explain(Model(), asked([""], ColdSettings()), max_tokens=2)


def test_pack_puts_neighbours_together() -> None:
    wanted = [([i], list(range(10 * i, 10 * i + 20))) for i in range(40)]
    packed = list(pack(wanted))
    assert [text for texts, _ in packed for text in texts] == [[i] for i in range(40)]
    assert all(len(ids) <= MAX_NAMED for _, ids in packed)
    assert len(packed) < 6
    for texts, ids in packed:
        for text in texts:
            assert set(wanted[text[0]][1]) <= set(ids)
    assert list(pack([])) == []


def test_rows_that_hold_no_logprobs_are_refused() -> None:
    with pytest.raises(ToolError, match="--logprobs-mode"):
        read_rows([None, {5: Entry(logprob=12.5, decoded_token="a")}])


CHAT = (("system", "ab"), ("user", "c"))
TWO: dict[str, Any] = {"amateur": ["base", ""], "amateur_prompt": ["", "xy"]}


def exact(model: Model, report: trace.Report, prompts: list[Asked]) -> list[trace.Step]:
    """Every number of the report is that of the model's streams; its steps."""
    steps = []
    for whole, explanation in zip(model.read(prompts), report.explanations, strict=True):
        for answer in (explanation.cold, explanation.greedy):
            assert answer.mismatches == ()
            tokens: list[int] = []
            for step in answer.steps:
                text = whole.after(tokens)
                expert, *amateurs = (model.logprobs(s.adapter, s.ids) for s in text.streams)
                scores = model.scores(text)
                assert step.winner == int(scores.argmax())
                for c in step.candidates:
                    assert (c.expert, c.amateurs) == (
                        expert[c.token],
                        tuple(a[c.token] for a in amateurs),
                    )
                    if c.valid and c.score is not None and step.valid_complete:
                        assert c.score == pytest.approx(float(scores[c.token]), abs=1e-6)
                tokens.append(step.token)
                steps.append(step)
    return steps


@pytest.mark.parametrize(
    ("prompt", "contrast"),
    [
        (CHAT, {"without": "system", "alpha": 0.05, "beta": 1.0}),
        ("ab", {"part": "0:1", "alpha": 0.05, "beta": 1.0}),
        ("ab", {"amateur_prompt": "xyz", "amateur": "other", "alpha": 0.05}),
        ("ab", {**TWO, "weights": [-1.0, 0.5], "alpha": 0.05}),
        ("ab", {**TWO, "weights": ["adaptive", -0.5], "beta_max": 300.0, "alpha": 0.05}),
    ],
)
def test_own_prompts_and_several_amateurs(prompt: Any, contrast: dict[str, Any]) -> None:
    model, prompts = Model(spread=6.0), asked([prompt], **contrast)
    report = collect.explain(model, prompts, max_tokens=6, listed=5)
    steps = exact(model, report, prompts)
    assert all(step.valid_complete and not step.told for step in steps)
    assert any(step.differs for step in steps)
    [explanation] = report.explanations
    assert [one.tokens for one in explanation.amateurs] == [
        len(stream.ids) for stream in model.read(prompts)[0].streams[1:]
    ]


@pytest.mark.parametrize("beta", [0.5, "adaptive"])
def test_without_a_mask(beta: Any) -> None:
    """All tokens of a small vocabulary are asked for; of a large one none in vain."""
    prompts = asked([CHAT], without="system", alpha=0.0, beta=beta)
    small = Model(spread=6.0, largest=VOCAB)
    steps = exact(small, collect.explain(small, prompts, max_tokens=4), prompts)
    assert all(step.valid_complete and not step.told for step in steps)
    assert {top for _, _, top in small.scored} == {20, VOCAB} and small.looked_up == 0
    large = Model(spread=6.0, largest=100)
    steps = exact(large, collect.explain(large, prompts, max_tokens=4), prompts)
    assert all(step.told and not step.valid_complete for step in steps)
    assert all((None in step.weights) == (beta == "adaptive") for step in steps)
    for step in steps:  # what the engine told is listed, by its text
        named = step.find(step.winner) if step.winner is not None else None
        assert named is not None and named.text == f"t{step.winner}"
    assert {top for _, _, top in large.scored} == {20}
    # Who cannot be asked what CoLD takes in the greedy answer does not say it.
    silent = Model(spread=6.0, can_look_up=False)
    [explanation] = collect.explain(silent, prompts, max_tokens=4).explanations
    assert all(step.told and step.winner == step.token for step in explanation.cold.steps)
    assert all(step.winner is None for step in explanation.greedy.steps)
    assert explanation.cold.mismatches == explanation.greedy.mismatches == ()


def test_what_the_report_says_of_amateurs() -> None:
    def of(prompt: Any, **contrast: Any) -> trace.Report:
        return collect.explain(Model(), asked([prompt], **contrast), max_tokens=1)

    plain = of("ab", beta=1.0)
    assert (plain.amateur, plain.strength) == ("base model", ("beta", "1.0"))
    chat = of(CHAT, without="system", preset="cfg")
    assert chat.amateur == "adapter reading the same conversation without system"
    assert chat.strength == ("beta", "0.5") and chat.settings.alpha == 0.0
    [amateur] = chat.explanations[0].amateurs
    assert [(p.role, p.text, p.gone) for p in amateur.pieces] == [
        ("system", "ab", True),
        ("user", "c", False),
    ]
    assert amateur.leaves_out
    [amateur] = of("abcd", part="1:2,3:4").explanations[0].amateurs
    assert [(p.text, p.gone) for p in amateur.pieces] == [
        ("a", False), ("b", True), ("c", False), ("d", True)
    ]  # fmt: skip
    two = of("ab", **TWO, weights=[-1.0, 0.25])
    assert two.amateur == "base model and adapter reading a text of its own"
    assert two.strength == ("weights", "-1, +0.25")
    assert [one.pieces for one in two.explanations[0].amateurs] == [(), (trace.Piece("xy"),)]
    mixed = [*asked(["ab"], amateur_prompt="x"), *asked(["ab"], part="0:1")]
    report = collect.explain(Model(), mixed, max_tokens=1)
    assert report.amateur == "amateurs that differ from prompt to prompt"


def test_an_amateur_that_is_its_expert_is_refused() -> None:
    for contrast in ({"amateur": "adapter"}, {"amateur_prompt": "ab"}):
        with pytest.raises(ToolError, match="^--amateur.*: gives the amateur the tokens that"):
            collect.explain(Model(), asked(["ab"], **contrast))
    with pytest.raises(ToolError, match="--max-tokens=61: what amateur 1 reads of the prompt 'ab'"):
        collect.explain(Model(), asked(["ab"], amateur_prompt="xyz"), max_tokens=61)
