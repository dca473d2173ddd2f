# SPDX-License-Identifier: Apache-2.0
"""The fenced blocks of README.md and docs/**/*.md, and what becomes of each.

The line above a block says so: ``<!-- tested: NAME -->``, then a test gets the text by
``block(PAGE, NAME)`` and runs it, or ``<!-- not run: REASON -->``. Blocks of a page that build on
each other share a name: ``story(PAGE, NAME)``. ``test_blocks.py`` finds these calls in the tests.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A marker, if there is one, and a fence with its text. Blocks in lists and tabs are indented.
_BLOCK = re.compile(
    r"^(?:[ ]*<!-- (?P<kind>tested|not run): (?P<note>.+?) -->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>\w*)[^\n`]*\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: As written after the fence.
        text: Without the indentation of the fence.
        kind: "tested", "not run", or None without a marker.
        note: The marker's name or reason.
    """

    language: str
    text: str
    kind: str | None
    note: str | None


def pages() -> list[str]:
    """README.md and the pages of docs/, as paths from the project's folder."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *found]


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in its order."""
    found = _BLOCK.finditer((ROOT / page).read_text())
    return [Block(m["language"], textwrap.dedent(m["text"]), m["kind"], m["note"]) for m in found]


def story(page: str, name: str) -> list[str]:
    """The texts of the blocks that are marked as tested under this name."""
    found = [b.text for b in blocks(page) if b.kind == "tested" and b.note == name]
    assert found, f"{page} has no block 'tested: {name}'"
    return found


def block(page: str, name: str) -> str:
    """The text of the one block that is marked as tested under this name."""
    (found,) = story(page, name)
    return found
