# SPDX-License-Identifier: Apache-2.0
"""Chooses between two finished answers to a question: with a text, and from memory alone.

``python -m examples.choose fit ROWS.jsonl --model NAME [--url http://localhost:8000/v1]`` asks a
server (vLLM 0.23 or newer, with or without vllm-cold) and writes a judge as JSON;
``python -m examples.choose ask ROWS.jsonl --model NAME --judge JUDGE.json`` answers with it. A row
is ``{"with": [messages], "without": [messages], "answers": ["Osaka"]}``: the same chat with and
without its documents, and for ``fit`` what a right answer contains.

No contrast of single steps was safe where a text does not answer its question (docs/methods.md).
Whole answers tell more: each is scored under both prompts, which gives four numbers, and a logistic
function of these says when memory is to be trusted. In a trial with Qwen2.5-Coder-Instruct 0.5B
that gained 14 to 17 points where the text had no answer, 6 to 16 where it was only near, and cost 1
where it contradicted memory; with 1.5B it gained nothing, and did no harm. So ``fit`` says first
what it would have gained on rows that it did not see. It costs two answers, and two scorings, each
of which reads a prompt anew: vLLM looks up no prefix for a request with prompt_logprobs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openai import OpenAI
from scipy.optimize import minimize
from scipy.special import expit

FOLDS = 5
_RIDGE = 0.1  # on the coefficients of standardised numbers, so that few rows do not overfit


@dataclass(frozen=True)
class Pair:
    """Two answers.

    Attributes:
        with_text: The one that has read the text.
        from_memory: The other one.
        numbers: Mean log probabilities of a token: of the first answer with the text and without,
            of the second one with and without.
    """

    with_text: str
    from_memory: str
    numbers: tuple[float, float, float, float]


@dataclass(frozen=True)
class Judge:
    """When to trust memory: where ``constant + coefficients * numbers > 0``."""

    constant: float
    coefficients: tuple[float, ...]

    def choose(self, pair: Pair) -> str:
        """One of the two answers."""
        score = self.constant + float(np.dot(self.coefficients, pair.numbers))
        return pair.from_memory if score > 0 else pair.with_text


def compare(client: OpenAI, model: str, row: Mapping[str, Any], max_tokens: int = 64) -> Pair:
    """Ask for both answers, and how likely each is under the other's prompt."""
    prompts, answers, texts, own = [], [], [], []
    for name in ("with", "without"):
        found: Any = client.chat.completions.create(
            model=model,
            messages=row[name],
            temperature=0.0,
            max_tokens=max_tokens,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        (choice,) = found.choices
        prompts.append(found.prompt_token_ids)
        answers.append(choice.token_ids)
        texts.append(choice.message.content)
        own.append(float(np.mean([token.logprob for token in choice.logprobs.content])))
    other = [_log_probability(client, model, prompts[1 - i], answers[i]) for i in range(2)]
    return Pair(texts[0], texts[1], (own[0], other[0], other[1], own[1]))


def _log_probability(
    client: OpenAI, model: str, prompt: Sequence[int], answer: Sequence[int]
) -> float:
    """Mean log probability of an answer's tokens after a prompt."""
    found: Any = client.completions.create(
        model=model,
        prompt=[*prompt, *answer],
        max_tokens=1,
        extra_body={"prompt_logprobs": 0},
    )
    tokens = zip(answer, found.choices[0].prompt_logprobs[-len(answer) :], strict=True)
    return float(np.mean([each[str(token)]["logprob"] for token, each in tokens]))


def fit(numbers: NDArray[np.float64], gains: NDArray[np.int64]) -> Judge:
    """A logistic function, of rows where one answer is right and the other wrong.

    Args:
        numbers: [n, 4], those of pairs.
        gains: [n] what memory gains: 1 if it alone is right, -1 if it alone is wrong, else 0.

    Raises:
        ValueError: one of the two never happens, so there is nothing to learn.
    """
    useful = gains != 0
    if len(set(gains[useful])) < 2:
        raise ValueError("rows: of some only memory must be right, of others only the text")
    x, y = numbers[useful], gains[useful]
    center, scale = x.mean(0), x.std(0) + 1e-6
    standard = np.column_stack([np.ones(len(x)), (x - center) / scale])

    def loss(w: NDArray[np.float64]) -> float:
        wrong = -np.log(expit(y * (standard @ w)) + 1e-12)
        return float(wrong.mean() + _RIDGE * (w[1:] ** 2).mean())

    constant, *weights = minimize(loss, np.zeros(5)).x
    slopes = np.array(weights) / scale
    return Judge(float(constant - slopes @ center), tuple(map(float, slopes)))


def unseen(numbers: NDArray[np.float64], gains: NDArray[np.int64]) -> tuple[int, int]:
    """How many rows judges win and lose against the answer with the text that did not see them."""
    won = lost = 0
    for fold in range(FOLDS):
        held = np.arange(len(gains)) % FOLDS == fold
        judge = fit(numbers[~held], gains[~held])
        trusted = numbers[held] @ judge.coefficients + judge.constant > 0
        won += int((trusted & (gains[held] > 0)).sum())
        lost += int((trusted & (gains[held] < 0)).sum())
    return won, lost


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether a text contains one of the answers, whatever the letters' case."""
    return any(answer.casefold() in text.casefold() for answer in answers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("task", choices=("fit", "ask"))
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--judge", type=Path, help="what fit wrote, for ask")
    options = parser.parse_args(arguments)
    if (options.task == "ask") != (options.judge is not None):
        parser.error("--judge: ask needs one, and fit makes one")
    rows = [json.loads(line) for line in options.rows.read_text().splitlines() if line.strip()]
    client = OpenAI(base_url=options.url, api_key="none")
    pairs = [compare(client, options.model, row) for row in rows]
    if options.task == "ask":
        said = json.loads(options.judge.read_text())
        judge = Judge(said["constant"], tuple(said["coefficients"]))
        for pair in pairs:
            print(json.dumps({"answer": judge.choose(pair), **asdict(pair)}))
        return
    numbers = np.array([pair.numbers for pair in pairs])
    right = [
        (is_right(pair.with_text, row["answers"]), is_right(pair.from_memory, row["answers"]))
        for pair, row in zip(pairs, rows, strict=True)
    ]
    gains = np.array([int(memory) - int(text) for text, memory in right])
    won, lost = unseen(numbers, gains)
    kept = sum(text for text, _ in right)
    print(
        f"{len(rows)} rows: with the text {kept} right; by judges that had not seen them {won} won "
        f"and {lost} lost",
        file=sys.stderr,
    )
    print(json.dumps(asdict(fit(numbers, gains))))


if __name__ == "__main__":
    main()
