# SPDX-License-Identifier: Apache-2.0
"""End-to-end generation time: base greedy, adapter greedy and CoLD in one vLLM engine.

``python -m benchmarks.bench_generate [--batch 1 8] [--tokens 48] [--rounds 5]
[--dtype bfloat16]``. The model is SmolLM2-135M-Instruct (``examples.smollm2``) with the sorting
adapter. All three systems run in the same LoRA engine on the same prompts, in turn, in an order
that is shuffled anew in each round, with the prefix cache reset before each run. Every request
generates exactly ``--tokens`` tokens.

Speeds are printed only if the results are right: every repetition gives the same tokens, and in
float32 CoLD with beta = 0 equals adapter greedy token for token. In bfloat16 that comparison is
left out: CoLD's batch has twice as many rows, which changes how sums are rounded.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.demo import ADAPTERS, quiet

TASK = "sorting"
ALPHA, BETA = 0.1, 0.5
REFERENCE = "adapter greedy"

Tokens = list[list[int]]


@dataclass
class System:
    """One way to decode, and what was measured of it at one batch size.

    Attributes:
        name: As printed.
        params: vLLM's sampling parameters.
        adapter: The LoRARequest of each request, None for the base model.
        tokens: What the first run gave; every later run must give the same.
        seconds: End-to-end time of each timed run, in order of the rounds.
    """

    name: str
    params: Any
    adapter: Any
    tokens: Tokens = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def make_systems(num_tokens: int) -> list[System]:
    """The three systems; fresh for each batch size."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from vllm_cold import ColdParams

    options = {"temperature": 0.0, "max_tokens": num_tokens, "ignore_eos": True}
    adapter = LoRARequest(TASK, 1, str(ADAPTERS / TASK))
    return [
        System("base greedy", SamplingParams(**options), None),
        System(REFERENCE, SamplingParams(**options), adapter),
        System("CoLD", ColdParams(alpha=ALPHA, beta=BETA, **options), adapter),
    ]


def generate(llm: Any, prompts: Sequence[str], params: Any, adapter: Any) -> tuple[Tokens, float]:
    """One run with an empty prefix cache: the tokens, and the seconds from call to return."""
    if not llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache could not be reset: requests are still running")
    started = time.perf_counter()
    outputs = llm.generate(list(prompts), params, lora_request=adapter, use_tqdm=False)
    seconds = time.perf_counter() - started
    return [list(output.outputs[0].token_ids) for output in outputs], seconds


def measure(
    llm: Any, prompts: Sequence[str], num_tokens: int, rounds: int, rng: random.Random
) -> tuple[list[System], list[str]]:
    """Warm up, then time ``rounds`` rounds of all systems.

    Returns:
        The systems with their times, and what was wrong with their results (empty: nothing).
    """
    systems = make_systems(num_tokens)
    problems: list[str] = []
    for system in systems:
        system.tokens, _ = generate(llm, prompts, system.params, system.adapter)
        if any(len(tokens) != num_tokens for tokens in system.tokens):
            problems.append(f"{system.name} did not generate {num_tokens} tokens for each prompt")
    if llm.llm_engine.model_config.dtype.itemsize == 4:
        problems += check_beta_zero(llm, prompts, systems)
    order = list(systems)
    for _ in range(rounds):
        rng.shuffle(order)
        for system in order:
            tokens, seconds = generate(llm, prompts, system.params, system.adapter)
            system.seconds.append(seconds)
            if tokens != system.tokens:
                problems.append(f"{system.name} gave other tokens when it was repeated")
    return systems, list(dict.fromkeys(problems))


def check_beta_zero(llm: Any, prompts: Sequence[str], systems: Sequence[System]) -> list[str]:
    """CoLD with beta = 0 is adapter greedy; says where it is not."""
    cold = next(s for s in systems if s.name == "CoLD")
    expected = next(s for s in systems if s.name == REFERENCE).tokens
    params = cold.params.clone()
    params.beta = 0.0
    got, _ = generate(llm, prompts, params, cold.adapter)
    differing = sum(a != b for a, b in zip(got, expected, strict=True))
    if not differing:
        return []
    return [f"CoLD with beta = 0 differs from adapter greedy for {differing} of {len(got)} prompts"]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), fifths[0], fifths[-1]


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def describe(llm: Any) -> str:
    """What ran: versions, machine, and the engine's options that matter for speed."""
    import torch

    import vllm_cold
    from vllm_cold.vllm.versions import vllm_version

    config = llm.llm_engine.vllm_config
    scheduler = config.scheduler_config
    cpu = f"CPU: {cpu_model()}, {os.cpu_count()} logical, torch uses {torch.get_num_threads()}"
    return "\n".join(
        (
            f"vllm {vllm_version()}, vllm-cold {vllm_cold.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}, device {config.device_config.device_type}",
            f"{cpu} threads",
            f"engine: {str(config.model_config.dtype).removeprefix('torch.')}, "
            f"max_num_seqs {scheduler.max_num_seqs}, "
            f"max_num_batched_tokens {scheduler.max_num_batched_tokens}, "
            f"block size {config.cache_config.block_size}, "
            f"async scheduling {'on' if scheduler.async_scheduling else 'off'}",
        )
    )


def show(console: Any, results: dict[int, list[System]], num_tokens: int) -> None:
    """One table: seconds, tokens per second, and time relative to adapter greedy."""
    from rich.box import SIMPLE
    from rich.table import Table

    # Narrow enough for 80 columns.
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("batch", "system"):
        table.add_column(column, no_wrap=True)
    for column in ("seconds", "tokens/s", "time ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for batch, systems in results.items():
        reference = next(s for s in systems if s.name == REFERENCE)
        for system in systems:
            rates = [batch * num_tokens / seconds for seconds in system.seconds]
            # Within a round, so that a machine that slows down meanwhile does not count.
            ratios = [a / b for a, b in zip(system.seconds, reference.seconds, strict=True)]
            table.add_row(
                str(batch),
                system.name,
                "{:.2f} ({:.2f}-{:.2f})".format(*spread(system.seconds)),
                "{:.1f} ({:.1f}-{:.1f})".format(*spread(rates)),
                "{:.2f} ({:.2f}-{:.2f})".format(*spread(ratios)),
            )
        table.add_section()
    console.print(table)
    console.print(
        "median (20th-80th percentile) over the rounds; tokens are generated ones; the time ratio "
        f"is to {REFERENCE} of the same round",
        style="dim",
    )
    console.print(
        f"load average of this machine, last minute: {os.getloadavg()[0]:.1f}; times mean little "
        "where other programs want the same cores",
        style="dim",
        highlight=False,
    )


def positive(text: str) -> int:
    """An integer from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 or more")
    return value


def main() -> int:
    """Run the benchmark; the exit status is 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--tokens", type=positive, default=48, help="generated by each request")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    # The engine runs in this process: all prompts are queued before its first step, so that every
    # repetition is scheduled in the same way.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    quiet()

    from rich.console import Console

    from examples.smollm2 import model_path
    from examples.tasks import TASKS, chat_prompt

    console = Console()
    path = model_path()
    console.print("Starting vLLM ...")
    from vllm import LLM

    batches = sorted(set(arguments.batch))
    llm = LLM(
        model=str(path),
        dtype=arguments.dtype,
        enable_lora=True,
        max_loras=1,
        max_lora_rank=8,
        max_model_len=512 + arguments.tokens,
        max_num_seqs=2 * batches[-1],  # a CoLD request takes two
        disable_log_stats=True,
    )
    console.print(describe(llm), highlight=False, soft_wrap=True)
    tokenizer = llm.get_tokenizer()
    problems = TASKS[TASK].prompts("test", batches[-1])
    prompts = [chat_prompt(tokenizer, problem) for problem in problems]
    console.print(
        f"adapter {TASK}, CoLD with alpha {ALPHA} and beta {BETA}, {arguments.tokens} tokens per "
        f"request, {arguments.rounds} rounds after one to warm up",
        highlight=False,
        soft_wrap=True,
    )
    rng = random.Random(0)
    results: dict[int, list[System]] = {}
    failed: list[str] = []
    for batch in batches:
        systems, wrong = measure(llm, prompts[:batch], arguments.tokens, arguments.rounds, rng)
        results[batch] = systems
        failed += [f"batch {batch}: {problem}" for problem in wrong]
    if failed:
        console.print("No speeds are shown, because results are wrong:", style="bold red")
        for problem in failed:
            console.print(f"  {problem}", highlight=False, soft_wrap=True)
        return 1
    checks = "repeated runs gave equal tokens"
    if arguments.dtype == "float32":
        checks += "; CoLD with beta = 0 equals adapter greedy, token for token"
    else:
        checks += " (CoLD with beta = 0 is compared with adapter greedy in float32 only)"
    console.print(f"checked: {checks}", highlight=False, soft_wrap=True)
    show(console, results, arguments.tokens)
    return 0


if __name__ == "__main__":
    sys.exit(main())
