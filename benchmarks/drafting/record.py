# SPDX-License-Identifier: Apache-2.0
"""What is known of a decoded request, and where it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.accuracy.store import write_json
from examples.smollm2 import default_cache_dir


@dataclass
class Answer:
    """A decoded answer.

    Attributes:
        tokens: Its token ids, with that of the end if it ended.
        ended: Whether it did, and was not cut off at its longest.
    """

    tokens: list[int]
    ended: bool


@dataclass
class Record:
    """A request and its answers, all as token ids.

    Attributes:
        prompt: The expert's.
        amateurs: The amateurs'.
        cold: Decoded by the contrast.
        greedy: By the expert alone.
        amateur: By the first amateur alone.
        expert_best: The expert's most likely token at each step of ``cold``.
        amateur_best: The first amateur's.
        rescored: The contrast's choice, computed by another library: it says how far rounding and
            the two libraries agree.
    """

    prompt: list[int]
    amateurs: list[list[int]]
    cold: Answer
    greedy: Answer
    amateur: Answer
    expert_best: list[int] = field(default_factory=list)
    amateur_best: list[int] = field(default_factory=list)
    rescored: list[int] = field(default_factory=list)


def _path(workload: str) -> Path:
    return default_cache_dir() / "drafting" / f"{workload}.json"


def save(workload: str, records: list[Record]) -> None:
    """Keep the records of a workload in the cache."""
    write_json(_path(workload), [asdict(record) for record in records])


def load(workload: str) -> list[Record] | None:
    """The records of a workload, or None if there are none."""
    if not _path(workload).exists():
        return None
    found = json.loads(_path(workload).read_text(encoding="utf-8"))
    for each in found:
        for name in ("cold", "greedy", "amateur"):
            each[name] = Answer(**each[name])
    return [Record(**each) for each in found]
