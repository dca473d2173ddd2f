# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-cold explain`` asks of a server, before a made-up one."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.made_up_server import ADAPTER, MadeUp
from tests.questions import questions
from tests.unit.test_explain_command import parse
from vllm_cold.settings.amateurs import describe, names_contrast
from vllm_cold.settings.arguments import parse_request_args
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.explain.account import LISTED
from vllm_cold.tools.explain.explain_command import run
from vllm_cold.tools.explain.explain_source import xargs

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize(
    "contrast",
    [
        {"beta": 1.0},
        {"part": "0:1", "preset": "adacad"},
        {"without_text": "x", "preset": "bound", "bits": 8.0},
        {"part": "0:1", "rule": "bound", "rule_parameters": {"bits": 8.0, "refund": 1.0}},
        {"part": "0:1", "rule": "adaptive", "rule_parameters": {"beta_max": 3.0}},
        {"amateur": ["", "two"], "weights": [-0.5, 0.25], "preset": "dexperts"},
        {
            "amateur": ["", "two", ""],
            "part": ["0:1", "", "1:2"],
            "weights": ["mti", "", 0.5],
            "rule_parameters": {"tau": 2},
            "beta": 2,
        },
    ],
)  # fmt: skip
def test_a_servers_defaults_have_no_say(contrast: dict[str, Any]) -> None:
    """What it makes of a request is what the numbers are made with."""
    [question] = questions(["xy"], **contrast)
    cold, greedy = (xargs(question, alone, "base") for alone in (False, True))
    sent = [*cold.values(), *greedy.values()]
    assert all(isinstance(value, (str, int, float, list)) for value in sent)  # as vLLM wants
    request, other = parse_request_args(cold), parse_request_args(greedy)
    weights, zeros = ([amateur.weight for amateur in describe(args)] for args in (request, other))
    for defaults in (
        {},
        {"cold_alpha": 0.7, "cold_beta": 3.0, "cold_expert_top_k": 1},
        {"cold_rule": "mti", "cold_rule_parameters": {"tau": 9}, "cold_preset": "cfg"},
        {"cold_rule": "adaptive", "cold_rule_parameters": {"beta_max": 9.0}},
        {"cold_rule": "bound", "cold_bits": 1.0, "cold_bits_per_token": 0.5},
    ):
        settings, counted = request.settings(parse_request_args(defaults), weights)
        no_cap = None if question.contrast.settings.rule == "bound" else 2**31 - 1
        assert settings.expert_top_k == no_cap
        assert replace(settings, expert_top_k=None) == question.contrast.settings
        assert counted == question.contrast.weights
        alone, counted = other.settings(parse_request_args(defaults), zeros)
        assert (alone.rule, alone.alpha) == (None, settings.alpha)
        assert alone.expert_top_k == 2**31 - 1 and counted == (0.0,) * len(weights)
    for args in (request, other):
        assert names_contrast(args)  # so that nothing else is left out
        assert args.values["explain"] == LISTED


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("<html>", "JSON"),
        ("{}", "choices"),
        ('{"choices": []}', "choices"),
        ('{"choices": [{"finish_reason": "stop"}]}', "choices.0"),
    ],
)
def test_a_reply_that_is_no_answer(reply: str, says: str, upstream: tuple[str, MadeUp]) -> None:
    """As of a proxy."""
    url, made_up = upstream
    made_up.reply = 200, reply
    with pytest.raises(ToolError, match=f"the server does not return {says}.* as vLLM does"):
        run(parse("--url", url, "--adapter", ADAPTER, "--prompt", "x", "--max-tokens", "4"))


def test_the_command(
    upstream: tuple[str, MadeUp], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From options to a page and the terminal; a chat is asked as a chat, also what an amateur
    reads, and always greedily, whatever the model's generation_config says.
    """
    (url, made_up), html, rows = upstream, tmp_path / "page.html", tmp_path / "rows.jsonl"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows.write_text(json.dumps({"messages": chat}))
    options = ("--url", url, "--adapter", ADAPTER, "--prompts", str(rows), "--max-tokens", "4")
    assert run(parse(*options, "--without", "system", "--beta", "2", "--html", str(html))) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "contrastive (alpha 0.1) against adapter without system, weight -2" in printed
    assert f"server at {url}" in printed and f"page: {html}" in printed
    assert html.read_text(encoding="utf-8").count('role="option"') == 8
    cold, greedy = (body for _, body in made_up.bodies if "messages" in body)
    assert cold["messages"] == greedy["messages"] == chat
    assert "cold_weights" not in cold["vllm_xargs"] and greedy["vllm_xargs"]["cold_weights"] == 0.0
    for body in (cold, greedy):
        assert body["return_token_ids"] and body["model"] == ADAPTER
        assert (body["temperature"], body["repetition_penalty"], body["top_k"]) == (0.0, 1.0, 0)
