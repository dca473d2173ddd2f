# SPDX-License-Identifier: Apache-2.0
"""Trains the adapters of ``adapted``: ``python -m benchmarks.accuracy.prompts.train``.

Five minutes each on one core. What is trained already is not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy.prompts import lessons
from benchmarks.accuracy.train import is_done, train_on
from examples.tasks import Problem
from examples.train_adapters import Recipe


@dataclass(frozen=True)
class Run:
    """A run of training.

    Attributes:
        make: Gives the first n lessons.
        text_of: Gives the prompt of one, with a tokenizer.
        recipe: How it is trained.
        percents: Of the steps after which an adapter is kept.
    """

    make: Callable[[int], list[Problem]]
    text_of: Callable[[Any, Problem], str]
    recipe: Recipe
    percents: tuple[int, ...] = (100,)


def _recipe(steps: int, learning_rate: float) -> Recipe:
    return Recipe(
        steps=steps, batch_size=8, rank=16, alpha=32, learning_rate=learning_rate, warmup_steps=6
    )


RUNS = {
    "qa": Run(lessons.qa, lessons.qa_prompt, _recipe(64, 5e-4)),
    "pirate": Run(
        lessons.pirate, lessons.pirate_prompt, _recipe(48, 3e-4), percents=(10, 25, 50, 100)
    ),
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the adapters of contrasts with prompts.")
    parser.add_argument("--adapters", nargs="+", choices=RUNS, default=list(RUNS))
    for name in parser.parse_args().adapters:
        run = RUNS[name]
        if not is_done(name, run.recipe, run.percents):
            problems = run.make(run.recipe.steps * run.recipe.batch_size)
            train_on(problems, run.text_of, name, run.recipe, run.percents)


if __name__ == "__main__":
    main()
