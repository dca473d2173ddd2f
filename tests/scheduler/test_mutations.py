# SPDX-License-Identifier: Apache-2.0
"""The storms and cases bite: without any one of the rules they fail."""

from pathlib import Path

import pytest

from tests.scheduler.mutations import MUTATIONS, Mutation
from tests.scheduler.storm import storms

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.rule)
def test_bites(mutation: Mutation, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.install(monkeypatch)
    try:
        if mutation.case:
            mutation.case(tiny / "model")
        else:
            list(storms(tiny / "model", range(60)))
    # A mutant that is no program would prove nothing.
    except (AttributeError, NameError, TypeError):
        raise
    # Whatever the missing rule leads to: our invariants, vLLM's assertions, a KeyError.
    except Exception as error:
        print(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()))
        return
    pytest.fail(f"nothing fails without: {mutation.rule}")
