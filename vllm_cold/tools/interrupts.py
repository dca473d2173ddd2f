# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that is not lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises ``KeyboardInterrupt`` where it finds the program, as ever. Python drops that in
    places where nothing can be raised, such as destructors; the function that is given then raises
    it, so call it now and then.
    """
    former = signal.getsignal(signal.SIGINT)
    if not callable(former):
        yield lambda: None  # ignored
        return
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        former(number, frame)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, former)
