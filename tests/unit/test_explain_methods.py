# SPDX-License-Identifier: Apache-2.0
"""Methods side by side: what ``--method`` takes, their reports, page and Markdown."""

import dataclasses
import json
import re
from html import unescape
from pathlib import Path

import pytest

from tests.asked import asked
from tests.browser.reports import CHAT, HOSTILE, make_report, several, without_system
from tests.unit.test_explain_collect import Model
from tests.unit.test_explain_command import parse
from tests.unit.test_explain_page import Reader
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, markdown, page
from vllm_cold.tools.explain.command import ask_all, methods_of, read_rows
from vllm_cold.tools.explain.methods import read_methods
from vllm_cold.tools.explain.trace import COLD, GREEDY, STACKED, Column, Report

pytestmark = pytest.mark.unit

COLUMNS = (Column(0, GREEDY), Column(0, COLD), Column(1, COLD))


def compared() -> list[Report]:
    """Two methods on one prompt."""
    return [
        dataclasses.replace(make_report(1, prompt=CHAT), name="cold, beta 2"),
        dataclasses.replace(without_system(), name="cfg"),
    ]


def test_methods_are_read() -> None:
    found = read_methods(["cold:alpha=0.02, beta=2", "greedy", "adacad:beta-max=3,beta=adaptive"])
    assert [(one.name, one.args) for one in found.contrasting] == [
        (
            "cold, alpha 0.02, beta 2",
            {"cold_preset": "cold", "cold_alpha": 0.02, "cold_beta": 2.0},
        ),
        (
            "adacad, beta_max 3, beta adaptive",
            {"cold_preset": "adacad", "cold_beta_max": 3.0, "cold_beta": "adaptive"},
        ),
    ]
    assert found.columns == (Column(0, COLD), Column(0, GREEDY), Column(1, COLD))
    assert read_methods(["cad"]).columns == (Column(0, COLD),)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["cot"], "--method='cot': must be one of greedy, cold, cad, "),
        (["greedy"], "--method=greedy: has nothing to compare with; add one of cold, "),
        (["cold", "cold"], "--method=cold: is there twice"),
        (["greedy", "cold", "cad", "cfg"], "--method: a page has room for 3, and there are 4"),
        (["cold:gamma=1"], "'gamma' is no value of cold's; it has alpha, beta, .* each once"),
        (["cold:beta=1,beta=2"], "'beta' is no value of cold's"),
        (["greedy:beta=1", "cold"], "'beta' is no value of greedy's; it has none"),
    ],
)
def test_mistakes_in_methods(texts: list[str], said: str) -> None:
    with pytest.raises(ToolError, match=said):
        read_methods(texts)


def test_a_methods_values_win_over_the_options(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    messages = [{"role": role, "content": text} for role, text in CHAT]
    file.write_text(json.dumps({"messages": messages}))
    given = ["--url", "u", "--adapter", "a", "--prompts", str(file), "--alpha", "0.2"]
    options = parse(*given, "--method", "cold:alpha=0.3", "--method", "cfg", "--method", "greedy")
    first, second = methods_of(options).contrasting
    [cold] = ask_all(options, read_rows(options), first)
    assert (cold.contrast.settings.alpha, cold.contrast.settings.beta) == (0.3, 0.5)
    assert cold.contrast.amateurs[0].source is None
    [cfg] = ask_all(options, read_rows(options), second)
    assert cfg.contrast.settings.alpha == 0.2
    # What the preset leaves out of a chat, as on a server.
    assert cfg.args["cold_without"] == "system"
    with pytest.raises(
        ToolError, match="line 1: --preset=grounded: leaves tool out of a chat, and"
    ):
        ask_all(parse(*given, "--preset", "grounded"))
    messages.append({"role": "tool", "content": "t"})
    file.write_text(json.dumps({"messages": messages}))
    [grounded] = ask_all(parse(*given, "--preset", "grounded"))
    assert grounded.args["cold_without"] == ["tool", "user"]
    own = parse(*given, "--preset", "cfg", "--without", "1")
    assert [one.args["cold_without"] for one in ask_all(own)] == [1]
    with pytest.raises(ToolError, match="--alpha=2.0: must be a number in"):
        ask_all(options, read_rows(options), read_methods(["cold:alpha=2"]).contrasting[0])
    with pytest.raises(ToolError, match="--preset=cad: --method names presets; leave one"):
        methods_of(parse(*given, "--preset", "cad", "--method", "cold"))
    assert methods_of(parse(*given)).columns == STACKED


class Counting(Model):
    """Counts the greedy answers that are asked for."""

    decoded = 0

    def greedy(self, *args: object) -> list[collect.Decoded]:
        self.decoded += 1
        return super().greedy(*args)  # type: ignore[arg-type]


def test_methods_share_the_greedy_answer() -> None:
    """Each report is the one that the method has alone."""
    prompts = ["ab", "c"]
    methods = {"weak": asked(prompts, beta=0.2), "strong": asked(prompts, beta=3.0)}
    model = Counting(spread=6.0)
    reports = collect.compare(model, methods, max_tokens=6)
    assert model.decoded == 1
    for report, (name, those) in zip(reports, methods.items(), strict=True):
        alone = collect.explain(Model(spread=6.0), those, max_tokens=6)
        assert report == dataclasses.replace(alone, name=name)
    texts = [[e.cold.steps for e in report.explanations] for report in reports]
    assert texts[0] != texts[1]


def test_side_by_side_on_the_page() -> None:
    reports = compared()
    html = page.render(*reports, columns=COLUMNS)
    read = Reader(html)
    assert HOSTILE not in html and '<body class="wide">' in html
    boxes = [a for tag, a in read.elements if a.get("role") == "listbox"]
    assert [(box["data-method"], box["data-kind"]) for box in boxes] == [
        ("0", GREEDY),
        ("0", COLD),
        ("1", COLD),
    ]
    assert [box["aria-label"] for box in boxes] == [
        f"{name} answer, token by token" for name in ("Greedy", "cold, beta 2", "cfg")
    ]
    assert json.loads(read.scripts[0]) == json.loads(json.dumps([page.data(r) for r in reports]))
    assert "against base model, alpha 0.1, beta 1.0 · 40 tokens" in html
    assert "<b>cfg</b>: <b>The amateur</b>, base model, reads the same conversation" in html
    one = page.render(reports[0])
    assert "<body>" in one and 'class="side"' not in one


def test_what_is_copied() -> None:
    """Nothing in it is read as Markdown or HTML but what is meant to be."""
    reports = [*compared(), dataclasses.replace(several(2), name="a|b `c`")]
    columns = (*COLUMNS, Column(2, COLD))
    text = markdown.write(reports, columns, 0)
    fences = re.findall(r"(?m)^(`{3,})(text)?$", text)
    assert [bool(opens) for _, opens in fences] == [True, False] * 5
    outside = "".join(re.split(r"(?ms)^```text$.*?^```$", text))
    assert not re.search(r"(?<!\\)[<>`]", outside)
    assert re.search(r"(?m)^\*\*a\\\|b \\`c\\`\*\* \(against .*, 40 tokens\)$", text)
    assert "**Prompt** (23 tokens)\n\n```text\nsystem: Be brief. " in text
    for row in re.findall(r"(?m)^\|.*$", outside):
        assert len(re.findall(r"(?<!\\)\|", row)) == 5
    [cold, cfg, _] = (sum(s.differs for s in r.explanations[0].cold.steps) for r in reports)
    assert f"| and {cold - 20} more | | | |" in text and f"| and {cfg - 20} more |" in text
    # It is what the button holds.
    html = page.render(*reports, columns=columns)
    [held] = re.findall(r'data-markdown="([^"]*)"', html)
    assert unescape(held) == text
    assert markdown._fenced("a ```` b")[0] == "`````text"
