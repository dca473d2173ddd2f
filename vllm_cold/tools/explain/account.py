# SPDX-License-Identifier: Apache-2.0
"""Answers, from what the engine tells of their steps (docs/write-a-rule.md), and their report. Pure
functions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, BeforeValidator, Field

from vllm_cold.settings.sources import Messages, Text, Without
from vllm_cold.settings.table import PREFIX
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import Content, adapter_of, amateur_reads
from vllm_cold.tools.explain import record, visible
from vllm_cold.tools.explain.explain_prompts import Question
from vllm_cold.tools.pictures import text_of
from vllm_cold.tools.server import Server

_STEPS = AliasPath("kv_transfer_params", "cold", "steps")
LISTED = 20  # tokens that are asked for: the best by score, and the expert's most probable


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

    def shares(self, stream: int) -> list[float | None]:
        """Return the tokens' probabilities in a stream."""
        logits, log_sum = self.logits[stream], self.log_sums[stream]
        if logits is None or log_sum is None:
            return [None] * len(self.tokens)
        return [0.0 if x is None else min(1.0, math.exp(x - log_sum)) for x in logits]

    def shown(
        self, token: int, text: str, method: str, ruled: bool, ends: Sequence[int]
    ) -> record.ShownStep:
        """Describe the position, at which ``method`` chose a token, one of ``tokens``, and the
        amateurs ``ends`` end; ``ruled``: whether a rule chooses weights.
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
            weights=tuple(self.weights) if ruled else (),
            ends=tuple(ends),
        )


class EngineAnswer(BaseModel):
    """What an engine tells of an answer; ``token_ids`` have the end-of-sequence token."""

    token_ids: list[int]
    finish_reason: str
    prompt_token_ids: list[int]
    steps: list[EngineStep] = Field(validation_alias=_STEPS)


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
    ruled = not greedy and question.contrast.settings.rule is not None
    pieces = spread(text, [step.texts[step.tokens.index(token)] for token, step in positions])
    shown = []
    followers = reply.steps[1:] + reply.steps[-1:]
    for (token, step), follower, piece in zip(positions, followers, pieces, strict=True):
        weights = enumerate(zip(step.weights, follower.weights, strict=True), 1)
        ends = [i for i, (now, then) in weights if now is not None and then is None]
        shown.append(step.shown(token, piece, title.lower(), ruled, ends))
    return record.Answer(
        title=title,
        greedy=greedy,
        num_prompt_tokens=len(reply.prompt_token_ids),
        finish_reason=reply.finish_reason,
        steps=tuple(shown),
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
    settings = questions[0].contrast.settings
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    return record.Report(
        model=server.title,
        adapter=server.expert or record.BASE,
        source=server.about,
        method=answers[0][0].title.lower(),
        settings=f"alpha {settings.alpha:g}{cap}",
        explanations=tuple(
            record.Explanation(
                pieces=_pieces(question.reads),
                amateurs=tuple(_amateurs(server, question)),
                answers=(cold, greedy),
            )
            for question, (cold, greedy) in zip(questions, answers, strict=True)
        ),
    )


def _amateurs(server: Server, question: Question) -> Iterator[record.ShownAmateur]:
    for amateur, weight in zip(question.contrast.amateurs, question.contrast.weights, strict=True):
        reads = ""
        if amateur.source is not None:
            is_own = isinstance(amateur.source, (Text, Messages))
            reads = f", {amateur.source} of its own" if is_own else f" {amateur.source}"
            if isinstance(amateur.source, Without) and isinstance(amateur.source.items[0], int):
                reads = f" without message {amateur.source.value}"
        weight_text = str(question.contrast.settings.rule)
        if weight is not None:
            weight_text = f"{weight:+g}" if weight else "0"
        adapter = adapter_of(amateur, server.expert, server.base)
        label = f"{adapter or record.BASE}{reads}, weight {weight_text}"
        pieces = _pieces(amateur_reads(question.reads, amateur))
        yield record.ShownAmateur(label=label, pieces=pieces)


def _pieces(reads: Content | None) -> tuple[record.Piece, ...]:
    if isinstance(reads, Text):
        return (record.Piece(text=reads.value),)
    messages = () if reads is None else reads.value
    return tuple(record.Piece(text=text_of(message), role=message["role"]) for message in messages)
