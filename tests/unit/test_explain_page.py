# SPDX-License-Identifier: Apache-2.0
"""The page and the terminal of ``vllm-cold explain``, without a browser."""

import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from tests.browser.reports import CHAT, HOSTILE, PLAIN, WRONG, everything, make_report
from vllm_cold.tools.explain import page, terminal, visible, words
from vllm_cold.tools.explain.trace import Report

pytestmark = pytest.mark.unit


class Reader(HTMLParser):
    """Elements, the tokens' text and the contents of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.tokens: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        self._open = "token" if found.get("role") == "option" else tag
        if tag == "script":
            self.scripts.append("")
        if self._open == "token":
            self.tokens.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        if self._open == "token":
            self.tokens[-1] += data


def test_the_page_holds_the_report_and_nothing_foreign() -> None:
    report = everything()
    text = page.render(report)
    read = Reader(text)
    assert HOSTILE not in text
    assert {tag for tag, _ in read.elements}.isdisjoint({"img", "iframe", "object", "embed"})
    assert len(read.scripts) == 2  # the data and the program: no token ended one of them
    assert json.loads(read.scripts[0]) == json.loads(json.dumps(page.data(report)))
    for _, attributes in read.elements:
        assert not attributes.get("src")
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "data:,") == "data:,"
    assert not re.search(r"url\(|@import|https?://", text)
    steps = [s for e in report.explanations for a in e.answers for s in a.steps]
    assert read.tokens == [visible.in_text(s.text, s.token) for s in steps]
    with pytest.raises(ValueError, match="JSON"):
        page.as_script(float("nan"))


def test_the_numbers_of_the_page() -> None:
    report = everything()
    shown = iter(page.data(report))
    for answer in report.explanations[0].answers:
        found = next(shown)
        method = report.methods[answer.method]
        assert found["title"] == ("Greedy" if answer.greedy else method.name)
        for step, values in zip(answer.steps, found["steps"], strict=True):
            assert (values["winner"], values["greedy"]) == (step.winner, step.greedy)
            numbers = dict(values["numbers"])
            bits = ", ".join(f"{value:.3f}" for value in step.divergences)
            assert numbers["Disagreement"] == f"{bits} bits"
            at_least = "" if step.complete else "at least "
            valid = "all, as alpha is 0" if method.no_mask else f"{at_least}{step.valid_size}"
            assert numbers["Valid tokens"] == valid
            assert ("Weights" in numbers) == method.settings.adaptive
            assert ("not known" in str(numbers.get("Weights"))) == (None in step.weights)
            for c, (token, _, badges, ok, chances, score) in zip(
                step.candidates, values["candidates"], strict=True
            ):
                assert (token, ok) == (c.token, c.valid)
                assert chances == pytest.approx(
                    [math.exp(x) for x in (c.expert, *c.amateurs)], 1e-5
                )
                assert score == (c.score if c.score is None else pytest.approx(c.score, abs=1e-6))
                assert (method.name in badges) == (c.token == step.winner)
                assert ("greedy" in badges) == (c.token == step.greedy)
                wrong = answer.method == 0 and not answer.greedy and step is answer.steps[WRONG]
                assert ("engine" in badges) == (wrong and c.token == step.token)


def test_what_is_said_of_answers() -> None:
    report = everything()
    plain, several, no_mask, greedy = report.explanations[0].answers
    said = {}
    for answer in (plain, several, no_mask, greedy):
        notes = words.notes(report.methods[answer.method], answer)
        said[report.title(answer)] = " ".join(note.text for note in notes)
        assert any(note.warns for note in notes) == (answer in (plain, several))
    assert (
        f"another token than follows from the numbers here at token {WRONG + 1} (" in said["CoLD"]
    )
    assert "Checked: each token is the expert's most probable one" in said["Greedy"]
    unknown = [i for i, step in enumerate(several.steps, 1) if None in step.weights]
    listed = ", ".join(map(str, unknown[:5]))
    assert f"At token {listed}, ... an adaptive weight is not known" in said["two, at most"]
    assert "At all tokens the choice of cfg is the engine's own word" in said["cfg"]
    assert "Without a mask (alpha 0) every token is valid" in said["cfg"]
    text = page.render(report)
    for sentence in (
        "alpha 0.1 · 40 tokens, cut at --max-tokens · CoLD and greedy differ at",
        "<b>CoLD</b> (alpha 0.1): against base model, weight −1 ",
        "base model reading the same conversation without system, weight adaptive to −6",
        "<del>Be brief. &lt;/script&gt;",
        "sql reading a text of its own, weight +0.25",
    ):
        assert sentence in text, sentence
    verdict = words.verdict(PLAIN, plain, WRONG)
    assert "The engine took “" in verdict and "” here, " in verdict


def printed(report: Report, width: int, **options: Any) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, highlight=False, **options)
    terminal.show(console, report)
    return buffer.getvalue()


def test_the_terminal_without_colours() -> None:
    report = everything()
    text = printed(report, 100)
    assert "\x1b" not in text  # no colours, and no token's own escape sequences
    assert "[brackets]" in text and "⟨U+202E⟩" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    flowing = " ".join(text.split())
    found = [s.text for a in report.explanations[0].answers for s in a.steps if s.differs]
    shown = [word for word in found if word.strip().isalpha()]
    assert len(shown) > 10
    for word in shown:
        assert f"[{word}]" in flowing
    assert f"system: [-{CHAT[0].text}-]" in flowing and "[-Who wrote it" not in flowing
    assert "against sql reading a text of its own, weight +0.25 (3 tokens)" in flowing
    assert "The engine took another token" in flowing


def test_the_table_of_candidates() -> None:
    """The best ones where the two differ."""
    report = make_report()
    rows = re.findall(
        r"^ *(\d*) .* ([<\d.]+) % +([<\d.]+) % +(-?\d+\.\d\d|\?)", printed(report, 120), re.M
    )
    expected = []
    for number, step in enumerate(report.explanations[0].answers[0].steps, 1):
        valid = [c for c in step.candidates if c.valid] if step.differs else []
        shown = valid[:4] + [c for c in valid[4:] if c.token == step.greedy]
        for line, c in enumerate(shown):
            numbers = []
            for value in (c.expert, *c.amateurs):
                p = 100 * math.exp(value)
                tiny = "<0.001" if p < 0.001 else f"{p:.2g}"
                numbers.append(f"{p:.1f}" if p >= 1 else tiny)
            expected.append((str(number) if line == 0 else "", *numbers, f"{c.score:.2f}"))
    assert rows == expected and len(rows) > 30


def test_the_terminal_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    options: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor"}
    colours = printed(everything(), 80, **options)
    assert "48;2;230;123;66" in colours  # the most disagreement
    assert "[brackets]" not in colours and "\x1b[31m" not in colours
    assert "[9;31mBe brief." in colours  # struck out, red
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2;" not in printed(make_report(), 80, **options)
