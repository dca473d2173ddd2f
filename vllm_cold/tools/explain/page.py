# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs nothing else: style, script, data and chart are in it.

The text of the answers is HTML; what a token's panel and the charts show is JSON beside it, which
the page's script reads.
"""

from __future__ import annotations

import json
import math
from typing import Any

import jinja2
from markupsafe import Markup

from vllm_cold import __version__
from vllm_cold.tools.explain import trace, visible
from vllm_cold.tools.explain.trace import Answer, Candidate, Explanation, Report, Step

DIGITS = 6  # of probabilities and scores in the data


def render(report: Report) -> str:
    """The page.

    Args:
        report: What to show.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_cold.tools.explain", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(
        report=report,
        explanations=[_explanation(e) for e in report.explanations],
        limits=trace.DIVERGENCE_CLASSES,
        beta=trace.beta_text(report.settings),
        version=__version__,
        data=as_script(data(report)),
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
        "alpha": report.settings.alpha,
        "beta": report.settings.beta,
        "adaptive": report.settings.adaptive,
        "cap": report.settings.expert_top_k,
        "prompts": [
            {answer.kind: _answer(answer) for answer in (e.cold, e.greedy)}
            for e in report.explanations
        ],
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "steps": [_step(step) for step in answer.steps],
        "mismatches": {m.index: _number(m.margin) for m in answer.mismatches},
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "token": step.token,
        "text": visible.alone(step.text, step.token),
        "size": step.valid_size,
        "complete": step.valid_complete,
        "divergence": _number(step.divergence),
        "beta": _number(step.beta),
        "winner": step.winner,
        "greedy": step.greedy,
        "candidates": [_candidate(c) for c in step.candidates],
    }


def _candidate(candidate: Candidate) -> list[Any]:
    """As a list, which is a third of the bytes: id, text, p expert, p amateur, score, flags."""
    flags = candidate.valid + 2 * candidate.amateur_is_bound
    return [
        candidate.token,
        visible.alone(candidate.text, candidate.token),
        _probability(candidate.expert),
        _probability(candidate.amateur),
        _number(candidate.score),
        flags,
    ]


def _probability(logprob: float | None) -> float | None:
    # Significant digits, not decimals: small probabilities matter here.
    return None if logprob is None else float(f"{math.exp(logprob):.{DIGITS}g}")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def _explanation(explanation: Explanation) -> dict[str, Any]:
    """What the template shows of one prompt."""
    return {
        "prompt": visible.in_text(explanation.prompt, 0),
        "prompt_tokens": explanation.prompt_tokens,
        "parting": explanation.parting,
        "answers": [_shown(explanation.cold), _shown(explanation.greedy)],
    }


def _shown(answer: Answer) -> dict[str, Any]:
    wrong = {mismatch.index for mismatch in answer.mismatches}
    return {
        "kind": answer.kind,
        "finish_reason": answer.finish_reason,
        "differing": sum(step.differs for step in answer.steps),
        "mean": math.fsum(s.divergence for s in answer.steps) / max(1, len(answer.steps)),
        "incomplete": sum(not step.valid_complete for step in answer.steps),
        "bounds": sum(any(c.amateur_is_bound for c in s.candidates) for s in answer.steps),
        "mismatches": answer.mismatches,
        "unknown": len(answer.unknown_betas),
        "steps": [
            {
                "text": visible.in_text(step.text, step.token),
                "level": step.level,
                "differs": step.differs,
                "wrong": index in wrong,
            }
            for index, step in enumerate(answer.steps)
        ],
    }
