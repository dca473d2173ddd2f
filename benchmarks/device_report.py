# SPDX-License-Identifier: Apache-2.0
"""Check vllm-cold on your GPU or Ascend NPU, measure it, and write a report to send in.

``python -m benchmarks.device_report`` in the checkout.

Needs    one NVIDIA GPU (sm_80 or newer), AMD GPU, or NPU of an Atlas A2 or A3, with 8 GiB free; an
         installed vLLM (vllm-ascend), vllm-cold installed from this checkout next to it, peft,
         pytest and hypothesis; 16 GiB of memory; 8 GiB free on disk. On an NPU, CANN's set_env.sh
         sourced.
Takes    10 to 40 minutes (a guess: it has run on no GPU or NPU yet). Nothing else should use it.
Sends    nothing, and fetches nothing: no model, no hub. It writes vllm-cold-report.md here, without
         host name, user name, addresses or paths. Read it, then send it in.

It runs vllm-cold doctor; compares the kernels with a float64 reference; and decodes with a tiny
random model in engines, whose tokens are compared with a plain loop of transformers and peft. What
is wrong has no speed: only if all that is right, scoring is timed against torch operations, and
CoLD against greedy decoding in one engine. The exit status is 0 if all is right, 1 if something is
wrong, 2 if the report cannot be made here.
"""

# Each stage is a process of its own: a kernel that fails breaks the device for its process, an
# engine may die or hang.

from __future__ import annotations

import argparse
import getpass
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.e2e.jobs import SYSTEMS, Cell, Findings, Job, System
from benchmarks.e2e.pool import ROOT, Workers
from benchmarks.e2e.run import run_cells
from benchmarks.e2e.show import pages
from benchmarks.rounds import progress, show_if_right

REPORT = "vllm-cold-report.md"
DRY_NOTE = "Dry run: figures mean nothing."
BACKENDS = {"cuda": "triton", "npu": "ascend", "cpu": "cpu"}
# Triton multiplies float32 as tf32 by default, also in vLLM's kernels for LoRA and attention. What
# that loses is more than what the tiny model's tokens can bear.
EXACT = {"TRITON_F32_DEFAULT": "ieee", "VLLM_FLOAT32_MATMUL_PRECISION": "highest"}
# In which the tiny model decodes, and logits by which rounding may turn a choice: vllm-ascend's
# LoRA takes halves only.
CHECKED = {"cuda": ("float32", 1e-3), "npu": ("float16", 0.125), "cpu": ("float32", 1e-3)}
# Of a Llama of about a billion parameters, and of next to nothing.
REAL = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
TINY = dict(zip(REAL, (512, 128, 256, 2, 2, 1), strict=True))
RANK = 16


class Stage(NamedTuple):
    """A process: Python's arguments, and whether it measures."""

    title: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = {}
    speed: bool = False


def find_device() -> str:
    """torch's name of what there is."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    with suppress(ImportError):
        import torch_npu  # noqa: F401
    return "npu" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"


def plan(device: str, dry: bool) -> list[Stage]:
    """The stages, in their order."""

    def own(title: str, do: str, speed: bool = False, **environment: str) -> Stage:
        more = ["--dry-run"] if dry else []
        arguments = ["-m", "benchmarks.device_report", "--stage", do, "--device", device, *more]
        return Stage(title, arguments, environment, speed)

    ways: list[tuple[str, dict[str, str]]] = [("", {})]
    if device == "cuda":
        ways = [(f", {name} runner", {"VLLM_USE_V2_MODEL_RUNNER": str(index)})
                for index, name in enumerate(("V1", "V2"))]  # fmt: skip
    sizes = ["--vocab", "1500", "--groups", "2", "--rounds", "2", "--no-compile"] if dry else []
    scoring = ["-m", "benchmarks.bench_scoring", "--device", device, "--form", "inplace", *sizes]
    scoring += ["--dtype", "fp32", "--backend", BACKENDS[device]]
    return [
        Stage("vllm-cold doctor", ["-m", "vllm_cold.tools.main", "doctor"]),
        own("kernels against the reference", "kernels"),
        *(own(f"tokens of engines{name}", "tokens", **EXACT, **more) for name, more in ways),
        Stage("scoring", scoring, speed=True),
        *(own(f"CoLD against greedy{name}", "speeds", True, **more) for name, more in ways),
    ]


# The stages


class OnDevice:
    """A backend of scoring, with tensors that come from the CPU and go back there."""

    def __init__(self, device: str) -> None:
        from vllm_cold.ops import backend_registry

        self._device, self._backend = device, backend_registry.load(BACKENDS[device])

    def scores(self, logits: Any, groups: Any, out: Any, statistics: Any) -> None:
        """As of a ``Backend``."""
        memory, there = self._with_memory(logits)
        scores, counted = self._there(out), self._there(statistics)
        self._backend.scores(there, self._groups(groups), scores, counted)
        if statistics is not None:
            statistics.copy_(counted.cpu())
        if out is not None:
            out.copy_(scores.cpu())
        else:
            self._memory(logits).copy_(memory.cpu())

    def _groups(self, groups: Any) -> Any:
        return type(groups)(*(self._there(getattr(groups, each.name)) for each in fields(groups)))

    def _there(self, value: Any) -> Any:
        return value.to(self._device, copy=True) if hasattr(value, "to") else value

    def _memory(self, logits: Any) -> Any:
        """All of what a view is of: rows may lie apart."""
        return logits.new_empty(0).set_(logits.untyped_storage())

    def _with_memory(self, logits: Any) -> tuple[Any, Any]:
        memory = self._there(self._memory(logits))
        shape = logits.shape, logits.stride(), logits.storage_offset()
        return memory, memory.as_strided(*shape)


def check_kernels(device: str, dry: bool) -> int:
    """Scoring in all forms and dtypes; says which cases are wrong."""
    from tests.ops import conformance

    backend = OnDevice(device)
    wrong, count = [], 0

    def attempt(name: str, run: Callable[..., None], *arguments: Any) -> None:
        nonlocal count
        count += 1
        try:
            run(*arguments)
        except Exception as error:  # whatever it is, it is reported, and the others go on
            wrong.append(f"{name}: {type(error).__name__}: {error}")

    vocabs = (31, 4097) if dry else conformance.VOCABS
    for vocab in vocabs:
        for number in conformance.NUM_GROUPS[1:]:
            for dtype in conformance.DTYPES:
                if number * vocab <= 2**22:
                    layout = conformance.LAYOUTS[count % 3]
                    case = conformance.make_case(count, number, vocab, dtype, layout)
                    name = f"{number} groups, {vocab} tokens, {dtype}, {layout}"
                    attempt(name, conformance.check_backend, backend, case)
    for dtype in conformance.DTYPES:
        for each in conformance.NOT_FINITE_CASES:
            name = f"not finite, {each}, {dtype}"
            attempt(name, conformance.check_not_finite, backend, *each, dtype)
    print(f"{count - len(wrong)} of {count} cases are right")
    print("\n".join(wrong))
    return int(bool(wrong))


def write_model(folder: Path, shape: Mapping[str, int], dtype: str) -> None:
    """A random model and its adapter, with logits as far apart as real ones, so that a few tokens
    are candidates, not one and not all.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    std = shape["hidden_size"] ** -0.5
    config = LlamaConfig(**shape, max_position_embeddings=2048, initializer_range=std)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.lm_head.weight.data.mul_(4)
    model.save_pretrained(folder / "model")
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder / "adapter")


def decode(device: str, dry: bool, timed: bool) -> int:
    """Base, adapter and CoLD in one engine, prompts of random tokens. Their tokens equal the naive
    loop's, eager and in graphs; or they are timed, and CoLD's have to be others than greedy ones.
    """
    dtype, tie = CHECKED[device]
    shape, batches, prompt, tokens, rounds = TINY, [1, 8], 24, 24, 0
    if timed and dry:
        batches, rounds = [1, 2], 2
    elif timed:
        dtype, shape, batches, prompt, tokens, rounds = "bfloat16", REAL, [1, 8, 32], 128, 128, 10
    draw, found = random.Random(0), Findings(machine.look() if timed else {})
    chosen = [SYSTEMS[key] for key in ("base", "adapter", "cold")]
    twins = [] if timed else [System(s.key, f"naive {s.mode}", "naive", s.mode) for s in chosen]
    pairs = [(twin.label, s.label, tie) for twin, s in zip(twins, chosen, strict=False)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder, shape, dtype)
        for eager in (dry,) if timed or dry else (True, False):
            settings: dict[str, Any] = {
                "model": str(folder / "model"),
                "adapter": str(folder / "adapter"),
                "dtype": dtype,
                "rank": RANK,
                "max_loras": 1,
                "max_model_len": 512,
                "max_num_seqs": 2 * batches[-1],
                "options": {"skip_tokenizer_init": True, "enforce_eager": eager},
            }
            how, cells = f"{dtype}, {'eager' if eager else 'graphs'}", []
            for batch in batches:
                texts = [
                    [draw.randrange(3, shape["vocab_size"]) for _ in range(prompt)]
                    for _ in range(batch)
                ]
                jobs = {
                    s.label: Job(s, s.label, texts, tokens, rounds, may_part=timed)
                    for s in (*chosen, *twins)
                }
                cells.append(Cell(f"{how}, batch {batch}", jobs, True, pairs))
            with Workers(settings, 1, folder, progress()) as workers:
                run_cells(how, cells, workers, draw, lambda text: None, found)
    for cell in found.cells:
        if cell.jobs["plugin CoLD"].output == cell.jobs["plugin adapter"].output:
            found.wrong.append(f"{cell.title}: CoLD and greedy decoding gave the same tokens")
    if timed:
        machine.look_again(found.machine)

    def right() -> None:
        print(found.checks())
        if timed:
            print(f"\n{pages(found)}")

    return show_if_right(found.wrong, right)


# The report


def nameless(text: str, names: Sequence[str]) -> str:
    """Without names, addresses and paths."""
    part = r"[^\s'\",:;()<>\[\]=|/]+"
    text = re.sub(rf"(?<![\w.])(/{part})*/site-packages/", "", text)
    text = re.sub(rf"(?<![\w.<])(~|\.\.?)?(/{part})*/({part})", r".../\3", text)
    text = re.sub(r"\b\d{1,3}(\.\d{1,3}){3}\b", "ADDRESS", text)
    text = re.sub(r"\b([0-9a-fA-F]{0,4}:){4,}[0-9a-fA-F]*", "ADDRESS", text)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", text)
    return text


def names_here() -> list[str]:
    """Host and user name, unless they say nothing about anyone."""
    host = socket.gethostname()  # not getfqdn, which asks the network
    names = [host, host.split(".")[0]]
    with suppress(KeyError, OSError):  # no such user
        names.append(getpass.getuser())
    plain = {"", "root", "user", "ubuntu", "vllm", "torch", "localhost", "runner", "node"}
    return [name for name in dict.fromkeys(names) if name.lower() not in plain]


def environment_of(stage: Stage, device: str) -> dict[str, str]:
    """A stage's: offline, our kernels or an error, and nothing of the user's that changes that."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("COLD_", "VLLM_")) or name == "VLLM_VERSION"}  # fmt: skip
    if device == "cpu":  # a dry run
        kept |= {n: v for n, v in os.environ.items() if n.startswith("VLLM_CPU_")}
    return {
        **kept, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "COLD_SCORING": BACKENDS[device], **stage.environment,
    }  # fmt: skip


def run_stage(stage: Stage, device: str, timeout: float) -> tuple[int, str]:
    """Its exit status and output."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, *stage.arguments], stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=environment_of(stage, device), cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = -1
            output.write(f"\nnot finished after {timeout:g} s")
        finally:
            with suppress(ProcessLookupError):  # all of its processes have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return status, output.read()


def make_report(
    stages: Sequence[Stage], note: str, run: Callable[[Stage], tuple[int, str]]
) -> tuple[bool, str]:
    """Run all stages by ``run``, those that measure only if all before are right; whether all are
    right, and the report.
    """
    right, parts = True, [note]
    for stage in stages:
        if stage.speed and not right:
            parts.append(f"## {stage.title}: left out\n\nWhat is wrong has no speed.")
            continue
        print(f"{stage.title} ...", flush=True)
        began = time.monotonic()
        status, output = run(stage)
        verdict = f"FAILED, status {status}" if status else "ok"
        print(f"    {verdict}, {time.monotonic() - began:.0f} s")
        right = right and status == 0
        text = output.strip().replace("```", "'''")
        parts.append(f"## {stage.title}: {verdict}\n\n```text\n{text}\n```")
    title = f"# vllm-cold on a device: {'PASS' if right else 'FAIL'}"
    return right, "\n\n".join(filter(None, [title, *parts])) + "\n"


STAGES: Mapping[str, Callable[[str, bool], int]] = {
    "kernels": check_kernels,
    "tokens": lambda device, dry: decode(device, dry, timed=False),
    "speeds": lambda device, dry: decode(device, dry, timed=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is right, 1 if something is wrong, 2 if the report cannot be made here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS",
                        help="the most that a stage may take (default: %(default)g)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="try the program on a CPU, with tiny sizes")  # fmt: skip
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    dry = options.dry_run
    if options.stage:
        return STAGES[options.stage](options.device, dry)
    device = "cpu" if dry else find_device()
    if device == "cpu" and not dry:
        print("torch sees no GPU and no NPU here; --dry-run tries the program on a CPU.",
              file=sys.stderr)  # fmt: skip
        return 2
    right, text = make_report(
        plan(device, dry),
        DRY_NOTE if dry else "",
        lambda stage: run_stage(stage, device, options.timeout),
    )
    Path(REPORT).write_text(nameless(text, names_here()))
    print(f"\nWritten: {REPORT}. Read it, then send it in.")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
