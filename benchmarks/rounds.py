# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: rounds in alternation, medians with their spread, and no speed beside
a wrong result. Needs the standard library alone.
"""

import argparse
import platform
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def in_rounds(systems: Iterable[T], rounds: int, rng: random.Random) -> Iterator[tuple[int, T]]:
    """Each system once in each round, in an order that is shuffled anew; with the round, from 0."""
    order = list(systems)
    for number in range(rounds):
        rng.shuffle(order)
        for system in order:
            yield number, system


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), fifths[0], fifths[-1]


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


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def cpu_cache() -> int:
    """Bytes of the CPU's last cache before memory."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    caches = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [path.read_text().strip() for path in caches.glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=2**25)


def positive(text: str) -> int:
    """An integer from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 or more")
    return value
