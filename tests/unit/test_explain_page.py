# SPDX-License-Identifier: Apache-2.0
"""The page and the terminal of ``vllm-cold explain``, without a browser."""

import io
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from markupsafe import escape
from rich.console import Console

from tests.browser.reports import (
    ADAPTIVE,
    CHAT,
    HOSTILE,
    WRONG,
    make_report,
    several,
    weight_of,
    without_system,
)
from vllm_cold.method.settings import ColdSettings, Weight
from vllm_cold.tools.explain import account, page, terminal, trace, visible

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
    report = make_report()
    text = page.render(report)
    read = Reader(text)
    assert HOSTILE not in text
    assert {tag for tag, _ in read.elements}.isdisjoint({"img", "iframe", "object", "embed"})
    assert len(read.scripts) == 2  # the data and the program: no token ended one of them
    assert json.loads(read.scripts[0]) == json.loads(json.dumps([page.data(report)]))
    for _, attributes in read.elements:
        assert not attributes.get("src")
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "data:,") == "data:,"
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    steps = [s for e in report.explanations for a in (e.cold, e.greedy) for s in a.steps]
    assert read.tokens == [visible.in_text(s.text, s.token) for s in steps]


def test_the_numbers_of_the_page() -> None:
    report = make_report(prompts=1)
    found = page.data(report)["prompts"][0]
    for answer in (report.explanations[0].cold, report.explanations[0].greedy):
        for step, shown in zip(answer.steps, found[answer.kind]["steps"], strict=True):
            assert shown["winner"] == step.winner
            assert shown["size"] == step.valid_size
            assert len(shown["candidates"]) == len(step.candidates)
            for candidate, values in zip(step.candidates, shown["candidates"], strict=True):
                assert values[0] == candidate.token
                assert values[2] == pytest.approx(2.718281828459045**candidate.expert, rel=1e-5)  # type: ignore[operator]
                assert values[4] == pytest.approx(candidate.score, abs=1e-6)
                assert values[5] == candidate.valid
    assert list(found["cold"]["mismatches"]) == [WRONG]
    text = page.render(report)
    assert "At 1 of 40 tokens (dotted) the engine took another token" in text
    assert "each token is the expert&#39;s most probable one" in text or (
        "each token is the expert's most probable one" in text
    )


def test_an_adaptive_beta_on_the_page() -> None:
    report = make_report(settings=ADAPTIVE)
    answers = [a for e in report.explanations for a in (e.cold, e.greedy)]
    shown = [prompt[kind] for prompt in page.data(report)["prompts"] for kind in ("cold", "greedy")]
    for answer, data in zip(answers, shown, strict=True):
        assert len(answer.unknown_betas) > 0
        for step, values in zip(answer.steps, data["steps"], strict=True):
            expected = None if step.beta is None else pytest.approx(step.beta, abs=1e-6)
            assert values["beta"] == expected
    text = page.render(report)
    assert "<dd>adaptive up to 6</dd>" in text and 'id="beta"' in text
    assert text.count("steps beta is not known: it follows from all valid tokens") == len(answers)
    assert "but for those where beta is not known" in text
    fixed = page.render(make_report())
    assert "beta is not known" not in fixed and 'id="beta"' not in fixed


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 120])
def test_an_adaptive_beta_in_the_terminal(width: int) -> None:
    report = make_report(prompts=1, settings=ADAPTIVE)
    buffer = io.StringIO()
    terminal.show(Console(file=buffer, width=width, highlight=False), report, full=True)
    text = buffer.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    flowing = " ".join(text.split())
    assert "alpha 0.1, beta adaptive up to 6;" in flowing
    cold = report.explanations[0].cold
    most = max(step.beta or 0.0 for step in cold.steps)
    assert re.search(rf"(?m)^  beta +[▁▂▃▄▅▆▇█]+ up to {most:.2f}$", text)
    numbers = ", ".join(str(index + 1) for index in cold.unknown_betas[:5])
    assert f"! beta is not known at token {numbers}" in flowing
    if width == 120:
        betas = [s.beta for e in report.explanations for a in (e.cold, e.greedy) for s in a.steps]
        found = re.findall(r"(?m) \d\.\d\d +\d+\+? +(\d+\.\d{3}|\?) *$", text)
        assert found == ["?" if beta is None else f"{beta:.3f}" for beta in betas]


def test_infinite_numbers_are_left_out_of_the_data() -> None:
    settings = make_report().settings
    amateur = {0: trace.Logprob(0.0, "a"), 1: trace.Logprob(0.0, "b")}
    step = account.make_step(
        0,
        "a",
        {0: trace.Logprob(0.0, "a"), 1: trace.Logprob(float("-inf"), "b")},
        [account.Contrasted(amateur, weight_of(settings))],
        known=2,
        vocab_size=2,
        settings=settings,
        listed=[1],
    )
    answer = trace.Answer(trace.COLD, "a", "stop", (step,))
    report = make_report(prompts=1)
    told = trace.Explanation("p", 1, answer, answer, report.explanations[0].amateurs)
    whole = trace.Report("m", "a", "s", report.settings, False, (told,))
    assert '[1,"b",0.0,1.0,null,0]' in page.render(whole)
    with pytest.raises(ValueError, match="JSON"):
        page.as_script(float("nan"))


def told(full: bool = False) -> trace.Report:
    """With one prompt where it is shown in full, which takes rich a second."""
    return make_report(prompts=1 if full else 2)


def printed(width: int, full: bool = False, **options: object) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, highlight=False, **options)  # type: ignore[arg-type]
    terminal.show(console, told(full), full)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [40, 60, 120])
def test_the_terminal_without_colours(width: int) -> None:
    text = printed(width)
    assert "\x1b" not in text  # no colours, and no token's own escape sequences
    assert "[brackets]" in text
    assert max(len(line) for line in text.splitlines()) <= width
    flowing = " ".join(text.split())
    differing = [s.text for e in told().explanations for s in e.cold.steps if s.differs]
    words = [word for word in differing if word.strip().isalpha()]
    assert len(words) > 10
    for word in words:
        assert f"[{word}]" in flowing
    assert "⟨U+202E⟩" in text
    assert "the engine took another token" in flowing
    assert "CoLD answer, where CoLD and greedy differ" in flowing


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 59, 60, 120])
@pytest.mark.parametrize("full", [False, True])
def test_the_table_of_candidates(width: int, full: bool) -> None:
    """No number is cut off, however narrow; ``full`` has every candidate of every token."""
    text = printed(width, full)
    rows = re.findall(r"^ *(\d*) .* ([<\d.]+) ?% +([<\d.]+) ?% +(-?\d+\.\d\d)", text, re.M)
    expected = []
    for explanation in told(full).explanations:
        for answer in (explanation.cold, explanation.greedy):
            if not full and answer.kind == trace.GREEDY:
                continue
            for number, step in enumerate(answer.steps, 1):
                if not (full or step.differs):
                    continue
                shown = [c for c in step.candidates if full or c.valid]
                if not full:
                    shown = shown[:4] + [c for c in shown[4:] if c.token == step.greedy]
                for line, c in enumerate(shown):
                    numbers = [f"{c.score:.2f}"]
                    for value in (c.amateurs[0], c.expert):
                        assert value is not None
                        p = 100 * math.exp(value)
                        tiny = "<0.001" if p < 0.001 else f"{p:.2g}"
                        numbers.insert(0, f"{p:.1f}" if p >= 1 else tiny)
                    expected.append((str(number) if line == 0 else "", *numbers))
    assert rows == expected
    assert max(len(line) for line in text.splitlines()) <= width
    for mark in ("CoLD", "greedy", "engine", *(("both", "cut") if full else ())):
        assert re.search(rf" {mark} +[<\d.]+ ?% ", text)


def test_the_terminal_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    colours = printed(80, force_terminal=True, color_system="truecolor")
    assert "48;2;230;123;66" in colours  # the most disagreement
    assert "[brackets]" not in colours
    assert "\x1b[31m" not in colours
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2;" not in printed(80, force_terminal=True, color_system="truecolor")


def test_sparklines() -> None:
    assert terminal.sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert terminal.sparkline([0.0] * 4, 10) == "▁▁▁▁"
    assert terminal.sparkline([0, 0, 4, 0, 0, 2], 3) == "▁█▅"
    assert terminal.sparkline([], 3) == ""


def test_what_an_amateur_does_not_read_is_struck_out_in_the_prompt() -> None:
    text = page.render(without_system())
    assert HOSTILE not in text
    role, content = CHAT[0]
    assert f'<span class="role">{role}</span> <del>{escape(content)}</del>' in text
    assert "Who wrote it?⏎" in text and "<del>Who wrote it?" not in text
    assert "reads the same conversation without system: not what is <del>struck out</del>." in text
    assert "7 tokens" in text and "chat template included" in text
    assert "every token is valid; listed are the most probable ones" in text
    assert "the choice of CoLD is the engine's own word" in text
    assert "<dt>beta</dt><dd>1.0</dd>" in text


def test_several_amateurs_on_the_page() -> None:
    report = several(settings=ADAPTIVE)
    text, data = page.render(report), page.data(report)
    for words in (
        "<b>Amateur 1</b>, base model, reads the same conversation without system: not what is",
        "<b>Amateur 2</b>, sql, reads a text of its own.",
        "<b>Amateur 3</b>, base model, reads the same prompt.",
        "weight adaptive to −6",
        "weight +0.25",
        "with such a term for each amateur",
        "<dt>weights</dt><dd>adaptive to -6, +0.25, -1</dd>",
    ):
        assert words in text, words
    assert [len(names) for names in data["amateurs"]] == [3]
    for answer in (report.explanations[0].cold, report.explanations[0].greedy):
        for step, shown in zip(answer.steps, data["prompts"][0][answer.kind]["steps"], strict=True):
            assert len(shown["weights"]) == len(shown["divergences"]) == 3
            for candidate, values in zip(step.candidates, shown["candidates"], strict=True):
                chances = [values[3], *values[6:]]
                expected = [math.exp(value) for value in candidate.amateurs if value is not None]
                assert chances == pytest.approx(expected, rel=1e-5)


def test_bounds_are_in_the_flags() -> None:
    """Of up to 32 amateurs, and of which side of the score is open."""
    expert = {0: trace.Logprob(-0.5, "a"), 1: trace.Logprob(-1.0, "b")}
    told = {0: trace.Logprob(-0.4, "a")}
    for weight, is_what in ((-0.1, trace.LEAST), (0.1, trace.MOST)):
        amateurs = [
            account.Contrasted(told if i in (0, 31) else expert, Weight(weight, False), -3.0)
            for i in range(32)
        ]
        step = account.make_step(
            0, "a", expert, amateurs, known=2, vocab_size=2, settings=ColdSettings(), listed=[1]
        )
        answer = trace.Answer(trace.COLD, "a", "stop", (step,))
        others = tuple(trace.Amateur("x", one.weight) for one in amateurs)
        explained = trace.Explanation("p", 1, answer, answer, others)
        report = trace.Report("m", "a", "s", ColdSettings(), False, (explained,))
        [first, second] = page.data(report)["prompts"][0]["cold"]["steps"][0]["candidates"]
        assert {row[0]: row[5] for row in (first, second)} == {
            0: 1,
            1: 1 + 2 * is_what + 8 * (1 + 2**31),
        }


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 100])
def test_other_prompts_in_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(report: trace.Report, **options: Any) -> str:
        buffer = io.StringIO()
        console = Console(file=buffer, width=width, highlight=False, **options)
        terminal.show(console, report)
        assert options or max(map(len, buffer.getvalue().splitlines())) <= width
        return " ".join(buffer.getvalue().split())

    text = shown(without_system())
    assert f"system: [-{CHAT[0][1]}-]" in text and "[-Who wrote it" not in text
    said = "reads the same conversation without system: not what is [-left out-] (7 tokens)"
    assert f"The amateur, base model, {said}" in text
    assert "valid tokens" not in text and "is the engine's own word" in text
    text = shown(several(2))
    assert f"Amateur 1, base model, {said[:-1]}, weight -0.5)" in text
    assert "Amateur 2, sql, reads a text of its own (3 tokens, weight +0.25) Who?" in text
    names = "expert amateur 1 amateur 2 score" if width == 100 else "expert a1 score"
    assert names in text
    assert ("amateurs 1 to 1 of 2, the page has all" in text) == (width == 40)
    assert re.search(r" (-?\d+\.\d\d) ", text[text.index("score") :])
    monkeypatch.delenv("NO_COLOR", raising=False)
    colours = shown(without_system(), force_terminal=True, color_system="truecolor")
    assert "[9;31mBe brief." in colours  # struck out, red
