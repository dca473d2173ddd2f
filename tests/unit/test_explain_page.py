# SPDX-License-Identifier: Apache-2.0
"""The page and the terminal of ``vllm-cold explain``, without a browser."""

import html
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from tests.browser.reports import HOSTILE, make_report
from vllm_cold.tools.explain import page, terminal, visible
from vllm_cold.tools.explain.record import Report

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "report", [make_report(several=True), make_report(alpha=0.0), make_report(bits=[8.0, 1e6])]
)
def test_the_page_holds_the_report_and_nothing_foreign(report: Report) -> None:
    text = page.render(report)
    assert HOSTILE not in text
    assert not re.search(r"url\(|@import|https?://", text)
    # The data and the program: no token ended one of them.
    data, _ = re.findall("<script[^>]*>(.*?)</script>", text, re.S)
    assert json.loads(data) == json.loads(report.model_dump_json())
    tokens = re.findall('<span [^>]*role="option"[^>]*>(.*?)</span>', text, re.S)
    steps = [s for e in report.explanations for a in e.answers for s in a.steps]
    assert re.search(r"40 tokens, cut at --max-tokens · \d+ differ from greedy&#39;s choice", text)
    assert list(map(html.unescape, tokens)) == [visible.in_text(s.text, s.token) for s in steps]


def printed(report: Report, width: int, **options: Any) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, highlight=False, **options)
    terminal.show(console, report)
    return buffer.getvalue()


def test_the_terminal_without_colours() -> None:
    report = make_report(several=True)
    text = printed(report, 100)
    assert "\x1b" not in text  # no colours, and no token's own escape sequences
    assert "[brackets]" in text and "⟨U+202E⟩" in text
    assert max(len(line) for line in text.splitlines()) <= 100
    flowing = " ".join(text.split())
    differing = [s.text for a in report.explanations[0].answers for s in a.steps if s.differs]
    words = [word for word in differing if word.strip().isalpha()]
    assert len(words) > 5 and all(f"[{word}]" in flowing for word in words)
    assert "against sql, text of its own, weight +0.25" in flowing
    assert flowing.count("⊣") == 1  # of vllm-cold's answer


def test_the_table_of_candidates() -> None:
    """The best four where the two differ, and greedy's."""
    report = make_report()
    numbers = r"^ *(\d*) .* ([<\d.]+) % +([<\d.]+) % +(-?\d+\.\d\d)"
    rows = re.findall(numbers, printed(report, 120), re.M)
    expected = []
    for number, step in enumerate(report.explanations[0].answers[0].steps, 1):
        valid = [c for c in step.candidates if c.valid] if step.differs else []
        shown = valid[:4] + [c for c in valid[4:] if c.token == step.greedy]
        expected += [("" if i else str(number), f"{c.score:.2f}") for i, c in enumerate(shown)]
    assert [(at, score) for at, _, _, score in rows] == expected and len(rows) > 30


def test_the_terminal_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    options: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor"}
    colours = printed(make_report(several=True), 80, **options)
    assert "48;2;230;123;66" in colours  # the most disagreement
    assert "[brackets]" not in colours and "\x1b[31m" not in colours
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2;" not in printed(make_report(), 80, **options)


def test_what_the_page_says_of_limits() -> None:
    """A bar of each amateur and token; and nothing of weights, which a rule of scores lacks."""
    report = make_report(bits=[8.0, 4.0])
    answer = report.explanations[0].answers[0]
    text = page.render(report)
    bars = re.findall(
        r'<i( class="limited")? style="--after: ([\d.]+)%; --before: ([\d.]+)%">', text
    )
    wanted = [
        (step.limited[i], step.left[i] - max(step.cost[i], 0.0), step.left[i], limit.bits)
        for i, limit in enumerate(answer.limits)
        for step in answer.steps
    ]
    for (mark, *shares), (limited, *bits, most) in zip(bars, wanted, strict=True):
        assert bool(mark) == limited
        assert [float(share) for share in shares] == pytest.approx(
            [100 * one / most for one in bits], abs=0.051
        )
    assert "Left of 8 bits, amateur 1" in text and "Left of 4 bits, amateur 2" in text
    marked = len(re.findall('class="t [^"]*limited"', text))
    assert marked == sum(step.is_limited for step in answer.steps) > 10
    assert "weight" not in re.sub("<style>.*?</style>|<script.*?</script>|Amateurs have no weights"
                                  "|with weights of 0", "", text, flags=re.S)  # fmt: skip
    assert "spent" in answer.summary and answer.summary in html.unescape(text)
    free = page.render(make_report(bits=[1e6]))
    assert "Cost of each token, at most 2.00 bits" in free and "Left of" not in free
    for other in (make_report(), make_report(several=True)):
        assert "overlined" not in (shown := page.render(other)) and 'class="bars"' not in shown


def test_what_the_terminal_says_of_limits() -> None:
    report = make_report(bits=[8.0, 4.0])
    text = printed(report, 100)
    steps = report.explanations[0].answers[0].steps
    assert text.count("↧") == 1 + sum(s.is_limited for s in steps) + sum(
        s.is_limited for _, s in terminal._costliest(report.explanations[0].answers[0])
    )
    for name, limit, i in (("1", 8.0, 0), ("2", 4.0, 1)):
        [bars] = re.findall(rf"left of {limit:g} bits, amateur {name}: (.*)", text)
        assert len(bars.rstrip()) == 40 and bars[0] == "█"
        for bar, step in zip(bars, steps, strict=False):
            assert (bar == "·") == (step.left[i] < 0.01 * limit)
    assert "The tokens that cost most (8 of 40), in bits" in text
    assert re.search(r"at +token +cost 1 +left 1 +cost 2 +left 2", text)
    assert "weight" not in text and "bound against adapter" in text
    free = printed(make_report(bits=[1e6]), 100)
    assert "left" not in free and re.search(r"at +token +cost *\n", free)
    assert "cost" not in printed(make_report(), 100)
