# SPDX-License-Identifier: Apache-2.0
"""Plain prompts of chats and texts: what an amateur lacks is left out, asked for, or said twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_cold.settings.amateurs import Messages, Text
from vllm_cold.tools.contrast import Prompt, read_contrast
from vllm_cold.tools.tune.plain import BETTER, BETTER_PROMPT, LONGEST, plain_prompts

pytestmark = pytest.mark.unit

SYSTEM, TOOL, ASKED = ("system", "Be brief."), ("tool", "It is 9."), ("user", "How many?")
TEXT = "Text: It is 9. Question: How many?"


def prompts(prompt: Prompt, better: str | None = None, **args: Any) -> tuple[str, list[Any]]:
    """What is lacked, and what plain prompts are, in order."""
    one = read_contrast({f"cold_{name}": value for name, value in args.items()}).amateurs[0]
    lacks, (found,), untried = plain_prompts([(prompt, one)], better)
    assert [*found, *untried] == [f"no {lacks}", BETTER_PROMPT, f"the {lacks} twice"]
    return lacks, [_plain(one) for one in found.values()]


def _plain(reads: Any) -> Any:
    if isinstance(reads, Text):
        return reads.value
    assert isinstance(reads, Messages)
    return [(message["role"], message["content"]) for message in reads.value]


def test_an_instruction_is_repeated_behind_the_question() -> None:
    better = f"{BETTER['instruction']} How many?"
    assert prompts((SYSTEM, ASKED), without="system") == (
        "instruction",
        [[ASKED], [SYSTEM, ("user", better)], [SYSTEM, ("user", "How many?\n\nBe brief.")]],
    )


def test_a_text_is_repeated_in_front_of_it() -> None:
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
    # Several are repeated behind the last.
    assert prompts("a b c d", "!", part="0:2,4:6")[1] == ["b d", "a b c ! d", "a b c a c d"]


@pytest.mark.parametrize(
    ("prompt", "args"),
    [
        (TEXT, {"amateur_prompt": "How many is it?"}),  # where the question is, is not known
        ((SYSTEM, ASKED), {"amateur_prompt": "How many?"}),
        ((SYSTEM, ASKED), {"without": "user"}),
    ],
)
def test_where_the_question_is_not_known(prompt: Prompt, args: dict[str, Any]) -> None:
    lacks, found = prompts(prompt, **args)
    assert lacks == "text" and len(found) == 1


def test_what_is_long_is_not_said_twice() -> None:
    for length, count in ((LONGEST, 3), (LONGEST + 1, 2)):
        page = "x" * length
        assert len(prompts(page + "How many?", part=[0, length])[1]) == count
        assert len(prompts((("tool", page), ASKED), without=0)[1]) == count


def test_instructions_are_what_all_amateurs_lack() -> None:
    (system,) = read_contrast({"cold_without": "system"}).amateurs
    (tool,) = read_contrast({"cold_without": "tool"}).amateurs
    both = [((SYSTEM, ASKED, TOOL), system), ((SYSTEM, ASKED, TOOL), tool)]
    assert plain_prompts(both[:1], None)[0] == "instruction"
    assert plain_prompts(both[:1], None, texts=True)[0] == "text"
    lacks, found, untried = plain_prompts(both, None)
    assert lacks == "text" and not untried
    assert [list(one) for one in found] == [["no text", BETTER_PROMPT, "the text twice"]] * 2
    asked, _ = both[0]
    (other,) = read_contrast({"cold_without": "user"}).amateurs
    # Those that all have.
    _, found, untried = plain_prompts([both[0], (asked, other)], None)
    assert [list(one) for one in found] == [["no text"]] * 2
    assert untried == {BETTER_PROMPT: 1, "the text twice": 1}
