# SPDX-License-Identifier: Apache-2.0
"""The numbers of ``vllm-cold explain`` against the scoring op's reference: of single steps, and of
answers of a made-up model whose every probability is known.
"""

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from tests import naive_rules
from tests.asked import asked
from tests.unit.test_pictures import file, pixels
from vllm_cold.method.amateurs import Text
from vllm_cold.method.settings import ColdSettings
from vllm_cold.ops.scoring_reference import group_scores
from vllm_cold.tools.contrast import (
    Content,
    Pictured,
    Prompt,
    Stream,
    expert_reads,
    read_streams,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import account, collect, visible
from vllm_cold.tools.explain.prompts import Asked
from vllm_cold.tools.explain.record import Report, Step
from vllm_cold.tools.explain.source import MAX_NAMED, Decoded, Logprob, Row, after, make_row
from vllm_cold.tools.pictures import as_sent, make_picture

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SIZE = 60  # of a single step's vocabulary


def logits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expert = 3 * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return expert, expert + torch.randn(SIZE, generator=generator, dtype=torch.float64)


def ln(alpha: float) -> float:
    return math.log(alpha) if alpha else -math.inf


def row(values: torch.Tensor, *kept: int) -> dict[int, Logprob]:
    """ln-probabilities of a row of logits: all, or of some."""
    found = {i: Logprob(x, f"t{i}") for i, x in enumerate(values.log_softmax(0).tolist())}
    return {token: found[token] for token in kept} if kept else found


def step(
    streams: Sequence[Row],
    weights: Sequence[float | None] | None,
    settings: ColdSettings,
    known: int = SIZE,
    token: int = 0,
    **options: Any,
) -> Step:
    valid = account.valid_tokens(streams[0], known, SIZE, settings)
    ruled = settings.rule is not None
    return account.make_step(token, "", streams, weights, valid, ruled=ruled, **options)


@given(
    seed=st.integers(0, 10**6),
    alpha=st.just(0.0) | st.floats(1e-4, 1.0),
    weights=st.lists(st.none() | st.floats(-30.0, 3.0), min_size=1, max_size=4),
    rule=st.booleans(),
    cap=st.none() | st.integers(1, SIZE + 5),
    zero=st.sampled_from([0, 20]),
)
def test_a_step_is_that_of_the_op(
    seed: int, alpha: float, weights: list[float | None], rule: bool, cap: int | None, zero: int
) -> None:
    """Valid tokens, weights, winner and scores (up to a constant), though it has probabilities."""
    expert, _ = logits(seed)
    amateurs = [logits(seed + 1 + i)[1] for i in range(len(weights))]
    amateurs[0][:zero] = -math.inf
    settings = ColdSettings(alpha, rule="acd" if rule else None, expert_top_k=cap)
    got = step([row(expert), *map(row, amateurs)], weights, settings)
    strengths = [one or 0.0 for one in weights]
    expected = group_scores(expert, amateurs, ln(alpha), strengths, cap or 0)
    assert got.weights == (tuple(weights) if rule else ())
    assert got.complete
    assert got.valid_size == int((expected > -math.inf).sum())
    assert got.greedy == int(expert.argmax())
    if not zero:  # a probability of 0 counts as a logit of 0, and as a logarithm of 0
        assert got.winner == int(expected.argmax())
    constant = -expert.logsumexp(0)
    for a, w in zip(amateurs, strengths, strict=True):
        constant += w * (expert.logsumexp(0) - a.logsumexp(0))
    for c in got.candidates:
        assert c.valid == (expected[c.token] > -math.inf)
        assert c.amateurs == pytest.approx([float(a.softmax(0)[c.token]) for a in amateurs])
        if c.valid and 0.0 not in c.amateurs:
            score = float(expected[c.token] + constant)
            assert c.score == pytest.approx(score, rel=1e-6, abs=1e-6)
    best = [c.score for c in got.candidates if c.score is not None]
    assert best == sorted(best, reverse=True)


def test_the_divergence_is_jensen_shannon() -> None:
    """Of the listed tokens and one that stands for all others, which can only lower it."""
    e, a = (values.log_softmax(0) for values in logits(2))
    some = e.topk(7).indices
    whole = account.divergence_bits(e, a)
    assert whole == pytest.approx(jensenshannon(e.exp().numpy(), a.exp().numpy(), base=2) ** 2)
    merged = [
        torch.cat([x, 1 - x.sum().reshape(1)]).numpy() for x in (e[some].exp(), a[some].exp())
    ]
    part = account.divergence_bits(e[some], a[some])
    assert part == pytest.approx(jensenshannon(*merged, base=2) ** 2)
    assert 0.01 < part < whole
    one, other = torch.eye(2, dtype=torch.float64).log()
    assert account.divergence_bits(one, other) == 1.0
    assert account.divergence_bits(one, one) == 0.0


def test_what_is_not_listed_may_win() -> None:
    """Ten tokens of sixty, without a mask: CoLD's choice is the engine's word, or not known."""
    expert, amateur = logits(3)
    ten = expert.topk(10).indices.tolist()
    stranger = next(t for t in range(SIZE) if t not in ten)

    def made(token: int, weights: list[float] | None, **more: Any) -> Step:
        rows = [row(expert, *{*ten, token}), row(amateur, *ten, token)]
        settings = ColdSettings(0.0, rule="acd")
        return step(rows, weights, settings, token=token, known=10, **more)

    assert made(ten[0], [-0.5], greedy_answer=True).winner is None
    best = made(ten[0], [-0.5]).candidates[0].token
    told = made(best, [-0.5])
    assert (told.winner, told.complete, told.wrong) == (best, False, False)
    # A listed token that is better for certain contradicts what the engine took.
    wrong = made(told.candidates[3].token, [-0.5])
    assert (wrong.winner, wrong.wrong) == (best, True)
    unknown = made(stranger, None)
    assert (unknown.winner, unknown.weights) == (stranger, None)
    assert all(c.score is None for c in unknown.candidates)


def test_no_weight_is_made_up() -> None:
    """Where the engine told none, they are not known, nor is a score; an amateur that has ended
    needs none.
    """
    expert, amateur = logits(3)
    rows = [row(expert), row(amateur), row(amateur)]
    settings = ColdSettings(0.1, rule="mti")
    for greedy_answer, winner in ((False, 7), (True, None)):
        got = step(rows, None, settings, token=7, greedy_answer=greedy_answer)
        assert (got.weights, got.winner, got.complete) == (None, winner, True)
        assert all(c.score is None for c in got.candidates)
    ended, alone = step(rows, [-0.5, None], settings), step(rows[:2], [-0.5], settings)
    assert ended.weights == (-0.5, None)
    assert [c.score for c in ended.candidates] == [c.score for c in alone.candidates]


def test_a_token_that_the_numbers_do_not_explain() -> None:
    expert, amateur = logits(5)
    amateur[expert.argmax()] += 4.0  # so CoLD takes another token than greedy
    rows, weights, settings = [row(expert), row(amateur)], [-1.0], ColdSettings(0.05)
    right = step(rows, weights, settings)
    assert right.differs and right.winner is not None
    first, second = [c for c in right.candidates if c.valid][:2]
    tokens = (right.winner, second.token, int(expert.argmin()), right.greedy)
    cold, greedy = (
        [step(rows, weights, settings, token=token, greedy_answer=g) for token in tokens]
        for g in (False, True)
    )
    assert [one.wrong for one in cold] == [False, True, True, True]
    assert first.score is not None and second.score is not None
    assert cold[1].margin == pytest.approx(first.score - second.score) and cold[2].margin is None
    assert [one.wrong for one in greedy] == [True, True, True, False]
    values = expert.log_softmax(0)
    for one in greedy[:3]:
        assert one.margin == pytest.approx(float(values[one.greedy] - values[one.token]))
    takers = {c.token: c.taken_by for c in cold[1].candidates if c.taken_by}
    assert takers == {tokens[0]: ("CoLD",), right.greedy: ("greedy",), tokens[1]: ("engine",)}


def test_many_candidates_are_cut_but_not_those_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "MOST", 5)
    rows = [row(torch.zeros(SIZE).double()), row(torch.arange(SIZE).double())]
    got = step(rows, [-1.0], ColdSettings(0.5), token=SIZE - 1)
    assert got.valid_size == SIZE
    assert [c.token for c in got.candidates] == [0, 1, 2, 3, 4, SIZE - 1]
    assert got.winner == got.greedy == 0  # equal logits: the lowest id, as argmax has it


def test_texts() -> None:
    assert account.spread("The capital", ["The", "capital", "</s>"]) == ["The", " capital", "</s>"]
    assert account.spread("a漢b", ["a", "", "漢", "b"]) == ["a", "", "漢", "b"]
    assert "".join(account.spread("x  y", ["x", " ", "y"])) == "x  y"
    assert visible.in_text("a\n\n", 1) == "a⏎\n⏎\n" and visible.in_text("  ", 1) == "␣␣"
    assert visible.in_text("", 17) == visible.alone("", 17) == "⟨17⟩"
    assert visible.in_text("\x1b[31m\u202e\u00a0", 1) == "⟨U+001B⟩[31m⟨U+202E⟩⟨U+00A0⟩"
    assert visible.alone(" é漢🙂\n\t", 1) == "␣é漢🙂⏎⇥"


def test_rows_that_hold_no_logprobs_are_refused() -> None:
    with pytest.raises(ToolError, match="--logprobs-mode"):
        make_row({5: (12.5, "a")})


VOCAB = 400
EXPERT, AMATEUR = "adapter", None  # adapters' names: the amateur is the base model


def make(field: str, reads: Content) -> list[int]:
    """One token a character."""
    if isinstance(reads, Text):
        return [ord(c) for c in reads.value]
    return [ord(c) for message in as_sent(reads.value) for c in "#" + _text(message["content"])]


def _text(content: Any) -> str:
    """Of an image three characters, which are those of its bytes."""
    if isinstance(content, str):
        return content
    urls = [part.get("image_url", {}).get("url") for part in content]
    return "".join(
        part["text"] if url is None else chr(0x100 + crc32(url.encode()) % 99) * 3
        for part, url in zip(content, urls, strict=True)
    )


def behind(read: Asked, tokens: Sequence[int]) -> Asked:
    """A prompt with the beginning of an answer behind what each stream reads."""
    return replace(read, streams=tuple(after(stream, tokens) for stream in read.streams))


class Model:
    """A Source: the next token's distribution is drawn from the text before it."""

    model, base, about = "model", "base", "made up"
    loaded = ["adapter", "other"]  # noqa: RUF012

    def __init__(self, spread: float = 3.0) -> None:
        self.expert: str | None = EXPERT
        self.max_model_len: int | None = 64
        self.vocab_size: int | None = VOCAB
        self.spread, self.looked_up = spread, 0

    def logprobs(self, stream: Stream) -> list[float]:
        rng = random.Random(str(list(stream.ids)))
        values = [rng.gauss(0, self.spread) for _ in range(VOCAB)]
        if stream.adapter == AMATEUR:
            values = [value + rng.gauss(0, 3.0) for value in values]
        total = math.log(math.fsum(map(math.exp, values)))
        return [value - total for value in values]

    def read_one(self, one: Asked, expert: str | None = EXPERT) -> Asked:
        prompt, amateurs = one.row.prompt, one.contrast.amateurs
        streams = read_streams(
            expert_reads(prompt, one.chat), amateurs, make, expert, self.base, self.loaded
        )
        return replace(one, streams=streams)

    async def tokens(self, field: str, reads: Content) -> list[int]:
        return make(field, reads)

    async def decode(
        self, prompts: Sequence[Asked], greedy: bool, max_tokens: int
    ) -> list[Decoded]:
        return [self.answer(one, greedy, max_tokens) for one in prompts]

    def answer(self, prompt: Asked, greedy: bool, max_tokens: int) -> Decoded:
        tokens: list[int] = []
        weights: list[tuple[float | None, ...]] = []
        ruled = not greedy and prompt.contrast.settings.rule is not None
        for _ in range(max_tokens):
            text = behind(prompt, tokens)
            if ruled:
                weights.append(tuple(self.weights(text)))
            found = self._rows_of(text)[0] if greedy else self.scores(text)
            tokens.append(int(found.argmax()))
        return Decoded(tuple(tokens), "", "length", tuple(weights))

    def weights(self, text: Asked) -> list[float]:
        """By ``naive_rules``, where they are not fixed."""
        settings, rows = text.contrast.settings, self._rows_of(text)
        if settings.rule is None:
            return [float(one or 0.0) for one in text.contrast.weights]
        alone = group_scores(rows[0], [], ln(settings.alpha), [], settings.expert_top_k or 0)
        given = settings.rule_parameters or {}
        found = naive_rules.weights(settings.rule, given, rows, alone > -math.inf, 0, {})
        pairs = zip(text.contrast.weights, found, strict=True)
        return [new if one is None else one for one, new in pairs]

    def scores(self, text: Asked) -> torch.Tensor:
        """By the op's reference."""
        settings, (expert, *amateurs) = text.contrast.settings, self._rows_of(text)
        cap = settings.expert_top_k or 0
        return group_scores(expert, amateurs, ln(settings.alpha), self.weights(text), cap)

    def _rows_of(self, text: Asked) -> list[torch.Tensor]:
        return [torch.tensor(self.logprobs(s), dtype=torch.float64) for s in text.streams]

    async def score(self, texts: Sequence[Stream], top: int) -> list[list[Row]]:
        assert top <= 20
        return [self.rows(text, top) for text in texts]

    def rows(self, text: Stream, top: int) -> list[Row]:
        found: list[Row] = []
        for end in range(1, len(text.ids)):
            values = self.logprobs(Stream(text.adapter, text.ids[:end]))
            best = sorted(range(VOCAB), key=lambda t: -values[t])[:top]  # noqa: B023
            found.append({t: Logprob(values[t], f"t{t}") for t in {*best, text.ids[end]}})
        return found

    async def largest_top(self) -> int:
        return 20

    async def look_up(
        self, asked: Sequence[tuple[Stream, Sequence[int]]]
    ) -> list[Mapping[int, float]]:
        found = []
        for text, ids in asked:
            assert len(ids) <= MAX_NAMED
            self.looked_up += len(ids)
            values = self.logprobs(text)
            found.append({t: values[t] for t in ids})
        return found


def explain(model: Model, prompts: Sequence[Asked], **options: Any) -> Report:
    return asyncio.run(collect.explain(model, prompts, **options))


def exact(model: Model, report: Report, prompts: Sequence[Asked]) -> list[Step]:
    """Every number of the report is that of the model's streams; its steps."""
    steps = []
    for one, explanation in zip(prompts, report.explanations, strict=True):
        whole = model.read_one(one)
        for answer in explanation.answers:
            assert not any(step.wrong for step in answer.steps)
            tokens: list[int] = []
            for step in answer.steps:
                text = behind(whole, tokens)
                expert, *amateurs = map(model.logprobs, text.streams)
                scores = model.scores(text)
                valid = set((scores > -math.inf).nonzero().flatten().tolist())
                assert step.winner in (int(scores.argmax()), None)
                assert step.greedy == expert.index(max(expert))
                if step.complete:
                    assert step.valid_size == len(valid)
                for c in step.candidates:
                    values = [math.exp(row[c.token]) for row in (expert, *amateurs)]
                    assert [c.expert, *c.amateurs] == values
                    assert c.valid == (c.token in valid)
                    if c.score is not None:
                        assert c.score == pytest.approx(float(scores[c.token]), abs=1e-6)
                if step.weights:
                    assert list(step.weights) == model.weights(text)
                tokens.append(step.token)
                steps.append(step)
    return steps


CHAT = (("system", "ab"), ("user", "c"))
TWO: dict[str, Any] = {"amateur": ["base", ""], "amateur_prompt": ["", "xy"]}
ONE = make_picture("one.png", file(pixels((5, 4))))
OTHER = make_picture("two.png", file(pixels((7, 9)), "JPEG"))
PICTURED = Pictured((("system", "ab"), ("user", "c")), (ONE,))
BOTH = Pictured((("user", "cd"),), (ONE, OTHER))
CASES: dict[str, tuple[Prompt, dict[str, Any]]] = {
    "cap": ("ab", {"alpha": 0.0, "expert_top_k": 7}),
    "two": (
        "ab",
        {**TWO, "weights": ["adaptive", -0.5], "beta_max": 300.0, "alpha": 0.05},
    ),
    "vcd": (PICTURED, {"preset": "vcd"}),
    "no images": (BOTH, {"without": "images", "alpha": 0.05, "beta": 1.0}),
    "views": (PICTURED, {"images": ["noise:500", "none"], "weights": [-1.0, 0.5], "alpha": 0.05}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_exact(case: str) -> None:
    prompt, contrast = CASES[case]
    model, prompts = Model(spread=6.0), asked([prompt], **contrast)
    report = explain(model, prompts, max_tokens=6)
    assert model.looked_up > 0  # the case is one where something was missing
    assert all(step.complete for step in exact(model, report, prompts))
    cold, greedy = report.explanations[0].answers
    assert all(step.winner is not None for step in cold.steps)
    assert any(step.differs for step in cold.steps)
    same = [a.token == b.token for a, b in zip(cold.steps, greedy.steps, strict=True)].index(False)
    ruled = prompts[0].contrast.settings.rule is not None
    for answer, known in ((cold, 6), (greedy, same + 1)):  # weights of its own text alone
        told = [bool(step.weights) for step in answer.steps]
        assert told == [ruled and i < known for i in range(6)]
    assert [step.winner is not None for step in greedy.steps] == [
        not ruled or i <= same for i in range(6)
    ]
    lengths = [one.tokens for one in report.explanations[0].amateurs]
    assert lengths == [len(stream.ids) for stream in model.read_one(prompts[0]).streams[1:]]


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, "acd"), (0.02, 0.5)])
def test_a_limit_is_told(alpha: float, beta: Any) -> None:
    """Where more tokens are valid than may be listed: the engine's word."""
    model, prompts = Model(spread=1.0), asked(["ab"], alpha=alpha, beta=beta)
    report = explain(model, prompts, max_tokens=4)
    steps = exact(model, report, prompts)
    assert all(not step.complete and step.valid_size >= 20 for step in steps)
    cold, greedy = report.explanations[0].answers
    assert all(step.winner == step.token for step in cold.steps)
    assert all(step.winner is None for step in greedy.steps)


def test_what_the_report_says_of_amateurs() -> None:
    def of(prompt: Prompt, **contrast: Any) -> list[tuple[str, list[str]]]:
        report = explain(Model(), asked([prompt], **contrast), max_tokens=1)
        amateurs = report.explanations[0].amateurs
        return [(one.label, [piece.text for piece in one.pieces]) for one in amateurs]

    parts = '[{"role": "user", "content": "x"}]'
    for found, said in (
        (of("ab", rule="adaptive"), [("base model, weight adaptive", [])]),
        (
            of("ab", **TWO, weights=["mti", 0.25]),
            [("base model, weight mti", []), ("adapter, text of its own, weight +0.25", ["xy"])],
        ),
        (
            of(CHAT, without="system", preset="cfg"),
            [("adapter without system, weight -0.5", ["c"])],
        ),
        (of("abcd", part="1:2,3:4"), [("adapter without 1:2,3:4, weight -0.5", ["ac"])]),
        (
            of(CHAT, amateur_messages=parts),
            [("adapter, messages of its own, weight -0.5", ["x"])],
        ),
        (
            of(BOTH, images="blur:2"),
            [
                (
                    "adapter blur:2, weight -0.5",
                    ["[image one.png, 5 × 4, blur:2]\n[image two.png, 7 × 9, blur:2]\ncd"],
                )
            ],
        ),
        (of(PICTURED, images="none"), [("adapter without images, weight -0.5", ["ab", "c"])]),
    ):
        assert found == said


def test_what_does_not_fit_is_refused_before_anything_is_decoded() -> None:
    explain(Model(), asked(["ab"]), max_tokens=61)
    for contrast, most, said in (
        ({}, 62, r"--max-tokens=62: the prompt 'ab' has 2 tokens"),
        ({"amateur_prompt": "xyz"}, 61, "what amateur 1 reads of the prompt 'ab' has 3 tokens"),
        ({"amateur": "adapter"}, 2, "^--amateur='adapter': gives the amateur the tokens that"),
        ({"amateur_prompt": "ab"}, 2, "^--amateur-prompt='ab': gives the amateur the tokens that"),
    ):
        with pytest.raises(ToolError, match=said):
            explain(Model(), asked(["ab"], **contrast), max_tokens=most)
