# SPDX-License-Identifier: Apache-2.0
"""Each block of README.md and docs/*.md is run by a test, or says why it cannot be."""

import ast
import re

import pytest
from markdown_it import MarkdownIt

from tests.docs.blocks import ROOT, blocks, pages

pytestmark = pytest.mark.unit

SHOWN = {"text", "json"}  # what a command prints or reads; everything else is for readers to run

# "not run" is for what a test cannot do: hardware, what the tests run with, what vLLM lacks.
REASON = re.compile(
    r"needs (a GPU|an NPU|CANN)\b"
    r"|environment in which the tests run$|installs it for the tests$|builds an image$"
    r"|docs/[\w-]+\.md has it$|an interface that vLLM lacks$"
)

# Tabs ("===") are of the site's markdown; what they hold is indented.
TAB = re.compile(r"^=== .*\n((?: {4}.*\n|\n)+)", re.M)


def used() -> set[tuple[str, str]]:
    """Page and name of each ``block(page, name)`` and ``story(page, name)`` in the tests."""
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        constants = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="block" | "story"), args=[page, name]):
                    page, name = (
                        constants.get(argument.id) if isinstance(argument, ast.Name)
                        else argument.value if isinstance(argument, ast.Constant) else None
                        for argument in (page, name)
                    )  # fmt: skip
                    assert page and name, f"{path}:{node.lineno}: page and name are written out"
                    found.add((page, name))
    return found


@pytest.mark.parametrize("page", pages())
def test_each_block_is_tested_or_says_why_not(page: str) -> None:
    for block in blocks(page):
        if block.language in SHOWN:
            continue
        assert block.language, f"a fence without a language on {page}:\n{block.text}"
        assert block.kind, f"no marker above this block on {page}:\n{block.text}"
        assert block.note
        if block.kind == "not run":
            assert REASON.search(block.note), f"{page}: is '{block.note}' a reason?"


def test_each_tested_block_is_used_by_a_test_and_each_use_exists() -> None:
    marked = {(p, b.note) for p in pages() for b in blocks(p) if b.kind == "tested"}
    assert len(marked) > 15
    in_tests = used()
    assert marked - in_tests == set(), "marked as tested, and no test uses it"
    assert in_tests - marked == set(), "used by a test, and not on the page"


@pytest.mark.parametrize("page", pages())
def test_no_block_is_missed(page: str) -> None:
    """Another parser finds as many fences, and no code by indentation."""
    text = (ROOT / page).read_text()
    text = TAB.sub(lambda tab: re.sub(r"^ {4}", "", tab[1], flags=re.M), text)
    kinds = [token.type for token in MarkdownIt("commonmark").parse(text)]
    assert kinds.count("fence") == len(blocks(page))
    assert kinds.count("code_block") == 0, "indented code: write it as ```text"
