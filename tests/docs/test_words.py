# SPDX-License-Identifier: Apache-2.0
"""The documentation reads once: short sentences, standard terms, and no path where a reader of the
site needs a link. CONTRIBUTING.md and CHANGELOG.md are for people who change the code.
"""

import re
from collections.abc import Iterator

import pytest

from tests.docs.blocks import ROOT, pages

pytestmark = pytest.mark.unit

MOST = 25  # words of a sentence
# Made from the code's table, whose reasons are of contributors; and for maintainers of vLLM.
REFERENCE = ("docs/reference/places.md", "docs/for-vllm.md")
# Words of this project's own, and the field's in their place.
PRIVATE = {
    r"\bplain (request|prompt|client)s?": "regular request",
    r"said twice|part repeated": "repeated",
    r"better prompt": "stronger prompt",
    r"closed book": "without the context, without the instruction",
    r"against memory": "knowledge conflict, over memory",
    r"whole answers": "answer selection",
    r"\bdrawn\b": "sampled",
    r"engine's own word": "as reported by the engine",
    r"\bcured\b|\bcures?\b": "fixed, worked around",
    r"models? that sees?\b": "vision-language model",
    r"\bseats?\b": "sequence slot",
    r"\bknobs?\b": "setting",
    r"\bblind\b": "not tested",
    r"out of step": "desynchronised",
    r"beside the point": "irrelevant",
}
_MARK = re.compile(r"^\s*(?:[-*]|\d+\.) ")


def prose(text: str) -> Iterator[str]:
    """Paragraphs and items of lists, without code, tables, headings and pictures."""
    text = re.sub(r"^([ ]*)```.*?^\1```$|<!--.*?-->", "", text, flags=re.M | re.S)
    for block in re.split(r"\n\s*\n", text):
        lines: list[str] = []
        for line in block.splitlines():
            if line.lstrip().startswith(("|", "#", "![", ":::", "    options")):
                continue
            if _MARK.match(line) and lines:
                yield " ".join(lines)
                lines = []
            lines.append(_MARK.sub("", line).strip().lstrip("> "))
        if lines:
            yield " ".join(lines)


def sentences(text: str) -> Iterator[str]:
    """Of prose; code counts as a word, a link as its text."""
    for part in prose(text):
        part = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", part))
        yield from re.split(r"(?<=[.!?:;])[\"')*]*\s+", part)


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("page", pages())
def test_sentences_are_short(page: str) -> None:
    if page not in REFERENCE:
        assert [s for s in sentences((ROOT / page).read_text()) if words(s) > MOST] == []


@pytest.mark.parametrize("page", pages())
def test_terms_are_the_fields(page: str) -> None:
    if page in REFERENCE:
        return
    text = "\n".join(prose((ROOT / page).read_text()))
    found = {m[0]: say for term, say in PRIVATE.items() for m in re.finditer(term, text, re.I)}
    assert found == {}


def test_the_packages_terms_are_the_fields() -> None:
    """In messages, docstrings, comments and names."""
    terms = {**PRIVATE, r"CoLD|Contrastive LoRA Decoding": "contrastive decoding"}
    sources = [p for p in (ROOT / "vllm_cold").rglob("*") if p.suffix in (".py", ".j2")]
    found = {
        f"{path.name}: {m[0]}": say
        for path in sources
        for term, say in terms.items()
        for m in re.finditer(term, path.read_text())
    }
    assert found == {}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_sentences_are_counted() -> None:
    text = (
        "# A\n\nOne `a b c` [two](x.md); three. Four\nfive.\n- Six.\n\n```\nno code\n```\n| t |\n"
    )
    assert [words(s) for s in sentences(text)] == [3, 1, 2, 1]
