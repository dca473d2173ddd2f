# SPDX-License-Identifier: Apache-2.0
"""Which mistakes every run looks for."""

import random
from typing import Any

import pytest


def of_every_run(changes: dict[str, Any]) -> list[Any]:
    """The names of a table of mistakes: every run looks for the first of each check and a third of
    the others, chosen once and for all; the rest is marked ``full``. Each costs a compilation.
    """
    rng, seen, cases = random.Random(0), set(), []
    for name, change in changes.items():
        chosen = change.check not in seen or rng.random() < 1 / 3
        seen.add(change.check)
        cases.append(pytest.param(name, marks=() if chosen else pytest.mark.full))
    return cases
