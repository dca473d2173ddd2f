# SPDX-License-Identifier: Apache-2.0
"""Tables and checks of what ``benchmarks.bench_beside`` measured, for it and for the pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.beside.spans import Estimate, Rounds, mean_quotient, pooled, quotient
from benchmarks.rounds import short

OURS, STOCK, AGAIN, CAPPED = "vllm-cold", "stock", "stock again", "capped"
METRICS = {"first": "first token", "further": "time per token"}
PERCENTILES = (50, 95, 99)
# Of the regular requests' first token, over that of equal work: committed before any measurement.
AIMS = {50: 1.03, 99: 1.10}
CONTRASTS = {
    "": "nothing contrastive",
    "one": "one amateur",
    "document": "one, without the document",
    "four": "four amateurs",
}


class Point(NamedTuple):
    """Traffic of one kind: workload, percent contrastive, with what, percent of the capacity."""

    workload: str
    percent: int
    contrast: str
    load: int

    @property
    def kind(self) -> str:
        """How much of it is contrastive, and with what."""
        return f"{self.percent} %, {CONTRASTS[self.contrast]}" if self.percent else CONTRASTS[""]

    def __str__(self) -> str:
        return f"{self.workload}, {self.kind}, at {self.load} %"


class Found(NamedTuple):
    """The rounds of a point by system, milliseconds by metric, and the requests per second."""

    systems: dict[str, dict[str, Rounds]]
    rate: float

    def quotient(self, metric: str, percentile: float, over: str = OURS) -> Estimate:
        """Over stock's."""
        return quotient(self.systems[over][metric], self.systems[STOCK][metric], percentile)

    def aim(self, percentile: int) -> float | None:
        """What the first token's ratio should be at most; where nothing is contrastive, and stock
        ran twice, as far from 1 as the interval of these two goes, and no farther than elsewhere.
        """
        aim = AIMS.get(percentile)
        if aim is None or AGAIN not in self.systems:
            return aim
        twice = self.quotient("first", percentile, AGAIN)
        return min(aim, max(twice.high, 1 / twice.low))


def points(content: Mapping[str, Any], flooded: bool = False) -> dict[Point, Found]:
    """What a file has, in the order of the tables: what a server can do, or else a flood."""
    runs = sorted(content["runs"], key=lambda run: run["round"])
    runs = [run for run in runs if (run["load"] > 100) == flooded]
    found: dict[Point, Found] = {}
    for run in runs:
        point = Point(*(run[name] for name in Point._fields))
        by = found.setdefault(point, Found({}, run["rate"])).systems
        for metric in (*METRICS, "contrastive"):
            by.setdefault(run["system"], {}).setdefault(metric, []).append(run[metric])  # type: ignore[attr-defined]
    kinds = list(CONTRASTS)
    return dict(
        sorted(
            found.items(),
            key=lambda item: (
                item[0].workload != "text", kinds.index(item[0].contrast), item[0].percent,
                item[0].load,
            ),
        )
    )  # fmt: skip


def ratio(found: Estimate, aim: float | None = None) -> str:
    """With its interval: bold if all of it keeps an aim, with a dagger if none of it does."""
    text = f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    if aim is None:
        return text
    return f"**{text}**" if found.high <= aim else text + "†" * (found.low > aim)


def _three(rounds: Rounds) -> str:
    return " / ".join(short(pooled(rounds, percentile)) for percentile in PERCENTILES)


HEAD = (
    "contrastive", "load, %", "requests/s", "equal work: p50 / p95 / p99, ms",
    "vllm-cold: p50 / p95 / p99, ms", *(f"p{percentile}, ratio" for percentile in PERCENTILES),
)  # fmt: skip


def together(
    content: Mapping[str, Any], workload: str, load: int, metric: str, percentile: float
) -> Estimate:
    """The geometric mean of the quotients of all traffic with contrasts."""
    systems = [
        found.systems
        for point, found in points(content).items()
        if (point.workload, point.load) == (workload, load) and point.percent
    ]
    return mean_quotient([(by[OURS][metric], by[STOCK][metric]) for by in systems], percentile)


def rows(content: Mapping[str, Any], workload: str, metric: str) -> Iterator[list[str]]:
    """A row for each point of a workload, where none is contrastive also stock over itself; then
    one for all with contrasts at each load.
    """
    for point, found in points(content).items():
        if point.workload != workload:
            continue
        for over, label in ((OURS, point.kind), (AGAIN, "stock twice")):
            if over in found.systems:
                yield [
                    label, str(point.load), short(found.rate),
                    _three(found.systems[STOCK][metric]), _three(found.systems[over][metric]),
                    *(
                        ratio(
                            found.quotient(metric, percentile, over),
                            found.aim(percentile) if (over, metric) == (OURS, "first") else None,
                        )
                        for percentile in PERCENTILES
                    ),
                ]  # fmt: skip
    contrasted = [p for p in points(content) if p.workload == workload and p.percent]
    for load in sorted({point.load for point in contrasted}):
        yield [
            "all contrastive: mean", str(load), "", "", "",
            *(
                ratio(together(content, workload, load, metric, percentile))
                for percentile in PERCENTILES
            ),
        ]  # fmt: skip


FLOOD_HEAD = (
    "requests/s", "system", "regular, first token: p50 / p95 / p99, ms",
    "regular, time per token: p50 / p95 / p99, ms", "contrastive, first token: p50 / p95 / p99, ms",
)  # fmt: skip


def flood(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """More than a server can do: equal work, without a cap, with one."""
    for found in points(content, flooded=True).values():
        for system in (STOCK, OURS, CAPPED):
            by = found.systems[system]
            yield [
                short(found.rate), "equal work" if system == STOCK else system,
                *(_three(by[metric]) for metric in (*METRICS, "contrastive")),
            ]  # fmt: skip


def verdicts(content: Mapping[str, Any]) -> list[str]:
    """Which aims were missed or not decided, and how many points keep them."""
    kept, others = 0, []
    for point, found in points(content).items():
        for percentile in AIMS:
            seen, aim = found.quotient("first", percentile), found.aim(percentile)
            assert aim is not None
            if seen.high <= aim:
                kept += 1
            else:
                word = "missed" if seen.low > aim else "not decided"
                others.append(
                    f"{word}: {point}: p{percentile} {ratio(seen)}, aim at most {aim:.2f}"
                )
    return [f"{kept} aims kept, {len(others)} not shown to be", *others]


def problems(label: str, sent: Sequence[Any], got: Mapping[str, Any]) -> list[str]:
    """What is wrong with a run: requests with another number of tokens than they asked for."""
    pairs = zip(sent, got["tokens"], strict=True)
    short_ = [len(tokens) for request, tokens in pairs if len(tokens) != request.tokens]
    return [f"{label}: {len(short_)} requests generated too few or too many"] if short_ else []


def parts(
    alone: Sequence[Sequence[int]], likely: Sequence[Sequence[Mapping[str, float]]],
    got: Sequence[Sequence[int]], tie: float,
) -> tuple[list[str], int]:  # fmt: skip
    """Compare answers with those that the same requests got alone, each up to the first choice that
    rounding turned.

    Args:
        alone: Tokens of each request.
        likely: At each of its positions log-probabilities by token.
        got: Tokens of the same requests.
        tie: Up to so many nats apart, rounding decided.

    Returns:
        What is wrong, and how many were turned.
    """
    wrong, ties = [], 0
    for number, (left, right) in enumerate(zip(alone, got, strict=True)):
        at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        if at is None:
            continue
        there = likely[number][at]
        behind = there[str(left[at])] - there.get(str(right[at]), float("-inf"))
        if behind <= tie:
            ties += 1
        else:
            wrong.append(
                f"request {number}, token {at}: {right[at]} for {left[at]}, {behind:.1e} nats apart"
            )
    return wrong, ties
