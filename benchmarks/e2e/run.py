# SPDX-License-Identifier: Apache-2.0
"""Run the systems: what they are given, warm-up and timed rounds."""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.e2e import groups
from benchmarks.e2e.check import Gap, check_cell
from benchmarks.e2e.jobs import BETA_ZERO, DOUBLED, EQUAL, SYSTEMS, Findings, Job, Jobs
from benchmarks.e2e.pool import Workers
from benchmarks.rounds import Say, in_rounds
from examples.demo import ADAPTERS

TASK = "sorting"
DTYPES = {"float32": 4, "bfloat16": 2}  # bytes
BLOCK = 128  # tokens in a KV block, vLLM's default on CPU
NAIVE_ROUNDS = 2
NAIVE_WARM_UP = 2  # tokens


def kv_gib(config: Mapping[str, Any], itemsize: int, streams: int, length: int) -> int:
    """KV cache in whole GiB, enough for so many streams of ``length`` tokens."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    per_token: int = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    blocks = streams * math.ceil(length / BLOCK)
    # vLLM keeps one block for itself.
    return math.ceil((blocks + 1) * BLOCK * per_token * itemsize / 2**30)


def widen(source: Path, target: Path, rank: int) -> None:
    """Write the adapter ``source`` to the folder ``target`` at another rank, the same function.

    A gets random rows: zeros would be left out of the second product by this package's kernels.

    Raises:
        ValueError: The rank is below the adapter's, or the adapter's scale is not alpha / r alone.
    """
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    more = rank - config["r"]
    if more < 0:
        raise ValueError(f"rank={rank}: must be {config['r']} or more, the rank of the adapter")
    for name in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora"):
        if config.get(name):
            raise ValueError(f"{name}={config[name]!r}: must be unset in an adapter to widen")
    wide = {**config, "r": rank, "lora_alpha": config["lora_alpha"] * rank / config["r"]}
    target.mkdir()
    (target / "adapter_config.json").write_text(json.dumps(wide))
    weights = {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in load_file(source / "adapter_model.safetensors").items():
        if ".lora_A." in name:  # [r, inputs]
            rows = torch.randn(more, weight.shape[1], generator=generator) * weight.std()
            weights[name] = torch.cat([weight, rows.to(weight.dtype)])
        else:  # [outputs, r]
            weights[name] = torch.cat([weight, weight.new_zeros(len(weight), more)], 1)
    save_file(weights, target / "adapter_model.safetensors")


def lengthen(prompts: Sequence[Sequence[int]], count: int, length: int) -> list[list[int]]:
    """``count`` prompts of ``length`` tokens: each is one of ``prompts`` and those after it.

    Raises:
        ValueError: there are too few; equal prompts would share blocks.
    """
    if count > len(prompts):
        raise ValueError(f"count={count}: there are {len(prompts)} prompts to begin with")
    made = []
    for start in range(count):
        ids: list[int] = []
        following = start
        while len(ids) < length:
            ids += prompts[following % len(prompts)]
            following += 1
        made.append(ids[:length])
    return made


def read_prompts(model: Path, count: int) -> list[list[int]]:
    """Token ids of the first problems of the adapter's task."""
    from transformers import AutoTokenizer

    from examples.tasks import TASKS, chat_prompt

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [
        tokenizer(chat_prompt(tokenizer, problem), add_special_tokens=False)["input_ids"]
        for problem in TASKS[TASK].prompts("test", count)
    ]


def naive_rounds(batch: int, rounds: int) -> int:
    """Rounds of the naive loop: fewer, and one where it takes a minute or more."""
    return min(rounds, 1 if batch >= 32 else NAIVE_ROUNDS)


def make_jobs(
    systems: Sequence[str], prompts: Sequence[list[int]], batch: int, options: Any
) -> Jobs:
    """All systems at one batch size; stock base at twice the size too if CoLD is to be compared."""
    jobs: Jobs = {}
    for key in systems:
        system = SYSTEMS[key]
        sizes = {system.label: batch}
        if key == "stock-base" and "cold" in systems:
            sizes[DOUBLED] = 2 * batch
        for label, size in sizes.items():
            jobs[label] = Job(system, label, prompts[:size], options.tokens, options.rounds)
        if key == "naive":
            job = jobs[system.label]
            job.rounds = naive_rounds(batch, options.rounds)
            job.warm_up = min(NAIVE_WARM_UP, options.tokens)
    return jobs


def untimed(dtype: str, jobs: Jobs, options: Any) -> tuple[Jobs, Sequence[tuple[str, str]]]:
    """What runs once, for its tokens, and the labels of pairs that must be equal in float32."""
    if options.groups:
        pairs = groups.references(jobs) if "naive" in options.systems else []
        return {a.label: a for a, _ in pairs}, [(a.label, b.label) for a, b in pairs]
    cold = jobs.get(SYSTEMS["cold"].label)
    if cold is None or dtype != "float32" or "adapter" not in options.systems:
        return {}, EQUAL
    zero = Job(BETA_ZERO, BETA_ZERO.label, cold.prompts, cold.tokens, 0)
    return {zero.label: zero}, EQUAL


def measure(
    jobs: Iterable[Job], workers: Workers, rng: random.Random, title: str, say: Say
) -> list[str]:
    """Warm up each job, then time them in rounds; says what was wrong with their results."""
    problems: list[str] = []
    timed = list(jobs)

    def run(job: Job, tokens: int) -> dict[str, Any]:
        more = {} if job.stops is None else {"stops": job.stops}
        reply = workers.get(job.system.family).ask(
            "run",
            mode=job.system.mode,
            prompts=job.prompts,
            tokens=tokens,
            own=job.own,
            **more,
        )
        problems.extend(job.compare(reply["tokens"], tokens))
        return reply

    for job in timed:
        run(job, job.warm_up or job.tokens)
        say(f"{title}, {job.label}: warm")
    most = max((job.rounds for job in timed), default=0)
    for index, job in in_rounds(timed, most, rng):
        if index < job.rounds:
            job.record(run(job, job.tokens))
            say(f"{title}, {job.label}: round {index + 1} of {job.rounds}")
    return [f"{title}: {problem}" for problem in dict.fromkeys(problems)]


def naive_gap(workers: Workers) -> Gap:
    """How far choices are behind the best one, by the naive loop."""

    def gap(mode: str, texts: list[list[int]], choices: list[int]) -> float:
        reply = workers.get("naive").ask("gap", mode=mode, texts=texts, choices=choices)
        return float(reply["gap"])

    return gap


def run_dtype(
    options: argparse.Namespace,
    prompts: Sequence[list[int]],
    workers: Workers,
    dtype: str,
    rng: random.Random,
    say: Say,
    findings: Findings,
) -> None:
    """Start the workers of a dtype, time them at all batch sizes, and check what they gave."""
    for key in options.systems:
        workers.get(SYSTEMS[key].family)
    for batch in options.batch:
        jobs = (
            groups.group_jobs(prompts, batch, options)
            if options.groups
            else make_jobs(options.systems, list(prompts), batch, options)
        )
        title = f"{dtype}, batch {batch}"
        findings.table[title] = jobs
        once, equal = untimed(dtype, jobs, options)
        wrong = measure(jobs.values(), workers, rng, title, say)
        wrong += measure(once.values(), workers, rng, title, say)
        if not wrong:
            exact = dtype == "float32"
            wrong, notes = check_cell(title, exact, jobs | once, naive_gap(workers), equal)
            findings.notes += notes
        findings.wrong += wrong
    findings.look_at(dtype, workers)


def collect(
    options: argparse.Namespace, model: Path, prompts: Sequence[list[int]], say: Say
) -> Findings:
    """Measure everything, one dtype after the other; stops after one with wrong results."""
    streams = (groups.STREAMS if options.groups else 2) * options.batch[-1]
    longest = max(map(len, prompts)) + options.tokens
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    findings, rng = Findings(), random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        widen(ADAPTERS / TASK, folder / "adapter", options.rank)
        for dtype in options.dtype:
            if findings.wrong:
                break
            settings: dict[str, Any] = {
                "model": str(model),
                "adapter": str(folder / "adapter"),
                "dtype": dtype,
                "rank": options.rank,
                "max_loras": 1,
                "max_model_len": max(512, longest),
                "max_num_seqs": streams,
            }
            gib = kv_gib(config, DTYPES[dtype], streams, longest)
            with Workers(settings, gib, folder, say) as workers:
                run_dtype(options, prompts, workers, dtype, rng, say, findings)
    return findings
