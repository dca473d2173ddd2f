# SPDX-License-Identifier: Apache-2.0
"""Where adapters and results are, how they are named, and what a result holds."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

HERE = Path(__file__).parent
# Elsewhere if wanted: adapters are large, and results of one's own should not mix with those here.
ROOT = Path(os.environ.get("COLD_ACCURACY") or HERE)
ADAPTERS = ROOT / "adapters"
MEASURED = ROOT / "measured"

Level = Literal["ordinary", "hard"]
Split = Literal["dev", "test"]


@dataclass(frozen=True, order=True)
class Adapter:
    """An adapter of the benchmark.

    Attributes:
        task: what it was trained on.
        rank: its LoRA rank.
        percent: of the steps of its run.
    """

    task: str
    rank: int
    percent: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.task}-r{self.rank}-{self.percent}"


@dataclass(frozen=True, order=True)
class Cell:
    """An adapter on problems of a level: what methods are compared on."""

    adapter: Adapter
    level: Level

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.adapter.name}-{self.level}"

    @property
    def is_main(self) -> bool:
        """Whether the adapter is its task's strongest, on problems like those of its training."""
        return (self.adapter.rank, self.adapter.percent, self.level) == (16, 100, "ordinary")

    @property
    def label(self) -> str:
        """For people."""
        adapter = self.adapter
        harder = ", harder problems" if self.level == "hard" else ""
        return f"{adapter.task}, rank {adapter.rank}, {adapter.percent} %{harder}"


@dataclass(frozen=True)
class Outcome:
    """What one method did on the problems of a cell and split.

    Attributes:
        right: one character a problem, "1" for a right answer, in the order of the problems.
        tokens: of all answers.
        seconds: it took, on this machine.
        steps: at which CoLD scored tokens; 0 for other methods, as the next two.
        one_valid: steps with one candidate.
        changed: steps at which the best token was not the adapter's.
    """

    right: str
    tokens: int
    seconds: float
    steps: int = 0
    one_valid: int = 0
    changed: int = 0


class Store:
    """The outcomes of one cell and split: a JSON file, written anew after each method.

    Args:
        cell: The cell.
        split: Of the problems.
        mark: What the outcomes depend on, hashed (``evaluate.problems_of``); None to read only.
        root: The folder.

    Raises:
        ValueError: the file has outcomes with another mark.
    """

    def __init__(
        self, cell: Cell, split: Split, mark: str | None = None, root: Path = MEASURED
    ) -> None:
        self._path = root / f"{cell.name}-{split}.json"
        data: dict[str, Any] = {}
        if self._path.exists():
            data = json.loads(self._path.read_text(encoding="utf-8"))
        if mark is not None and data.setdefault("mark", mark) != mark:
            raise ValueError(
                f"{self._path} has results of other problems or of another adapter: delete it, or "
                "keep yours in another folder with COLD_ACCURACY"
            )
        self._mark = data.get("mark")
        # Method -> why the installed libraries cannot decode with it.
        self.not_offered: dict[str, str] = data.get("not_offered", {})
        self.outcomes = {
            method: Outcome(**cast(dict[str, Any], found))
            for method, found in data.get("outcomes", {}).items()
        }

    def add(self, method: str, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes[method] = outcome
        self._write()

    def refuse(self, method: str, reason: str) -> None:
        """Keep why there is no outcome."""
        self.not_offered[method] = reason
        self._write()

    def _write(self) -> None:
        data = {
            "mark": self._mark,
            "not_offered": self.not_offered,
            "outcomes": {method: asdict(found) for method, found in self.outcomes.items()},
        }
        write_json(self._path, data)


def write_json(path: Path, data: Any) -> None:
    """Write whole or not at all: a run may be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8"
    ) as file:
        file.write(json.dumps(data, indent=1) + "\n")
    os.replace(file.name, path)
