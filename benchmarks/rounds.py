# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: rounds in alternation, medians with their spread, tables, and no speed
next to a wrong result.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Say = Callable[[str], None]


def in_rounds(systems: Iterable[T], rounds: int, rng: random.Random) -> Iterator[tuple[int, T]]:
    """Each system once in each round, in an order that is shuffled anew; with the round, from 0."""
    order = list(systems)
    for number in range(rounds):
        rng.shuffle(order)
        for system in order:
            yield number, system


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    median, low, high = np.percentile(values, [50, 20, 80])
    return float(median), float(low), float(high)


def short(value: float) -> str:
    """Three digits or all before the point; two from 0.1 to 1, which keeps columns narrow."""
    steps = ((99.95, 0), (9.995, 1), (0.0995, 2))
    return f"{value:.{next((digits for least, digits in steps if value >= least), 3)}f}"


def spread_text(
    values: Sequence[float], form: Callable[[float], str] = "{:.2f}".format, scale: float = 1.0
) -> str:
    """Median and 20th to 80th percentile, or a dash."""
    if not values:
        return "-"
    return "{} ({}-{})".format(*(form(scale * value) for value in spread(values)))


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Quotients of equal rounds, as far as both have them: a slow phase of the machine cancels."""
    return [a / b for a, b in zip(over, under, strict=False)]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown, padded to be read as it is; the first ``left`` columns are texts."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        sides = [str.ljust if i < left else str.rjust for i in range(len(row))]
        padded = (side(text, n) for side, text, n in zip(sides, row, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * n if i < left else "-" * (n - 1) + ":" for i, n in enumerate(widths)]
    return "\n".join(map(line, [cells[0], rule, *cells[1:]]))


def show_if_right(wrong: Iterable[str], show: Callable[[], None]) -> int:
    """Show speeds, or instead of them what is wrong with results; the exit status."""
    problems = list(dict.fromkeys(wrong))
    if not problems:
        show()
        return 0
    print("No speeds are shown, because results are wrong:")
    for problem in problems:
        print(f"  {problem}")
    return 1


def progress() -> Say:
    """Prints what is done now to stderr, with the time since this call."""
    began = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", file=sys.stderr, flush=True)

    return say


def positive(text: str) -> int:
    """An integer from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 or more")
    return value


def several(text: str) -> int:
    """An integer from 2, for argparse: tokens with a time between them."""
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value}: must be 2 or more, or there is no time between")
    return value


def new_file(text: str) -> Path:
    """A file in a folder that exists, for argparse."""
    path = Path(text)
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: must be a file in a folder that exists")
    return path
