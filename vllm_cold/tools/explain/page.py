# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing else: style, script, data and chart are in it.

The text of the answers is HTML; what a token's panel and the charts show is JSON beside it, which
the page's script reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from vllm_cold import __version__
from vllm_cold.tools.explain import markdown, trace, visible
from vllm_cold.tools.explain.prompts import pieces
from vllm_cold.tools.explain.trace import (
    STACKED,
    Answer,
    Candidate,
    Column,
    Explanation,
    Piece,
    Report,
    Step,
)

DIGITS = 6  # of probabilities and scores in the data


def render(*reports: Report, columns: Sequence[Column] = STACKED) -> str:
    """The page.

    Args:
        reports: What to show: the same prompts with one or more methods.
        columns: Which answers, and in which order; side by side if they are not ``STACKED``.
    """
    report = reports[0]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **_shared(reports, columns),
            live=False,
            report=report,
            by_beta=report.strength[0] == "beta",
            no_mask=trace.no_mask(report.settings),
            several=any(len(e.amateurs) > 1 for e in report.explanations),
            adaptive=any(one.settings.adaptive for one in reports),
            data=as_script([data(one) for one in reports]),
        )
    )


def render_live(**form: Any) -> str:
    """The page without answers yet, which asks for them.

    Args:
        form: What the template of the form shows.
    """
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            live=True,
            side=True,
            prompts=[],
            limits=trace.DIVERGENCE_CLASSES,
            adaptive=True,
            version=__version__,
            **form,
        )
    )


def fragment(*reports: Report, columns: Sequence[Column], finished: bool = True) -> str:
    """The answers alone, as HTML.

    Args:
        reports: As for ``render``.
        columns: As for ``render``.
        finished: Whether the answers are there.
    """
    shared = _shared(reports, columns, finished)
    return _environment().get_template("answers.html.j2").render(shared)


def _shared(
    reports: Sequence[Report], columns: Sequence[Column], finished: bool = True
) -> dict[str, Any]:
    numbers = range(len(reports[0].explanations))
    return {
        "side": columns != STACKED,
        "prompts": [_prompt(reports, columns, number, finished) for number in numbers],
        "limits": trace.DIVERGENCE_CLASSES,
        "version": __version__,
    }


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_cold.tools.explain", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_script(value: Any) -> Markup:
    """JSON that is safe within a script element: nothing in it can end the element.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # only ever within strings
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def data(report: Report) -> dict[str, Any]:
    """What the script reads: numbers and visible text, by prompt and answer."""
    return {
        "name": report.name,
        "alpha": report.settings.alpha,
        "beta": report.settings.beta,
        "adaptive": report.settings.adaptive,
        "cap": report.settings.expert_top_k,
        "noMask": trace.no_mask(report.settings),
        "amateurs": [[one.label for one in e.amateurs] for e in report.explanations],
        "prompts": [
            {answer.kind: _answer(answer) for answer in (e.cold, e.greedy)}
            for e in report.explanations
        ],
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "steps": [step_data(step) for step in answer.steps],
        "mismatches": {m.index: _number(m.margin) for m in answer.mismatches},
    }


def step_data(step: Step) -> dict[str, Any]:
    """What the script reads of a step."""
    return {
        "token": step.token,
        "text": visible.alone(step.text, step.token),
        "size": step.valid_size,
        "complete": step.valid_complete,
        "divergence": _number(step.divergence),
        "divergences": [_number(value) for value in step.divergences],
        "beta": _number(step.beta),
        "weights": [_number(value) for value in step.weights],
        "winner": step.winner,
        "told": step.told,
        "greedy": step.greedy,
        "candidates": [_candidate(c) for c in step.candidates],
    }


def _candidate(candidate: Candidate) -> list[Any]:
    """As a list, which is a third of the bytes: id, text, p expert, p of the first amateur, score,
    flags, p of the other amateurs. Of the flags 1 is valid, 2 a score that is the least, 4 the most
    that it can be, and from 8 on which amateurs' probabilities are the most that they can be.
    """
    flags = candidate.valid + 2 * candidate.score_is
    flags += sum(8 << i for i, bound in enumerate(candidate.bounds) if bound)
    first, *others = map(_probability, candidate.amateurs)
    return [
        candidate.token,
        visible.alone(candidate.text, candidate.token),
        _probability(candidate.expert),
        first,
        _number(candidate.score),
        flags,
        *others,
    ]


def _probability(logprob: float | None) -> float | None:
    # Significant digits, not decimals: small probabilities matter here.
    return None if logprob is None else float(f"{math.exp(logprob):.{DIGITS}g}")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def _prompt(
    reports: Sequence[Report], columns: Sequence[Column], number: int, finished: bool
) -> dict[str, Any]:
    """What the template shows of one prompt."""
    first = reports[0].explanations[number]
    side = columns != STACKED
    only = first.amateurs[0] if len(first.amateurs) == 1 and not side else None
    marked = only is not None and only.leaves_out
    return {
        "pieces": _pieces(only.pieces if only and marked else pieces(first.prompt)),
        "chat": reports[0].chat or not isinstance(first.prompt, str),
        "prompt_tokens": first.prompt_tokens,
        "methods": [_method(one, one.explanations[number], marked) for one in reports],
        "answers": [_shown(reports[c.method], c, number, finished) for c in columns],
        "markdown": markdown.write(reports, columns, number) if finished else None,
    }


def _method(report: Report, explanation: Explanation, marked: bool) -> dict[str, Any]:
    """What a method's amateurs read.

    Args:
        report: The method's.
        explanation: Of the prompt.
        marked: Whether the prompt itself shows it.
    """
    return {
        "name": report.name,
        "by_beta": report.strength[0] == "beta",
        "parting": explanation.parting,
        "amateurs": [
            {
                "name": one.name,
                "reads": one.reads,
                "leaves_out": one.leaves_out,
                "weight": one.weight_text,
                "tokens": one.tokens,
                "pieces": _pieces(() if marked else one.pieces),
            }
            for one in explanation.amateurs
        ],
    }


def _pieces(found: Sequence[Piece]) -> list[dict[str, Any]]:
    return [
        {
            "text": visible.in_text(piece.text, 0) if piece.text else "",
            "role": piece.role and visible.alone(piece.role, 0),
            "gone": piece.gone,
        }
        for piece in found
    ]


def _shown(report: Report, column: Column, number: int, finished: bool) -> dict[str, Any]:
    explanation = report.explanations[number]
    answer = explanation.cold if column.kind == trace.COLD else explanation.greedy
    wrong = {mismatch.index for mismatch in answer.mismatches}
    return {
        "kind": answer.kind,
        "method": column.method,
        "name": report.name,
        "facts": markdown.facts(report),
        "no_mask": trace.no_mask(report.settings),
        "parting": explanation.parting,
        "finish_reason": answer.finish_reason,
        "differing": sum(step.differs for step in answer.steps),
        "mean": math.fsum(s.divergence for s in answer.steps) / max(1, len(answer.steps)),
        "incomplete": sum(not step.valid_complete for step in answer.steps),
        "bounds": sum(any(any(c.bounds) for c in s.candidates) for s in answer.steps),
        "mismatches": answer.mismatches,
        "unknown": len(answer.unknown_betas),
        "told": len(answer.told),
        "open": sum(step.winner is None for step in answer.steps),
        "steps": [
            {
                "text": visible.in_text(step.text, step.token),
                "level": step.level,
                "differs": step.differs,
                "wrong": index in wrong,
            }
            for index, step in enumerate(answer.steps)
        ]
        if finished
        else None,
    }
