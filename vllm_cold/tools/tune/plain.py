# SPDX-License-Identifier: Apache-2.0
"""Plain prompts, decoded without a contrast: without what the amateur lacks, with a sentence that
asks for it, and with it twice. A contrast has to beat them: each costs half of what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vllm_cold.settings.amateurs import AmateurSpec, Messages, Part, Text
from vllm_cold.tools.contrast import Content, Prompt, amateur_reads, expert_reads

Lacks = Literal["text", "instruction"]
"""What amateurs do not read: an instruction if it is system prompts alone."""

LONGEST = 2000  # characters that are said twice: instructions and sentences, not pages
# What stands before the question where nobody says it better.
BETTER: dict[Lacks, str] = {
    "text": "According to the text:",
    "instruction": "Follow the instructions to the letter:",
}
BETTER_PROMPT = "a better prompt"  # its name


def plain_prompts(
    problems: Sequence[tuple[Prompt, AmateurSpec]], better: str | None, *, texts: bool = False
) -> tuple[Lacks, list[dict[str, Content]], dict[str, int]]:
    """What amateurs lack, the plain prompts of each problem by their names (those that all have,
    first what the amateur reads), and those that not all have, with the first problem that has
    none: its question cannot be told from the rest, or what is to be said twice is too long.

    Args:
        problems: Each one's prompt, and an amateur that reads another.
        better: The sentence before the question; None for ours.
        texts: Whether system prompts are known to have texts in them.
    """
    known = [(expert_reads(prompt), one) for prompt, one in problems]
    read = [(one, whole, amateur_reads(whole, one)) for whole, one in known]
    gone = [_lacked(whole, reads) for _, whole, reads in read]
    roles = {message["role"] for messages in gone for message in messages}
    lacks: Lacks = "text"
    if not texts and all(gone) and roles <= {"system", "developer"}:
        lacks = "instruction"
    names = (f"no {lacks}", BETTER_PROMPT, f"the {lacks} twice")
    found: list[dict[str, Content]] = []
    for one, whole, reads in read:
        assert reads is not None
        made: tuple[Content, ...] = ()
        if isinstance(whole, Text) and isinstance(reads, Text):
            made = _texts(whole.value, reads.value, one, better or BETTER[lacks])
        elif isinstance(whole, Messages) and isinstance(reads, Messages):
            made = _chats(whole, reads, lacks, better or BETTER[lacks])
        found.append(dict(zip(names, (reads, *made), strict=False)))
    fewest = min(found, key=len)
    untried = {
        name: next(place for place, one in enumerate(found) if name not in one)
        for name in names
        if name not in fewest
    }
    return lacks, [{name: one[name] for name in fewest} for one in found], untried


def _lacked(whole: Content, reads: Content | None) -> list[dict[str, Any]]:
    """The messages of a chat that an amateur does not read as they are."""
    if not (isinstance(whole, Messages) and isinstance(reads, Messages)):
        return []
    return [message for message in whole.value if message not in reads.value]


def _texts(whole: str, reads: str, one: AmateurSpec, better: str) -> tuple[Text, ...]:
    """The better text and the one with the part twice."""
    spans = one.source.spans if isinstance(one.source, Part) else ()
    if not spans and whole.endswith(reads):
        spans = ((0, len(whole) - len(reads)),)
    if not spans:
        return ()
    end = spans[-1][1]
    again = "".join(whole[start:stop] for start, stop in spans)
    more = (f"{better} ", again)[: 1 if len(again) > LONGEST else 2]
    return tuple(Text(whole[:end] + each + whole[end:]) for each in more)


def _chats(whole: Messages, reads: Messages, lacks: Lacks, better: str) -> tuple[Messages, ...]:
    """The same of a chat; the question is the user's last message that the amateur reads."""
    asked = (one["content"] for one in reads.value[::-1] if one["role"] == "user")
    question = next((one for one in asked if isinstance(one, str)), None)
    for place in reversed(range(len(whole.value))):
        message = whole.value[place]
        # A text may stand before it in the same message.
        if question and message["role"] == "user" and message["content"].endswith(question):
            front = message["content"].removesuffix(question)
            gone = [each["content"] for each in _lacked(whole, reads) if each is not message]
            again = "\n\n".join([*gone, front]).strip()
            order = (question, again) if lacks == "instruction" else (again, question)
            changed = (f"{better} {question}", "\n\n".join(order))
            before, behind = whole.value[:place], whole.value[place + 1 :]
            return tuple(
                Messages([*before, {**message, "content": front + each}, *behind])
                for each in changed[: 1 if len(again) > LONGEST else 2]
            )
    return ()
