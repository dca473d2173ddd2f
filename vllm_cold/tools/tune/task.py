# SPDX-License-Identifier: Apache-2.0
"""The options of ``vllm-cold tune``, checked, with all small files read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

import vllm_cold
from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import AmateurSpec
from vllm_cold.method.settings import KNOBS, PREFIX
from vllm_cold.tools import server as servers
from vllm_cold.tools.adapters import Adapter, engine_arguments, read_adapters, read_model
from vllm_cold.tools.contrast import (
    Pictured,
    adapter_of,
    amateur_reads,
    as_written,
    option_args,
    read_contrast,
    refuse_equal,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.server import Server
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.match import Matcher, load_matcher
from vllm_cold.tools.tune.plain import NAMES, Lacks, plain_prompts
from vllm_cold.tools.tune.problems import Problem, load_problems, split_problems

# Options that are arguments of vllm.LLM and of vllm serve alike.
ENGINE_OPTIONS = (
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "enforce_eager",
)
ENGINE_ONLY = (*ENGINE_OPTIONS, "engine_args")
SERVER_ONLY = (*servers.OPTIONS, "concurrency")


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
        lacks: What all amateurs lack of their experts' prompts; None where some read them.
        plain: Names of the plain prompts that all problems have.
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
    lacks: Lacks | None
    plain: list[str]
    model: str
    adapters: list[Adapter]
    expert: str | None
    args: dict[str, Any]
    engine: dict[str, Any]
    server: Server | None

    def made_with(self) -> dict[str, Any]:
        """All that answers depend on beside problem and setting, as JSON."""
        from vllm_cold.vllm.versions import vllm_version

        made_with: dict[str, Any] = {
            "server": self.server and self.server.root,
            "model": self.model,
            "adapter": self.expert,
            "max_tokens": self.options.max_tokens,
            "stop": self.options.stop or [],
            "chat": self.options.chat,
        }
        if self.server is not None:
            return made_with
        folders = [self.model, *(one.folder for one in self.adapters)]
        return made_with | {
            "engine": self.engine,
            "vllm": vllm_version(),
            "vllm-cold": vllm_cold.__version__,
            "files": {one: _file_times(Path(one)) for one in folders},
        }


def _file_times(folder: Path) -> dict[str, Any]:
    """Size in bytes and time of change, in nanoseconds, of each file of a folder, by name: files
    that changed make other answers. Of a model of the hub nothing.
    """
    files = [file for file in sorted(folder.glob("*")) if file.is_file()]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def read_task(options: argparse.Namespace) -> Task:
    """Check all options and read all small files.

    Raises:
        ToolError: names the first mistake.
    """
    servers.check_options(options, ENGINE_ONLY, SERVER_ONLY)
    amateurs = options.amateur or ()
    server, adapters, engine = None, list[Adapter](), dict[str, Any]()
    if options.url is not None:
        server = Server(
            options.url,
            options.adapter,
            [name for name in amateurs if name],
            options.model,
            options.api_key,
            options.insecure_http,
        )
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
    given = {name: getattr(options, name) for name in KNOBS}
    grid = make_grid(given, options.preset, args.get(PREFIX + "weights"))

    def check(problem: Problem) -> None:
        """Raises what can be said of a problem's contrast before an engine makes tokens."""
        try:
            for setting in {setting.preset: setting for setting in grid}.values():
                for one in read_contrast({**problem.args, **setting.args}).amateurs:
                    amateur_reads(problem.prompt, one, options.chat)
                    if one.source is None and adapter_of(one, expert, model, names) == expert:
                        refuse_equal(problem.place)
        except ColdError as error:
            raise ValueError(as_written(error, problem.own_keys)) from None

    problems, repeated = load_problems(options.data, args, check, options.chat)
    ones = [_first_amateur(problem, grid) for problem in problems]
    known = [
        (problem.prompt, one)
        for problem, one in zip(problems, ones, strict=True)
        if one and not isinstance(problem.prompt, Pictured)
    ]
    lacks: Lacks | None = None
    plain = list[str]()
    if len(known) == len(problems) > 0:
        lacks, prompts = plain_prompts(known, options.chat, options.better)
        plain = [name for name in NAMES[lacks] if all(name in one for one in prompts)]
        problems = [replace(p, plain=one) for p, one in zip(problems, prompts, strict=True)]
    elif options.better is not None:
        raise ToolError("--better: is for amateurs that read another prompt; leave it out")
    return Task(
        options,
        grid,
        problems,
        *split_problems(problems, options.test_fraction, options.seed),
        repeated,
        load_matcher(options.match, problems),
        lacks,
        plain,
        model,
        adapters,
        expert,
        args,
        engine,
        server,
    )


def _first_amateur(problem: Problem, grid: Sequence[Setting]) -> AmateurSpec | None:
    """The first of a problem's amateurs that has a prompt of its own; None if none has."""
    args = ({**problem.args, **setting.args} for setting in grid)
    amateurs = (one for each in args for one in read_contrast(each).amateurs)
    return next((one for one in amateurs if one.source is not None), None)


def _engine_arguments(options: argparse.Namespace, adapters: Sequence[Adapter]) -> dict[str, Any]:
    engine = engine_arguments(adapters, options.rule)
    given = {name: getattr(options, name) for name in ENGINE_OPTIONS}
    engine |= {name: value for name, value in given.items() if value is not None}
    try:
        more = msgspec.json.decode(options.engine_args or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ToolError(
            f"--engine-args={options.engine_args!r}: must be a JSON object ({error})"
        ) from None
    for name, remedy in (("model", "use --model"), ("hf_token", "set HF_TOKEN")):
        if name in more:  # a token would stand in results and reports
            raise ToolError(f"--engine-args: {name} does not belong there; {remedy}")
    if isinstance(own := engine.get("additional_config"), dict):
        more["additional_config"] = {**(more.get("additional_config") or {}), **own}
    return engine | more
