# SPDX-License-Identifier: Apache-2.0
"""Drafters played over recorded answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.drafting.drafters import Drafter
from benchmarks.drafting.record import Answer

LONGEST = 8  # of drafts
# Requests that are decoded side by side: what one's answer teaches, the next ones know.
AT_ONCE = 8

# Of each place of an answer, the drafts of what follows it.
Drafts = list[list[int]]
# Says at a place whether to draft, and hears how many drafts were made and accepted.
Gate = Callable[[int], bool]


@dataclass
class Tally:
    """What came of drafting.

    Attributes:
        tokens: Emitted by steps; the prefill's are not counted.
        steps: Forward passes after the prefills.
        drafted: Tokens.
        tried: Drafts that came to be judged, because those before them were accepted.
        accepted: Tokens.
        sizes: How many steps had so many drafts accepted, -1 for a step without a draft.
    """

    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    tried: int = 0
    accepted: int = 0
    sizes: Counter[int] = field(default_factory=Counter)

    @property
    def per_step(self) -> float:
        """Tokens of a step."""
        return self.tokens / self.steps if self.steps else 1.0

    @property
    def acceptance(self) -> float:
        """Of a drafted token."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def drafts(self) -> float:
        """Of a step."""
        return self.drafted / self.steps if self.steps else 0.0

    def profile(self, k: int) -> dict[str, object]:
        """Of all steps: the share without a draft, and of the others how many are accepted."""
        steps = max(self.steps, 1)
        with_draft = max(self.steps - self.sizes[-1], 1)
        return {
            "without_draft": round(self.sizes[-1] / steps, 4),
            "accepted": [round(self.sizes[j] / with_draft, 4) for j in range(k + 1)],
            "drafted": round(self.drafted / with_draft, 4),
        }


def plan(
    make: Callable[[int], Drafter], answers: Sequence[Answer], at_once: int = AT_ONCE
) -> list[Drafts]:
    """The drafts of all places of all answers.

    Args:
        make: Gives the drafter of a request, by its number.
        answers: In the order of their requests.
        at_once: How many are decoded side by side, a token each in turn.
    """
    found: list[Drafts] = []
    for first in range(0, len(answers), at_once):
        group = [answer.tokens for answer in answers[first : first + at_once]]
        drafters = [make(first + i) for i in range(len(group))]
        drafts: list[Drafts] = [[[]] for _ in group]  # no draft for what the prefill emits
        for place in range(max(map(len, group))):
            for i, tokens in enumerate(group):
                if place < len(tokens):
                    drafters[i].add(tokens[place])
                    drafts[i].append(drafters[i].draft(LONGEST))
        for drafter in drafters:
            drafter.finish()
        found += drafts
    return found


def play(
    drafts: Drafts,
    answer: Answer,
    k: int,
    tally: Tally,
    gate: Gate | None = None,
    heard: Callable[[int, int, int], None] | None = None,
) -> None:
    """Play the steps of an answer and add them to a tally.

    Args:
        drafts: Of each place.
        answer: The record.
        k: Of a draft, at most so many tokens are used.
        tally: To add to.
        gate: Says for a place whether to draft there.
        heard: Is told of each step: its place, the drafts made and those accepted.
    """
    tokens, place = answer.tokens, 1
    while place < len(tokens):
        left = len(tokens) - place
        draft = drafts[place][:k] if gate is None or gate(place) else []
        if not answer.ended:  # what would have followed is not known
            draft = draft[:left]
        accepted = 0
        while accepted < min(len(draft), left) and draft[accepted] == tokens[place + accepted]:
            accepted += 1
        emitted = min(accepted + 1, left)
        tally.steps += 1
        tally.tokens += emitted
        tally.drafted += len(draft)
        tally.accepted += accepted
        tally.tried += min(accepted + 1, len(draft))
        tally.sizes[accepted if draft else -1] += 1
        if heard is not None:
            heard(place, len(draft), accepted)
        place += emitted


def play_all(drafts: Sequence[Drafts], answers: Sequence[Answer], k: int) -> Tally:
    """Play all answers of a workload."""
    tally = Tally()
    for each, answer in zip(drafts, answers, strict=True):
        play(each, answer, k, tally)
    return tally
