# SPDX-License-Identifier: Apache-2.0
"""What lm_eval leaves behind."""

import json
from pathlib import Path
from typing import Any


def accuracy(folder: Path, task: str, key: str) -> float:
    """A figure of the one results file below ``folder``."""
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())["results"][task][key]  # type: ignore[no-any-return]


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """The logged samples of a task, one for each document and filter, by document."""
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(found, key=lambda sample: sample["doc_id"])


def answers(folder: Path, task: str) -> list[str]:
    """The generated texts, by document, before any filter."""
    texts = {sample["doc_id"]: sample["resps"][0][0] for sample in samples(folder, task)}
    return [texts[document] for document in sorted(texts)]
