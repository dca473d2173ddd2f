# SPDX-License-Identifier: Apache-2.0
"""The outcomes of a model, cell and split: a JSON file, written anew after each method."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.prompts.engine import Answers
from benchmarks.accuracy.prompts.problem import Cell, ModelName, Problem, Split
from benchmarks.accuracy.store import ROOT, write_json

MEASURED = ROOT / "measured" / "prompts"
# The texts, for who wants to look at them; not kept with the code.
ANSWERS = ROOT / "answers"


@dataclass(frozen=True)
class Outcome:
    """What a method did.

    Attributes:
        measures: By name, a character a problem: "1" where it holds.
        tokens: Of all answers.
        seconds: That it took, on this machine.
    """

    measures: dict[str, str]
    tokens: int
    seconds: float


def mark_of(model: ModelName, cell: Cell, problems: list[Problem]) -> str:
    """A hash of what outcomes depend on, besides the method."""
    told: tuple[Any, ...] = (model, cell.name, cell.max_tokens, cell.stop.get(model), problems)
    if cell.adapter is not None:
        told += (Path(cell.adapter).name,)  # wherever it lies
    return hashlib.sha256(repr(told).encode()).hexdigest()


class Store:
    """The outcomes of one model, cell and split.

    Args:
        model: Whose.
        cell: Its name.
        split: Of the problems.
        mark: ``mark_of`` the problems; None to read only.
        root: The folder.

    Raises:
        ValueError: the file has outcomes with another mark.
    """

    def __init__(
        self,
        model: ModelName,
        cell: str,
        split: Split,
        mark: str | None = None,
        root: Path = MEASURED,
    ) -> None:
        self._name = f"{model}-{cell}-{split}"
        self._path = root / f"{self._name}.json"
        data: dict[str, Any] = {}
        if self._path.exists():
            data = json.loads(self._path.read_text(encoding="utf-8"))
        if mark is not None and data.setdefault("mark", mark) != mark:
            raise ValueError(
                f"{self._path} has outcomes of other problems: delete it, or keep yours in another "
                "folder with COLD_ACCURACY"
            )
        self._mark = data.get("mark")
        self.outcomes = {
            method: Outcome(**found) for method, found in data.get("outcomes", {}).items()
        }

    def add(self, method: str, cell: Cell, problems: list[Problem], answers: Answers) -> None:
        """Judge answers and keep the outcome, and the answers aside."""
        judged = [
            cell.score(text, problem) for text, problem in zip(answers.texts, problems, strict=True)
        ]
        self.outcomes[method] = Outcome(
            measures={name: "".join("01"[found[name]] for found in judged) for name in judged[0]},
            tokens=sum(map(len, answers.token_ids)),
            seconds=answers.seconds,
        )
        folder = ANSWERS / self._name
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / f"{method.replace('/', ' ')}.json.gz", "wt") as file:
            json.dump({"texts": answers.texts, "token_ids": answers.token_ids}, file)
        outcomes = {name: asdict(found) for name, found in self.outcomes.items()}
        write_json(self._path, {"mark": self._mark, "outcomes": outcomes})


def answers(model: ModelName, cell: str, split: Split, method: str) -> Answers | None:
    """The answers that were kept, if they were."""
    path = ANSWERS / f"{model}-{cell}-{split}" / f"{method.replace('/', ' ')}.json.gz"
    if not path.exists():
        return None
    with gzip.open(path, "rt") as file:
        data = json.load(file)
    return Answers(data["texts"], data["token_ids"], 0.0)
