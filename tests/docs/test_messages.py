# SPDX-License-Identifier: Apache-2.0
"""Every message that a user can meet stands on docs/reference/messages.md, with a remedy, unless
it says itself what to do.
"""

import re

import pytest

from tests.docs.blocks import ROOT
from tests.docs.messages import VALUE, collect

pytestmark = pytest.mark.unit

_ROW = re.compile(r"^\| `(?P<message>[^`]+)`[^|]* \| (?P<remedy>[^|]+) \|$", re.M)
_ALONE = re.compile(r"^- `([^`]+)`", re.M)
_EMPTY = re.compile(r"(that|the same|as above|what (it|the sentence) says)\.?")


def rows() -> dict[str, str | None]:
    """The page's messages and what to do about each; None where the message says so itself."""
    page = (ROOT / "docs" / "reference" / "messages.md").read_text()
    alone: dict[str, str | None] = {m[1]: None for m in _ALONE.finditer(page)}
    return alone | {m["message"]: m["remedy"].strip() for m in _ROW.finditer(page)}


def pattern(text: str, value: str) -> re.Pattern[str]:
    """What a sentence looks like, whatever stands for ``value``.

    It may end without its full stop, and follow what is wrong with which value: ``alpha=...: ``.
    """
    parts = text.split(value)
    parts[-1] = parts[-1].removesuffix(".")
    sentence = ".+?".join(re.escape(part) for part in parts)
    return re.compile(rf"(?:\S+=\S+: )?{sentence}\.?")


def listed(message: str, cells: list[str]) -> list[str]:
    """The page's cells that show this message, with values or with ``...`` for them."""
    own = pattern(message, VALUE)
    found = [c for c in cells if own.fullmatch(c)]
    # An open end would take in sentences that have a row of their own to be.
    closed = (c for c in cells if not c.endswith("..."))
    return found or [c for c in closed if pattern(c, "...").fullmatch(message)]


def test_messages_are_found() -> None:
    """Each kind that ``messages`` looks for: raised, logged, returned, written and constant."""
    texts = {message.text for message in collect()}
    assert len(texts) > 80
    for part in (
        "must be a number in [0, 1]",  # raised
        "falls back to",  # logged
        "LoRA is off, and the engine was not asked",  # returned
        "do not fit the KV cache of",  # a request's end
        "hold NaN or +inf",  # a constant
    ):
        assert any(part in text for text in texts), part


def test_each_message_is_on_the_page() -> None:
    cells = list(rows())
    missing = [message for message in collect() if not listed(message.text, cells)]
    assert missing == [], "\n".join(f"{m.where}: {m.text}" for m in missing)


def test_the_page_has_no_message_that_is_gone() -> None:
    """But for vLLM's own and those that are made of several."""
    own = collect()
    vllms = {"unrecognized arguments: --sampler"}
    gone = [c for c in rows() if c not in vllms and not any(listed(m.text, [c]) for m in own)]
    assert gone == []


def test_each_remedy_says_something() -> None:
    found = {message: remedy for message, remedy in rows().items() if remedy is not None}
    assert len(found) > 80
    wrong = [m for m, remedy in found.items() if len(remedy) < 4 or _EMPTY.fullmatch(remedy)]
    assert wrong == []


def test_a_new_message_would_be_missed() -> None:
    cells = list(rows())
    assert listed("must be a number in [0, 1]", cells)
    assert listed(f"its rank {VALUE} is above the engine's max_lora_rank={VALUE}", cells)
    assert not listed(f"a sentence with {VALUE} that nobody wrote down", cells)
    assert not listed("must be a number in (0, 2]", cells)
