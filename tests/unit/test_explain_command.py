# SPDX-License-Identifier: Apache-2.0
"""The command line of ``vllm-cold explain``: its options, prompts, methods and errors."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vllm_cold.settings.sources import Messages
from vllm_cold.tools import explain, models
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.explain.explain_command import run
from vllm_cold.tools.explain.explain_prompts import Question, read_questions
from vllm_cold.tools.models import Models, read_models

pytestmark = pytest.mark.unit


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explain.add_parser(parser.add_subparsers())
    return parser.parse_args(["explain", *arguments])


WRONG: dict[str, tuple[list[str], str]] = {
    "alpha": (["--alpha", "-1"], r"--alpha=.-1.: must be a number in \[0, 1\]"),
    "tokens": (["--max-tokens", "0"], "--max-tokens=0: must be >= 1"),
    # As a shell hands over bytes that are not UTF-8.
    "prompt": (["--prompt", "\udcff"], "--prompt=.*: must be valid Unicode text"),
    "html": (["--html", "no/such/page.html"], "--html=no/such/page.html: cannot be written; name "),
    "insecure": (["--model", "m", "--insecure-http"], "--insecure-http: is for a server; add --u"),
    "preset": (["--preset", "cot"], "--preset='cot': must be one of cold, cad, adacad, acd, arr"),
    "two prompts": (
        ["--amateur-prompt", "y", "--part", "0:1"],
        "--part=.0:1.: the amateur has a prompt already, by --amateur-prompt; leave one of them",
    ),
    "several parts": (["--part", "0:1", "--part", "1:2"], "--part=.*: must be start and end"),
    "a text": (["--without", "a"], "--without='a': is for chats, .* with --part, or say "),
    "no adapter": ([], "--prompt: nothing to contrast with, as the amateur is the expert: give"),
    "no adapter but a base model": (["--amateur", "m"], "--prompt: nothing to contrast with"),
    "no adapter but a preset": (["--preset", "cfg"], "--preset='cfg': .* another prompt; say"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case: str, tmp_path: Path) -> None:
    arguments, message = WRONG[case]
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    expert = () if case.startswith("no adapter") else ("--adapter", str(tmp_path))
    with pytest.raises(ToolError, match=f"^{message}"):
        run(parse("--prompt", "x", "--model", "m", *expert, *arguments))


def test_a_prompt_and_a_model_are_required() -> None:
    with pytest.raises(SystemExit):
        parse("--adapter", "one")
    with pytest.raises(ToolError, match="^--model is missing"):
        run(parse("--prompt", "x"))


@pytest.mark.parametrize(
    ("given", "seen"),
    [([], "1"), (["--gpu-memory-utilization", "0.5"], None)],
)
def test_the_share_of_memory_counts_on_cpu_too(
    given: list[str], seen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM does not look at it where VLLM_CPU_KVCACHE_SPACE is set."""
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')

    def serving(model: str, *_: Any, **options: Any) -> None:
        raise ToolError(f"{os.environ.get('VLLM_CPU_KVCACHE_SPACE')} {options['enforce_eager']}")

    monkeypatch.setattr(models, "serving", serving)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "")  # put back afterwards
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    with pytest.raises(ToolError, match=f"^{seen} True$"):
        run(parse("--model", "org/model", "--adapter", str(tmp_path), "--prompt", "x", *given))


def asks(*arguments: str) -> list[Question]:
    """Of models, or of a server with their adapters that is not asked."""
    options = parse(*arguments)
    if options.url is None:
        return read_questions(options, read_models(options))
    served = Models(model="base", expert=options.adapter)
    return read_questions(options, served)


SERVED = ("--url", "u", "--adapter", "a")


def test_prompt_files(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("first\n\n  second\n", encoding="utf-8")
    assert [q.reads.value for q in asks(*SERVED, "--prompts", str(lines))] == ["first", "  second"]
    objects = tmp_path / "prompts.jsonl"
    objects.write_text(
        '\ufeff{"prompt": "a\\nb", "id": 1}\r\n\n{"prompt": "c\u2028d"}\n', encoding="utf-8"
    )
    assert [q.reads.value for q in asks(*SERVED, "--prompts", str(objects))] == ["a\nb", "c\u2028d"]
    for text, message in (
        ('{"prompt": "a"}\n{"text": "b"}\n', 'line 2: needs either "prompt" or "messages"'),
        ('["prompt"]\n', "line 1: Input should be an object"),
        ('{"prompt": "a"}\n{"prompt": "\\ud800"}\n', "line 2: Invalid JSON: .*hex escape"),
        ('{"messages": [{"role": "user"}]}', r"line 1: messages\.0\.content: Field required"),
        ('{"prompt": "x", "cold_beta": 1.0}', "line 1: cold_beta=1.0: a row may have"),
        # An error names what the user has written: the row's key, or the option.
        ('{"prompt": "x", "cold_part": "0:9"}', "cold_part='0:9': the prompt has 1 characters$"),
        ('{"prompt": "x", "cold_without": "a"}', "cold_without='a': is .* with cold_part, or say "),
        ("\n", "holds no prompt; put one on each line"),
    ):
        objects.write_text(text)
        with pytest.raises(ToolError, match=message):
            asks(*SERVED, "--prompts", str(objects))


def test_the_options_are_what_a_client_would_send(tmp_path: Path) -> None:
    [one] = asks(
        *("--url", "u", "--adapter", "a", "--prompt", "x", "--chat", "--alpha", "0.2"),
        *("--amateur", "", "--amateur", "b", "--amateur-prompt", "y", "--amateur-prompt", ""),
        *("--weights", "-0.5", "--weights", "adaptive"),
    )
    assert one.args == {
        "cold_alpha": 0.2,
        "cold_amateur": ["", "b"],
        "cold_amateur_prompt": ["y", ""],
        "cold_weights": [-0.5, "adaptive"],
    }
    assert isinstance(one.reads, Messages)
    # What nobody said does not override a preset's values.
    [one] = asks("--model", "m", "--prompt", "xy", "--part", "0:1", "--preset", "cad")
    assert one.contrast.settings.as_dict() == {"alpha": 0.0, "beta": 0.5}
    # Adapters are named, the base model and none at all are not.
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    paths = ("--amateur", "m", "--amateur", f"sql={tmp_path}", "--amateur", "")
    prompts = ("--amateur-prompt", "y", "--amateur-prompt", "", "--amateur-prompt", "z")
    [one] = asks("--model", "m", "--prompt", "xy", *paths, *prompts)
    assert one.args["cold_amateur"] == ["m", "sql", ""]


def test_limits(tmp_path: Path) -> None:
    """By options or rows; a row's own win, one by one."""
    bound = ("--url", "u", "--prompt", "abc", "--preset", "bound")
    [one] = asks(*bound, "--without-text", "b", "--bits", "8")
    assert one.args == {"cold_without_text": "b", "cold_bits": 8.0, "cold_preset": "bound"}
    assert one.contrast.settings.rule_parameters == {"bits": 8, "bits_per_token": 0, "refund": 0}
    texts = ("--without-text", "a", "--without-text", "b")
    [two] = asks(*bound, *texts, "--bits", "8", "--bits", "2", "--bits-per-token", "0.5")
    assert (two.args["cold_bits"], two.args["cold_bits_per_token"]) == ([8.0, 2.0], 0.5)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "abc", "cold_without_text": "c", "cold_bits": 4}\n'
                    '{"prompt": "xb"}')  # fmt: skip
    rest = ("--url", "u", "--prompts", str(rows), "--without-text", "b", "--bits", "8")
    given = asks(*rest, "--preset", "bound")
    assert [q.args["cold_without_text"] for q in given] == ["c", "b"]
    assert [q.contrast.settings.rule_parameters["bits"] for q in given] == [4, 8]
    for wrong, message in (
        (("--bits", "-1"), "^--bits=.-1.: must be a number from 0 to 1e6"),
        (("--bits", "8", "--alpha", "0.1"), "^--alpha=0.1: the rule 'bound' says all of the"),
    ):
        with pytest.raises(ToolError, match=message):
            asks(*bound, "--without-text", "b", *wrong)
    with pytest.raises(ToolError, match=r"^--without-text=\.\.\.: the prompt has no such text"):
        asks(*bound, "--without-text", "z")
    with pytest.raises(ToolError, match="^--bits=8.0: is for the preset bound; set --preset"):
        asks(*bound[:4], "--without-text", "b", "--bits", "8")


def test_what_a_preset_leaves_out(tmp_path: Path) -> None:
    """As on a server: of a chat, unless an option or the row says what."""
    file = tmp_path / "chats.jsonl"
    messages = [{"role": role, "content": role} for role in ("system", "user")]
    file.write_text(json.dumps({"messages": messages}))
    given = ["--url", "u", "--adapter", "a", "--prompts", str(file), "--alpha", "0.2"]
    [cfg] = asks(*given, "--preset", "cfg")
    assert cfg.args["cold_without"] == "system" and cfg.contrast.settings.alpha == 0.2
    [own] = asks(*given, "--preset", "cfg", "--without", "1")
    assert own.args["cold_without"] == 1
    file.write_text(json.dumps({"messages": messages, "cold_amateur_messages": messages[1:]}))
    [row] = asks(*given, "--preset", "cfg", "--without", "1")
    assert json.loads(row.args["cold_amateur_messages"]) == messages[1:]
    assert row.args.keys() == {"cold_amateur_messages", "cold_alpha", "cold_preset"}
    file.write_text(json.dumps({"messages": messages}))
    with pytest.raises(
        ToolError, match="line 1: --preset=grounded: leaves tool out of a chat, and"
    ):
        asks(*given, "--preset", "grounded")
    file.write_text(json.dumps({"messages": [*messages, {"role": "tool", "content": "t"}]}))
    [grounded] = asks(*given, "--preset", "grounded")
    assert grounded.args["cold_without"] == ["tool", "user"]
