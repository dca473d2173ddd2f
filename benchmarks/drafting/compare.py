# SPDX-License-Identifier: Apache-2.0
"""All drafters on all workloads: what is measured of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

from benchmarks.drafting.drafters import (
    Drafter,
    Index,
    Lookup,
    Memory,
    Recall,
    Suffix,
    Table,
    Tree,
    Walk,
)
from benchmarks.drafting.play import LONGEST, Drafts, Tally, plan, play
from benchmarks.drafting.record import Answer, Record

Decoding = Literal["cold", "greedy"]
KS = (2, 4, 8)

# Of a workload's requests, the maker of the drafter of each.
Maker = Callable[[Sequence[Record]], Callable[[int], Drafter]]


def _lookup(shortest: int, longest: int, pick: Literal["first", "last"]) -> Maker:
    return lambda records: lambda i: Lookup(records[i].prompt, shortest, longest, pick)


def _with_earlier(shortest: int, here: bool = True, own_first: bool = False) -> Maker:
    def make(records: Sequence[Record]) -> Callable[[int], Drafter]:
        earlier = Index(shortest, LONG, "last")
        return lambda i: Lookup(
            records[i].prompt, shortest, LONG, "last", earlier, here=here, own_first=own_first
        )

    return make


def _walk(shortest: int, longest: int, shared: bool) -> Maker:
    def make(records: Sequence[Record]) -> Callable[[int], Drafter]:
        table = Table(shortest, longest) if shared else None
        return lambda i: Walk(records[i].prompt, shortest, longest, table)

    return make


def _suffix(shared: bool) -> Maker:
    def make(records: Sequence[Record]) -> Callable[[int], Drafter]:
        tree = Tree(Suffix.DEPTH) if shared else None
        return lambda i: Suffix(records[i].prompt, tree)

    return make


def _recall(least: float, answers: bool = True) -> Maker:
    def make(records: Sequence[Record]) -> Callable[[int], Drafter]:
        memory = Memory()
        return lambda i: Recall(records[i].prompt, memory, least, answers)

    return make


def _of_answer(name: Literal["amateur", "greedy"], here: bool) -> Maker:
    return lambda records: (
        lambda i: Lookup(
            records[i].prompt, 2, LONG, "last", texts=[getattr(records[i], name).tokens], here=here
        )
    )


# Tokens of a match that are compared where longer is better.
LONG = 32
NGRAM = "n-gram 5 (vLLM's default)"
BEST_NGRAM = "n-gram 1 to 4"
RECALL = "recall"
MAKERS: dict[str, Maker] = {
    NGRAM: _lookup(5, 5, "first"),
    "n-gram 3": _lookup(3, 3, "first"),
    "n-gram 2 to 4": _lookup(2, 4, "first"),
    BEST_NGRAM: _lookup(1, 4, "first"),
    "longest match from 1, last": _lookup(1, LONG, "last"),
    "longest match from 2, last": _lookup(2, LONG, "last"),
    "longest match from 3, last": _lookup(3, LONG, "last"),
    "earlier answers alone, from 2": _with_earlier(2, here=False),
    "longest match from 2 + earlier answers": _with_earlier(2),
    "longest match from 2, else earlier answers": _with_earlier(2, own_first=True),
    "walk 2 to 4": _walk(2, 4, False),
    "walk 1 to 4 + answers": _walk(1, 4, True),
    "suffix decoding, this text": _suffix(False),
    "suffix decoding + answers": _suffix(True),
    RECALL: _recall(0.1),
    "recall, no least chance": _recall(0.0),
    "recall, this text": _recall(0.1, answers=False),
    "amateur's answer, prompt and answer": _of_answer("amateur", True),
    "amateur's answer alone": _of_answer("amateur", False),
}
# For the contrast alone.
OF_EXPERT: dict[str, Maker] = {
    "expert's answer, prompt and answer": _of_answer("greedy", True),
    "expert's answer alone": _of_answer("greedy", False),
}


def amateur_late(record: Record) -> Drafts:
    """What the amateur wanted in the last step, where the contrast wanted something else."""
    tokens, wanted = record.cold.tokens, record.amateur_best
    late = [[w] if w != token else [] for w, token in zip(wanted, tokens, strict=True)]
    return [[], *late]


def amateur_ahead(record: Record) -> Drafts:
    """What the amateur would decode by itself from each place on, up to where it errs."""
    return [record.amateur_best[i : i + LONGEST] for i in range(len(record.cold.tokens) + 1)]


def answers_of(records: Sequence[Record], decoding: Decoding) -> list[Answer]:
    """The recorded answers of one way to decode."""
    return [getattr(record, decoding) for record in records]


def all_drafts(records: Sequence[Record], decoding: Decoding) -> dict[str, list[Drafts]]:
    """The drafts of all drafters."""
    answers = answers_of(records, decoding)
    makers = MAKERS | (OF_EXPERT if decoding == "cold" else {})
    found = {name: plan(make(records), answers) for name, make in makers.items()}
    if decoding == "cold":
        found["amateur, one step late"] = [amateur_late(record) for record in records]
        found["amateur, ahead"] = [amateur_ahead(record) for record in records]
    return found


def row(tally: Tally) -> dict[str, float]:
    """Of a drafter at a k."""
    return {
        "tokens_per_step": round(tally.per_step, 3),
        "acceptance": round(tally.acceptance, 3),
        "drafted_per_step": round(tally.drafts, 3),
    }


# Disagreement


def agreement(records: Sequence[Record]) -> dict[str, float]:
    """Of all steps, how often the choices are the same."""
    rows = [
        row
        for r in records
        for row in zip(r.cold.tokens, r.expert_best, r.amateur_best, r.rescored, strict=True)
    ]
    n = len(rows)
    return {
        "steps": n,
        "contrast is expert's": round(sum(c == e for c, e, _, _ in rows) / n, 4),
        "contrast is amateur's": round(sum(c == a for c, _, a, _ in rows) / n, 4),
        "expert's is amateur's": round(sum(e == a for _, e, a, _ in rows) / n, 4),
        "record is rescored": round(sum(c == s for c, _, _, s in rows) / n, 4),
    }


def by_agreement(
    drafts: Sequence[Drafts], records: Sequence[Record], k: int
) -> dict[str, dict[str, float]]:
    """Acceptance of drafts that were judged, by what streams and contrast agree on there."""
    judged, accepted = Counter[str](), Counter[str]()
    for each, record in zip(drafts, records, strict=True):
        tokens, expert, amateur = record.cold.tokens, record.expert_best, record.amateur_best

        def heard(
            place: int,
            drafted: int,
            good: int,
            *,
            t: list[int] = tokens,
            e: list[int] = expert,
            a: list[int] = amateur,
        ) -> None:
            for j in range(min(good + 1, drafted)):
                here = place + j
                if here >= len(t):
                    continue
                kinds: tuple[str, ...] = (
                    "all",
                    "contrast is expert's" if t[here] == e[here] else "contrast is not expert's",
                    "streams agree" if e[here] == a[here] else "streams disagree",
                )
                if j == 0:
                    last = here - 1
                    kinds += (
                        "first draft",
                        "first draft after contrast was expert's"
                        if t[last] == e[last]
                        else "first draft after contrast was not expert's",
                        "first draft after streams agreed"
                        if e[last] == a[last]
                        else "first draft after streams disagreed",
                    )
                for kind in kinds:
                    judged[kind] += 1
                    accepted[kind] += j < good

        play(each, record.cold, k, Tally(), heard=heard)
    return {
        kind: {"judged": judged[kind], "accepted": round(accepted[kind] / judged[kind], 3)}
        for kind in sorted(judged)
    }


# Gates

GateName = Literal[
    "always", "after expert's choice", "after streams agreed", "recent drafts", "recent, retry"
]
GATES: tuple[GateName, ...] = (
    "always",
    "after expert's choice",
    "after streams agreed",
    "recent drafts",
    "recent, retry",
)
# Of the last drafting steps of a request, and the drafts' share that has to be accepted.
WINDOW, LEAST = 4, 0.15
# Steps without drafts before it is tried again.
PAUSE = 16


class Recent:
    """Stops drafting for a request whose last drafts were bad.

    Args:
        retry: Whether it is tried again after ``PAUSE`` steps.
    """

    def __init__(self, retry: bool) -> None:
        self._kept: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._retry, self._rest = retry, 0

    def __call__(self, place: int) -> bool:
        if len(self._kept) < WINDOW:
            return True
        drafted = sum(made for made, _ in self._kept)
        if sum(good for _, good in self._kept) >= LEAST * drafted:
            return True
        if not self._retry:
            return False
        self._rest += 1
        if self._rest == PAUSE:
            self._rest = 0
            self._kept.popleft()  # one more draft is made, and judged with the others
            return True
        return False

    def heard(self, place: int, drafted: int, good: int) -> None:
        """Told of each step."""
        if drafted:
            self._kept.append((drafted, good))


def gated(drafts: Sequence[Drafts], records: Sequence[Record], k: int, gate: GateName) -> Tally:
    """Play the contrast's answers with a gate."""
    tally = Tally()
    for each, record in zip(drafts, records, strict=True):
        t, e, a = record.cold.tokens, record.expert_best, record.amateur_best
        recent = Recent(retry=gate == "recent, retry")
        chosen: dict[GateName, Any] = {
            "always": None,
            "after expert's choice": lambda p, t=t, e=e: t[p - 1] == e[p - 1],
            "after streams agreed": lambda p, a=a, e=e: a[p - 1] == e[p - 1],
            "recent drafts": recent,
            "recent, retry": recent,
        }
        play(each, record.cold, k, tally, chosen[gate], recent.heard)
    return tally
