# SPDX-License-Identifier: Apache-2.0
"""Token text made safe to show: no invisible characters, none that control a terminal or a page."""

import unicodedata

_SHOWN = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
# Control, format (such as changes of direction), surrogate, private, unassigned, separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def in_text(text: str, token: int | None = None) -> str:
    """Show a text, or a token within an answer: a line ends after its mark, spaces stay.

    Args:
        text: "" for a token that is a part of a character.
        token: Its id, shown where there is no text.
    """
    if not text or (text.isspace() and "\n" not in text):
        return alone(text, token)
    return "".join("⏎\n" if c == "\n" else _character(c) for c in text)


def alone(text: str, token: int | None = None) -> str:
    """Show a text or a token by itself, in a list: spaces are marked too."""
    if not text and token is not None:
        return f"⟨{token}⟩"
    return "".join("␣" if c == " " else _character(c) for c in text)


def _character(c: str) -> str:
    if c in _SHOWN:
        return _SHOWN[c]
    if unicodedata.category(c) in _HIDDEN or (c.isspace() and c != " "):
        return f"⟨U+{ord(c):04X}⟩"
    return c
