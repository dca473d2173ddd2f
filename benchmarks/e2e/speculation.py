# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.bench_e2e --speculation``: what drafts are worth, with CoLD and without.

``[--batch 1 8 32] [--drafts 4] [--tokens 48] [--rounds 3] [--quick] [--json FILE]``. Four ways to
decode the same requests: greedy (with the adapter where the workload has one) and CoLD, each
without drafts and with vLLM's look-up of n-grams of 1 to 4 tokens. Those without drafts are one
engine, those with drafts another, each in a process of its own as in ``benchmarks.bench_e2e``; one
computes at a time, in rounds of shuffled order.

- ``edit``: a text of facts is repeated with a change; the amateur lacks the text;
- ``orders``: orders as JSON, with an adapter; the amateur is the base model;
- ``free``: stories in a style; the amateur is not told the style.

Answers end where the model ends them, as text behind that would repeat itself.

Tokens may not depend on drafts. In float32 each token is compared before a speed is printed, at one
batch size and without compiling the model, which takes a minute an engine; where two differ, the
naive loop says whether rounding decided. In bfloat16, which is timed, rounding depends on the
batch, and so on drafts: how much is equal is told only.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.e2e.check import check_cell
from benchmarks.e2e.jobs import Findings, Job, Jobs, System
from benchmarks.e2e.pool import Workers
from benchmarks.e2e.run import DTYPES, kv_gib, measure, naive_gap
from benchmarks.rounds import (
    Say,
    defaults,
    machine,
    new_file,
    positive,
    progress,
    ratios,
    several,
    short,
    spread_text,
    table,
)
from examples.demo import ADAPTERS

CHECKED = 8  # the largest batch that is compared in float32
LOOKUP = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 4}
FULL: dict[str, Any] = {"batch": [1, 8, 32], "tokens": 48, "rounds": 3}
QUICK: dict[str, Any] = {"batch": [1, 2], "tokens": 12, "rounds": 1}

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


def make_jobs(work: Workload, batch: int, dtype: str, options: argparse.Namespace) -> Jobs:
    """The four ways to decode the first ``batch`` requests; in float32 for their tokens alone."""
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
                options.rounds if dtype == "bfloat16" else 0,
                own=work.own[:batch] if mode == cold else [],
                stops=[],
                may_part=drafts and dtype == "bfloat16",
            )
    return jobs


EQUAL = (("greedy", "greedy, drafts"), ("CoLD", "CoLD, drafts"))


def run(options: argparse.Namespace, folder: Path, say: Say, found: Findings) -> None:
    """Compare in float32 and time in bfloat16; stops where tokens are wrong."""
    from transformers import AutoTokenizer

    from examples.smollm2 import model_path

    path = model_path()
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    works = workloads(AutoTokenizer.from_pretrained(path), options.batch[-1])
    streams, rng = 2 * options.batch[-1], random.Random(0)
    texts = [ids for work in works for each in (work.prompts, *work.own) for ids in each]
    longest = max(map(len, texts)) + options.tokens
    for dtype in ("float32", "bfloat16"):
        settings: dict[str, Any] = {
            "model": str(path),
            "adapter": str(ADAPTERS / "orders"),
            "dtype": dtype,
            "rank": 8,
            "max_loras": 1,
            "max_model_len": max(512, longest + options.drafts),
            "max_num_seqs": streams,
            "options": {
                "max_num_batched_tokens": max(2048, streams * longest),  # all prompts in a step
                "enforce_eager": options.quick or dtype == "float32",
            },
            "own_options": {
                "plugin-ngram": {
                    "speculative_config": {**LOOKUP, "num_speculative_tokens": options.drafts}
                }
            },
        }
        batches = options.batch
        if dtype == "float32":
            batches = [max([b for b in batches if b <= CHECKED] or batches[:1])]
        gib = kv_gib(config, DTYPES[dtype], streams, settings["max_model_len"])
        with Workers(settings, gib, folder, say) as workers:
            for work in works:
                for batch in batches:
                    title = f"{dtype}, {work.name}, batch {batch}"
                    jobs = make_jobs(work, batch, dtype, options)
                    wrong = measure(jobs.values(), workers, rng, title, say)
                    if not wrong:
                        exact = dtype == "float32"
                        wrong, notes = check_cell(title, exact, jobs, naive_gap(workers), EQUAL)
                        found.notes += notes
                    found.wrong += wrong
                    if dtype == "bfloat16":
                        found.table[title] = jobs
                    if found.wrong:
                        return
            found.look_at(dtype, workers)


def rows(title: str, jobs: Jobs) -> list[list[str]]:
    """Rows of a cell: counts, milliseconds per token, and their ratios to the ways without drafts:
    greedy and CoLD.
    """
    shown = []
    for job in jobs.values():
        count = job.counts
        steps = max(count["steps"], 1)
        accepted = f"{count['accepted'] / count['drafted']:.0%}" if count["drafted"] else "-"
        shown.append(
            [
                title,
                job.label,
                f"{count['emitted'] / steps:.2f}",
                f"{count['drafted'] / steps:.2f}",
                accepted,
                spread_text(job.tpot, short, 1e3),
                *(spread_text(ratios(job.tpot, jobs[name].tpot)) for name in ("greedy", "CoLD")),
            ]
        )
    return shown


COLUMNS = (
    "cell", "system", "tokens/step", "drafted/step", "acceptance", "ms/token", "/ greedy", "/ CoLD",
)  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the defaults of ``--quick`` where it is given."""
    parser = argparse.ArgumentParser(
        prog="bench_e2e --speculation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--batch", type=positive, nargs="+", metavar="N")
    parser.add_argument("--drafts", type=positive, default=4, metavar="K", help="of a step")
    parser.add_argument("--tokens", type=several, help="most of an answer")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--quick", action="store_true", help="a trial of a few minutes")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="all measurements")
    options = parser.parse_args(arguments)
    defaults(options, QUICK if options.quick else FULL)
    options.batch = sorted(set(options.batch))
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit status is 1 if a check failed."""
    options = parse(arguments)
    say, found = progress(), Findings()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(temporary), say, found)
    return found.publish(
        options.json,
        lambda: table(COLUMNS, [row for cell in found.table.items() for row in rows(*cell)], 2),
    )
