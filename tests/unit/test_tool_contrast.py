# SPDX-License-Identifier: Apache-2.0
"""What tools contrast a prompt with: rows like a client's arguments, and what each stream reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_cold.method.settings import ColdError
from vllm_cold.tools.contrast import Reader, adapter_of, merge, read_contrast, row_args
from vllm_cold.tools.errors import ToolError

CHAT = (("system", "Be brief."), ("context", "It rains."), ("user", "Weather?"))


class Tokenizer:
    """One token a character, 1 in front of a text, 2 in front of each message of a template."""

    chat_template = "a template"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [2 if c == "<" else ord(c) for c in text]

    def apply_chat_template(
        self, messages: Any, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize and add_generation_prompt
        return "".join("<" + message["content"] for message in messages)


def ids(*texts: str) -> list[int]:
    return [i for text in texts for i in (2, *map(ord, text))]


def read(prompt: Any, chat: bool = False, **args: Any) -> list[int] | None:
    (amateur,) = read_contrast({f"cold_{k}": v for k, v in args.items()}).amateurs
    return Reader(Tokenizer(), chat).amateur(prompt, amateur)


def test_each_stream_reads_what_a_server_would_give_it() -> None:
    reader = Reader(Tokenizer())
    assert reader.expert("Hi") == [1, ord("H"), ord("i")]
    assert Reader(Tokenizer(), chat=True).expert("Hi") == ids("Hi")
    assert reader.expert(CHAT) == ids("Be brief.", "It rains.", "Weather?")
    assert read(CHAT, without="system") == ids("It rains.", "Weather?")
    assert read(CHAT, without=[0, 1]) == ids("Weather?")
    assert read("It rains. Weather?", part="0:10") == [1, *map(ord, "Weather?")]
    assert read(CHAT, amateur_prompt="Why") == [1, *map(ord, "Why")]
    own = json.dumps([{"role": "user", "content": "Why"}])
    assert read("Hi", amateur_messages=own) == ids("Why")
    assert read(CHAT, beta=1.0) is None


@pytest.mark.parametrize(
    ("prompt", "args", "says"),
    [
        ("Hi", {"without": "system"}, "is for chats"),
        (CHAT, {"part": "0:2"}, "is one text"),
        (CHAT, {"without": "tool"}, "no such message"),
        (CHAT, {"without": 3}, "messages 0 to 2"),
        ("Hi", {"part": "0:3"}, "has 2 characters"),
    ],
)
def test_what_cannot_be_left_out_is_said(prompt: Any, args: Any, says: str) -> None:
    with pytest.raises(ColdError, match=says):
        read(prompt, **args)


def test_a_model_without_a_template_takes_no_chat() -> None:
    tokenizer = Tokenizer()
    tokenizer.chat_template = ""
    with pytest.raises(ToolError, match="no chat template"):
        Reader(tokenizer, chat=True).expert("Hi")


def test_a_row_says_what_its_amateur_reads_and_no_more() -> None:
    messages = [{"role": "user", "content": "Why"}]
    assert row_args({"prompt": "Hi", "cold_without": None, "x": 1}) == {}
    assert row_args({"cold_amateur_messages": messages}) == {
        "cold_amateur_messages": json.dumps(messages)
    }
    two = [json.dumps(messages), ""]
    assert row_args({"cold_amateur_messages": two}) == {"cold_amateur_messages": two}
    for key in ("cold_beta", "cold_amateur", "Cold_without"):
        with pytest.raises(ColdError, match="a row may have"):
            row_args({key: "1"})
    options = {"cold_without": "system", "cold_amateur": "sql", "cold_beta": 1.0}
    assert merge(options, {}) == options
    merged = merge(options, {"cold_part": "0:2"})
    assert merged == {"cold_amateur": "sql", "cold_beta": 1.0, "cold_part": "0:2"}


def test_a_preset_and_several_amateurs() -> None:
    cad = read_contrast({"cold_preset": "cad", "cold_without": "system"})
    assert (cad.settings.alpha, cad.weights[0].weight) == (0.0, -0.5)
    two = read_contrast({"cold_preset": "dexperts", "cold_amateur": ["good", "bad"]})
    assert [weight.weight for weight in two.weights] == [1.0, -1.0]
    names = [adapter_of(one, None, "model", ["good", "bad"]) for one in two.amateurs]
    assert names == ["good", "bad"]
    with pytest.raises(ColdError, match="another prompt"):
        read_contrast({"cold_preset": "cfg"})


def test_an_amateur_with_a_prompt_keeps_the_experts_adapter() -> None:
    def adapter(**args: Any) -> str | None:
        (one,) = read_contrast({f"cold_{k}": v for k, v in args.items()}).amateurs
        return adapter_of(one, "sql", "model", ["sql", "old"])

    assert adapter(beta=1.0) is None
    assert adapter(without="system") == "sql"
    assert adapter(without="system", amateur="model") is None
    assert adapter(amateur="old") == "old"
    with pytest.raises(ColdError, match="there are: sql, old, model"):
        adapter(amateur="new")
