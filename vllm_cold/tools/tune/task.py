# SPDX-License-Identifier: Apache-2.0
"""The options of ``vllm-cold tune``, checked, with all small files read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_cold.tools.adapters import Adapter, lora_rank, read_adapters, read_model
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune import stats
from vllm_cold.tools.tune.data import Problem, load_problems, split_problems
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.match import Matcher, load_matcher
from vllm_cold.tools.tune.progress import Part
from vllm_cold.tools.tune.report import level_of

# Options that are arguments of vllm.LLM and of vllm serve alike.
ENGINE_OPTIONS = (
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
    "tensor_parallel_size",
)
OWN_ARGUMENTS = {"model", "enable_lora", "max_loras", "disable_log_stats", "use_tqdm_on_load"}


@dataclass
class Task:
    """What the options ask for, checked, before anything is started.

    Attributes:
        options: The options.
        grid: The settings.
        problems: All problems.
        repeated: Rows that were left out because they repeat a prompt.
        dev: Indices of the dev problems, which pick a setting.
        test: Indices of the held-out problems, which judge it.
        matcher: Scores an output.
        expert: The adapter.
        amateur: Another adapter, or None for the base model.
        model: Folder (absolute) or hub name.
        engine: Further arguments of ``vllm.LLM``.
        seconds: That the engine decoded.
    """

    options: argparse.Namespace
    grid: list[Setting]
    problems: list[Problem]
    repeated: int
    dev: list[int]
    test: list[int]
    matcher: Matcher
    expert: Adapter
    amateur: Adapter | None
    model: str
    engine: dict[str, Any]
    seconds: float = 0.0

    @property
    def adapters(self) -> list[Adapter]:
        """The expert, then the amateur if it is an adapter."""
        return [self.expert] + ([] if self.amateur is None else [self.amateur])

    @property
    def decoded(self) -> list[Setting]:
        """The settings that have to be decoded."""
        return [setting for setting in self.grid if not setting.is_greedy]

    @property
    def passes(self) -> list[Part]:
        """What is decoded, but for the last pass: the picked setting on the held-out problems."""
        greedy: list[Part] = [(None, "dev"), (None, "test")]
        return greedy + [(setting, "dev") for setting in self.decoded]


def read_task(options: argparse.Namespace) -> Task:
    """Check all options and read all small files.

    Raises:
        ToolError: names the first mistake.
    """
    grid = make_grid(options.alpha, options.beta, options.beta_max)
    if not 0.5 <= options.confidence < 1.0:
        raise ToolError(f"--confidence={options.confidence}: must be at least 0.5 and below 1")
    if options.max_tokens < 1:
        raise ToolError(f"--max-tokens={options.max_tokens}: must be 1 or more")
    if "" in (options.stop or ()):
        raise ToolError("--stop='': a stop string must not be empty")
    problems, repeated = load_problems(options.data, options.limit)
    fewest = stats.fewest_problems(level_of(options.confidence))
    dev, test = split_problems(len(problems), options.test_fraction, options.seed, fewest)
    matcher = load_matcher(options.match, problems)
    adapters = read_adapters(options.adapter, options.amateur)
    model = read_model(options.model)
    engine = _engine_arguments(options, adapters)
    expert, amateur = adapters[0], adapters[1] if len(adapters) > 1 else None
    return Task(
        options, grid, problems, repeated, dev, test, matcher, expert, amateur, model, engine
    )


def _engine_arguments(options: argparse.Namespace, adapters: Sequence[Adapter]) -> dict[str, Any]:
    engine: dict[str, Any] = {"max_lora_rank": lora_rank(adapters, options.max_lora_rank)}
    if len(adapters) > 1:
        engine["max_loras"] = len(adapters)
    for name in ENGINE_OPTIONS:
        if (value := getattr(options, name)) is not None:
            engine[name] = value
    if options.enforce_eager:
        engine["enforce_eager"] = True
    if options.engine_args is None:
        return engine
    try:
        more = json.loads(options.engine_args)
    except json.JSONDecodeError as error:
        raise ToolError(f"--engine-args={options.engine_args!r}: not JSON ({error})") from None
    if not isinstance(more, dict):
        raise ToolError(f"--engine-args={options.engine_args!r}: must be a JSON object")
    if "hf_token" in more:
        raise ToolError(
            "--engine-args: hf_token would stand in results and reports; set HF_TOKEN instead"
        )
    additional = more.get("additional_config")
    if isinstance(additional, dict) and "cold" in additional:
        raise ToolError(
            f"--engine-args={options.engine_args!r}: additional_config's cold is a server's "
            "default, and this command sets alpha and beta itself; leave it out"
        )
    if twice := sorted(more.keys() & (engine.keys() | OWN_ARGUMENTS)):
        raise ToolError(
            f"--engine-args={options.engine_args!r}: {', '.join(twice)} is set by this command"
        )
    return engine | more
