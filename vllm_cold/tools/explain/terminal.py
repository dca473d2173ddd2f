# SPDX-License-Identifier: Apache-2.0
"""The report in the terminal: coloured answers, and the candidates of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vllm_cold.tools.explain import trace, visible, words
from vllm_cold.tools.explain.trace import Answer, Candidate, Explanation, Piece, Report, Step

# Black on these is readable, whatever the terminal's own colours are.
_HEAT = (
    "",
    "black on #fdf3dc",
    "black on #fbe2ae",
    "black on #f8c97c",
    "black on #f2a65a",
    "black on #e67b42",
)
_LISTED = 4  # candidates of a step in the short table


def show(console: Console, report: Report) -> None:
    """Print the report, with the best candidates where a method and greedy differ.

    Without colours (``NO_COLOR``, a pipe) tokens at which CoLD differs are put in brackets.

    Args:
        console: Where to print.
        report: What to print.
    """
    console.print(Text(f"expert: {report.adapter}, {report.model}; {report.source}"))
    console.print(_legend(console))
    for number, explanation in enumerate(report.explanations, 1):
        console.print()
        console.print(Rule(f"prompt {number} of {len(report.explanations)}", align="left"))
        console.print(_pieces(console, explanation.pieces))
        for method, amateurs in zip(report.methods, explanation.amateurs, strict=True):
            for one in amateurs:
                console.print(Text(f"{method.name}: against {one.label} ({one.tokens} tokens)"))
                if one.pieces:
                    console.print(Padding(_pieces(console, one.pieces), (0, 0, 0, 2)))
        for answer in explanation.answers:
            _answer(console, report, explanation, answer)


def _answer(console: Console, report: Report, explanation: Explanation, answer: Answer) -> None:
    method = report.methods[answer.method]
    summary = words.summary(report, explanation, answer)
    console.print()
    console.print(Text.assemble((report.title(answer), "bold"), f"  {summary}"))
    console.print(Padding(_tokens(console, answer), (0, 0, 0, 2)))
    for note in words.notes(method, answer):
        console.print(Padding(Text(note.text, style="yellow" if note.warns else "dim"), (0, 2)))
    if not answer.greedy and any(step.differs for step in answer.steps):
        console.print(_table(report, answer))


def _plain(console: Console) -> bool:
    return console.no_color or console.color_system is None


def _legend(console: Console) -> Text:
    if _plain(console):
        return Text("[brackets]: CoLD takes another token here than greedy")
    text = Text("disagreement in bits: ")
    limits = ("0", *(f"{limit}+" for limit in trace.DIVERGENCE_CLASSES))
    for style, limit in zip(_HEAT, limits, strict=True):
        text.append(f" {limit} ", style=style)
    text.append("  ").append("underlined", style="bold underline")
    return text.append(": CoLD takes another token here than greedy")


def _pieces(console: Console, found: Sequence[Piece]) -> Text:
    text = Text()
    for number, piece in enumerate(found):
        if piece.role is not None:
            text.append("\n" if number else "").append(f"{visible.alone(piece.role, 0)}: ")
        shown = visible.in_text(piece.text, 0) if piece.text else ""
        if piece.gone:
            gone = f"[-{shown}-]" if _plain(console) else shown
            text.append(gone, style="strike red")
        else:
            text.append(shown, style="dim")
    return text


def _tokens(console: Console, answer: Answer) -> Text:
    text = Text()
    for step in answer.steps:
        shown, style = visible.in_text(step.text, step.token), _HEAT[step.level]
        if step.differs:
            style = f"bold underline {style}".strip()
            if _plain(console):
                end = "\n" if shown.endswith("\n") else ""  # the line ends after the bracket
                shown = f"[{shown.removesuffix(end)}]{end}"
        text.append(shown, style=style)
    return text


def _table(report: Report, answer: Answer) -> Table:
    """The candidates where an answer's method and greedy differ."""
    method = report.methods[answer.method]
    amateurs = len(answer.steps[0].weights)
    table = Table(
        title=f"Where {method.name} and greedy differ",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("token", overflow="fold", min_width=6)
    table.add_column("")
    names = ["amateur"] if amateurs == 1 else [f"amateur {i + 1}" for i in range(amateurs)]
    last = ["bits", "valid", *(["weight"] if method.settings.adaptive else [])]
    for column in ("expert", *names, "score", *last):
        table.add_column(column, justify="right")
    for number, step in enumerate(answer.steps, 1):
        if not step.differs:
            continue
        weights = words.weights(method, step)
        of_step = [f"{step.divergence:.2f}", words.size(method, step)]
        of_step += [weights[1]] if weights else []
        for line, candidate in enumerate(_leading(step)):
            badges = words.badges(method, answer, step, candidate)
            table.add_row(
                "" if line else str(number),
                Text(visible.alone(candidate.text, candidate.token)),
                Text(", ".join(badges)),
                _percent(candidate.expert),
                *map(_percent, candidate.amateurs),
                "?" if candidate.score is None else f"{candidate.score:.2f}",
                *([""] * len(last) if line else of_step),
                style=None if candidate.valid else "dim",
            )
        table.add_row()  # a line between steps
    return table


def _leading(step: Step) -> Iterator[Candidate]:
    """The valid candidates with the best scores, and the greedy one in any case."""
    valid = [c for c in step.candidates if c.valid][:_LISTED]
    yield from valid
    yield from (c for c in step.candidates if c.token == step.greedy and c not in valid)


def _percent(logprob: float) -> str:
    value = 100 * math.exp(logprob)
    number = f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    return f"{'<0.001' if 0 < value < 0.001 else number} %"
