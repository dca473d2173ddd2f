# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, also where Python drops it."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from vllm_cold.tools.interrupts import kept_interrupts

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Also where these tests were started in the background of a shell, which ignores Ctrl-C."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


class Dropping:
    """Presses Ctrl-C in a destructor."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_dropped_interrupt_is_raised_by_the_check() -> None:
    former = signal.getsignal(signal.SIGINT)
    with kept_interrupts() as check:
        check()
        Dropping()
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is former


def test_an_interrupt_is_raised_where_it_finds_the_program() -> None:
    """In an event loop, too, that is busy with an engine."""
    former = signal.getsignal(signal.SIGINT)
    reached: list[int] = []

    async def work() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(1)

    with pytest.raises(KeyboardInterrupt), kept_interrupts():
        asyncio.run(work())
    assert reached == [] and signal.getsignal(signal.SIGINT) is former
