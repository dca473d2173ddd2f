# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing else: style, script and data are in it.

The text of the answers is HTML; what a token's panel shows is JSON beside it, which the page's
script reads.
"""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from vllm_cold import __version__
from vllm_cold.tools.explain import trace, visible, words
from vllm_cold.tools.explain.trace import Answer, Report, Step

DIGITS = 6  # of probabilities and scores in the data


def render(report: Report) -> str:
    """The page."""
    return _page(report=report, form=None, data=as_script(data(report)))


def render_live(**form: Any) -> str:
    """The page without answers yet, which asks for them.

    Args:
        form: What the template of the form shows.
    """
    return _page(report=None, form=form, data="")


def fragment(report: Report) -> str:
    """The answers alone, as HTML."""
    return _environment().get_template("answers.html.j2").render(report=report)


def _page(**given: Any) -> str:
    template = _environment().get_template("page.html.j2")
    return template.render(limits=trace.DIVERGENCE_CLASSES, version=__version__, **given)


@cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_cold.tools.explain", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(words=words, visible=visible)
    return found


def as_script(value: Any) -> Markup:
    """JSON that is safe within a script element: nothing in it can end the element.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # only ever within strings
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def data(report: Report) -> list[dict[str, Any]]:
    """What the script reads: of each answer, in the order of the page, its tokens."""
    return [
        {
            "title": report.title(answer),
            "amateurs": [one.label for one in explanation.amateurs[answer.method]],
            "steps": [_step(report, answer, i) for i in range(len(answer.steps))],
        }
        for explanation in report.explanations
        for answer in explanation.answers
    ]


def _step(report: Report, answer: Answer, index: int) -> dict[str, Any]:
    method, step = report.methods[answer.method], answer.steps[index]
    bits = ", ".join(f"{value:.3f}" for value in step.divergences)
    weights = words.weights(method, step)
    return {
        "token": step.token,
        "text": visible.alone(step.text, step.token),
        "verdict": words.verdict(method, answer, index),
        "numbers": [
            ["Disagreement", f"{bits} bits"],
            ["Valid tokens", words.size(method, step)],
            *([[weights[0].capitalize(), weights[1]]] if weights else []),
        ],
        "winner": step.winner,
        "greedy": step.greedy,
        "hidden": _hidden(step),
        "candidates": [
            [
                c.token,
                visible.alone(c.text, c.token),
                words.badges(method, answer, step, c),
                c.valid,
                [_probability(value) for value in (c.expert, *c.amateurs)],
                _score(c.score),
            ]
            for c in step.candidates
        ],
    }


def _hidden(step: Step) -> str:
    """Which valid tokens are not listed, in words."""
    more = step.valid_size - sum(c.valid for c in step.candidates)
    if not step.complete:
        return "and others"
    return f"and {more} more" if more else ""


def _probability(logprob: float) -> float:
    # Significant digits, not decimals: small probabilities matter here.
    return float(f"{math.exp(logprob):.{DIGITS}g}")


def _score(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)
