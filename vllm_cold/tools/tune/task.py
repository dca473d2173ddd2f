# SPDX-License-Identifier: Apache-2.0
"""The options of ``vllm-cold tune``, checked, with all small files read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_cold.method.settings import KNOBS
from vllm_cold.tools import server as servers
from vllm_cold.tools.adapters import Adapter, engine_arguments, read_adapters, read_model
from vllm_cold.tools.contrast import option_args
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune import stats
from vllm_cold.tools.tune.contrasts import check_problems, fitting_presets, pop_weights
from vllm_cold.tools.tune.data import Problem, load_problems, split_problems
from vllm_cold.tools.tune.grid import ALL, Setting, make_grid
from vllm_cold.tools.tune.match import Matcher, load_matcher
from vllm_cold.tools.tune.progress import Part
from vllm_cold.tools.tune.report import level_of

if TYPE_CHECKING:
    from vllm_cold.tools.tune.remote import ServerDecoder

# Options that are arguments of vllm.LLM and of vllm serve alike.
ENGINE_OPTIONS = (
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
    "tensor_parallel_size",
)
ENGINE_ONLY = (*ENGINE_OPTIONS, "max_lora_rank", "enforce_eager", "engine_args")
SERVER_ONLY = (*servers.OPTIONS, "concurrency")
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
        model: Folder (absolute) or hub name; with a server, its name there.
        adapters: All that are used, the expert's first; with a server none.
        expert: The name of the expert's adapter, None for the base model.
        args: What all problems are contrasted with that do not say it themselves, as a request's
            flat arguments.
        engine: Further arguments of ``vllm.LLM``.
        server: What decodes in place of an engine.
        seconds: That it took to decode.
    """

    options: argparse.Namespace
    grid: list[Setting]
    problems: list[Problem]
    repeated: int
    dev: list[int]
    test: list[int]
    matcher: Matcher
    model: str
    adapters: list[Adapter]
    expert: str | None
    args: dict[str, Any]
    engine: dict[str, Any]
    server: ServerDecoder | None = None
    seconds: float = 0.0

    @property
    def own_contrasts(self) -> bool:
        """Whether a problem says itself what it is contrasted with."""
        return any(problem.own_keys for problem in self.problems)

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
    servers.check_options(options, ENGINE_ONLY, SERVER_ONLY)
    if not 0.5 <= options.confidence < 1.0:
        raise ToolError(f"--confidence={options.confidence}: must be at least 0.5 and below 1")
    if options.max_tokens < 1:
        raise ToolError(f"--max-tokens={options.max_tokens}: must be 1 or more")
    if "" in (options.stop or ()):
        raise ToolError("--stop='': a stop string must not be empty")
    amateurs = options.amateur or ()
    server, adapters, engine = None, list[Adapter](), dict[str, Any]()
    if options.url is not None:
        from vllm_cold.tools.tune.remote import ServerDecoder

        server = ServerDecoder(options)
        model, expert, names = server.base, server.expert, server.loaded
        named = {text: text for text in amateurs}
    elif options.model is None:
        raise ToolError("--model is missing: name the base model, or a server with --url")
    else:
        model = read_model(options.model)
        # What is no adapter: whichever the amateur has where none is named, and the base model.
        named = {"": "", options.model: model}
        folders = [text for text in amateurs if text not in named]
        adapters = read_adapters(options.adapter, folders)
        names = [adapter.name for adapter in adapters]
        expert = None if options.adapter is None else names[0]
        named |= zip(folders, names[expert is not None :], strict=True)
        engine = _engine_arguments(options, adapters)
    args = option_args(options, named)
    weights = pop_weights(args)
    read = partial(load_problems, options.data, options.limit, args, chat=options.chat)
    fitting = fitting_presets(read()[0]) if options.preset == ALL else []
    given = {name: getattr(options, name) for name in KNOBS}
    grid = make_grid(given, options.preset, weights, fitting)
    check = check_problems(grid, expert, model, names, options.chat)
    problems, repeated = read(check)
    fewest = stats.fewest_problems(level_of(options.confidence))
    return Task(
        options,
        grid,
        problems,
        repeated,
        *split_problems(len(problems), options.test_fraction, options.seed, fewest),
        load_matcher(options.match, problems),
        model,
        adapters,
        expert,
        args,
        engine,
        server,
    )


def _engine_arguments(options: argparse.Namespace, adapters: Sequence[Adapter]) -> dict[str, Any]:
    engine = engine_arguments(adapters, options.max_lora_rank)
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
    if isinstance(additional, dict):
        more["additional_config"] = {**additional, **engine.pop("additional_config", {})}
    if twice := sorted(more.keys() & (engine.keys() | OWN_ARGUMENTS)):
        raise ToolError(
            f"--engine-args={options.engine_args!r}: {', '.join(twice)} is set by this command"
        )
    return engine | more
