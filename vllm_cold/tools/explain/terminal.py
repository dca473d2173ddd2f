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
from vllm_cold.tools.explain.record import Answer, Explanation, Piece, Report, ShownStep

# Black on these is readable, whatever the terminal's own colours are.
_COLOURS = ("fdf3dc", "fbe2ae", "f8c97c", "f2a65a", "e67b42")
_HEAT = ("", *(f"black on #{colour}" for colour in _COLOURS))
_LISTED = 4  # candidates of a step in the short table
_DIFFERENT = "greedy decoding would choose another token"
_LIMITED = "the limit changed the distribution"
_BARS = "▁▂▃▄▅▆▇█"
_EMPTY = 0.01  # of a limit: as good as nothing
_COSTLIEST = 8  # tokens in the table of costs


def show(console: Console, report: Report) -> None:
    """Print the report, with the best candidates where the method and greedy differ.

    Without colours (``NO_COLOR``, a pipe) tokens at which they differ are put in brackets.
    """
    colours = not (console.no_color or console.color_system is None)
    console.print(Text(f"expert: {report.adapter}, {report.model}; {report.source}"))
    console.print(_legend(colours, report.has_limits))
    for number, explanation in enumerate(report.explanations, 1):
        console.print()
        console.print(Rule(f"prompt {number} of {len(report.explanations)}", align="left"))
        console.print(_pieces(explanation.pieces))
        for amateur in explanation.amateurs:
            settings = f" ({report.settings})" if report.settings else ""
            console.print(Text(f"{report.method}{settings} against {amateur.label}"))
            if amateur.pieces:
                console.print(Padding.indent(_pieces(amateur.pieces), 2))
        for answer in explanation.answers:
            console.print()
            console.print(Text.assemble((answer.title, "bold"), f"  {answer.summary}"))
            console.print(Padding.indent(_tokens(answer, colours), 2))
            if answer.limits:
                console.print(_bars(answer))
            if any(step.differs for step in answer.steps):
                console.print(_table(report, explanation, answer))
            if answer.limits:
                console.print(_costs(answer))


def _legend(colours: bool, has_limits: bool) -> Text:
    limited = f"  ↧: {_LIMITED}" if has_limits else ""
    if not colours:
        return Text(f"[brackets]: {_DIFFERENT}{limited}")
    text = Text("disagreement in bits: ")
    limits = ("0", *(f"{bits}+" for bits in record.DIVERGENCE_CLASSES))
    for limit, style in zip(limits, _HEAT, strict=True):
        text.append(f" {limit} ", style=style)
    text.append("  ").append("underlined", style="bold underline")
    return text.append(f": {_DIFFERENT}{limited}")


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
        marks = "⊣" * bool(step.ends) + "↧" * step.is_limited
        end = "\n" if marks and shown.endswith("\n") else ""  # the line ends after the marks
        text.append(shown.removesuffix(end), style=style).append(marks, style="bold").append(end)
    return text


def _bars(answer: Answer) -> Text:
    """Return what was left of each limit, a bar for each token, before it."""
    lines = []
    for i, limit in enumerate(answer.limits):
        if limit.bits is None:
            continue
        of = f", amateur {i + 1}" if answer.limits[1:] else ""
        lefts = [step.left[i] for step in answer.steps]
        bars = "".join(" " if left is None else _bar(left, limit.bits) for left in lefts)
        lines.append(f"left of {limit.bits:g} bits{of}: {bars}")
    return Text("\n").join(map(Text, lines))


def _bar(left: float, limit: float) -> str:
    share = left / limit if limit else 0.0
    return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)] if share >= _EMPTY else "·"


def _empty_table(title: str) -> Table:
    """Return a table of positions and tokens, with room for marks, to which columns are added."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("token", overflow="fold", min_width=6)
    table.add_column("")
    return table


def _costs(answer: Answer) -> Table:
    """Return the tokens that cost most, with what was left before them."""
    table = _empty_table(f"The tokens that cost most{_of_all(answer)}, in bits")
    for i, limit in enumerate(answer.limits, 1):
        of = f" {i}" if answer.limits[1:] else ""
        for column in ("cost", *([] if limit.bits is None else ["left"])):
            table.add_column(column + of, justify="right")
    for number, step in _costliest(answer):
        cells = []
        for limit, cost, left in zip(answer.limits, step.cost, step.left, strict=True):
            cells += [cost] if limit.bits is None else [cost, left]
        table.add_row(
            str(number),
            Text(visible.alone(step.text, step.token)),
            "↧" if step.is_limited else "",
            *("ended" if bits is None else f"{bits:.2f}" for bits in cells),
        )
    return table


def _costliest(answer: Answer) -> list[tuple[int, ShownStep]]:
    """Return the tokens that cost most, in their order, with their numbers from 1."""
    steps = enumerate(answer.steps, 1)
    by_cost = sorted(steps, key=lambda pair: max(c or 0.0 for c in pair[1].cost), reverse=True)
    return sorted(by_cost[:_COSTLIEST], key=lambda pair: pair[0])


def _of_all(answer: Answer) -> str:
    more = len(answer.steps) > _COSTLIEST
    return f" ({_COSTLIEST} of {len(answer.steps)})" if more else ""


def _table(report: Report, explanation: Explanation, answer: Answer) -> Table:
    """Return the best candidates where the method and greedy differ, and greedy's own."""
    table = _empty_table(f"Where {report.method} and greedy decoding differ")
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
