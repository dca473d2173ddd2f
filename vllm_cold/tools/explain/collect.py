# SPDX-License-Identifier: Apache-2.0
"""From prompts to a report: decode, account for each step, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from vllm_cold.settings.amateurs import AmateurSpec, Messages, Text, Without
from vllm_cold.tools.contrast import Content, adapter_of, amateur_reads, expert_reads
from vllm_cold.tools.explain import account
from vllm_cold.tools.explain.prompts import Question
from vllm_cold.tools.explain.record import BASE, Answer, Explanation, Piece, Report, ShownAmateur
from vllm_cold.tools.explain.source import Decoded, Source, side_by_side
from vllm_cold.tools.pictures import text_of


async def explain(
    source: Source,
    prompts: Sequence[Question],
    method: str = "contrastive decoding",
    *,
    max_tokens: int = 64,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Decode and explain prompts.

    Args:
        source: A server.
        prompts: With what each is contrasted with, and the same settings.
        method: What that is called.
        max_tokens: The length of answers.
        progress: Called with a few words before each part.

    Raises:
        ToolError: the server refuses a prompt, or cannot answer.
    """
    progress(f"decoding with {method}")
    cold = await side_by_side(source.answer(one, False, max_tokens) for one in prompts)
    progress("decoding greedily")
    greedy = await side_by_side(source.answer(one, True, max_tokens) for one in prompts)
    return make_report(source, prompts, method, list(zip(cold, greedy, strict=True)))


def make_answer(asked: Question, decoded: Decoded | None, method: str, *, greedy: bool) -> Answer:
    """The method's answer or the expert's own; without steps where there is none yet."""
    title = "Greedy" if greedy else method
    if decoded is None:
        return Answer(title=title, greedy=greedy)
    alone = [told.text(token) for told, token in zip(decoded.told, decoded.tokens, strict=True)]
    pieces = account.spread(decoded.text, alone)
    steps = [
        account.make_step(
            now,
            token,
            piece,
            None if greedy else method,
            ruled=not greedy and asked.contrast.settings.rule is not None,
            ends=account.ending(now, then),
        )
        for token, piece, (now, then) in zip(
            decoded.tokens, pieces, pairwise([*decoded.told, None]), strict=True
        )
        if now is not None
    ]
    return Answer(
        title=title, greedy=greedy, finish_reason=decoded.finish_reason, steps=tuple(steps)
    )


def make_report(
    source: Source,
    prompts: Sequence[Question],
    method: str,
    answers: Sequence[tuple[Decoded | None, Decoded | None]],
) -> Report:
    """A report of each prompt's answers, by the method and greedy; None while there is none."""
    settings = prompts[0].contrast.settings
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    return Report(
        model=source.title,
        adapter=source.expert or BASE,
        source=source.about,
        method=method,
        settings=f"alpha {settings.alpha:g}{cap}",
        explanations=tuple(
            Explanation(
                pieces=_pieces(expert_reads(one.row.prompt, one.chat)),
                tokens=None if cold is None else cold.num_prompt_tokens,
                amateurs=tuple(
                    _amateur(source, one, spec, str(settings.rule) if weight is None else weight)
                    for spec, weight in zip(
                        one.contrast.amateurs, one.contrast.weights, strict=True
                    )
                ),
                answers=(
                    make_answer(one, cold, method, greedy=False),
                    make_answer(one, greedy, method, greedy=True),
                ),
            )
            for one, (cold, greedy) in zip(prompts, answers, strict=True)
        ),
    )


def _amateur(
    source: Source, asked: Question, spec: AmateurSpec, weight: float | str
) -> ShownAmateur:
    reads = ""
    if spec.source is not None:
        own = isinstance(spec.source, (Text, Messages))
        reads = f", {spec.source} of its own" if own else f" {spec.source}"
        if isinstance(spec.source, Without) and isinstance(spec.source.items[0], int):
            reads = f" without message {spec.source.value}"
    said = weight if isinstance(weight, str) else f"{weight:+g}" if weight else "0"
    adapter = adapter_of(spec, source.expert, source.base, source.loaded)
    return ShownAmateur(
        label=f"{adapter or BASE}{reads}, weight {said}",
        pieces=_pieces(amateur_reads(expert_reads(asked.row.prompt, asked.chat), spec)),
    )


def _pieces(reads: Content | None) -> tuple[Piece, ...]:
    match reads:
        case None:
            return ()
        case Text(text):
            return (Piece(text=text),)
        case Messages(messages):
            return tuple(Piece(text=text_of(one), role=one["role"]) for one in messages)
