# SPDX-License-Identifier: Apache-2.0
"""What tools contrast a prompt with: rows like a client's arguments, and what each stream reads."""

import argparse
import json
from typing import Any

import pytest

from tests.questions import content
from vllm_cold.errors import ColdError
from vllm_cold.rules import registry
from vllm_cold.settings.sources import Messages, Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import (
    Content,
    adapter_of,
    add_rule_option,
    add_rules,
    amateur_reads,
    as_chat,
    merge,
    read_contrast,
    row_args,
)

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


def read(prompt: Any, **args: Any) -> Content | None:
    [one] = read_contrast({f"cold_{k}": v for k, v in args.items()}).amateurs
    return amateur_reads(content(prompt), one)


def test_what_an_amateur_reads() -> None:
    turns = [{"role": role, "content": text} for role, text in CHAT]
    assert as_chat(Text("Hi")) == Messages([{"role": "user", "content": "Hi"}])
    assert read("Hi", beta=1.0) is None
    assert read(CHAT, without="system") == Messages(turns[1:])
    assert read(CHAT, without=[0, 1]) == Messages(turns[2:])
    assert read("It rains. Weather?", part="0:10") == Text("Weather?")
    assert read(CHAT, amateur_prompt="Why") == Text("Why")
    assert read("It rains. Weather?", without_text="It rains. ") == Text("Weather?")
    brief = [{"role": "system", "content": "Be ."}, *turns[1:]]
    assert read(CHAT, without_text="brief") == Messages(brief)
    with pytest.raises(ColdError, match="cold_without_text=.*: the prompt has no such text"):
        read("Hi", without_text="Ho")
    own = [{"role": "user", "content": "Why"}]
    assert read("Hi", amateur_messages=json.dumps(own)) == Messages(own)


def test_a_row_says_what_its_amateur_reads_and_no_more() -> None:
    messages = [{"role": "user", "content": "Why"}]
    assert row_args({"prompt": "Hi", "cold_without": None, "x": 1}) == {}
    assert row_args({"cold_amateur_messages": messages}) == {
        "cold_amateur_messages": json.dumps(messages)
    }
    two = [json.dumps(messages), ""]
    assert row_args({"cold_amateur_messages": two}) == {"cold_amateur_messages": two}
    limits = {"cold_bits": 8, "cold_bits_per_token": [0.5, 1]}
    assert row_args(limits) == limits
    for key in ("cold_beta", "cold_amateur", "Cold_without"):
        with pytest.raises(ColdError, match="a row may have"):
            row_args({key: "1"})
    options = {"cold_without": "system", "cold_amateur": "sql", "cold_beta": 1.0}
    assert merge(options, {}) == options
    assert merge(options, {"cold_bits": 8}) == {**options, "cold_bits": 8}
    merged = merge(options, {"cold_without_text": "a"})
    assert merged == {"cold_amateur": "sql", "cold_beta": 1.0, "cold_without_text": "a"}
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
        assert adapter_of(one, "sql", "model") == wanted
