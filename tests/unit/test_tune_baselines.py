# SPDX-License-Identifier: Apache-2.0
"""Baselines of chats and texts: what an amateur lacks is left out, asked for, or repeated."""

import json
from typing import Any

import pytest

from tests.questions import Prompt, content
from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.sources import Messages, Text
from vllm_cold.tools.contrast_args import read_contrast
from vllm_cold.tools.tune.baselines import BETTER, LONGEST, STRONGER, add_baselines
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit

SYSTEM, TOOL, ASKED = ("system", "Be brief."), ("tool", "It is 9."), ("user", "How many?")
TEXT = "Text: It is 9. Question: How many?"


def amateur(**args: Any) -> AmateurSpec:
    return read_contrast({f"cold_{name}": value for name, value in args.items()}).amateurs[0]


def problem(prompt: Prompt, line: int = 1) -> Problem:
    return Problem(f"p{line}", line, content(prompt), "x")


def prompts(prompt: Prompt, better: str | None = None, **args: Any) -> tuple[Any, list[Any]]:
    """What is lacked, and what the baselines are, in order."""
    one = amateur(**args)
    lacks, (found,), untried = add_baselines([problem(prompt)], [one], better, texts=False)
    names = [f"no {lacks}", STRONGER, f"the {lacks} repeated"]
    assert list(found.baselines) == names[: len(found.baselines)] and len(untried) == 3 - len(
        found.baselines
    )
    return lacks, [_baseline(one) for one in found.baselines.values()]


def _baseline(reads: Any) -> Any:
    if isinstance(reads, Text):
        return reads.value
    assert isinstance(reads, Messages)
    return [(message["role"], message["content"]) for message in reads.value]


def test_an_instruction_is_repeated_after_the_question() -> None:
    better = f"{BETTER['instruction']} How many?"
    assert prompts((SYSTEM, ASKED), without="system") == (
        "instruction",
        [[ASKED], [SYSTEM, ("user", better)], [SYSTEM, ("user", "How many?\n\nBe brief.")]],
    )


def test_a_text_is_repeated_before_it() -> None:
    chat, again = (SYSTEM, ASKED, TOOL), "It is 9.\n\nHow many?"
    assert prompts(chat, "By the tool:", without="tool") == (
        "text",
        [[SYSTEM, ASKED], [SYSTEM, ("user", "By the tool: How many?"), TOOL],
         [SYSTEM, ("user", again), TOOL]],
    )  # fmt: skip
    # In the question's own message.
    own = json.dumps([{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": "How many?"}])  # fmt: skip
    whole = (SYSTEM, ("user", "It is 9.\n\nHow many?"))
    assert prompts(whole, "Say:", amateur_messages=own) == (
        "text",
        [[SYSTEM, ASKED], [SYSTEM, ("user", "It is 9.\n\nSay: How many?")],
         [SYSTEM, ("user", f"It is 9.\n\n{again}")]],
    )  # fmt: skip


def test_a_text_without_a_part() -> None:
    for args in ({"part": [0, 15]}, {"amateur_prompt": "Question: How many?"}):
        assert prompts(TEXT, "Read:", **args) == (
            "text",
            ["Question: How many?", "Text: It is 9. Read: Question: How many?",
             "Text: It is 9. Text: It is 9. Question: How many?"],
        )  # fmt: skip
    # Several are repeated after the last.
    assert prompts("a b c d", "!", part="0:2,4:6")[1] == ["b d", "a b c ! d", "a b c a c d"]


@pytest.mark.parametrize(
    ("prompt", "args"),
    [
        (TEXT, {"amateur_prompt": "How many is it?"}),
        ((SYSTEM, ASKED), {"without": "user"}),
    ],
)
def test_where_the_question_is_not_known(prompt: Prompt, args: dict[str, Any]) -> None:
    lacks, found = prompts(prompt, **args)
    assert lacks == "text" and len(found) == 1


def test_what_is_long_is_not_repeated() -> None:
    for length, count in ((LONGEST, 3), (LONGEST + 1, 2)):
        page = "x" * length
        assert len(prompts(page + "How many?", part=[0, length])[1]) == count
        assert len(prompts((("tool", page), ASKED), without=0)[1]) == count


def test_instructions_are_what_all_amateurs_lack() -> None:
    system, tool = amateur(without="system"), amateur(without="tool")
    both = [problem((SYSTEM, ASKED, TOOL)), problem((SYSTEM, ASKED, TOOL), 2)]
    assert add_baselines(both, [system] * 2, None, texts=False)[0] == "instruction"
    assert add_baselines(both, [system] * 2, None, texts=True)[0] == "text"
    lacks, _, untried = add_baselines(both, [system, tool], None, texts=False)
    assert lacks == "text" and not untried


def test_baselines_that_not_all_can_have_are_named() -> None:
    some = [problem((SYSTEM, ASKED, TOOL)), problem((SYSTEM, ("tool", "x" * 2001), ASKED), 2)]
    tool = amateur(without="tool")
    _, found, untried = add_baselines(some, [tool, tool], None, texts=False)
    assert [list(one.baselines) for one in found] == [["no text", STRONGER]] * 2
    assert untried == [
        "Baseline not tried: the text repeated. In problem 'p2' (line 2) the text has more than "
        "2000 characters."
    ]
    _, found, untried = add_baselines(some, [tool, amateur(without="user")], None, texts=False)
    assert [list(one.baselines) for one in found] == [["no text"]] * 2
    assert [said.partition(".")[0] for said in untried] == [
        f"Baseline not tried: {STRONGER}", "Baseline not tried: the text repeated",
    ]  # fmt: skip
    assert untried[0].endswith("the question cannot be told from the text.")
    # An amateur that reads the same has none at all.
    assert add_baselines(some, [tool, None], None, texts=False) == (
        None,
        some,
        ["No baselines were tried: problem 'p2' (line 2) has pictures, or an amateur that reads "
         "the same prompt."],
    )  # fmt: skip
    assert add_baselines(some, [None, None], None, texts=False) == (None, some, [])
