# SPDX-License-Identifier: Apache-2.0
"""Baselines: prompts that are decoded without a contrast, at half of its cost. One is without what
the amateur lacks, one has a sentence that asks for it, one repeats it. Of several passages, one has
the best alone; and none where its score is low, if that pays on dev problems.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.sources import Messages, Part, Text, WithoutText
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import Content, amateur_reads
from vllm_cold.tools.tune.problems import Problem, leave_out

Lacks = Literal["text", "instruction"]
"""What amateurs do not read: an instruction if it is system prompts alone."""

LONGEST = 2000  # characters that are repeated: instructions and sentences, not pages
# What stands before the question where --better does not say it.
BETTER: dict[Lacks, str] = {
    "text": "According to the text:",
    "instruction": "Follow the instructions to the letter:",
}
STRONGER = "a stronger prompt"  # names of baselines
BEST = "the best passage alone"


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
        (problem, reads, amateur)
        for problem, amateur in pairs
        if amateur is not None and (reads := amateur_reads(problem.prompt, amateur)) is not None
    ]
    gone = [_lacked(problem.prompt, reads) for problem, reads, _ in readings]
    roles = {message["role"] for messages in gone for message in messages}
    lacks: Lacks = "text"
    if not texts and all(gone) and roles <= {"system", "developer"}:
        lacks = "instruction"
    names = [f"no {lacks}", STRONGER, f"the {lacks} repeated"]
    by_problem: list[dict[str, Content]] = []
    for problem, reads, amateur in readings:
        variants = _variants(problem, reads, amateur, lacks, better or BETTER[lacks])
        by_problem.append(dict(zip(names, (reads, *variants), strict=False)))
        if problem.passages:
            by_problem[-1][BEST] = leave_out(problem.prompt, problem.passages[1:])
    if any(len(problem.passages) > 1 for problem in problems):
        names.append(BEST)
    untried = []
    for name in names:
        lacking = (i for i, baselines in enumerate(by_problem) if name not in baselines)
        if (place := next(lacking, None)) is not None:
            why = f"the question cannot be told from the {lacks}"
            if name == BEST:
                why = "there are no passages"
            elif STRONGER in by_problem[place]:
                why = f"the {lacks} has more than {LONGEST} characters"
            untried.append(f"Baseline not tried: {name}. In {problems[place].place} {why}.")
    common = [name for name in names if all(name in baselines for baselines in by_problem)]
    with_baselines = [
        replace(problem, baselines={name: baselines[name] for name in common})
        for problem, baselines in zip(problems, by_problem, strict=True)
    ]
    return lacks, with_baselines, untried


def _lacked(whole: Content, reads: Content) -> list[dict[str, Any]]:
    """Return the messages of a chat that an amateur does not read as they are."""
    if not (isinstance(whole, Messages) and isinstance(reads, Messages)):
        return []
    return [message for message in whole.value if message not in reads.value]


def _variants(
    problem: Problem, reads: Content, amateur: AmateurSpec, lacks: Lacks, better: str
) -> Sequence[Content]:
    """Make a prompt with the sentence before its question, and one that repeats what the amateur
    lacks; none where the question cannot be told, the first alone where that is long.
    """
    whole, source = problem.prompt, amateur.source
    texts = [passage.text for passage in problem.passages]
    if isinstance(source, WithoutText):
        texts.append(source.text)
    if isinstance(whole, Messages) and isinstance(reads, Messages):
        return _chats(whole, reads, lacks, better, texts)
    if not (isinstance(whole, Text) and isinstance(reads, Text)):
        return ()
    spans = source.spans if isinstance(source, Part) else _span(whole.value, texts)
    if not spans and whole.value.endswith(reads.value):
        spans = ((0, len(whole.value) - len(reads.value)),)
    if not spans:
        return ()
    front, question = _split(whole.value, spans[-1][1])
    again = "".join(whole.value[start:end] for start, end in spans)
    again += front[spans[-1][1] :]
    more = (f"{better} ", again)[: 1 if len(again) > LONGEST else 2]
    return [Text(front + addition + question) for addition in more]


def _span(content: str, texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Find where the first of some texts begins in another, and the last ends; empty for none."""
    starts = {text: content.find(text) for text in texts if text in content}
    ends = [start + len(text) for text, start in starts.items()]
    return ((min(starts.values()), max(ends)),) if starts else ()


def _split(content: str, end: int) -> tuple[str, str]:
    """Split a text behind the white space that follows its first part."""
    question = content[end:].lstrip()
    return content[: len(content) - len(question)], question


def _chats(
    whole: Messages, reads: Messages, lacks: Lacks, better: str, texts: Sequence[str]
) -> list[Messages]:
    """Make the same of a chat. The question is what follows the texts in a user's message; where
    they stand elsewhere, the user's last message that the amateur reads.
    """
    contents = (m["content"] for m in reads.value[::-1] if m["role"] == "user")
    asked = next((content for content in contents if isinstance(content, str)), None)
    for place in reversed(range(len(whole.value))):
        message = whole.value[place]
        if message["role"] != "user":
            continue
        content, front, question = message["content"], "", ""
        if spans := _span(content, texts):
            front, question = _split(content, spans[-1][1])
        elif asked and content.endswith(asked):  # a text may stand before it
            front, question = _split(content, len(content) - len(asked))
        if question:
            gone = [m["content"] for m in _lacked(whole, reads) if m is not message]
            again = "\n\n".join([*gone, front]).strip()
            order = (question, again) if lacks == "instruction" else (again, question)
            changed = (f"{better} {question}", "\n\n".join(order))
            before, after = whole.value[:place], whole.value[place + 1 :]
            return [
                Messages([*before, {**message, "content": front + end}, *after])
                for end in changed[: 1 if len(again) > LONGEST else 2]
            ]
    return []
