# SPDX-License-Identifier: Apache-2.0
"""Arithmetic word problems, for which an adapter is trained and kept at several stages, or worn
from a hub: an adapter against the base model that reads the same prompt (CoLD).

* ``words``: reasoning-gym's ``gsm_symbolic`` (Apache-2.0), with its worked answers. Splits share no
  problem (``examples.tasks.Task``), but they share the templates that problems are made from.
* ``gsm8k``: GSM8K's test problems (arXiv 2110.14168, MIT) from a hub, with a public adapter, which
  was trained on the others: it has no dev.
"""

from __future__ import annotations

import re
from functools import cache, partial
from typing import Any

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split
from examples import tasks
from examples.tasks import Task

# Short, and not the template's default, which would be a third of all tokens.
_SYSTEM = {"role": "system", "content": "Work it out. End with #### and the number."}
RANK = 8
# Of the steps: an adapter that has learnt a little, one half-way, and one that is done.
PERCENTS = (25, 50, 100)


def prompt_of(model: Model, text: str) -> Prompt:
    """A problem's text as an adapter is trained and asked."""
    if not model.chat:
        return f"Question: {text}\nAnswer:"
    return (_SYSTEM, {"role": "user", "content": text})


def number_of(text: str) -> float | None:
    """What an answer says: the number after its first ``####``, or its last number."""
    said = re.search(r"####\s*(.+)", text)
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", said[1] if said else text)
    return float(found[0 if said else -1].replace(",", "")) if found else None


def is_right(answer: str, problem: tasks.Problem) -> bool:
    """Whether both say the same number."""
    return (said := number_of(answer)) is not None and said == number_of(problem.answer)


def _make_words(seed: int) -> tasks.Problem:
    import reasoning_gym

    # One of its own: a data set samples all its templates at once.
    item = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=1)[0]
    return tasks.Problem(item["question"], item["metadata"]["answer_cot"])


WORDS = Task("words", "arithmetic word problems, worked", 200, _make_words, is_right)
# Of training, with 8 examples each.
STEPS = 48


def adapter_name(percent: int) -> str:
    """The name of the folder of the adapter as it was after so many percent of its training."""
    return f"{WORDS.name}-r{RANK}-{percent}"


@cache
def _gsm8k() -> tuple[tasks.Problem, ...]:
    from datasets import load_dataset

    try:
        rows: Any = load_dataset("openai/gsm8k", "main", split="test")
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"openai/gsm8k, from a hub or a folder of that name: {error}"
        ) from error
    return tuple(tasks.Problem(row["question"], row["answer"]) for row in rows)


def _make(task: str, model: Model, split: Split, n: int) -> list[Problem]:
    if task == "gsm8k":
        found = list(_gsm8k()[:n]) if split == "test" else []
    else:
        found = WORDS.prompts(split, n)
    prompts = [prompt_of(model, each.prompt) for each in found]
    return [Problem(text, text, each) for text, each in zip(prompts, found, strict=True)]


def _score(answer: str, problem: Problem) -> dict[str, bool]:
    """ "right": the number; "format": with the sign that says so."""
    return {"right": is_right(answer, problem.judged), "format": "####" in answer}


def _cell(task: str, adapter: str, about: str, tokens: int) -> Cell:
    return Cell(
        adapter, "An adapter against the base model", f"{about}; cold's amateur is without the "
        "adapter", partial(_make, task), _score, tokens, base_stop=("\nQuestion:",),
        adapter=adapter,
    )  # fmt: skip


CELLS = (
    *(
        _cell(WORDS.name, adapter_name(percent),
              f"{WORDS.description}, {percent} % of training", WORDS.max_tokens)
        for percent in reversed(PERCENTS)
    ),
    _cell("gsm8k", "gsm8k", "GSM8K, with a public adapter", 320),
)  # fmt: skip
