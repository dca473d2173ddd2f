# SPDX-License-Identifier: Apache-2.0
"""What drafts are worth, with CoLD and without: ``python -m benchmarks.bench_e2e --speculation``.

Four ways to decode the same requests: greedy (with the adapter where the workload has one) and
CoLD, each without drafts and with vLLM's look-up of n-grams of 1 to 4 tokens. Those without drafts
are one engine, those with drafts another.

- ``edit``: a text of facts is repeated with a change; the amateur lacks the text;
- ``orders``: orders as JSON, with an adapter; the amateur is the base model;
- ``free``: stories in a style; the amateur is not told the style.

Answers end where the model ends them, as text after that would repeat itself.

Tokens may not depend on drafts. In float32 they are compared, at one batch size and without
compiling the model, which takes a minute an engine. In bfloat16, which is timed, rounding depends
on the batch, and so on drafts: how much is equal is told only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.e2e.jobs import TIE, Cell, Job, Jobs, System

TASK = "orders"
CHECKED = 8  # the largest batch that is compared in float32
LOOKUP = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 4}
# What must give equal tokens, and by which of them times are compared.
EQUAL = (("greedy", "greedy, drafts", TIE), ("CoLD", "CoLD, drafts", TIE))
RATIOS = (
    ("CoLD", "greedy"),
    ("greedy, drafts", "greedy"),
    ("CoLD, drafts", "CoLD"),
    ("CoLD, drafts", "greedy"),
)

STYLES = (
    "Answer as a pirate would.",
    "Write as for a child of six.",
    "Be gloomy.",
    "Use many comparisons with the sea.",
)
NEW = ("umbrella", "pelican", "Henrietta", "1066", "marmalade", "Lake Baikal", "velvet", "twelve")


@dataclass(frozen=True)
class Workload:
    """Requests of one kind.

    Attributes:
        name: For tables.
        prompts: Token ids.
        own: The amateurs' prompts; empty if they are the base model with the expert's.
    """

    name: str
    prompts: list[list[int]]
    own: list[list[list[int]]] = field(default_factory=list)


def edits(count: int) -> list[tuple[str, str]]:
    """Instructions, and the texts that they change."""
    from examples.facts import facts

    known = list(facts())
    random.Random(0).shuffle(known)
    found = []
    for index in range(count):
        rng = random.Random(f"edit {index}")
        # More than there are begin again, with another change.
        text = " ".join(known[(6 * index + i) % len(known)].said() for i in range(6))
        word = rng.choice([word for word in text.split() if word.isalpha() and len(word) > 5])
        kinds = (
            f'Repeat the text, but write "{rng.choice(NEW)}" instead of "{word}".',
            "Repeat the text, with each sentence on a line of its own.",
            f'Repeat the text without the sentence that has the word "{word}".',
            "Repeat the text word for word.",
        )
        found.append((kinds[index % len(kinds)], text))
    return found


def workloads(tokenizer: Any, count: int) -> list[Workload]:
    """All of them, with ``count`` requests each."""
    from examples.facts import facts
    from examples.tasks import ORDERS, messages

    def chat(*said: dict[str, str]) -> list[int]:
        ids = tokenizer.apply_chat_template(
            list(said), add_generation_prompt=True, return_dict=False
        )
        return list(ids)

    def user(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    styles = [{"role": "system", "content": STYLES[i % len(STYLES)]} for i in range(count)]
    names = sorted({fact.subject for fact in facts()})
    stories = [user(f"Write a short story about {names[i % len(names)]}.") for i in range(count)]
    return [
        Workload(
            "edit",
            [chat(user(f"{ask}\n\n{text}")) for ask, text in edits(count)],
            [[chat(user(ask))] for ask, _ in edits(count)],
        ),
        Workload("orders", [chat(*messages(each)) for each in ORDERS.prompts("test", count)]),
        Workload(
            "free",
            [chat(style, story) for style, story in zip(styles, stories, strict=True)],
            [[chat({"role": "system", "content": ""}, story)] for story in stories],
        ),
    ]


def settings(dtype: str, options: Any, streams: int, longest: int) -> dict[str, Any]:
    """What the workers are told besides."""
    drafts = {**LOOKUP, "num_speculative_tokens": options.drafts}
    return {
        "max_model_len": max(512, longest + options.drafts),
        "options": {
            "max_num_batched_tokens": max(2048, streams * longest),  # all prompts in a step
            "enforce_eager": options.quick or dtype == "float32",
        },
        "own_options": {"plugin-ngram": {"speculative_config": drafts}},
    }


def cells(dtype: str, options: Any, works: Sequence[Workload]) -> list[Cell]:
    """Each workload and batch size; in float32 one of these, for the tokens alone."""
    exact, batches = dtype == "float32", options.batch
    if exact:
        batches = [max([b for b in batches if b <= CHECKED] or batches[:1])]
    return [
        Cell(f"{dtype}, {work.name}, batch {batch}", _jobs(work, batch, exact, options), exact,
             EQUAL)
        for work in works
        for batch in batches
    ]  # fmt: skip


def _jobs(work: Workload, batch: int, exact: bool, options: Any) -> Jobs:
    """The four ways to decode the first ``batch`` requests."""
    plain, cold = ("base", "cold-base") if work.own else ("adapter", "cold")
    jobs: Jobs = {}
    for name, mode in (("greedy", plain), ("CoLD", cold)):
        for drafts in (False, True):
            label = f"{name}, drafts" if drafts else name
            jobs[label] = Job(
                System(label, label, "plugin-ngram" if drafts else "plugin", mode),
                label,
                work.prompts[:batch],
                options.tokens,
                0 if exact else options.rounds,
                own=work.own[:batch] if mode == cold else [],
                stops=[],
                may_part=drafts and not exact,
            )
    return jobs
