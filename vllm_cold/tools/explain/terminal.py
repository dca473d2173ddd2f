# SPDX-License-Identifier: Apache-2.0
"""The report in the terminal: coloured answers, small charts, and the candidates of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vllm_cold.method.settings import ColdSettings
from vllm_cold.tools.explain import trace, visible
from vllm_cold.tools.explain.prompts import pieces
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
_BLOCKS = "▁▂▃▄▅▆▇█"
_LISTED = 4  # candidates of a step in the short table
_NARROW = 60  # below this many columns the table leaves out what it can
_TITLES = {trace.COLD: "CoLD", trace.GREEDY: "Greedy"}


def show(console: Console, report: Report, full: bool = False) -> None:
    """Print the report.

    Without colours (``NO_COLOR``, a pipe) tokens at which CoLD differs are put in brackets.

    Args:
        console: Where to print.
        report: What to print.
        full: List all candidates of every token of both answers, not the best ones of those
            tokens of the CoLD answer at which CoLD and greedy differ.
    """
    settings = report.settings
    cap = "" if settings.expert_top_k is None else f", expert_top_k {settings.expert_top_k}"
    console.print(
        Text(
            f"{report.adapter} against {report.amateur}, {report.model}; alpha {settings.alpha}, "
            f"{' '.join(report.strength)}{cap}; {report.source}"
        )
    )
    console.print(_legend(console))
    for number, explanation in enumerate(report.explanations, 1):
        console.print()
        console.print(Rule(f"prompt {number} of {len(report.explanations)}", align="left"))
        console.print(_prompt(console, explanation))
        for answer in (explanation.cold, explanation.greedy):
            console.print()
            console.print(_answer(console, answer, settings))
        console.print()
        console.print(_parting(explanation))
        for answer in (explanation.cold, explanation.greedy) if full else (explanation.cold,):
            table = _table(answer, full, console.width, settings, len(explanation.amateurs))
            if table.row_count:
                console.print()
                console.print(table)


def _plain(console: Console) -> bool:
    return console.no_color or console.color_system is None


def _legend(console: Console) -> Text:
    text = Text("disagreement in bits: ")
    if _plain(console):
        return Text("[brackets]: CoLD takes another token here than greedy")
    for style, limit in zip(
        _HEAT, ("0", *(f"{x}+" for x in trace.DIVERGENCE_CLASSES)), strict=True
    ):
        text.append(f" {limit} ", style=style)
    text.append("  ")
    text.append("underlined", style="bold underline")
    return text.append(": CoLD takes another token here than greedy")


def _prompt(console: Console, explanation: Explanation) -> Text:
    """The prompt, and what the amateurs read where that is another one."""
    amateurs = explanation.amateurs
    only = amateurs[0] if len(amateurs) == 1 else None
    marked = only is not None and only.leaves_out
    text = _pieces(console, only.pieces if only and marked else pieces(explanation.prompt))
    for number, one in enumerate(amateurs, 1):
        if only and one.reads is None:
            continue
        text.append(f"\n{'The amateur' if only else f'Amateur {number}'}", style="bold")
        text.append(f", {one.name}, reads {one.reads or 'the same prompt'}")
        if one.leaves_out:
            text.append(": not what is ")
            text.append_text(_left_out(console, "left out"))
        text.append(f" ({one.tokens} tokens{'' if only else f', weight {one.weight_text}'})")
        if one.pieces and not marked:
            text.append("\n").append_text(_pieces(console, one.pieces))
    return text


def _pieces(console: Console, found: Sequence[Piece]) -> Text:
    text = Text()
    for number, piece in enumerate(found):
        if piece.role is not None:
            text.append("\n" if number else "").append(f"{visible.alone(piece.role, 0)}: ")
        if piece.text:
            shown = visible.in_text(piece.text, 0)
            text.append_text(_left_out(console, shown) if piece.gone else Text(shown, style="dim"))
    return text


def _left_out(console: Console, text: str) -> Text:
    """What an amateur does not read."""
    return Text(f"[-{text}-]") if _plain(console) else Text(text, style="strike red")


def _tokens(console: Console, answer: Answer) -> Text:
    text = Text()
    for step in answer.steps:
        shown = visible.in_text(step.text, step.token)
        if step.differs:
            if _plain(console):
                end = "\n" if shown.endswith("\n") else ""  # the line ends after the bracket
                shown = f"[{shown.removesuffix(end)}]{end}"
            text.append(shown, style=f"bold underline {_HEAT[step.level]}".strip())
        else:
            text.append(shown, style=_HEAT[step.level])
    return text


def _answer(console: Console, answer: Answer, settings: ColdSettings) -> Group:
    steps = answer.steps
    differing = sum(step.differs for step in steps)
    unknown = sum(step.winner is None for step in steps)
    title = Text.assemble(
        (_TITLES[answer.kind], "bold"),
        f"  {len(steps)} tokens, CoLD and greedy differ at {differing or 'none'}",
        f", which is not known at {unknown}" if unknown else "",
    )
    room = max(10, console.width - 34)
    divergence = [step.divergence for step in steps]
    sizes = [float(step.valid_size) for step in steps]
    or_more = "" if all(step.valid_complete for step in steps) else " or more"
    lines: list[RenderableType] = [
        title,
        Padding(_tokens(console, answer), (0, 0, 0, 2)),
        Text(f"  disagreement {sparkline(divergence, room)} up to {max(divergence):.2f} bits"),
    ]
    if not trace.no_mask(settings):
        lines.append(
            Text(f"  valid tokens {sparkline(sizes, room)} up to {max(sizes):.0f}{or_more}")
        )
    if settings.adaptive and len(answer.unknown_betas) < len(steps):
        betas = [abs(step.beta or 0.0) for step in steps]
        name = "beta  " if len(steps[0].weights) == 1 else "weight"
        lines.append(Text(f"  {name}       {sparkline(betas, room)} up to {max(betas):.2f}"))
    if answer.unknown_betas:
        lines.append(Padding(Text(_unknown(answer), style="yellow"), (0, 0, 0, 2)))
    if told := [i for i in answer.told if i not in answer.unknown_betas]:
        lines.append(Padding(Text(_told(told)), (0, 0, 0, 2)))
    if answer.mismatches:
        lines.append(Padding(Text(_mismatches(answer), style="yellow"), (0, 0, 0, 2)))
    return Group(*lines)


def _unknown(answer: Answer) -> str:
    return (
        f"! beta is not known at token {_numbers(answer.unknown_betas)}: it follows from all valid "
        "tokens under both streams, and vLLM did not list them all; no scores there, and no choice "
        "of CoLD's to check"
    )


def _told(steps: Sequence[int]) -> str:
    return (
        f"At token {_numbers(steps)} CoLD's choice is the engine's own word: by the numbers here a "
        "token that is not listed could have a better score, and no listed one has."
    )


def _numbers(steps: Sequence[int]) -> str:
    return ", ".join(str(index + 1) for index in steps[:5]) + (", ..." if steps[5:] else "")


def _mismatches(answer: Answer) -> str:
    parts = [
        f"token {m.index + 1} "
        + ("(not valid here)" if m.margin is None else f"(behind by {m.margin:.2g})")
        for m in answer.mismatches[:5]
    ]
    more = ", ..." if len(answer.mismatches) > 5 else ""
    return (
        f"! the engine took another token than follows from the numbers here at {', '.join(parts)}"
        f"{more}: the engine computes token by token, these numbers come from one pass over the "
        "text, and the two round differently; a large distance has another cause"
    )


def _parting(explanation: Explanation) -> Text:
    if explanation.parting is None:
        return Text("Both answers are the same.")
    return Text(f"The answers part at token {explanation.parting + 1}.")


def _table(answer: Answer, full: bool, width: int, settings: ColdSettings, amateurs: int) -> Table:
    """The candidates of the tokens of an answer: of all, or of those where the two differ."""
    which = "every token" if full else "where CoLD and greedy differ"
    narrow = width < _NARROW
    # As many amateurs as there is room for, which is one at least.
    fitting = max(1, (width - 30) // 8 if narrow else (width - 60) // 11)
    if fitting < amateurs:
        which += f"; amateurs 1 to {fitting} of {amateurs}, the page has all"
    table = Table(
        title=f"{_TITLES[answer.kind]} answer, {which}",
        title_justify="left",
        title_style="bold",
        box=None if narrow else box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0) if narrow else (0, 1),
    )
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("token", overflow="fold", min_width=6)
    table.add_column("", no_wrap=True)
    short = "a{}" if narrow else "amateur {}"
    shown = range(1, min(fitting, amateurs) + 1)
    names = ["amateur"] if amateurs == 1 else [short.format(i) for i in shown]
    for name in ("expert", *names, "score"):
        table.add_column(name, justify="right", no_wrap=True)
    beta = "beta" if amateurs == 1 else "weight"
    last = [] if narrow else ["bits", "valid", *([beta] if settings.adaptive else [])]
    for name in last:
        table.add_column(name, justify="right", no_wrap=True)
    wrong = {mismatch.index for mismatch in answer.mismatches}
    for index, step in enumerate(answer.steps):
        if not (full or step.differs):
            continue
        size = f"{step.valid_size}{'' if step.valid_complete else '+'}"
        if trace.no_mask(settings):
            size = "all"
        beta = "?" if step.beta is None else f"{step.beta if amateurs == 1 else -step.beta:.3f}"
        # One for each of `last`, as far as there are that many.
        of_step = [f"{step.divergence:.2f}", size, beta][: len(last)]
        for line, candidate in enumerate(step.candidates if full else _leading(step)):
            first = line == 0
            table.add_row(
                str(index + 1) if first else "",
                Text(visible.alone(candidate.text, candidate.token)),
                _mark(step, candidate, index in wrong),
                _percent(candidate.expert, narrow),
                *(
                    ("≤" if bound else "") + _percent(value, narrow)
                    for value, bound, _ in zip(
                        candidate.amateurs, candidate.bounds, names, strict=False
                    )
                ),
                _score(candidate),
                *(of_step if first else [""] * len(last)),
                style=None if candidate.valid else "dim",
            )
        if not narrow:
            table.add_row()  # a line between steps
    return table


def _leading(step: Step) -> list[Candidate]:
    """The valid candidates with the best scores, and greedy's in any case."""
    first = [c for c in step.candidates if c.valid][:_LISTED]
    return first + [c for c in step.candidates if c.token == step.greedy and c not in first]


def _mark(step: Step, candidate: Candidate, wrong: bool) -> str:
    if wrong and candidate.token == step.token:
        return "engine"
    if candidate.token == step.winner:
        return "both" if candidate.token == step.greedy else "CoLD"
    if candidate.token == step.greedy:
        return "greedy"
    return "" if candidate.valid else "cut"


def _percent(logprob: float | None, narrow: bool) -> str:
    if logprob is None:
        return "?"
    value = 100 * math.exp(logprob)
    number = f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    if 0 < value < 0.001:
        number = "<0.001"
    return number + ("%" if narrow else " %")


def _score(candidate: Candidate) -> str:
    if candidate.score is None:
        return "?"
    return ("", "≥", "≤")[candidate.score_is] + f"{candidate.score:.2f}"


def sparkline(values: list[float], width: int) -> str:
    """Values from 0 up as blocks, the highest as a full one.

    Args:
        values: One for each token.
        width: Characters that there are; neighbours are put together (the highest of them).
    """
    if not values:
        return ""
    per = -(-len(values) // width)
    tops = [max(values[i : i + per]) for i in range(0, len(values), per)]
    most = max(tops)
    if most <= 0:
        return _BLOCKS[0] * len(tops)
    return "".join(_BLOCKS[min(7, int(8 * value / most))] for value in tops)
