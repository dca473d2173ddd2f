# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.bench_e2e --speculation``: what drafts are worth, with CoLD and without.

Four ways to decode the same requests: greedy (with the adapter where the workload has one), greedy
with a drafter, CoLD with two streams, CoLD with a drafter. The two without drafts are one engine,
those with drafts another, each in a process of its own as in ``benchmarks.bench_e2e``; one computes
at a time, in rounds of shuffled order. All prompts are read in the first step. Greedy tokens may
not depend on drafts, which is checked before a speed is printed.

Parts:

- ``text``: SmolLM2-135M-Instruct (``--models gemma``: Gemma 3 270M too) on the workloads of
  ``benchmarks.drafting``, drafts by vLLM's look-up of n-grams. Answers end where the model ends
  them, as text behind that would repeat itself. In float32 each token is compared, at one batch
  size and without compiling the model, which takes a minute an engine; where two differ, the naive
  loop of ``bench_e2e`` says whether rounding decided. In bfloat16 rounding depends on the batch,
  and so on drafts: how much is equal is told only.
- ``shape``: a model of the size of Llama 3.2 1B with random weights, in bfloat16, whose text is
  known beforehand (``benchmarks.e2e.shapes``), so that a drafter can be right as often as it is
  told to be (``benchmarks.e2e.oracle``): ``--rates``, or a measured ``--profile``. All tokens must
  be the known ones.
- ``--skip-cost`` leaves out what a step costs, for each model: with 1 to 64 rows, which are as many
  adapter requests, and with k drafts that are all wrong. The last gives the break-even: k drafts
  pay if more of them are accepted in a step than a step with them costs more than one without.

Milliseconds per token are those between a request's first and last token, over all requests of the
batch; medians of the rounds with the 20th and 80th percentile, ratios within rounds. An engine with
k = 8 drafts fewer for a smaller k, which costs what an engine made for that k costs: only drafts
that were made are read.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.e2e import oracle, shapes, show
from benchmarks.e2e.check import TIE, Gap, first_difference
from benchmarks.e2e.jobs import Job, Say, System
from benchmarks.e2e.oracle import Profile
from benchmarks.e2e.pool import Workers
from benchmarks.e2e.run import DTYPES, kv_gib
from benchmarks.rounds import in_rounds, positive, ratios, show_if_right, spread, spread_text

PARTS = ("text", "shape")
MODELS = ("smollm2", "gemma")
# By model: workloads of benchmarks.drafting, and whether a line's end ends an answer.
WORKLOADS = {"smollm2": ("edit", "orders", "free"), "gemma": ("edit-gemma",)}
MEASURED = Path(__file__).parents[1] / "drafting" / "measured" / "answers.json"
LOOKUP = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
CHECKED = 8  # the largest batch that is compared in float32
WARM_UP = 4  # tokens
COST_TOKENS = {"rows": 9, "drafts": 5}  # of each request
RANK = 16  # of the random adapter

FULL: dict[str, Any] = {
    "parts": list(PARTS),
    "models": ["smollm2"],
    "batch": [1, 8, 32],
    "drafts": [2, 4, 8],
    "tokens": 48,
    "shape_tokens": 24,
    "shape_prompt": 8,
    "rates": [0.5, 0.7, 0.9],
    "shape_drafts": [4],
    "cost_drafts": [2, 4],
    "rows": [1, 2, 4, 8, 16, 32, 64],
    "rounds": 3,
    "seconds": 8.0,
}
QUICK: dict[str, Any] = {
    "batch": [1, 2],
    "drafts": [2],
    "tokens": 12,
    "shape_tokens": 12,
    "rates": [0.7],
    "shape_drafts": [2],
    "cost_drafts": [2],
    "rows": [1, 2],
    "rounds": 1,
}


@dataclass(frozen=True)
class Draft:
    """What drafts: n-grams, up to k; an oracle where there is a profile."""

    name: str
    k: int
    profile: Profile | None = None

    @property
    def family(self) -> str:
        """The workers that have it."""
        return "plugin-ngram" if self.profile is None else "plugin-oracle"


@dataclass
class Run(Job):
    """A job of the end-to-end benchmark, with a drafter or without.

    Attributes:
        draft: The drafter.
        rounding: Whether it may give other tokens when it is repeated: for whom drafts are verified
            depends on time, and in bfloat16 rounding on the rows of a step.
        stops: Tokens that end a request, beside the end of the text; None: not even that does.
        ms: Of each timed run: milliseconds per token behind the first ones.
        counts: Of the last run, see ``worker.Counts``.
        planned: Seconds that a run takes, by the warm-up.
        parted: Repeated requests that gave other tokens than the first time, because of rounding.
    """

    draft: Draft | None = None
    rounding: bool = False
    stops: list[int] | None = None
    ms: list[float] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    planned: float = 0.0
    parted: int = 0

    def ask(self, workers: Workers, tokens: int) -> dict[str, Any]:
        """Let a worker run it."""
        worker = workers.get(self.system.family)
        if self.draft is not None:
            profile = None if self.draft.profile is None else asdict(self.draft.profile)
            worker.ask("draft", k=self.draft.k, profile=profile)
        return worker.ask(
            "run",
            mode=self.system.mode,
            prompts=self.prompts,
            tokens=tokens,
            own=self.own,
            stops=self.stops,
        )

    def warm(self, reply: Mapping[str, Any], tokens: int) -> None:
        """Plan by a run of ``tokens`` tokens."""
        first, last = max(reply["first"]), max(reply["last"])
        self.planned = first + (last - first) / max(tokens - 1, 1) * (self.tokens - 1)

    def record(self, reply: Mapping[str, Any]) -> None:
        """Keep the times of a run."""
        self.seconds.append(reply["seconds"])
        self.ttft.append(statistics.median(reply["first"]))
        behind = sum(len(row) - 1 for row in reply["tokens"])
        passed = sum(reply["last"]) - sum(reply["first"])
        self.ms.append(1e3 * passed / behind if behind else math.nan)
        self.blocks, self.counts = reply["blocks"], dict(reply["counts"])

    def compare(self, output: list[list[int]], tokens: int) -> list[str]:
        """What is wrong with the output of a run of up to ``tokens`` tokens."""
        if len(output) != len(self.prompts) or not all(0 < len(row) <= tokens for row in output):
            return [f"{self.label} did not generate 1 to {tokens} tokens for each prompt"]
        if self.stops is None and any(len(row) != tokens for row in output):
            return [f"{self.label} did not generate {tokens} tokens for each prompt"]
        parted = sum(a[:tokens] != b[: len(a)] for a, b in zip(self.output, output, strict=False))
        if parted and not self.rounding:
            return [f"{self.label} gave other tokens when it was repeated"]
        self.parted += parted
        if not parted:
            self.output = [
                max(a, b, key=len) for a, b in zip(self.output or output, output, strict=True)
            ]
        return []

    def rate(self, name: str) -> float:
        """A count of ``worker.Counts``, in each step of a stream."""
        return self.counts[name] / max(self.counts["steps"], 1)

    @property
    def acceptance(self) -> float | None:
        """Of a drafted token; None if there were none."""
        drafted = self.counts["drafted"]
        return self.counts["accepted"] / drafted if drafted else None


@dataclass
class Workload:
    """Requests of one kind.

    Attributes:
        name: For tables.
        plain: The mode of greedy decoding.
        cold: That of CoLD.
        prompts: Token ids.
        own: The amateurs' prompts; empty if they read the expert's.
        tokens: At most generated by each request.
        stops: See ``Run``.
        known: What follows; None if that is not known.
    """

    name: str
    plain: str
    cold: str
    prompts: list[list[int]]
    own: list[list[list[int]]]
    tokens: int
    stops: list[int] | None = None
    known: Callable[[list[int], int], list[int]] | None = None

    def run(self, batch: int, cold: bool, draft: Draft | None, rounds: int, tokens: int = 0) -> Run:
        """One way to decode the first ``batch`` requests."""
        label = "CoLD" if cold else "greedy"
        if draft is not None:
            label += f", {draft.name}"
        mode = self.cold if cold else self.plain
        system = System(label, label, "plugin" if draft is None else draft.family, mode)
        tokens = tokens or self.tokens
        return Run(
            system, label, self.prompts[:batch], tokens, rounds, min(WARM_UP, tokens),
            own=self.own[:batch] if cold else [], stops=self.stops, draft=draft,
        )  # fmt: skip


@dataclass
class Model:
    """A model, and what it runs.

    Attributes:
        name: For tables.
        path: Its folder.
        adapter: The adapter's folder.
        rank: Of the adapter.
        dtypes: In which it is run, and whether it is timed there or compared only.
        workloads: What is decoded.
        drafts: By what drafters.
        tokenizer: Whether it has one.
        costs: Whether its steps are timed.
    """

    name: str
    path: Path
    adapter: Path | None
    rank: int
    dtypes: dict[str, bool]
    workloads: list[Workload]
    drafts: list[Draft]
    tokenizer: bool = True
    costs: bool = True


@dataclass
class Found:
    """What was measured.

    Attributes:
        table: Runs by model, dtype, workload and batch.
        rows: Runs by model and number of rows.
        steps: Runs by model, whether of CoLD, batch and k; k = 0 is without a drafter.
        wrong: What is wrong with tokens.
        notes: What else the checks found.
        facts: What the workers are.
        busy: Cores that a worker used while it waited.
    """

    table: dict[tuple[str, str, str, int], list[Run]] = field(default_factory=dict)
    rows: dict[tuple[str, int], Run] = field(default_factory=dict)
    steps: dict[tuple[str, bool, int, int], Run] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)


def measure(
    runs: Sequence[Run], workers: Workers, rng: random.Random, seconds: float, title: str, say: Say
) -> list[str]:
    """Warm up, then time in rounds, in as many as fit into ``seconds`` for each run, at least in
    one; what was wrong with results. Runs of no rounds run once, in full.
    """
    problems: list[str] = []

    def once(run: Run, tokens: int) -> dict[str, Any]:
        reply = run.ask(workers, tokens)
        problems.extend(run.compare(reply["tokens"], tokens))
        return reply

    for run in runs:
        if not run.rounds:
            run.record(once(run, run.tokens))
            run.seconds, run.ttft, run.ms = [], [], []
            continue
        run.warm(once(run, run.warm_up), run.warm_up)
        run.rounds = max(1, min(run.rounds, int(seconds / max(run.planned, 1e-9))))
    say(f"{title}: warm, about {sum(run.rounds * run.planned for run in runs):.0f} s to come")
    most = max((run.rounds for run in runs), default=0)
    for index, run in in_rounds(runs, most, rng):
        if index < run.rounds:
            run.record(once(run, run.tokens))
    return [f"{title}: {problem}" for problem in dict.fromkeys(problems)]


# Checks


def check_exact(title: str, a: Run, b: Run, gap: Gap) -> tuple[list[str], list[str]]:
    """Compare the tokens of ``b`` with those of ``a``: what is wrong, and the ties."""
    wrong: list[str] = []
    ties: list[str] = []
    for index, (left, right) in enumerate(zip(a.output, b.output, strict=True)):
        if left == right:
            continue
        size = min(len(left), len(right))
        at = first_difference(left[:size], right[:size])
        if at is None:
            wrong.append(f"{title}: {b.label} has {len(right)} tokens, {a.label} {len(left)}")
            continue
        texts = [[*prompt, *left[:at]] for prompt in a.texts(index)]
        behind = gap(a.system.mode, texts, [left[at], right[at]])
        (ties if behind <= TIE else wrong).append(
            f"{title}: {b.label} and {a.label} part at token {at + 1} of request {index + 1}, "
            f"{left[at]} or {right[at]}, {behind:.1e} apart"
        )
    return wrong, [f"tie: {tie}" for tie in ties]


def equal_share(a: Run, b: Run) -> tuple[float, float]:
    """Of the requests the share with equal tokens; of all tokens of ``a`` the share before the
    first that differs.
    """
    pairs = list(zip(a.output, b.output, strict=True))
    same = 0
    for left, right in pairs:
        size = min(len(left), len(right))
        at = first_difference(left[:size], right[:size])
        same += size if at is None else at
    return sum(x == y for x, y in pairs) / len(pairs), same / sum(len(x) for x, _ in pairs)


def check(
    title: str, dtype: str, workload: Workload, runs: Iterable[Run], gap: Gap
) -> tuple[list[str], list[str]]:
    """What is wrong with the runs of a workload at one batch size, and what is worth telling."""
    wrong: list[str] = []
    notes: list[str] = []
    plain: dict[str, Run] = {}
    shares = []
    for run in runs:
        if workload.known is not None:
            want = [workload.known(ids, run.tokens) for ids in run.prompts]
            if run.output != want:
                wrong.append(f"{title}: {run.label} did not give the tokens that follow")
        if run.draft is None:
            plain[run.system.mode] = run
            continue
        other = plain[run.system.mode]
        if run.parted:
            notes.append(f"{title}: {run.label}: {run.parted} requests parted when repeated")
        if dtype == "float32":
            problems, ties = check_exact(title, other, run, gap)
            wrong += problems
            notes += ties
        shares.append((run.label, *equal_share(other, run)))
    listed = ", ".join(f"{name} {a:.0%} ({b:.0%})" for name, a, b in shares)
    notes.append(f"{title}: equal requests (tokens before they part) with drafts: {listed}")
    return wrong, notes


# What is run


def text_model(name: str, options: argparse.Namespace) -> Model:
    """A real model on texts."""
    from transformers import AutoTokenizer

    from benchmarks.drafting.tasks import ADAPTERS
    from benchmarks.drafting.tasks import WORKLOADS as KNOWN
    from examples import gemma3, smollm2

    path = {"smollm2": smollm2, "gemma": gemma3}[name].model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)

    def encode(prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(tokenizer.encode(prompt))
        return list(
            tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, return_dict=False
            )
        )

    workloads = []
    for known in (known for known in KNOWN if known.name in WORKLOADS[name]):
        requests = known.make(max(*options.batch, *options.rows))
        if len(requests) < options.batch[-1]:
            raise ValueError(
                f"batch={options.batch[-1]}: {known.name} has {len(requests)} requests"
            )
        ends = [
            number
            for token, number in tokenizer.get_vocab().items()
            if any(stop in tokenizer.convert_tokens_to_string([token]) for stop in known.stop)
        ]
        adapted = known.adapter is not None
        workloads.append(
            Workload(
                known.name,
                "adapter" if adapted else "base",
                "cold" if adapted else "cold-base",
                [encode(each.prompt) for each in requests],
                [[encode(each.amateurs[0])] for each in requests if each.amateurs],
                options.tokens,
                ends,
            )
        )
    drafts = [Draft(f"n-gram k={k}", k) for k in options.drafts]
    dtypes = {"float32": False, "bfloat16": True}
    adapter = ADAPTERS / "orders" if name == "smollm2" else None
    return Model(name, Path(path), adapter, 8, dtypes, workloads, drafts)


def counting_up(vocab: int) -> Callable[[list[int], int], list[int]]:
    """What follows in a model of ``benchmarks.e2e.shapes``."""
    return lambda ids, count: [(ids[-1] + 1 + i) % vocab for i in range(count)]


def shape_model(folder: Path, options: argparse.Namespace) -> Model:
    """The model of a shape, with prompts of random tokens."""
    shape = shapes.TINY if options.quick else shapes.LLAMA_1B
    rng = random.Random(0)
    count = max(*options.batch, *options.rows)
    prompts = [
        [rng.randrange(shape.vocab) for _ in range(options.shape_prompt)] for _ in range(count)
    ]
    profiles = {
        f"{rate:.0%} right, k={k}": oracle.fixed(rate, k)
        for rate in options.rates
        for k in options.shape_drafts
    }
    for path in options.profile:
        name = f"as {options.profile_drafter} on {path.stem}"
        profiles[name] = oracle.read(path, options.profile_drafter)
    return Model(
        "tiny shape" if options.quick else "1B shape",
        shapes.write_model(shape, folder / "model"),
        shapes.write_adapter(shape, folder / "adapter", RANK),
        RANK,
        {"bfloat16": True},
        [
            Workload(
                "counting", "adapter", "cold", prompts, [], options.shape_tokens,
                known=counting_up(shape.vocab),
            )
        ],
        [Draft(name, profile.k, profile) for name, profile in profiles.items()],
        tokenizer=False,
    )  # fmt: skip


def quick_model(folder: Path, options: argparse.Namespace) -> Model:
    """A tiny model in a real one's place, with prompts in which the answer stands."""
    shape = shapes.TINY
    prompts = []
    for i in range(max(*options.batch, *options.rows)):
        start = 10 + 7 * i
        prompts.append([*range(start, start + options.tokens + 10), 3, start, start + 1])
    amateurs = [[[3, *prompt]] for prompt in prompts]
    known = counting_up(shape.vocab)
    tokens = options.tokens
    return Model(
        "tiny text",
        shapes.write_model(shape, folder / "model"),
        shapes.write_adapter(shape, folder / "adapter", RANK),
        RANK,
        {"float32": True},
        [
            Workload("copy", "base", "cold-base", prompts, amateurs, tokens, [2], known),
            Workload("adapted", "adapter", "cold", prompts, [], tokens, None, known),
        ],
        [Draft(f"n-gram k={k}", k) for k in options.drafts],
        tokenizer=False,
        costs=False,
    )


def wrong_drafts(k: int) -> Draft:
    """k drafts in each step, all wrong."""
    return Draft(f"{k} wrong drafts", k, Profile(0.0, (1.0, *[0.0] * k), k))


def worker_settings(model: Model, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the workers of a model and dtype are told."""
    k = max(0, *(draft.k for draft in model.drafts), *options.cost_drafts)
    prompts = [
        text
        for load in model.workloads
        for text in (*load.prompts, *(ids for own in load.own for ids in own))
    ]
    tokens = max(load.tokens for load in model.workloads)
    streams = max(2 * options.batch[-1], *options.rows)
    # All prompts of a batch in one step, and then all drafts.
    longest = 0
    for load in model.workloads:
        experts = [len(ids) for ids in load.prompts]
        amateurs = [sum(map(len, own)) for own in load.own] or experts
        batch = options.batch[-1]
        longest = max(longest, sum(experts[:batch]) + sum(amateurs[:batch]), sum(experts))
    batched = max(2048, longest, streams * (1 + 2 * k))
    oracle_class = f"{oracle.Oracle.__module__}.{oracle.Oracle.__qualname__}"
    given: dict[str, Any] = {
        "plugin-ngram": {"method": "ngram", "num_speculative_tokens": k, **LOOKUP},
        "plugin-oracle": {
            "method": "custom_class", "model": oracle_class, "num_speculative_tokens": k,
        },
    }  # fmt: skip
    return {
        "model": str(model.path),
        "adapter": None if model.adapter is None else str(model.adapter),
        "dtype": dtype,
        "rank": model.rank,
        "max_loras": 1,
        "max_model_len": max(512, max(map(len, prompts)) + tokens + k + 1),
        "max_num_seqs": streams,
        "options": {
            "max_num_batched_tokens": batched,
            "skip_tokenizer_init": not model.tokenizer,
            "enforce_eager": options.quick or not model.dtypes[dtype],
        },
        "own_options": {name: {"speculative_config": each} for name, each in given.items()},
    }


def run_model(
    model: Model, folder: Path, options: argparse.Namespace, say: Say, found: Found
) -> None:
    """Measure and check everything of a model; stops where tokens are wrong."""
    rng = random.Random(0)
    config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    for dtype, timed in model.dtypes.items():
        settings = worker_settings(model, dtype, options)
        loads = [(settings["max_num_seqs"], settings["max_model_len"])]
        gib = kv_gib(config, DTYPES[dtype], loads)
        with Workers(settings, gib, folder, say) as workers:

            def gap(mode: str, texts: list[list[int]], choices: list[int]) -> float:
                reply = workers.get("naive").ask("gap", mode=mode, texts=texts, choices=choices)  # noqa: B023
                return float(reply["gap"])

            for workload in model.workloads:
                _run_workload(model, dtype, timed, workload, workers, rng, options, say, found, gap)
                if found.wrong:
                    return
            if timed and model.costs and not options.skip_cost:
                _run_costs(model, workers, rng, options, say, found)
            facts = {name: worker.facts for name, worker in workers.running.items()}
            found.facts[f"{model.name}, {dtype}"] = facts
            found.busy |= {
                f"{name} of {model.name} in {dtype}": worker.idle[1] / worker.idle[0]
                for name, worker in workers.running.items()
                if worker.idle[0] > 0
            }
            if found.wrong:
                return


def _run_workload(
    model: Model,
    dtype: str,
    timed: bool,
    workload: Workload,
    workers: Workers,
    rng: random.Random,
    options: argparse.Namespace,
    say: Say,
    found: Found,
    gap: Gap,
) -> None:
    batches = [b for b in options.batch if b <= CHECKED] or options.batch[:1]
    for batch in options.batch if timed else batches[-1:]:
        title = f"{model.name}, {dtype}, {workload.name}, batch {batch}"
        rounds = options.rounds if timed else 0
        runs = [
            workload.run(batch, cold, draft, rounds)
            for cold in (False, True)
            for draft in (None, *model.drafts)
        ]
        for run in runs:
            chosen = run.draft is not None and run.system.mode == workload.cold
            run.rounding = chosen and dtype != "float32" and workload.known is None
        found.table[model.name, dtype, workload.name, batch] = runs
        wrong = measure(runs, workers, rng, options.seconds, title, say)
        if not wrong:
            wrong, notes = check(title, dtype, workload, runs, gap)
            found.notes += notes
        found.wrong += wrong


def _run_costs(
    model: Model,
    workers: Workers,
    rng: random.Random,
    options: argparse.Namespace,
    say: Say,
    found: Found,
) -> None:
    """Time steps of some rows, and steps whose drafts are all wrong."""
    source = next((w for w in model.workloads if w.plain == "adapter"), model.workloads[0])
    short = min(map(len, source.prompts))
    prompts = [ids[-short:] for ids in source.prompts]
    tokens = COST_TOKENS["rows"]
    load = Workload("cost", source.plain, source.cold, prompts, [], tokens, None)
    rows = {n: load.run(n, False, None, options.rounds) for n in options.rows if n <= len(prompts)}
    found.rows |= {(model.name, n): run for n, run in rows.items()}
    title = f"{model.name}, steps"
    found.wrong += measure([*rows.values()], workers, rng, options.seconds, f"{title} of rows", say)
    tokens = COST_TOKENS["drafts"]
    for batch in options.batch:
        runs = {
            (model.name, cold, batch, k): load.run(
                batch, cold, wrong_drafts(k) if k else None, options.rounds, tokens
            )
            for cold in (False, True)
            for k in (0, *options.cost_drafts)
        }
        found.steps |= runs
        name = f"{title} with wrong drafts, batch {batch}"
        found.wrong += measure([*runs.values()], workers, rng, options.seconds, name, say)


# Tables


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown, padded to be read as it is; the first columns are texts."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    lines = [
        "| "
        + " | ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def speed_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of one batch size: counts, milliseconds per token, and their ratios to the ways without
    drafts: greedy and CoLD.
    """
    plain = [run for run in runs if run.draft is None]
    rows = []
    for run in runs:
        acceptance = run.acceptance
        rows.append(
            [
                str(len(run.prompts)),
                run.label,
                f"{run.rate('emitted'):.2f}",
                f"{run.rate('drafted'):.2f}",
                "-" if acceptance is None else f"{acceptance:.0%}",
                spread_text(run.ms, show.short),
                *(spread_text(ratios(run.ms, other.ms)) for other in plain),
            ]
        )
    return rows


def break_even(cost: float, k: int) -> tuple[float, float | None]:
    """Where drafts begin to pay.

    Args:
        cost: Of a step with k drafts, in steps without.
        k: Drafts.

    Returns:
        How many accepted drafts of a step pay for it, and the probability of each draft, if those
        before it are accepted, that gives as many; None if even k would not do.
    """
    needed = max(cost - 1, 0.0)
    if needed >= k:
        return needed, None
    low, high = 0.0, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        if sum(rate**j for j in range(1, k + 1)) < needed:
            low = rate
        else:
            high = rate
    return needed, high


def cost_rows(found: Found, model: str) -> list[list[str]]:
    """Rows of what drafts cost."""
    rows = []
    for (name, cold, batch, k), run in found.steps.items():
        if name != model or not k:
            continue
        under = found.steps[name, cold, batch, 0]
        costs = ratios(run.ms, under.ms)
        needed, rate = break_even(statistics.median(costs), k)
        streams = 2 if cold else 1
        rows.append(
            [
                "CoLD" if cold else "greedy",
                str(batch),
                str(k),
                str(streams * batch * (1 + k)),
                spread_text(under.ms, show.short),
                spread_text(run.ms, show.short),
                spread_text(costs),
                f"{needed:.2f}",
                "never" if rate is None else f"{rate:.0%}",
            ]
        )
    return rows


def pages(found: Found) -> str:
    """All tables, in Markdown."""
    parts: list[str] = []
    kinds = dict.fromkeys(key[:3] for key in found.table)
    for model, dtype, workload in kinds:
        cells = [runs for key, runs in found.table.items() if key[:3] == (model, dtype, workload)]
        if not cells[0][0].ms:
            continue
        columns = (
            "batch", "system", "tokens/step", "drafted/step", "acceptance", "ms/token",
            "/ greedy", "/ CoLD",
        )  # fmt: skip
        rows = [row for runs in cells for row in speed_rows(runs)]
        parts += [f"### {model}, {dtype}, {workload}", table(columns, rows, 2)]
    for model in dict.fromkeys(name for name, _ in found.rows):
        rows = [
            [str(n), spread_text(run.ms, show.short), f"{spread(run.ms)[0] / n:.3f}"]
            for (name, n), run in found.rows.items()
            if name == model
        ]
        parts += [f"### {model}: a step of some rows", table(("rows", "ms", "ms/row"), rows, 0)]
    for model in dict.fromkeys(key[0] for key in found.steps):
        columns = (
            "system", "batch", "k", "rows", "ms/step, k=0", "ms/step", "cost",
            "break-even, accepted/step", "each draft",
        )  # fmt: skip
        parts += [
            f"### {model}: steps with k drafts, all wrong",
            table(columns, cost_rows(found, model)),
        ]
    return "\n\n".join(parts)


def as_json(run: Run) -> dict[str, Any]:
    """A run for a file; times in seconds but for ``ms``."""
    return {
        **show.as_json(run),
        "tokens": [len(row) for row in run.output],
        "mode": run.system.mode,
        "draft": None if run.draft is None else asdict(run.draft),
        "ms": run.ms,
        "counts": run.counts,
    }


def content(found: Found) -> dict[str, Any]:
    """Everything for a file; only the problems if tokens are wrong."""
    if found.wrong:
        return {"problems": found.wrong}
    break_evens = []
    for (model, cold, batch, k), run in found.steps.items():
        under = found.steps[model, cold, batch, 0]
        cost = ratios(run.ms, under.ms)
        needed, rate = break_even(statistics.median(cost), k) if k else (None, None)
        break_evens.append(
            {
                "model": model, "streams": 2 if cold else 1, "batch": batch, "k": k, "cost": cost,
                "break-even accepted per step": needed, "break-even rate": rate, **as_json(run),
            }
        )  # fmt: skip
    return {
        "machine": show.machine().splitlines(),
        "workers": found.facts,
        "checks": found.notes,
        "idle share of a core": found.busy,
        "runs": [
            {"model": model, "dtype": dtype, "workload": workload, "batch": batch, **as_json(run)}
            for (model, dtype, workload, batch), runs in found.table.items()
            for run in runs
        ],
        "rows": [
            {"model": model, "rows": rows, **as_json(run)}
            for (model, rows), run in found.rows.items()
        ],
        "steps": break_evens,
    }


# The command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the defaults of ``--quick`` where it is given."""
    parser = argparse.ArgumentParser(
        prog="bench_e2e --speculation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--parts", choices=PARTS, nargs="+")
    parser.add_argument("--models", choices=MODELS, nargs="+", help="of the part text")
    parser.add_argument("--batch", type=positive, nargs="+", metavar="N")
    parser.add_argument("--drafts", type=positive, nargs="+", metavar="K", help="of n-grams")
    parser.add_argument("--tokens", type=positive, help="most of a text, 2 or more")
    parser.add_argument("--shape-tokens", type=positive, help="of the shape, 2 or more")
    parser.add_argument("--shape-prompt", type=positive, help="tokens of its prompts")
    parser.add_argument("--shape-drafts", type=positive, nargs="+", metavar="K")
    parser.add_argument(
        "--rates", type=float, nargs="*", help="probabilities that a draft is right"
    )
    parser.add_argument(
        "--profile", type=Path, nargs="*", metavar="FILE",
        help="measured by benchmarks.drafting; its answers, if they are there",
    )  # fmt: skip
    parser.add_argument(
        "--profile-drafter", default="n-gram 1 to 4", metavar="NAME", help="of these files"
    )
    parser.add_argument("--rows", type=positive, nargs="+", metavar="N", help="of a step's cost")
    parser.add_argument("--cost-drafts", type=positive, nargs="+", metavar="K")
    parser.add_argument("--skip-cost", action="store_true")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--seconds", type=float, help="of each system's rounds, about, at most")
    parser.add_argument("--quick", action="store_true", help="tiny models: a trial, no times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all measurements")
    options = parser.parse_args(arguments)
    for name, value in (FULL | (QUICK if options.quick else {})).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.profile is None:
        options.profile = [MEASURED] if MEASURED.exists() else []
    for path in (path for path in options.profile if not path.is_file()):
        parser.error(f"--profile {path}: is no file")
    if min(options.tokens, options.shape_tokens) < 2:
        parser.error("--tokens, --shape-tokens: must be 2 or more")
    if not all(0 <= rate <= 1 for rate in options.rates):
        parser.error("--rates: must be from 0 to 1")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: must be a file in a folder that exists")
    options.batch = sorted(set(options.batch))
    return options


def models(options: argparse.Namespace, folder: Path) -> Iterable[Model]:
    """The models, each made when it is wanted."""
    if "text" in options.parts:
        if options.quick:
            yield quick_model(folder / "text", options)
        else:
            for name in options.models:
                yield text_model(name, options)
    if "shape" in options.parts:
        yield shape_model(folder / "shape", options)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the exit status is 1 if a check failed."""
    options = parse(arguments)
    began = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", file=sys.stderr, flush=True)

    print(show.machine())
    print(f"{show.load()} before")
    found = Found()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in models(options, folder):
            if not found.wrong:
                run_model(model, folder, options, say, found)
    print(f"{show.load()} after")
    if options.json is not None:
        options.json.write_text(json.dumps(content(found), indent=1) + "\n")

    def speeds() -> None:
        for note in found.notes:
            print(f"checked: {note}")
        for name, share in found.busy.items():
            print(f"checked: while it waited, {name} used {share:.1%} of a core")
        for name, workers in found.facts.items():
            for family, facts in workers.items():
                print(f"{name}, {family}: {', '.join(f'{k} {v}' for k, v in facts.items())}")
        print(f"\n{pages(found)}")

    return show_if_right(found.wrong, speeds)
