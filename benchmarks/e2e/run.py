# SPDX-License-Identifier: Apache-2.0
"""Run the systems: what they are given, warm-up and timed rounds."""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.e2e import speculation
from benchmarks.e2e.check import check_cell
from benchmarks.e2e.jobs import (
    BETA_ZERO,
    DOUBLED,
    MODES,
    SYSTEMS,
    Cell,
    Findings,
    Job,
    Jobs,
    System,
)
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


def num_weights(folder: Path) -> int:
    """Numbers that a pass reads, of a model or an adapter: all but the rows of an embedding that is
    not the output layer, too.
    """
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as weights:
            names = weights.keys()
            sizes |= {name: math.prod(weights.get_slice(name).get_shape()) for name in names}
    if "lm_head.weight" in sizes:
        sizes.pop("model.embed_tokens.weight", None)
    return sum(sizes.values())


def step_bytes(system: System, model: int, adapter: int) -> int:
    """Bytes of weights that a step reads, of a model and an adapter of so many bytes. The naive
    loop takes a pass for each stream, of which the expert's alone has the adapter.
    """
    mode = MODES[system.mode]
    passes = 1 + mode.amateurs if system.family == "naive" else 1
    return passes * model + mode.adapter * adapter


def read_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of the first problems of the adapter's task."""
    from examples.tasks import TASKS, chat_prompt

    return [
        tokenizer(chat_prompt(tokenizer, problem), add_special_tokens=False)["input_ids"]
        for problem in TASKS[TASK].prompts("test", count)
    ]


def system_cells(
    dtype: str, options: argparse.Namespace, prompts: Sequence[list[int]]
) -> list[Cell]:
    """All systems at each batch size; stock base at twice the size too if CoLD is compared.

    CoLD with beta 0 runs once, for its tokens.
    """
    keys, cells = options.systems, []
    for batch in options.batch:
        entries = [(SYSTEMS[key], SYSTEMS[key].label, batch) for key in keys]
        if {"stock-base", "cold"} <= set(keys):
            entries.append((SYSTEMS["stock-base"], DOUBLED, 2 * batch))
        jobs: Jobs = {
            label: Job(system, label, list(prompts[:size]), options.tokens, options.rounds)
            for system, label, size in entries
        }
        for job in jobs.values():
            if job.system.family == "naive":
                job.rounds = naive_rounds(batch, options.rounds)
                job.warm_up = min(NAIVE_WARM_UP, options.tokens)
        if {"adapter", "cold"} <= set(keys) and dtype == "float32":
            label = BETA_ZERO.label
            jobs[label] = Job(BETA_ZERO, label, list(prompts[:batch]), options.tokens, 0)
        cells.append(Cell(f"{dtype}, batch {batch}", jobs, dtype == "float32"))
    return cells


def naive_rounds(batch: int, rounds: int) -> int:
    """Rounds of the naive loop: fewer, and one where it takes a minute or more."""
    return min(rounds, 1 if batch >= 32 else NAIVE_ROUNDS)


def measure(cell: Cell, workers: Workers, rng: random.Random, say: Say) -> list[str]:
    """Warm up each job, then time them in rounds; says what was wrong with their results."""
    problems: list[str] = []

    def run(job: Job, tokens: int) -> dict[str, Any]:
        more: dict[str, Any] = {} if job.stops is None else {"stops": job.stops}
        if job.own:
            more["own"] = job.own
        reply = workers.get(job.system.family).ask(
            "run",
            mode=job.system.mode,
            prompts=job.prompts,
            tokens=tokens,
            **more,
        )
        problems.extend(job.compare(reply["tokens"], tokens))
        return reply

    for job in cell.jobs.values():
        run(job, job.warm_up or job.tokens)
        say(f"{cell.title}, {job.label}: warm")
    most = max(job.rounds for job in cell.jobs.values())
    for index, job in in_rounds(cell.jobs.values(), most, rng):
        if index < job.rounds:
            job.record(run(job, job.tokens))
            say(f"{cell.title}, {job.label}: round {index + 1} of {job.rounds}")
    return [f"{cell.title}: {problem}" for problem in dict.fromkeys(problems)]


def run_cells(
    title: str, cells: Sequence[Cell], workers: Workers, rng: random.Random, say: Say,
    found: Findings,
) -> None:  # fmt: skip
    """Measure and check cells, up to one with wrong results; workers share ``title``."""

    def gap(mode: str, texts: list[list[int]], choices: list[int]) -> float:
        reply = workers.get("naive").ask("gap", mode=mode, texts=texts, choices=choices)
        return float(reply["gap"])

    for cell in cells:
        found.cells.append(cell)
        wrong = measure(cell, workers, rng, say)
        if not wrong:
            wrong, notes = check_cell(cell, gap)
            found.notes += notes
        found.wrong += wrong
        if wrong:
            return
    found.look_at(title, workers)


def collect(options: argparse.Namespace, model: Path, say: Say) -> Findings:
    """Measure everything, one dtype after the other; stops after one with wrong results."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    findings, rng, task, most = Findings(machine.look()), random.Random(0), TASK, options.batch[-1]
    if options.speculation:
        task, works = speculation.TASK, speculation.workloads(tokenizer, most)
    else:
        prompts = read_prompts(tokenizer, 2 * most)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        widen(ADAPTERS / task, folder / "adapter", options.rank)
        numbers = num_weights(model), num_weights(folder / "adapter")
        for dtype in options.dtype:
            if findings.wrong:
                break
            if options.speculation:
                cells = speculation.cells(dtype, options, works)
            else:
                cells = system_cells(dtype, options, prompts)
            jobs = [job for cell in cells for job in cell.jobs.values()]
            for job in jobs:
                job.step_bytes = step_bytes(job.system, *(DTYPES[dtype] * n for n in numbers))
            streams = max(len(job.prompts) * (1 + MODES[job.system.mode].amateurs) for job in jobs)
            longest = options.tokens + max(
                len(ids) for job in jobs for i in range(len(job.prompts)) for ids in job.texts(i)
            )
            settings: dict[str, Any] = {
                "model": str(model),
                "adapter": str(folder / "adapter"),
                "dtype": dtype,
                "rank": options.rank,
                "max_loras": 1,
                "max_model_len": max(512, longest),
                "max_num_seqs": streams,
            }
            if options.speculation:
                settings |= speculation.settings(dtype, options, streams, longest)
            gib = kv_gib(config, DTYPES[dtype], streams, longest + options.drafts)
            with Workers(settings, gib, folder, say) as workers:
                run_cells(dtype, cells, workers, rng, say, findings)
    machine.look_again(findings.machine)
    return findings
