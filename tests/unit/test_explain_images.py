# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` of prompts with images: a server says what the streams do, and nothing that
is shown, printed or kept has an image's data in it.
"""

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.made_up_server import ADAPTER, MadeUp
from tests.questions import content, questions
from tests.unit.test_explain_command import asks, parse
from tests.unit.test_pictures import file, pixels
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import with_pictures
from vllm_cold.tools.explain import page, terminal
from vllm_cold.tools.explain.explain_command import run
from vllm_cold.tools.explain.explain_source import explain
from vllm_cold.tools.pictures import make_picture
from vllm_cold.tools.server import Server

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ONE = make_picture("one.png", file(pixels((5, 4))))
OTHER = make_picture("two.png", file(pixels((7, 9)), "JPEG"))
PICTURED = with_pictures(content((("system", "ab"), ("user", "c"))), [ONE])
BOTH = with_pictures(content("cd"), [ONE, OTHER])


def test_a_server_is_sent_the_images(upstream: tuple[str, MadeUp]) -> None:
    url, made = upstream
    prompts = questions([PICTURED], images=["noise:500", "none"], weights=[-1.0, 0.5])
    report = asyncio.run(explain(Server(url, ADAPTER), prompts, 6))
    for body in (body for _, body in made.bodies if "messages" in body):
        [content] = [m["content"] for m in body["messages"] if m["role"] == "user"]
        assert content[0]["image_url"]["url"] == ONE.url
    buffer = io.StringIO()
    terminal.show(Console(file=buffer, width=120, highlight=False), report)
    assert "base64" not in buffer.getvalue() + page.render(report)


def test_options_and_rows(tmp_path: Path) -> None:
    for picture in (ONE, OTHER):
        (tmp_path / picture.name).write_bytes(picture.data)
    vcd = ("--model", "m", "--preset", "vcd")
    one, two = (f"--image={tmp_path / picture.name}" for picture in (ONE, OTHER))
    [question] = asks(*vcd, "--prompt", "cd", one, two)
    assert question.reads == BOTH and question.args["cold_images"] == "noise:500"
    [question] = asks(*vcd, "--prompt", "cd", one, "--images", "blur:3")
    assert question.args["cold_images"] == "blur:3"
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "system", "content": "ab"}, {"role": "user", "content": "c"}]
    objects: list[dict[str, Any]] = [
        {"messages": messages, "image": "one.png"},
        {"prompt": "cd", "images": ["one.png", "two.png"], "cold_images": "none"},
        {"prompt": "cd"},
        {"prompt": "cd", "images": [], "cold_amateur_prompt": "c"},
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in objects))
    chat, both, option, none = asks(*vcd, "--prompts", str(rows), one, two)
    assert chat.reads == PICTURED and both.reads == option.reads == BOTH
    assert none.reads == content("cd")
    assert both.args["cold_images"] == "none"


def test_mistakes(tmp_path: Path) -> None:
    """Each is one sentence, without an image's data."""
    (tmp_path / ONE.name).write_bytes(ONE.data)
    rows = tmp_path / "rows.jsonl"
    no_user = {"messages": [{"role": "system", "content": "x"}], "image": "one.png"}
    parts = [{"type": "image_url", "image_url": {"url": ONE.url}}, {"type": "text"}]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "x", "images": ["rows.jsonl"]}, "images='rows.jsonl': is no readable picture"),
        ({"prompt": "x", "image": "a", "images": ["b"]}, 'has both "image" and "images"'),
        (no_user, "pictures stand before the text of the first user's message, and there is none"),
        ({"prompt": "x", "cold_images": "none"}, "cold_images='(none|images)': is for chats"),
        (
            {"prompt": "x", "cold_amateur_messages": [{"role": "user", "content": parts}]},
            r".*base64,\.\.\.",
        ),
    ]
    for row, said in wrong:
        rows.write_text(json.dumps(row))
        with pytest.raises(ToolError, match=f"^{re.escape(f'--prompts={rows}: line 1: ')}{said}"):
            asks("--url", "u", "--adapter", "a", "--prompts", str(rows))
    with pytest.raises(ToolError, match="^--image=nowhere: cannot be read"):
        run(parse("--model", "m", "--prompt", "x", "--image", "nowhere"))
