# SPDX-License-Identifier: Apache-2.0
"""A prompt and its answers as Markdown, to be pasted into an issue or a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vllm_cold.tools.explain import trace, visible
from vllm_cold.tools.explain.prompts import pieces
from vllm_cold.tools.explain.trace import Answer, Column, Report, Step

_LISTED = 20  # tokens at which an answer's method and greedy differ


def facts(report: Report) -> str:
    """What a method contrasts with, and how strongly, in a line."""
    settings = report.settings
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    strength = " ".join(report.strength)
    return f"against {report.amateur}, alpha {settings.alpha:g}, {strength}{cap}"


def write(reports: Sequence[Report], columns: Sequence[Column], number: int) -> str:
    """One prompt's part of a page.

    Args:
        reports: One for each method.
        columns: The answers.
        number: The prompt's, from 0.
    """
    report = reports[0]
    explanation = report.explanations[number]
    lines = [
        f"**Expert:** {_inline(report.adapter)}, **model:** {_inline(report.model)}, "
        f"**run:** {_inline(report.source)}",
        "",
        f"**Prompt** ({explanation.prompt_tokens} tokens)",
        "",
    ]
    shown = (
        f"{piece.role}: {piece.text}" if piece.role else piece.text
        for piece in pieces(explanation.prompt)
    )
    lines += _fenced("\n".join(shown))
    for column in columns:
        own = reports[column.method]
        found = own.explanations[number]
        if column.kind == trace.GREEDY:
            lines += _answer("Greedy", own.name, "", found.greedy)
        else:
            lines += _answer(own.name, own.name, facts(own), found.cold)
    return "\n".join(lines) + "\n"


def _answer(title: str, name: str, said: str, answer: Answer) -> Iterator[str]:
    count = f"{len(answer.steps)} tokens"
    yield f"**{_inline(title)}** ({_inline(', '.join(x for x in (said, count) if x))})"
    yield ""
    yield from _fenced(answer.text)
    differing = [(i, step) for i, step in enumerate(answer.steps, 1) if step.differs]
    if not differing or answer.kind == trace.GREEDY:
        return
    yield f"| token | {_inline(name)} | greedy | disagreement, bits |"
    yield "|---|---|---|---|"
    for index, step in differing[:_LISTED]:
        taken, other = _name(step, step.winner), _name(step, step.greedy)
        yield f"| {index} | {taken} | {other} | {step.divergence:.3f} |"
    if len(differing) > _LISTED:
        yield f"| and {len(differing) - _LISTED} more | | | |"
    yield ""


def _fenced(text: str) -> list[str]:
    """Text as a block, whatever fences stand in it."""
    shown = visible.in_text(text, 0).replace("⏎\n", "\n") if text else ""
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + "text", shown, fence, ""]


def _name(step: Step, token: int | None) -> str:
    """A candidate's text as a cell."""
    assert token is not None
    found = step.find(token)
    return _inline(found.text if found and found.text else f"⟨{token}⟩", marked=True)


def _inline(text: str, marked: bool = False) -> str:
    """Text that Markdown, or the HTML in it, would read as its own is escaped.

    Args:
        text: One line of it.
        marked: Whether spaces are shown.
    """
    shown = visible.alone(text, 0)
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", shown if marked else shown.replace("␣", " "))
