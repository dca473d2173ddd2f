# SPDX-License-Identifier: Apache-2.0
"""Run the programs: their systems, the files they are given, timed rounds, and the checks."""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.e2e.check import TIE, agreement, check_cell
from benchmarks.e2e.jobs import Findings, Job, Jobs, System
from benchmarks.e2e.pool import Workers
from benchmarks.e2e.run import (
    DTYPES,
    NAIVE_WARM_UP,
    TASK,
    kv_gib,
    measure,
    naive_gap,
    naive_rounds,
    widen,
)
from benchmarks.peers import weights
from benchmarks.peers.environment import VENV
from benchmarks.rounds import Say
from examples.demo import ADAPTERS

# By the name on the command line: the family and the label.
PROGRAMS = {
    "plugin": ("plugin", "this package"),
    "stock": ("stock-lora", "stock vLLM"),
    "naive": ("naive", "transformers loop"),
    "llama": ("llama", "llama.cpp"),
    "llama-q8": ("llama-q8", "llama.cpp, Q8_0"),
}
MODES = {"adapter": "adapter", "cold": "CoLD"}
NO_COLD = {"stock": "it gives a request one stream"}
ONLY_IN = {"llama-q8": "bfloat16"}  # its rounds are those of that dtype
GGUF = {("llama", "float32"): "float32", ("llama", "bfloat16"): "bfloat16"}
GGUF |= {("llama-q8", "bfloat16"): "q8_0"}
PYTHON = str(VENV / "bin" / "python")
PEERS = ("llama", "llama-q8")  # families that may be missing
# Logits. Other programs compute norms and activations in their own way: llama.cpp was 3.6e-3 apart.
PEERS_TIE = 0.05


def label(program: str, mode: str) -> str:
    """A system's name as printed."""
    return f"{PROGRAMS[program][1]}, {MODES[mode]}"


@dataclass
class Found(Findings):
    """All that was measured.

    Attributes:
        missing: Why a program was not run.
    """

    missing: dict[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Everything for a file; only the problems if results are wrong."""
        return super().content() | ({} if self.wrong else {"not run": self.missing})


def make_jobs(
    dtype: str, prompts: Sequence[list[int]], batch: int, options: Any, missing: Any = ()
) -> Jobs:
    """All systems at one batch size; the naive loop runs once, untimed, if nobody asked for it."""
    jobs: Jobs = {}
    for mode in MODES:
        for program, (family, _) in PROGRAMS.items():
            if mode == "cold" and program in NO_COLD:
                continue
            if program != "naive" and program not in options.systems:
                continue
            if ONLY_IN.get(program, dtype) != dtype or f"{family} in {dtype}" in missing:
                continue
            name = label(program, mode)
            system = System(f"{program}-{mode}", name, family, mode)
            job = Job(system, name, list(prompts[:batch]), options.tokens, options.rounds)
            jobs[name] = job
            if program == "naive":
                timed = program in options.systems
                job.rounds = naive_rounds(batch, options.rounds) if timed else 0
                job.warm_up = NAIVE_WARM_UP if timed else 0
    return jobs


def equal(peers: bool) -> list[tuple[str, str]]:
    """The labels of pairs that must give equal tokens in float32, the reference first: of other
    programs, or of vLLM.
    """
    return [
        (label("naive", mode), label(program, mode))
        for mode in MODES
        for program, (family, _) in PROGRAMS.items()
        if program != "naive" and (family in PEERS) == peers
    ]


def shares(jobs: Jobs) -> dict[str, float]:
    """Of each system the share of tokens that it has in common with the naive loop."""
    return {
        name: agreement(jobs[reference].output, jobs[name].output)
        for reference, name in equal(False) + equal(True)
        if name in jobs and jobs[name].output
    }


def write_files(options: Any, model: Path, folder: Path, say: Say) -> dict[str, Any]:
    """What the programs read; the settings that name it."""
    adapter = folder / "adapter"
    widen(ADAPTERS / TASK, adapter, options.rank)
    files: dict[str, Any] = {"adapter": str(adapter), "lora_gguf": str(folder / "adapter.gguf")}
    if {"llama", "llama-q8"} & set(options.systems):
        weights.write_adapter(adapter, model, folder / "adapter.gguf")
        for dtype in dict.fromkeys(
            kind
            for (family, name), kind in GGUF.items()
            if name in options.dtypes and family in options.systems
        ):
            say(f"writing {dtype} GGUF")
            weights.write_model(model, folder / f"{dtype}.gguf", dtype)
    return files


def run_dtype(
    options: argparse.Namespace,
    prompts: Sequence[list[int]],
    workers: Workers,
    dtype: str,
    rng: random.Random,
    say: Say,
    found: Found,
) -> None:
    """Start the workers of a dtype, time them at all batch sizes, and check what they gave."""
    for job in make_jobs(dtype, prompts, 1, options).values():
        family = job.system.family
        if f"{family} in {dtype}" in found.missing:
            continue
        try:
            worker = workers.get(family)
            if family in PEERS:  # some fail only when they run
                worker.ask("run", mode="adapter", prompts=prompts[:1], tokens=2)
        except RuntimeError as error:
            if family not in PEERS:
                raise
            found.missing[f"{family} in {dtype}"] = str(error).strip().splitlines()[-1]
    for batch in options.batch:
        jobs = make_jobs(dtype, prompts, batch, options, found.missing)
        title = f"{dtype}, batch {batch}"
        found.table[title] = jobs
        wrong = measure(jobs.values(), workers, rng, title, say)
        if not wrong:
            gap = naive_gap(workers)
            for pairs, tie in ((equal(False), TIE), (equal(True), PEERS_TIE)):
                problems, notes = check_cell(title, dtype == "float32", jobs, gap, pairs, tie)
                wrong += problems
                found.notes += notes
        found.wrong += wrong
    found.look_at(dtype, workers)


def collect(
    options: argparse.Namespace, model: Path, prompts: Sequence[list[int]], say: Say
) -> Found:
    """Measure everything, one dtype after the other; stops after one with wrong results."""
    longest = max(map(len, prompts)) + options.tokens
    streams = 2 * options.batch[-1]
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    found = Found()
    rng = random.Random(0)
    peer = (PYTHON, "-m", "benchmarks.peers.llama")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_files(options, model, folder, say)
        for dtype in options.dtypes:
            if found.wrong:
                break
            settings = {
                **files,
                "model": str(model),
                "dtype": dtype,
                "rank": options.rank,
                "max_loras": 1,
                "max_model_len": max(512, longest),
                "max_num_seqs": streams,
                "context": 256 * math.ceil(longest / 256),
                "gguf": {
                    family: str(folder / f"{kind}.gguf")
                    for (family, name), kind in GGUF.items()
                    if name == dtype
                },
            }
            gib = kv_gib(config, DTYPES[dtype], streams, longest)
            with Workers(settings, gib, folder, say) as workers:
                workers.commands = dict.fromkeys(PEERS, peer)
                run_dtype(options, prompts, workers, dtype, rng, say, found)
    return found
