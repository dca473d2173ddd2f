# SPDX-License-Identifier: Apache-2.0
"""From prompts to a report: decode, account for each step, put together."""

import sys
from collections.abc import Sequence

from vllm_cold.settings.amateurs import Messages, Text, Without
from vllm_cold.tools.contrast_args import Content, adapter_of, amateur_reads
from vllm_cold.tools.explain.explain_prompts import Question
from vllm_cold.tools.explain.explain_source import fetch_answer
from vllm_cold.tools.explain.record import BASE, Answer, Explanation, Piece, Report, ShownAmateur
from vllm_cold.tools.pictures import text_of
from vllm_cold.tools.server import Server, side_by_side


async def explain(server: Server, questions: Sequence[Question], max_tokens: int) -> Report:
    """Decode and explain prompts that have the same settings; say on stderr what is decoded.
    ToolError if the server refuses a prompt, or cannot answer.
    """
    async with server.client:
        print("decoding with the contrast ...", file=sys.stderr, flush=True)
        cold = await side_by_side(
            fetch_answer(server, question, False, max_tokens) for question in questions
        )
        print("decoding greedily ...", file=sys.stderr, flush=True)
        greedy = await side_by_side(
            fetch_answer(server, question, True, max_tokens) for question in questions
        )
    return make_report(server, questions, list(zip(cold, greedy, strict=True)))


def make_report(
    server: Server, questions: Sequence[Question], answers: Sequence[tuple[Answer, Answer]]
) -> Report:
    """Make a report of each prompt's answers, contrastive and greedy."""
    settings = questions[0].contrast.settings
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    return Report(
        model=server.title,
        adapter=server.expert or BASE,
        source=server.about,
        method=answers[0][0].title.lower(),
        settings=f"alpha {settings.alpha:g}{cap}",
        explanations=tuple(
            Explanation(
                pieces=_pieces(question.reads), amateurs=_amateurs(server, question), answers=both
            )
            for question, both in zip(questions, answers, strict=True)
        ),
    )


def _amateurs(server: Server, question: Question) -> tuple[ShownAmateur, ...]:
    amateurs = []
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
        label = f"{adapter or BASE}{reads}, weight {weight_text}"
        pieces = _pieces(amateur_reads(question.reads, amateur))
        amateurs.append(ShownAmateur(label=label, pieces=pieces))
    return tuple(amateurs)


def _pieces(reads: Content | None) -> tuple[Piece, ...]:
    match reads:
        case None:
            return ()
        case Text(text):
            return (Piece(text=text),)
        case Messages(messages):
            return tuple(Piece(text=text_of(message), role=message["role"]) for message in messages)
