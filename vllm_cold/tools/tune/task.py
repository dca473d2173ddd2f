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
from vllm_cold.method.presets import PRESETS
from vllm_cold.method.settings import KNOBS, PREFIX
from vllm_cold.tools import server as servers
from vllm_cold.tools.adapters import (
    ENGINE_OPTIONS,
    Adapter,
    engine_arguments,
    read_adapters,
    read_model,
)
from vllm_cold.tools.contrast import (
    Pictured,
    adapter_of,
    amateur_reads,
    as_written,
    expert_reads,
    option_args,
    read_contrast,
    refuse_equal,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.server import Server
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.match import IFEVAL, Matcher, load_keeper, load_matcher
from vllm_cold.tools.tune.plain import BETTER_PROMPT, LONGEST, Lacks, plain_prompts
from vllm_cold.tools.tune.problems import Problem, load_problems, split_problems

ENGINE_ONLY = (*ENGINE_OPTIONS, "engine_args")


@dataclass
class Task:
    """What the options ask for, checked, before anything is started."""

    options: argparse.Namespace
    grid: list[Setting]
    plain: list[Setting]  # the plain prompts that all problems have
    combined: list[Setting]  # the grid's contrasts by those of them that an amateur does not read
    lacks: Lacks | None  # of their experts' prompts; None where an amateur reads all
    untried: list[str]  # plain prompts that not all problems have, and which one has none
    problems: list[Problem]
    dev: list[Problem]  # those that pick a setting
    held_out: list[Problem]  # those that judge it
    repeated: int  # rows that were left out because they repeat a prompt
    matcher: Matcher
    keeper: Matcher | None  # of what must be kept, too
    model: str  # folder (absolute) or hub name; with a server, its name there
    adapters: list[Adapter]  # the expert's first; with a server none
    expert: str | None  # the name of the expert's adapter, None for the base model
    args: dict[str, Any]  # flat arguments of all problems, what they do not say themselves
    engine: dict[str, Any]  # arguments of a server that is started, as of vllm.LLM
    server: Server | None  # a running one, in place of that

    def made_with(self) -> dict[str, Any]:
        """All that answers depend on beside problem and setting, as JSON."""
        from vllm_cold.vllm.versions import vllm_version

        made_with: dict[str, Any] = {
            "server": self.server and self.server.root,
            "model": self.model,
            "adapter": self.expert,
            "max_tokens": self.options.max_tokens,
            "stop": self.options.stop or [],
        }
        if self.server is not None:
            return made_with
        folders = [self.model, *(one.folder for one in self.adapters)]
        return made_with | {
            "engine": self.engine,
            "vllm": vllm_version(),
            "vllm-cold": vllm_cold.__version__,
            # Size in bytes and time of change, in nanoseconds; of a model of the hub nothing.
            "files": {
                str(file): [file.stat().st_size, file.stat().st_mtime_ns]
                for folder in folders
                for file in sorted(Path(folder).glob("*"))
                if file.is_file()
            },
        }


def read_task(options: argparse.Namespace) -> Task:
    """Check all options and read all small files; ToolError names the first mistake."""
    servers.check_options(options, ENGINE_ONLY)
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
    try:
        given = {name: getattr(options, name) for name in KNOBS}
        grid = make_grid(given, options.preset, args.get(PREFIX + "weights"))
    except ColdError as error:
        raise ToolError(as_written(error)) from None

    several = set[str | None]()  # presets with more than one amateur

    def amateurs_of(problem: Problem) -> list[AmateurSpec]:
        """Of each preset; ToolError for what can be said of them before anything is started."""
        found = list[AmateurSpec]()
        try:
            for setting in {setting.preset: setting for setting in grid}.values():
                amateurs = read_contrast({**problem.args, **setting.args}).amateurs
                several.update([setting.preset] if len(amateurs) > 1 else [])
                # First one that is alone: by it what is lacked is known.
                found = [*amateurs, *found] if len(amateurs) == 1 else [*found, *amateurs]
            for one in found:
                amateur_reads(expert_reads(problem.prompt), one)
                if one.source is None and adapter_of(one, expert, model, names) == expert:
                    refuse_equal(problem.place)
        except ColdError as error:
            raise ToolError(f"{problem.place}: {as_written(error, problem.own_keys)}") from None
        return found

    objects = options.match == IFEVAL
    problems, repeated = load_problems(options.data, args, options.chat, objects)
    known = [
        (problem.prompt, one)
        for problem in problems
        for one in [each for each in amateurs_of(problem) if each.source is not None][:1]
        if not isinstance(problem.prompt, Pictured)
    ]
    plain, lacks, untried = list[Setting](), None, list[str]()
    if len(known) == len(problems) > 0:
        presets = {setting.preset for setting in grid if setting.preset}
        # A preset says what system prompts are: cad's amateur lacks texts, cfg's instructions.
        texts = "cfg" not in presets and any(PRESETS[name].of_texts for name in presets)
        texts |= not all(problem.has_answer for problem in problems)
        lacks, prompts, fewer = plain_prompts(known, options.better, texts=texts)
        plain = [Setting(plain=name) for name in prompts[0]]
        untried = [
            f"{name}, for {problems[at].place} has none: "
            + (
                f"what would be said twice has more than {LONGEST} characters"
                if BETTER_PROMPT in prompts[0]
                else f"its question is not found apart from the {lacks}"
            )
            for name, at in fewer.items()
        ]
        problems = [replace(p, plain=one) for p, one in zip(problems, prompts, strict=True)]
    elif options.better is not None:
        raise ToolError("--better: is for amateurs that read another prompt; leave it out")
    elif known:
        there = [prompt for prompt, _ in known]
        other = next(p for at, p in enumerate(problems) if there[at : at + 1] != [p.prompt])
        untried = [
            f"plain prompts, for {other.place} has none: it has pictures, or its amateur reads "
            "the same prompt"
        ]
    return Task(
        options,
        grid,
        plain,
        [
            msgspec.structs.replace(one, plain=more.plain)
            for more in plain[1:]
            for one in grid
            if one.preset not in several
        ],
        lacks,
        untried,
        problems,
        *split_problems(problems, options.test_fraction, options.seed),
        repeated,
        load_matcher(options.match, problems),
        load_keeper(options.keep, problems),
        model,
        adapters,
        expert,
        args,
        engine,
        server,
    )


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
