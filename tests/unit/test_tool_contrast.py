# SPDX-License-Identifier: Apache-2.0
"""What tools contrast a prompt with: rows like a client's arguments, and what each stream reads."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from tests.front_end import MAX_LEN, Front
from tests.tiny import BOS_ID
from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import Messages, Text
from vllm_cold.rules import registry
from vllm_cold.tools.contrast import (
    Content,
    Stream,
    adapter_of,
    add_rule_option,
    add_rules,
    expert_reads,
    merge,
    read_contrast,
    read_streams,
    row_args,
)
from vllm_cold.tools.engine import prompt_maker
from vllm_cold.tools.errors import ToolError

pytestmark = pytest.mark.unit

OWN = "tests.server.own_rules:"


def test_rules_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server was started with; what is none is a sentence."""
    monkeypatch.setattr(registry, "_added", {})
    add_rules(None)
    with pytest.raises(ColdError, match="^cold_rule='fading': must be the name"):
        read_contrast({"cold_rule": "fading"})
    add_rules([OWN + "Fading", OWN + "Fading"])
    assert read_contrast({"cold_rule": "fading"}).weights == (None,)
    with pytest.raises(ToolError, match="^--rule='nowhere:Rule': cannot be used as a rule .Module"):
        add_rules(["nowhere:Rule"])


def test_the_option_for_rules() -> None:
    """One that is named, and those that can be."""
    parser = argparse.ArgumentParser()
    add_rule_option(parser.add_argument_group())
    assert vars(parser.parse_args([])) == {"rule": None, "rules": None}
    given = ["--rule", "a:One", "--rule", "mti", "--rule", "b:Other"]
    assert vars(parser.parse_args(given)) == {"rule": "mti", "rules": ["a:One", "b:Other"]}


CHAT = (("system", "Be brief."), ("context", "It rains."), ("user", "Weather?"))


def make(field: str, reads: Content) -> list[int]:
    """One token a character, 1 in front of a text, 2 in front of each message."""
    if isinstance(reads, Text):
        return [1, *map(ord, reads.value)]
    return ids(*(message["content"] for message in reads.value))


def ids(*texts: str) -> list[int]:
    return [i for text in texts for i in (2, *map(ord, text))]


def streams(prompt: Any, chat: bool = False, **args: Any) -> tuple[Stream, ...]:
    amateurs = read_contrast({f"cold_{k}": v for k, v in args.items()}).amateurs
    return read_streams(expert_reads(prompt, chat), amateurs, make, "sql", "base", ["sql", "old"])


def read(prompt: Any, **args: Any) -> list[int]:
    return list(streams(prompt, **args)[1].ids)


def test_each_stream_reads_what_a_server_would_give_it() -> None:
    assert streams("Hi", beta=1.0)[0] == Stream("sql", (1, ord("H"), ord("i")))
    assert streams("Hi", chat=True)[0].ids == tuple(ids("Hi"))
    expert, amateur = streams(CHAT)
    assert expert == Stream("sql", tuple(ids("Be brief.", "It rains.", "Weather?")))
    assert amateur == Stream(None, expert.ids)
    assert read(CHAT, without="system") == ids("It rains.", "Weather?")
    assert read(CHAT, without=[0, 1]) == ids("Weather?")
    assert read("It rains. Weather?", part="0:10") == [1, *map(ord, "Weather?")]
    assert read(CHAT, amateur_prompt="Why") == [1, *map(ord, "Why")]
    own = json.dumps([{"role": "user", "content": "Why"}])
    assert read("Hi", amateur_messages=own) == ids("Why")
    with pytest.raises(ColdError, match="^cold_amateur_prompt='Hi': gives the amateur the tokens"):
        read("Hi", amateur_prompt="Hi")


def test_vllm_makes_what_the_streams_read(tiny: Path, tmp_path: Path) -> None:
    """As a server renders chats: content in parts, any role, a template of the engine's own."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS_ID)]
    )
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(tiny / "model" / "config.json", tmp_path)
    front = Front(tmp_path)
    llm = SimpleNamespace(
        llm_engine=SimpleNamespace(input_processor=front.processor), chat_template=None
    )
    made = prompt_maker(llm)
    parts = [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}]
    messages = [{"role": "developer", "content": "w3"}, {"role": "user", "content": parts}]
    text = made("prompt", Messages(messages))
    assert text == front.chat(messages)["prompt_token_ids"]
    assert "type" not in front.tokenizer.decode(text) and BOS_ID not in text
    text = made("prompt", Text("w1 w2"))
    assert text == front.text("w1 w2")["prompt_token_ids"] and text[0] == BOS_ID
    assert len(made("prompt", Text("w1 " * 2 * MAX_LEN))) > MAX_LEN  # which a command refuses
    llm.chat_template = "{{ messages[0]['content'] }}"
    assert prompt_maker(llm)("prompt", Messages([{"role": "user", "content": "w5"}])) == (
        front.tokenizer.encode("w5", add_special_tokens=False)
    )
    llm.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ColdError, match="^cold_without=.*can be made of it: roles must alternate"):
        prompt_maker(llm)("cold_without", Messages([{"role": "user", "content": "w5"}]))


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


def test_an_amateur_with_a_prompt_keeps_the_experts_adapter() -> None:
    for said, wanted in (
        ({"cold_beta": 1.0}, None),
        ({"cold_without": "system"}, "sql"),
        ({"cold_without": "system", "cold_amateur": "model"}, None),
        ({"cold_amateur": "old"}, "old"),
    ):
        (one,) = read_contrast(said).amateurs
        assert adapter_of(one, "sql", "model", ["sql", "old"]) == wanted
    (one,) = read_contrast({"cold_amateur": "new"}).amateurs
    with pytest.raises(ColdError, match="there are: sql, old, model"):
        adapter_of(one, "sql", "model", ["sql", "old"])
