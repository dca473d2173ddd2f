# SPDX-License-Identifier: Apache-2.0
"""The report in the terminal: coloured answers, and the candidates of tokens."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vllm_cold.tools.explain import record, visible
from vllm_cold.tools.explain.record import Answer, Explanation, Piece, Report

# Black on these is readable, whatever the terminal's own colours are.
_COLOURS = ("fdf3dc", "fbe2ae", "f8c97c", "f2a65a", "e67b42")
_HEAT = ("", *(f"black on #{colour}" for colour in _COLOURS))
_LISTED = 4  # candidates of a step in the short table
_DIFFERENT = "greedy decoding would choose another token"


def show(console: Console, report: Report) -> None:
    """Print the report, with the best candidates where the method and greedy differ.

    Without colours (``NO_COLOR``, a pipe) tokens at which they differ are put in brackets.
    """
    colours = not (console.no_color or console.color_system is None)
    console.print(Text(f"expert: {report.adapter}, {report.model}; {report.source}"))
    console.print(_legend(colours))
    for number, explanation in enumerate(report.explanations, 1):
        console.print()
        console.print(Rule(f"prompt {number} of {len(report.explanations)}", align="left"))
        console.print(_pieces(explanation.pieces))
        for amateur in explanation.amateurs:
            console.print(Text(f"{report.method} ({report.settings}) against {amateur.label}"))
            if amateur.pieces:
                console.print(Padding.indent(_pieces(amateur.pieces), 2))
        for answer in explanation.answers:
            console.print()
            console.print(Text.assemble((answer.title, "bold"), f"  {answer.summary}"))
            console.print(Padding.indent(_tokens(answer, colours), 2))
            if any(step.differs for step in answer.steps):
                console.print(_table(report, explanation, answer))


def _legend(colours: bool) -> Text:
    if not colours:
        return Text(f"[brackets]: {_DIFFERENT}")
    text = Text("disagreement in bits: ")
    limits = ("0", *(f"{bits}+" for bits in record.DIVERGENCE_CLASSES))
    for limit, style in zip(limits, _HEAT, strict=True):
        text.append(f" {limit} ", style=style)
    text.append("  ").append("underlined", style="bold underline")
    return text.append(f": {_DIFFERENT}")


def _pieces(pieces: Sequence[Piece]) -> Text:
    lines = []
    for piece in pieces:
        role = "" if piece.role is None else f"{visible.alone(piece.role)}: "
        lines.append(Text.assemble(role, (visible.in_text(piece.text), "dim")))
    return Text("\n").join(lines)


def _tokens(answer: Answer, colours: bool) -> Text:
    text = Text()
    for step in answer.steps:
        shown, style = visible.in_text(step.text, step.token), _HEAT[step.level]
        if step.differs:
            style = f"bold underline {style}".strip()
            if not colours:
                end = "\n" if shown.endswith("\n") else ""  # the line ends after the bracket
                shown = f"[{shown.removesuffix(end)}]{end}"
        text.append(shown, style=style)
        if step.ends:
            text.append("⊣", style="bold")
    return text


def _table(report: Report, explanation: Explanation, answer: Answer) -> Table:
    """Return the best candidates where the method and greedy differ, and greedy's own."""
    table = Table(
        title=f"Where {report.method} and greedy decoding differ",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("token", overflow="fold", min_width=6)
    table.add_column("")
    names = [f"amateur {i}" for i, _ in enumerate(explanation.amateurs, 1)]
    for column in ("expert", *(names if names[1:] else ["amateur"]), "score", "bits", "candidates"):
        table.add_column(column, justify="right")
    for number, step in enumerate(answer.steps, 1):
        if not step.differs:
            continue
        best = [c for c in step.candidates if c.valid][:_LISTED]
        best += [c for c in step.candidates if c.token == step.greedy and c not in best]
        for line, candidate in enumerate(best):
            table.add_row(
                "" if line else str(number),
                Text(candidate.text),
                Text(", ".join(candidate.taken_by)),
                *map(_percent, (candidate.expert, *candidate.amateurs)),
                "" if candidate.score is None else f"{candidate.score:.2f}",
                *(("", "") if line else (f"{step.divergence:.2f}", str(step.valid_size))),
            )
        table.add_row()  # a line between steps
    return table


def _percent(share: float | None) -> str:
    if share is None:
        return "ended"
    value = 100 * share
    number = f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    return f"{'<0.001' if 0 < value < 0.001 else number} %"
