# SPDX-License-Identifier: Apache-2.0
"""Baselines: prompts that are decoded without a contrast, at half of its cost. One is without what
the amateur lacks, one has a sentence that asks for it, one repeats it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.sources import Messages, Part, Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import Content, amateur_reads
from vllm_cold.tools.tune.problems import Problem

Lacks = Literal["text", "instruction"]
"""What amateurs do not read: an instruction if it is system prompts alone."""

LONGEST = 2000  # characters that are repeated: instructions and sentences, not pages
# What stands before the question where --better does not say it.
BETTER: dict[Lacks, str] = {
    "text": "According to the text:",
    "instruction": "Follow the instructions to the letter:",
}
STRONGER = "a stronger prompt"  # the name of that baseline


def add_baselines(
    problems: list[Problem],
    amateurs: Sequence[AmateurSpec | None],
    better: str | None,
    *,
    texts: bool,
) -> tuple[Lacks | None, list[Problem], list[str]]:
    """Return what amateurs lack, the problems with those baselines that all can have (first what
    the amateur reads), and a sentence on each that not all can have.

    Args:
        problems: Without baselines.
        amateurs: Of each problem one that reads another prompt. There are no baselines where one
            is None: that has pictures, or no such amateur.
        better: The sentence before the question; None for ours.
        texts: Whether system prompts are known to have texts in them.

    Raises:
        ToolError: a sentence is given, and there are no baselines.
    """
    pairs = list(zip(problems, amateurs, strict=True))
    missing = [problem.place for problem, amateur in pairs if amateur is None]
    if missing:
        if better is not None:
            raise ToolError(
                "--better: every amateur must read another prompt, and none may have pictures; "
                f"change {missing[0]}, or leave the option out"
            )
        why = "has pictures, or an amateur that reads the same prompt"
        sentence = f"No baselines were tried: {missing[0]} {why}."
        return None, problems, [sentence] if any(amateurs) else []
    readings = [
        (problem.prompt, reads, amateur)
        for problem, amateur in pairs
        if amateur is not None and (reads := amateur_reads(problem.prompt, amateur)) is not None
    ]
    gone = [_lacked(whole, reads) for whole, reads, _ in readings]
    roles = {message["role"] for messages in gone for message in messages}
    lacks: Lacks = "text"
    if not texts and all(gone) and roles <= {"system", "developer"}:
        lacks = "instruction"
    names = (f"no {lacks}", STRONGER, f"the {lacks} repeated")
    by_problem: list[dict[str, Content]] = []
    for whole, reads, amateur in readings:
        variants: tuple[Content, ...] = ()
        if isinstance(whole, Text) and isinstance(reads, Text):
            variants = _texts(whole.value, reads.value, amateur, better or BETTER[lacks])
        elif isinstance(whole, Messages) and isinstance(reads, Messages):
            variants = _chats(whole, reads, lacks, better or BETTER[lacks])
        by_problem.append(dict(zip(names, (reads, *variants), strict=False)))
    fewest = min(by_problem, key=len)
    why = f"the question cannot be told from the {lacks}"
    if STRONGER in fewest:
        why = f"the {lacks} has more than {LONGEST} characters"
    place = problems[by_problem.index(fewest)].place
    untried = [f"Baseline not tried: {name}. In {place} {why}." for name in names[len(fewest) :]]
    with_baselines = [
        replace(problem, baselines={name: baselines[name] for name in fewest})
        for problem, baselines in zip(problems, by_problem, strict=True)
    ]
    return lacks, with_baselines, untried


def _lacked(whole: Content, reads: Content) -> list[dict[str, Any]]:
    """Return the messages of a chat that an amateur does not read as they are."""
    if not (isinstance(whole, Messages) and isinstance(reads, Messages)):
        return []
    return [message for message in whole.value if message not in reads.value]


def _texts(whole: str, reads: str, amateur: AmateurSpec, better: str) -> tuple[Text, ...]:
    """Make a text with the sentence before its question, and one that repeats the part."""
    spans = amateur.source.spans if isinstance(amateur.source, Part) else ()
    if not spans and whole.endswith(reads):
        spans = ((0, len(whole) - len(reads)),)
    if not spans:
        return ()
    end = spans[-1][1]
    again = "".join(whole[start:stop] for start, stop in spans)
    more = (f"{better} ", again)[: 1 if len(again) > LONGEST else 2]
    return tuple(Text(whole[:end] + addition + whole[end:]) for addition in more)


def _chats(whole: Messages, reads: Messages, lacks: Lacks, better: str) -> tuple[Messages, ...]:
    """Make the same of a chat; the question is the user's last message that the amateur reads."""
    contents = (m["content"] for m in reads.value[::-1] if m["role"] == "user")
    question = next((content for content in contents if isinstance(content, str)), None)
    for place in reversed(range(len(whole.value))):
        message = whole.value[place]
        # A text may stand before it in the same message.
        if question and message["role"] == "user" and message["content"].endswith(question):
            front = message["content"].removesuffix(question)
            gone = [m["content"] for m in _lacked(whole, reads) if m is not message]
            again = "\n\n".join([*gone, front]).strip()
            order = (question, again) if lacks == "instruction" else (again, question)
            changed = (f"{better} {question}", "\n\n".join(order))
            before, after = whole.value[:place], whole.value[place + 1 :]
            return tuple(
                Messages([*before, {**message, "content": front + end}, *after])
                for end in changed[: 1 if len(again) > LONGEST else 2]
            )
    return ()
