# SPDX-License-Identifier: Apache-2.0
"""Problems with reference answers, read from JSONL, and their split into dev and held-out ones."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vllm_cold.errors import site
from vllm_cold.settings.sources import Messages, Text, WithoutText, media_parts
from vllm_cold.settings.table import PREFIX
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import (
    ROW_KEYS,
    Content,
    as_chat,
    endpoint,
    merge,
    reads_args,
)
from vllm_cold.tools.rows import PromptRow, Whole, read_lines, read_row
from vllm_cold.tools.tune.verdict import FEWEST


class Passage(BaseModel):
    """A text in a prompt that a search has found."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    text: Whole
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None


@dataclass(frozen=True)
class Problem:
    """One prompt with its reference answers."""

    id: str  # the row's, or line-N
    line: int  # from 1
    prompt: Content
    answer: Any  # as the file has it; of several one is enough
    args: Mapping[str, Any] = field(default_factory=dict)  # flat: what it is contrasted with
    row_keys: frozenset[str] = frozenset()  # those of the row itself that say so
    has_answer: bool = True  # whether the text that an amateur lacks answers the question
    passages: tuple[Passage, ...] = ()  # of its prompt, the best first
    baselines: Mapping[str, Content] = field(default_factory=dict)  # its baselines, by name

    @property
    def lacking(self) -> Content:
        """What its amateur reads; the first of its baselines."""
        return next(iter(self.baselines.values()))

    @property
    def score(self) -> float | None:
        """The best passage's score, if all have one."""
        scores = [passage.score for passage in self.passages]
        return None if None in scores or not scores else scores[0]

    @property
    def place(self) -> str:
        """Where it stands, for errors."""
        return f"problem {self.id!r} (line {self.line})"


class _Row(PromptRow):
    answer: Any
    answers: bool = True
    passages: list[Passage] = []
    id: Whole | int | None = None


def load_problems(
    path: str, args: Mapping[str, Any] | None = None, chat: bool = False
) -> tuple[list[Problem], int]:
    """Read the file; blank lines are skipped.

    A row that repeats an earlier prompt is left out: greedy decoding gives the same output again,
    so it would count one observation twice, maybe once on either side of the split.

    Args:
        path: A JSONL file, UTF-8.
        args: What is contrasted with where a row does not say.
        chat: Whether a text is a user's message.

    Returns:
        The problems, and how many rows were left out.

    Raises:
        ToolError: names the file, the first line with a mistake, and what is wrong with it.
    """
    by_prompt: dict[bytes, Problem] = {}
    by_id: dict[str, Problem] = {}
    repeated = 0
    for number, line in read_lines(Path(path), path):
        try:
            row, row_args = read_row(_Row, line)
            prompt = row.read(Path(path).parent)
            prompt = as_chat(prompt) if chat else prompt
            if row.passages and not (row_args | dict(args or {})).keys() & set(ROW_KEYS):
                row_args |= _without_passages(prompt, row.passages)
            problem = Problem(
                id=f"line-{number}" if row.id is None else str(row.id),
                line=number,
                prompt=prompt,
                answer=row.answer,
                args=merge(args or {}, row_args),
                row_keys=frozenset(row_args),
                has_answer=row.answers,
                passages=_best_first(row.passages),
            )
            # Of what is sent: pictures count, not their names.
            key = sha256(json.dumps(endpoint(problem.prompt)).encode()).digest()
            first = by_prompt.setdefault(key, problem)
            if first is problem:
                same = by_id.setdefault(problem.id, problem)
                if same is not problem:
                    raise ValueError(f"id: {problem.id!r} is line {same.line}'s already")
                continue
            repeated += 1
            fields = ("answer", "args", "has_answer", "passages")
            if any(getattr(first, name) != getattr(problem, name) for name in fields):
                raise ValueError(
                    f"has the prompt of line {first.line} with another answer or contrast; "
                    "give all right answers as one list, and one contrast"
                )
        except (ValueError, ToolError) as error:
            raise ToolError(f"{path}:{number}: {error}") from None
    return list(by_id.values()), repeated


def _best_first(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """Sort passages by their scores; as they are if one has none."""
    if any(passage.score is None for passage in passages):
        return tuple(passages)
    return tuple(sorted(passages, key=lambda passage: -(passage.score or 0.0)))


def _without_passages(prompt: Content, passages: Sequence[Passage]) -> dict[str, Any]:
    """Return what an amateur reads that reads none of them, as flat arguments; ValueError where a
    prompt does not have one.
    """
    if isinstance(prompt, Messages) and any(map(media_parts, prompt.value)):
        raise ValueError("passages: cannot be left out of a prompt with pictures")
    left = leave_out(prompt, passages)
    if len(passages) == 1:
        return {PREFIX + "without_text": passages[0].text}
    return reads_args(left)


def leave_out(prompt: Content, passages: Sequence[Passage]) -> Content:
    """Return a prompt without passages; ValueError where it does not have one."""
    # The longest first: one may stand in another.
    for passage in sorted(passages, key=lambda passage: -len(passage.text)):
        source = WithoutText(passage.text)
        if isinstance(prompt, Messages):
            prompt = Messages(source.of_messages("passages", prompt.value))
        else:
            prompt = Text(source.of("passages", prompt.value))
    return prompt


def split_problems(
    problems: Sequence[Problem], test_fraction: float, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """Split problems at random into dev ones, which pick a setting, and held-out ones, which judge
    it: of those whose text answers and of the others the same share. Both stay in the file's
    order; ToolError where there are too few.
    """
    held_out = set[str]()
    for kind, which in ((True, "problems"), (False, 'problems with "answers": false')):
        ids = [problem.id for problem in problems if problem.has_answer is kind]
        in_test = round(len(ids) * test_fraction)
        in_dev = len(ids) - in_test
        if min(in_test, in_dev) < FEWEST and (ids or kind):
            needed = math.ceil(FEWEST / min(test_fraction, 1.0 - test_fraction))
            raise ToolError(
                f"{len(ids)} {which} with --test-fraction {test_fraction:g} are {in_dev} dev and "
                f"{in_test} held-out ones; with fewer than {FEWEST} no difference can be "
                f"significant. Bring {needed} {which} or more; how many are useful: "
                f"{site('tuning.html')}"
            )
        chosen = np.random.default_rng(seed).permutation(len(ids))[:in_test]
        held_out.update(ids[index] for index in chosen)
    dev = [problem for problem in problems if problem.id not in held_out]
    return dev, [problem for problem in problems if problem.id in held_out]
