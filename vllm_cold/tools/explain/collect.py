# SPDX-License-Identifier: Apache-2.0
"""From prompts to a report: decode, account for each step, put together."""

import sys
from collections.abc import Sequence

from vllm_cold.settings.sources import Messages, Text, Without
from vllm_cold.tools.asked_contrast import Content, adapter_of, amateur_reads
from vllm_cold.tools.explain.explain_prompts import Question
from vllm_cold.tools.explain.explain_source import answer
from vllm_cold.tools.explain.record import BASE, Answer, Explanation, Piece, Report, ShownAmateur
from vllm_cold.tools.pictures import text_of
from vllm_cold.tools.server import Server, side_by_side


async def explain(server: Server, prompts: Sequence[Question], max_tokens: int) -> Report:
    """Decode and explain prompts; says on stderr what is decoded.

    Args:
        server: What is asked.
        prompts: With what each is contrasted with, and the same settings.
        max_tokens: The length of answers.

    Raises:
        ToolError: the server refuses a prompt, or cannot answer.
    """
    async with server.client:
        print("decoding with the contrast ...", file=sys.stderr, flush=True)
        cold = await side_by_side(answer(server, one, False, max_tokens) for one in prompts)
        print("decoding greedily ...", file=sys.stderr, flush=True)
        greedy = await side_by_side(answer(server, one, True, max_tokens) for one in prompts)
    return make_report(server, prompts, list(zip(cold, greedy, strict=True)))


def make_report(
    server: Server, prompts: Sequence[Question], answers: Sequence[tuple[Answer, Answer]]
) -> Report:
    """A report of each prompt's answers, contrastive and greedy."""
    settings = prompts[0].contrast.settings
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    return Report(
        model=server.title,
        adapter=server.expert or BASE,
        source=server.about,
        method=answers[0][0].title.lower(),
        settings=f"alpha {settings.alpha:g}{cap}",
        explanations=tuple(
            Explanation(pieces=_pieces(one.reads), amateurs=_amateurs(server, one), answers=both)
            for one, both in zip(prompts, answers, strict=True)
        ),
    )


def _amateurs(server: Server, asked: Question) -> tuple[ShownAmateur, ...]:
    found = []
    for spec, weight in zip(asked.contrast.amateurs, asked.contrast.weights, strict=True):
        reads = ""
        if spec.source is not None:
            own = isinstance(spec.source, (Text, Messages))
            reads = f", {spec.source} of its own" if own else f" {spec.source}"
            if isinstance(spec.source, Without) and isinstance(spec.source.items[0], int):
                reads = f" without message {spec.source.value}"
        said = str(asked.contrast.settings.rule)
        if weight is not None:
            said = f"{weight:+g}" if weight else "0"
        adapter = adapter_of(spec, server.expert, server.base)
        label = f"{adapter or BASE}{reads}, weight {said}"
        pieces = _pieces(amateur_reads(asked.reads, spec))
        found.append(ShownAmateur(label=label, pieces=pieces))
    return tuple(found)


def _pieces(reads: Content | None) -> tuple[Piece, ...]:
    match reads:
        case None:
            return ()
        case Text(text):
            return (Piece(text=text),)
        case Messages(messages):
            return tuple(Piece(text=text_of(one), role=one["role"]) for one in messages)
