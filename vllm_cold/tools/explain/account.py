# SPDX-License-Identifier: Apache-2.0
"""Answers, from what the engine tells of their steps (docs/write-a-rule.md), and their report. Pure
functions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, BeforeValidator, Field

from vllm_cold.rules import registry
from vllm_cold.settings.sources import Messages, Text, Without
from vllm_cold.settings.table import LIMITS, PREFIX, ColdSettings
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import (
    Content,
    adapter_of,
    amateur_reads,
)
from vllm_cold.tools.explain import record, visible
from vllm_cold.tools.explain.explain_prompts import Question
from vllm_cold.tools.pictures import text_of
from vllm_cold.tools.server import Server

_STEPS = AliasPath("kv_transfer_params", "cold", "steps")
_BUDGET = AliasPath("kv_transfer_params", "cold", "budget")
LISTED = 20  # tokens that are asked for: the best by score, and the expert's most probable


def _is_limit(bits: float) -> bool:
    """Whether these are fewer bits than the most, which stand for no limit."""
    return bits < registry.get("bound").parameters["bits"].high


def _whole(text: str | None) -> str:
    """Return a token's text, "" for a part of a character."""
    return "" if text is None or "\ufffd" in text else text


class EngineStep(BaseModel):
    """What the engine tells of a step. Lists about tokens are parallel; None stands for an amateur
    that has ended.
    """

    candidates: int  # the number of valid tokens
    tokens: list[int]  # ids
    texts: list[Annotated[str, BeforeValidator(_whole)]]  # each token decoded alone
    scores: list[float | None]  # None for tokens that are not valid
    # By stream, the expert's first; None for forbidden tokens.
    logits: list[list[float | None] | None]
    log_sums: list[float | None]  # by stream, ln of the sum of exp(logit)
    weights: list[float | None]  # by amateur
    divergences: list[float | None]  # by amateur, from the expert, in bits
    # By amateur, of a rule that charges: see ``record.ShownStep``.
    cost: list[float | None] = []
    left: list[float | None] = []
    limited: list[bool | None] = []

    def shares(self, stream: int) -> list[float | None]:
        """Return the tokens' probabilities in a stream."""
        logits, log_sum = self.logits[stream], self.log_sums[stream]
        if logits is None or log_sum is None:
            return [None] * len(self.tokens)
        return [0.0 if x is None else min(1.0, math.exp(x - log_sum)) for x in logits]

    def shown(
        self, token: int, text: str, method: str, has_weights: bool, ends: Sequence[int]
    ) -> record.ShownStep:
        """Describe the position, at which ``method`` chose a token, one of ``tokens``, and the
        amateurs ``ends`` end; ``has_weights``: whether a rule chooses weights.
        """
        expert, *amateurs = (self.shares(i) for i in range(len(self.logits)))
        most = max(share or 0.0 for share in expert)
        best = [t for t, share in zip(self.tokens, expert, strict=True) if share == most]
        greedy = token if token in best else min(best)
        takers = {method: token, "greedy": greedy}
        candidates = [
            record.Candidate(
                token=candidate,
                text=visible.alone(self.texts[i], candidate),
                expert=expert[i] or 0.0,
                amateurs=tuple(shares[i] for shares in amateurs),
                score=self.scores[i],
                taken_by=tuple(name for name, taken in takers.items() if taken == candidate),
            )
            for i, candidate in enumerate(self.tokens)
        ]
        candidates.sort(key=lambda c: (not c.valid, -(c.score or 0.0), -c.expert, c.token))
        return record.ShownStep(
            token=token,
            text=text,
            candidates=tuple(candidates),
            valid_size=self.candidates,
            divergences=tuple(self.divergences),
            greedy=greedy,
            weights=tuple(self.weights) if has_weights else (),
            ends=tuple(ends),
            cost=tuple(self.cost),
            left=tuple(self.left),
            limited=tuple(self.limited),
        )


class EngineBudget(BaseModel):
    """What it tells of a rule that charges: limits for all amateurs or for each, and by amateur."""

    bits: float | list[float] = math.inf
    bits_per_token: float | list[float] = 0.0
    spent: list[float]
    left: list[float | None]  # None if no token was given
    reached: list[bool]

    def limits(self) -> tuple[record.Limit, ...]:
        """Return them by amateur."""
        bits, per_token = (
            value if isinstance(value, list) else [value] * len(self.spent)
            for value in (self.bits, self.bits_per_token)
        )
        columns = zip(bits, per_token, self.spent, self.left, self.reached, strict=True)
        return tuple(
            record.Limit(
                bits=bits if _is_limit(bits) else None,
                per_token=per_token,
                spent=spent,
                left=left,
                reached=reached,
            )
            for bits, per_token, spent, left, reached in columns
        )


class EngineAnswer(BaseModel):
    """What an engine tells of an answer; ``token_ids`` have the end-of-sequence token."""

    token_ids: list[int]
    finish_reason: str
    prompt_token_ids: list[int]
    steps: list[EngineStep] = Field(validation_alias=_STEPS)
    budget: EngineBudget | None = Field(None, validation_alias=_BUDGET)


def make_answer(
    question: Question, greedy: bool, text: str, fields: Mapping[str, Any]
) -> record.Answer:
    """Make the contrastive answer, or the expert's own, of what an engine returned.

    Args:
        question: What it answers.
        greedy: Whether it is the expert's own.
        text: Without special tokens.
        fields: Those of ``EngineAnswer``.

    Raises:
        ValidationError: one is missing.
        ToolError: they tell nothing of one of the tokens.
    """
    reply = EngineAnswer.model_validate(fields)
    positions = list(zip(reply.token_ids, reply.steps, strict=True))
    if any(token not in step.tokens for token, step in positions):
        raise ToolError(
            f"a token was chosen that is not among the {LISTED} best by score; explain needs "
            "temperature 0, no penalties and no other logits processors"
        )
    title = "Greedy" if greedy else str(question.args.get(PREFIX + "preset", "Contrastive"))
    settings = question.contrast.settings
    by_rule = not greedy and settings.rule is not None
    has_weights = by_rule and not registry.is_of_scores(settings.rule)
    pieces = spread(text, [step.texts[step.tokens.index(token)] for token, step in positions])
    shown = []
    followers = reply.steps[1:] + reply.steps[-1:]
    for (token, step), follower, piece in zip(positions, followers, pieces, strict=True):
        weights = enumerate(zip(step.weights, follower.weights, strict=True), 1)
        ends = [i for i, (now, then) in weights if now is not None and then is None]
        shown.append(step.shown(token, piece, title.lower(), has_weights, ends))
    return record.Answer(
        title=title,
        greedy=greedy,
        num_prompt_tokens=len(reply.prompt_token_ids),
        finish_reason=reply.finish_reason,
        steps=tuple(shown),
        limits=() if reply.budget is None else reply.budget.limits(),
    )


def spread(text: str, pieces: Sequence[str]) -> list[str]:
    """Cut an answer's text up into the pieces of its tokens, each of which is decoded alone.

    SentencePiece tokenizers drop the leading space of a token that they decode alone: it comes back
    from the whole text. A piece that is not next in the text (a special token, or a part of a
    character) stays as it is.
    """
    whole, at = [], 0
    for piece in pieces:
        for spaced in (piece, " " + piece):
            if piece and text.startswith(spaced, at):
                piece, at = spaced, at + len(spaced)
                break
        whole.append(piece)
    return whole


def make_report(
    server: Server, questions: Sequence[Question], answers: Sequence[Sequence[record.Answer]]
) -> record.Report:
    """Make a report of each prompt's answers, contrastive and greedy."""
    return record.Report(
        model=server.title,
        adapter=server.expert or record.BASE,
        source=server.about,
        method=answers[0][0].title.lower(),
        settings=_settings(questions[0].contrast.settings),
        explanations=tuple(
            record.Explanation(
                pieces=_pieces(question.reads),
                amateurs=tuple(_amateurs(server, question)),
                answers=(cold, greedy),
            )
            for question, (cold, greedy) in zip(questions, answers, strict=True)
        ),
        has_weights=not registry.is_of_scores(questions[0].contrast.settings.rule),
    )


def _settings(settings: ColdSettings) -> str:
    """Return what is the same for all prompts and amateurs, in words."""
    if settings.rule is not None and registry.is_of_scores(settings.rule):
        declared = registry.get(settings.rule).parameters
        parameters = (settings.rule_parameters or {}).items()
        return ", ".join(
            f"{name} {value}".removesuffix(".0")
            for name, value in parameters
            if name not in LIMITS and value != declared[name].default
        )
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    return f"alpha {settings.alpha:g}{cap}"


def _amateurs(server: Server, question: Question) -> Iterator[record.ShownAmateur]:
    contrast = question.contrast
    for i, (amateur, weight) in enumerate(zip(contrast.amateurs, contrast.weights, strict=True)):
        reads = ""
        if amateur.source is not None:
            is_own = isinstance(amateur.source, (Text, Messages))
            reads = f", {amateur.source} of its own" if is_own else f" {amateur.source}"
            if isinstance(amateur.source, Without) and isinstance(amateur.source.items[0], int):
                reads = f" without message {amateur.source.value}"
        if registry.is_of_scores(contrast.settings.rule):
            how = _limit(contrast.settings, i)
        elif weight is None:
            how = f", weight {contrast.settings.rule}"
        else:
            how = f", weight {weight:+g}" if weight else ", weight 0"
        adapter = adapter_of(amateur, server.expert, server.base)
        label = f"{adapter or record.BASE}{reads}{how}"
        pieces = _pieces(amateur_reads(question.reads, amateur))
        yield record.ShownAmateur(label=label, pieces=pieces)


def _limit(settings: ColdSettings, amateur: int) -> str:
    """Return what an amateur's part may add, in words; "" of a rule without limits."""
    parameters = settings.rule_parameters or {}
    if LIMITS[0] not in parameters:
        return ""
    bits, per_token = (
        value[amateur] if isinstance(value := parameters.get(name, 0.0), list) else value
        for name in LIMITS
    )
    if not _is_limit(bits):
        return ", no limit"
    return f", limit {bits:g} bits" + (f" + {per_token:g} a token" if per_token else "")


def _pieces(reads: Content | None) -> tuple[record.Piece, ...]:
    if isinstance(reads, Text):
        return (record.Piece(text=reads.value),)
    messages = () if reads is None else reads.value
    return tuple(record.Piece(text=text_of(message), role=message["role"]) for message in messages)
