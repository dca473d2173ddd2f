# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` of prompts with images: every number is still that of the streams, in this
process and through a server; and nothing that is shown, printed or kept has an image's data in it.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.asked import asked
from tests.made_up_server import ADAPTER, MadeUp, serving
from tests.unit.test_explain_command import asks, parse
from tests.unit.test_explain_numbers import Model, exact, explain
from tests.unit.test_explain_serve import ask, source
from tests.unit.test_pictures import file, pixels
from vllm_cold.tools.contrast import Pictured
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import collect, page, serve, terminal
from vllm_cold.tools.explain.command import run
from vllm_cold.tools.explain.record import Report
from vllm_cold.tools.pictures import make_picture

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ONE = make_picture("one.png", file(pixels((5, 4))))
TWO = make_picture("two.png", file(pixels((7, 9)), "JPEG"))
CHAT = Pictured((("system", "ab"), ("user", "c")), (ONE,))
BOTH = Pictured((("user", "cd"),), (ONE, TWO))
KNOBS = {"alpha": 0.05, "beta": 1.0}
CASES: dict[str, tuple[Pictured, dict[str, Any]]] = {
    "vcd": (CHAT, {"preset": "vcd"}),
    "blur": (BOTH, {"images": "blur:2", **KNOBS}),
    "none": (CHAT, {"images": "none", **KNOBS}),
    "without": (BOTH, {"without": "images", **KNOBS}),
    "message": (CHAT, {"without": "system", **KNOBS}),
    "adapter": (CHAT, KNOBS),
    "two": (CHAT, {"images": ["noise:500", "none"], "weights": [-1.0, 0.5], "alpha": 0.05}),
}


@pytest.fixture
def upstream() -> Iterator[tuple[str, MadeUp]]:
    with serving() as found:
        yield found


def printed(report: Report) -> str:
    """All that people see or keep."""
    buffer = io.StringIO()
    terminal.show(Console(file=buffer, width=120, highlight=False), report)
    return buffer.getvalue() + page.render(report) + report.model_dump_json()


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_exact(case: str) -> None:
    prompt, contrast = CASES[case]
    model, prompts = Model(spread=6.0), asked([prompt], **contrast)
    report = explain(model, prompts, max_tokens=6)
    steps = exact(model, report, prompts)
    assert all(step.complete for step in steps) and any(step.differs for step in steps)
    assert "base64" not in printed(report)


def test_what_is_shown_of_images() -> None:
    def pieces(case: str) -> list[list[str]]:
        prompt, contrast = CASES[case]
        [one] = explain(Model(), asked([prompt], **contrast), max_tokens=1).explanations
        return [[piece.text for piece in each.pieces] for each in (one, *one.amateurs)]

    assert pieces("vcd") == [
        ["ab", "[image one.png, 5 × 4]\nc"],
        ["ab", "[image one.png, 5 × 4, noise:500]\nc"],
    ]
    assert pieces("blur")[1] == [
        "[image one.png, 5 × 4, blur:2]\n[image two.png, 7 × 9, blur:2]\ncd"
    ]
    assert pieces("none")[1] == ["ab", "c"] and pieces("without")[1] == ["cd"]
    assert pieces("message")[1] == ["[image one.png, 5 × 4]\nc"]
    report = explain(Model(), asked([CHAT], preset="vcd"), method="vcd", max_tokens=1)
    assert "against adapter noise:500, weight -1 (" in printed(report)


@pytest.mark.parametrize("case", [name for name in CASES if name != "adapter"])
def test_a_server_says_the_same(case: str, upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    prompt, contrast = CASES[case]
    prompts = asked([prompt], **contrast)
    own = source(url)
    report = asyncio.run(collect.explain(own, prompts, max_tokens=6))
    made.model.vocab_size = None
    right = explain(made.model, prompts, max_tokens=6)
    mine, theirs = (
        [[step.model_dump(exclude={"text", "candidates"}) for step in answer.steps]
         for answer in one.explanations[0].answers]
        for one in (report, right)
    )  # fmt: skip
    assert json.dumps(mine) == json.dumps(theirs)
    assert "base64" not in printed(report)
    cold = [body for _, body in made.bodies if body.get("stream") and body["vllm_xargs"]["cold"]]
    [content] = [one["content"] for one in cold[0]["messages"] if one["role"] == "user"]
    assert content[0]["image_url"]["url"] == ONE.url
    assert {path for path, _ in made.bodies} >= {"/detokenize", "/v1/chat/completions"}


def test_an_answer_that_is_read_otherwise(upstream: tuple[str, MadeUp]) -> None:
    """No number is made of other tokens than were decoded."""
    url, made = upstream
    made.reads_alike = False
    with pytest.raises(ToolError, match="cannot be asked about the answer .* in this process"):
        asyncio.run(collect.explain(source(url), asked([CHAT], preset="vcd"), max_tokens=6))


def test_the_live_page_takes_an_image(upstream: tuple[str, MadeUp]) -> None:
    url, _ = upstream
    given = {"adapter": ADAPTER, "preset": "vcd", "beta": ""}
    image = {"image": TWO.url, "image_name": "holiday.jpg"}
    *_, last = ask(url, **given, **image)
    assert last["event"] == "report"
    assert "[image holiday.jpg, 7 × 9, noise:500]" in last["html"]
    assert "base64" not in json.dumps(last)
    *_, last = ask(url, **given, **image, images="none")
    [amateur] = last["report"]["explanations"][0]["amateurs"]
    assert amateur["label"].startswith(f"{ADAPTER} without images")
    *_, last = ask(url, **given, **{**image, "image": "data:text/html;base64,AAAA"})
    assert last == {
        "event": "error",
        "text": "image: is no picture: choose a file with PNG, JPEG or WebP",
    }
    *_, last = ask(url, **given)
    assert last["event"] == "error" and "noise:500" not in last["text"].partition(":")[0]


def test_options_and_rows(tmp_path: Path) -> None:
    for picture in (ONE, TWO):
        (tmp_path / picture.name).write_bytes(picture.data)
    vcd = ("--model", "m", "--preset", "vcd")
    one, two = (f"--image={tmp_path / picture.name}" for picture in (ONE, TWO))
    [asked_] = asks(*vcd, "--prompt", "cd", one, two)
    assert asked_.row.prompt == BOTH and asked_.args["cold_images"] == "noise:500"
    [asked_] = asks(*vcd, "--prompt", "cd", one, "--images", "blur:3")
    assert asked_.args["cold_images"] == "blur:3"
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "system", "content": "ab"}, {"role": "user", "content": "c"}]
    found: list[dict[str, Any]] = [
        {"messages": messages, "image": "one.png"},
        {"prompt": "cd", "images": ["one.png", "two.png"], "cold_images": "none"},
        {"prompt": "cd"},
        {"prompt": "cd", "images": [], "cold_amateur_prompt": "c"},
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in found))
    chat, both, option, none = asks(*vcd, "--prompts", str(rows), one, two)
    assert chat.row.prompt == CHAT and both.row.prompt == option.row.prompt == BOTH
    assert none.row.prompt == "cd"
    assert both.args["cold_images"] == "none"
    assert chat.row.start == "c"


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"prompt": "x", "image": "no.png"}, r"image='no.png': cannot be read \(No such"),
    "no picture": ({"prompt": "x", "images": ["rows.jsonl"]}, "images='rows.jsonl': is no picture"),
    "both": ({"prompt": "x", "image": "a", "images": ["b"]}, 'has both "image" and "images"'),
    "no user": (
        {"messages": [{"role": "system", "content": "x"}], "image": "one.png"},
        "pictures stand before the text of the first user's message, and there is none",
    ),
    "part": (
        {"prompt": "xyz", "image": "one.png", "cold_part": "0:1"},
        "cold_part='0:1': is for completions, whose prompt is one text",
    ),
    "no image": (
        {"prompt": "x", "cold_images": "none"},
        "cold_images='(none|images)': is for chats, whose prompt is messages",
    ),
    "steps": (
        {"prompt": "x", "image": "one.png", "cold_images": "noise:1000"},
        "cold_images='noise:1000': must be 'none', 'noise:500'",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path) -> None:
    row, said = MISTAKES[case]
    (tmp_path / ONE.name).write_bytes(ONE.data)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    with pytest.raises(ToolError) as error:
        asks("--model", "m", "--adapter", "one", "--prompts", str(rows))
    where = re.escape(f"--prompts={rows}: line 1: ")
    assert re.search(f"^{where}.*({said})", str(error.value)), error.value


def test_an_error_shows_no_data(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    parts = [{"type": "image_url", "image_url": {"url": ONE.url}}, {"type": "text"}]
    own = [{"role": "user", "content": parts}]
    rows.write_text(json.dumps({"prompt": "x", "cold_amateur_messages": own}))
    with pytest.raises(ToolError, match=r"base64,\.\.\.") as error:
        asks("--model", "m", "--adapter", "one", "--prompts", str(rows))
    assert len(str(error.value)) < 700
    with pytest.raises(ToolError, match="^--image=nowhere: cannot be read"):
        run(parse("--model", "m", "--prompt", "x", "--image", "nowhere"))
    with pytest.raises(ToolError, match="^--image: the page has a field for it"):
        serve.run(parse("--serve", "--url", "http://127.0.0.1:9", "--image", "x.png"))
