# SPDX-License-Identifier: Apache-2.0
"""The tasks of the accuracy benchmark: reproducible, disjoint, scored by a rule that can say no."""

from functools import cache

import pytest

from benchmarks.accuracy.tasks import BENCHMARKS, Benchmark, last_number
from examples.tasks import Problem, Task

pytestmark = pytest.mark.unit

LEVELS = [
    pytest.param(benchmark, level, id=f"{benchmark.name}-{level}")
    for benchmark in BENCHMARKS.values()
    for level in ("ordinary", "hard")
    if level == "ordinary" or benchmark.hard
]


COUNTS = {"ordinary": 600, "hard": 500}


@cache
def measured(name: str, level: str) -> list[Problem]:
    """The test problems of an evaluation."""
    return BENCHMARKS[name].task(level).prompts("test", COUNTS[level])


@pytest.mark.parametrize(("benchmark", "level"), LEVELS)
def test_splits_are_reproducible_and_disjoint(benchmark: Benchmark, level: str) -> None:
    task = benchmark.task(level)
    splits = {split: task.prompts(split, 100) for split in ("train", "dev", "test")}  # type: ignore[arg-type]
    assert task.prompts("test", 20) == splits["test"][:20]
    seen = [problem.prompt for problems in splits.values() for problem in problems]
    assert len(set(seen)) == len(seen) == 300


@pytest.mark.parametrize(("benchmark", "level"), LEVELS)
def test_there_are_enough_test_problems(benchmark: Benchmark, level: str) -> None:
    assert len({problem.prompt for problem in measured(benchmark.name, level)}) == COUNTS[level]


@pytest.mark.parametrize(("benchmark", "level"), LEVELS)
def test_scores(benchmark: Benchmark, level: str) -> None:
    task = benchmark.task(level)
    first, *others = task.prompts("dev", 40)
    other = next(problem for problem in others if problem.answer != first.answer)
    assert task.score(first.answer, first)
    assert task.score(first.answer + "\n", first)
    assert not task.score(other.answer, first)
    assert not task.score("", first)
    assert not task.score("I cannot do that.", first)


def test_hard_problems_are_not_among_the_ordinary_ones() -> None:
    for name, benchmark in BENCHMARKS.items():
        if benchmark.hard is None:
            with pytest.raises(ValueError, match="has no problems of level 'hard'"):
                benchmark.task("hard")
            continue
        # Of one split: those of two are disjoint anyway.
        ordinary = {problem.prompt for problem in measured(name, "ordinary")}
        assert ordinary.isdisjoint(problem.prompt for problem in measured(name, "hard"))


def test_sums_count_by_their_last_number() -> None:
    task = BENCHMARKS["sums"].ordinary
    problem = Problem("Work out 10 + 20 - 5", "10 + 20 = 30; 30 - 5 = 25")
    assert task.score("10 + 20 = 31; 31 - 6 = 25", problem)
    assert not task.score("10 + 20 = 30; 30 - 5 = 24", problem)
    assert not task.score("25", problem)  # nothing was worked out
    assert last_number("1 + 2 = 3; 3 + 4 = 7 ") == "7"


def test_any_listed_pronunciation_counts() -> None:
    task = BENCHMARKS["phonemes"].ordinary
    problem = Problem("Pronounce: read", "R EH D")
    assert task.score("R IY D", problem)
    assert task.score("R EH D", problem)
    assert not task.score("R AE D", problem)


@pytest.mark.parametrize("name", ["feelings", "verdicts"])
def test_classes_are_all_there_and_none_is_nearly_everything(name: str) -> None:
    task: Task = BENCHMARKS[name].ordinary
    answers = [problem.answer for problem in task.prompts("test", 300)]
    wanted = {"feelings": {"awful", "bad", "good", "great"}, "verdicts": {"Yes", "No"}}[name]
    assert set(answers) == wanted
    assert max(map(answers.count, wanted)) < 0.7 * len(answers)
