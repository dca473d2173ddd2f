# SPDX-License-Identifier: Apache-2.0
"""All presets on a task: a line a method as CSV, and a chart of what each gains and loses."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from benchmarks.accuracy.answers import Judged
from benchmarks.accuracy.methods import METHODS, PLAIN
from benchmarks.accuracy.problem import Cell
from benchmarks.accuracy.report import GREEDY, Difference, compare, label
from vllm_cold.settings.presets import PRESETS

# Baselines, and presets as they are; each is decoded where it is for a cell's problems.
COMPARED = [m for m in METHODS.values() if m in PLAIN or m.key in PRESETS]
HEAD = ("model", "task", "method", "n", "right_percent", "right_low", "right_high", "points",
        "points_low", "points_high", "p", "p_corrected", "seconds")  # fmt: skip


class Row(NamedTuple):
    """What a method's answers are worth, with their paired difference from greedy decoding's."""

    model: str
    task: str
    method: str
    judged: Judged
    difference: Difference


def rows(
    model: str, cells: Sequence[Cell], found: Mapping[str, Mapping[str, Judged]]
) -> Iterator[Row]:
    """Compare methods with greedy decoding; ``found`` is by cell and method, ``model`` a title."""
    for cell in (cell for cell in cells if cell.name in found):
        arms = found[cell.name]
        for key in (method.key for method in COMPARED if method.key in arms):
            difference = compare(arms[key].right, arms[GREEDY].right)
            difference.declared = key != GREEDY
            yield Row(model, cell.name, label(key, cell.group), arms[key], difference)


def write(found: Sequence[Row], folder: Path) -> tuple[Path, Path]:
    """Write ``compare.csv`` and ``compare.svg``; Wilson's intervals for right answers."""
    table, picture = folder / "compare.csv", folder / "compare.svg"
    with table.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(HEAD)
        for *names, judged, each in found:
            n, right = len(judged.right), int(judged.right.sum())
            share = binomtest(right, n).proportion_ci(method="wilson")
            percents = [f"{100 * x:.1f}" for x in (right / n, share.low, share.high)]
            points = [f"{x:.1f}" for x in (each.points, each.low, each.high)]
            points += [f"{x:.2g}" for x in (each.p, each.corrected)]
            took = "" if judged.seconds is None else f"{judged.seconds:.1f}"
            lines.writerow([*names, n, *percents, *(points if each.declared else [""] * 5), took])
    _draw([row for row in found if row.difference.declared], picture)
    return table, picture


def _draw(found: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models, tasks, methods = (
        list(dict.fromkeys(names)) for names in [*zip(*found, strict=True)][:3]
    )
    size = (2.5 + 3 * len(tasks), 1.5 + 0.3 * len(methods))
    figure, panels = plt.subplots(
        1, len(tasks), figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    for model, task, method, _, each in found:
        axis, place = panels[0, tasks.index(task)], models.index(model)
        y = methods.index(method) + (place + 1) / (len(models) + 1) - 0.5
        ends = [[each.points - each.low], [each.high - each.points]]
        axis.errorbar(each.points, y, xerr=ends, fmt="o", color=f"C{place}", label=model)
        axis.set(title=task, xlabel="points against greedy decoding")
    for axis in panels.flat:
        axis.axvline(0, color="black", linewidth=0.8)
    panels[0, 0].set_yticks(range(len(methods)), methods)
    panels[0, 0].invert_yaxis()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    by_model = dict(zip(labels, handles, strict=True))
    figure.legend(by_model.values(), by_model, frameon=False, loc="outside lower center")
    figure.savefig(path)
    plt.close(figure)
