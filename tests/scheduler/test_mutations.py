# SPDX-License-Identifier: Apache-2.0
"""The storms and cases bite: without any one of the rules they fail."""

from pathlib import Path

import pytest

from tests.scheduler.mutations import MUTATIONS, Mutation
from tests.scheduler.storm import storm

pytestmark = pytest.mark.slow

STORMS, STEPS = 60, 200


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.rule)
def test_bites(mutation: Mutation, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.install(monkeypatch)
    for seed in range(1 if mutation.case else STORMS):
        try:
            if mutation.case:
                mutation.case(tiny / "model")
            else:
                storm(tiny / "model", seed, STEPS)
        # A mutant that is no program would prove nothing.
        except (AttributeError, NameError, TypeError):
            raise
        # Whatever the missing rule leads to: our invariants, vLLM's assertions, a KeyError.
        except Exception as error:
            print(f"seed {seed}: {type(error).__name__}: {error}")
            return
    pytest.fail(f"nothing fails without: {mutation.rule}")
