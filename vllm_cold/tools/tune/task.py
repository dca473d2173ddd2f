# SPDX-License-Identifier: Apache-2.0
"""The options of ``vllm-cold tune``, checked, with all small files read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import vllm_cold
from vllm_cold.method.settings import KNOBS, PREFIX
from vllm_cold.tools import server as servers
from vllm_cold.tools.adapters import Adapter, engine_arguments, read_adapters, read_model
from vllm_cold.tools.contrast import option_args
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune import verdict
from vllm_cold.tools.tune.answers import file_times, model_folders
from vllm_cold.tools.tune.decode import ServerDecoder
from vllm_cold.tools.tune.grid import Setting, check_problems, make_grid
from vllm_cold.tools.tune.match import Matcher, load_matcher
from vllm_cold.tools.tune.problems import Problem, load_problems, split_problems

# Options that are arguments of vllm.LLM and of vllm serve alike.
ENGINE_OPTIONS = (
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
    "tensor_parallel_size",
)
ENGINE_ONLY = (*ENGINE_OPTIONS, "enforce_eager", "engine_args")
SERVER_ONLY = (*servers.OPTIONS, "concurrency")
OWN_ARGUMENTS = {"model", "enable_lora", "max_loras", "disable_log_stats", "use_tqdm_on_load"}


@dataclass
class Task:
    """What the options ask for, checked, before anything is started.

    Attributes:
        options: The options.
        grid: The settings.
        problems: All problems.
        dev: Those that pick a setting.
        held_out: Those that judge it.
        repeated: Rows that were left out because they repeat a prompt.
        matcher: Scores an output.
        model: Folder (absolute) or hub name; with a server, its name there.
        adapters: All that are used, the expert's first; with a server none.
        expert: The name of the expert's adapter, None for the base model.
        args: What all problems are contrasted with that do not say it themselves, as a request's
            flat arguments.
        engine: Further arguments of ``vllm.LLM``.
        server: What decodes in place of an engine.
    """

    options: argparse.Namespace
    grid: list[Setting]
    problems: list[Problem]
    dev: list[Problem]
    held_out: list[Problem]
    repeated: int
    matcher: Matcher
    model: str
    adapters: list[Adapter]
    expert: str | None
    args: dict[str, Any]
    engine: dict[str, Any]
    server: ServerDecoder | None = None

    @property
    def own_contrasts(self) -> bool:
        """Whether a problem says itself what it is contrasted with."""
        return any(problem.own_keys for problem in self.problems)

    def made_with(self) -> dict[str, Any]:
        """All that answers depend on beside problem and setting, as JSON."""
        from vllm_cold.vllm.versions import vllm_version

        folders = [one.folder for one in self.adapters]
        folders += [] if self.server is not None else model_folders(self.model, self.engine)
        return {
            "who decodes": "an engine" if self.server is None else "a server",
            "--model": self.model,
            "--adapter": self.expert,
            "the files": {folder: file_times(folder) for folder in folders},
            "--max-tokens": self.options.max_tokens,
            "--stop": self.options.stop or [],
            "--chat": self.options.chat,
            "the engine's arguments": self.engine,
            "vllm": vllm_version() if self.server is None else self.server.version,
            "vllm-cold": vllm_cold.__version__ if self.server is None else None,
        }


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
    weights = args.pop(PREFIX + "weights", [])  # a setting's
    grid = make_grid(
        {name: getattr(options, name) for name in KNOBS},
        options.preset,
        weights if isinstance(weights, list) else [weights],
    )
    check = check_problems(grid, expert, model, names, options.chat)
    problems, repeated = load_problems(options.data, options.limit, args, check, options.chat)
    fewest = verdict.fewest_problems(verdict.level_of(options.confidence))
    return Task(
        options,
        grid,
        problems,
        *split_problems(problems, options.test_fraction, options.seed, fewest),
        repeated,
        load_matcher(options.match, problems),
        model,
        adapters,
        expert,
        args,
        engine,
        server,
    )


def _engine_arguments(options: argparse.Namespace, adapters: Sequence[Adapter]) -> dict[str, Any]:
    engine = engine_arguments(adapters)
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
