# SPDX-License-Identifier: Apache-2.0
"""The options of ``vllm-cold tune``, checked, with all small files read."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import vllm_cold
from vllm_cold.compat.versions import vllm_version
from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import AmateurSpec
from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.sources import Messages, media_parts
from vllm_cold.settings.table import PREFIX, SETTINGS
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import (
    as_written,
    check_amateurs,
    option_args,
    option_of,
    read_contrast,
)
from vllm_cold.tools.models import Models, read_models
from vllm_cold.tools.tune.baselines import Lacks, add_baselines
from vllm_cold.tools.tune.grid import GREEDY, Setting, make_grid
from vllm_cold.tools.tune.match import Matcher, load_matcher
from vllm_cold.tools.tune.problems import Problem, load_problems, split_problems

# Options that say how to contrast, by their names in the parsed options.
_HOW = {name: option_of(name) for name in (*SETTINGS, "preset", "amateur", "weights")}
_HOW["rules"] = _HOW["rule"]


@dataclass(frozen=True, kw_only=True)
class Task(Models):
    """What the options ask for, checked, before anything is started."""

    options: argparse.Namespace
    args: dict[str, Any]  # flat arguments of all problems, what they do not say themselves
    grid: list[Setting]  # empty where baselines alone are tried
    baselines: list[Setting]  # the baselines that all problems have
    single: list[Setting]  # those of the grid with one amateur, which a baseline may be added to
    lacks: Lacks | None  # what baselines' amateurs do not read; None without baselines
    untried: list[str]  # on baselines that not all problems have, sentences
    problems: list[Problem]
    dev: list[Problem]  # those that pick a setting
    held_out: list[Problem]  # those that judge it
    repeated: int  # rows that were left out because they repeat a prompt
    matcher: Matcher  # of --match

    def made_with(self) -> dict[str, Any]:
        """Return all that answers depend on besides problem and setting, as JSON."""
        made_with: dict[str, Any] = {
            "server": self.server and self.server.root,
            "model": self.model,
            "adapter": self.expert,
            "max_tokens": self.options.max_tokens,
            "stop": self.options.stop or [],
        }
        if self.server is not None:
            return made_with
        folders = [self.model, *(adapter.folder for adapter in self.adapters)]
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
    least_of = {"max_tokens": 1, "concurrency": 1, "requests_per_minute": 1, "seed": 0}
    for name, least in least_of.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ToolError(f"{option_of(name)}={value}: must be >= {least}")
    if not 0.0 < options.test_fraction < 1.0:
        raise ToolError(
            f"--test-fraction={options.test_fraction:g}: must be between 0 and 1, both excluded"
        )
    how = [name for name in _HOW if getattr(options, name) is not None]
    if options.baselines and how:
        raise ToolError(
            f"{_HOW[how[0]]}: is for a contrast, and --baselines tries none; leave one of them out"
        )
    models = read_models(options, needs_cold=bool(how))
    args = option_args(options, models.amateur_names)
    try:
        settings = {name: getattr(options, name) for name in SETTINGS}
        grid = make_grid(settings, options.preset, args.get(PREFIX + "weights"))
        if options.baselines or (models.server is not None and not models.server.has_cold):
            grid = []
    except ColdError as error:
        raise ToolError(as_written(error)) from None
    problems, repeated = load_problems(options.data, args, options.chat)
    by_preset = [_amateurs(problem, grid, models) for problem in problems]
    several = {name for presets in by_preset for name, read in presets.items() if len(read) > 1}
    presets = {setting.preset for setting in grid if setting.preset}
    # A preset says what system prompts are: cad's amateur lacks texts, cfg's instructions.
    texts = "cfg" not in presets and any(PRESETS[name].of_texts for name in presets)
    texts |= not all(problem.has_answer and not problem.passages for problem in problems)
    readers = list(map(_other_reader, problems, by_preset))
    lacks, problems, untried = add_baselines(problems, readers, options.better, texts=texts)
    if not grid and lacks is None:
        raise ToolError(" ".join(untried) or "no baselines: no row says what can be left out")
    dev, held_out = split_problems(problems, options.test_fraction, options.seed)
    return Task(
        **vars(models),
        options=options,
        args=args,
        grid=grid,
        baselines=[Setting(baseline=name) for name in problems[0].baselines],
        single=[setting for setting in grid if setting.preset not in several],
        lacks=lacks,
        untried=untried,
        problems=problems,
        dev=dev,
        held_out=held_out,
        repeated=repeated,
        matcher=load_matcher(options.match, problems),
    )


def _amateurs(
    problem: Problem, grid: Sequence[Setting], models: Models
) -> dict[str | None, tuple[AmateurSpec, ...]]:
    """Return a problem's amateurs by preset; ToolError for what is wrong with them or the settings,
    as far as it shows before anything is started.
    """
    by_preset: dict[str | None, tuple[AmateurSpec, ...]] = {}
    try:
        for setting in grid or [GREEDY]:
            by_preset[setting.preset] = read_contrast({**problem.args, **setting.args}).amateurs
        amateurs = list(chain.from_iterable(by_preset.values()))
        if not grid and all(amateur.source is None for amateur in amateurs):
            raise ToolError(
                f"{problem.place}: no baselines, as nothing says what can be left out: give its "
                '"passages", or --without, --without-text, --part or the row\'s own cold_* keys'
            )
        check_amateurs(problem.place, problem.prompt, amateurs, models.expert, models.model)
    except ColdError as error:
        raise ToolError(f"{problem.place}: {as_written(error, problem.row_keys)}") from None
    return by_preset


def _other_reader(
    problem: Problem, by_preset: Mapping[str | None, Sequence[AmateurSpec]]
) -> AmateurSpec | None:
    """Return an amateur that reads another prompt, if there is one and the prompt has no pictures;
    the only amateur of a preset first.
    """
    if isinstance(problem.prompt, Messages) and any(map(media_parts, problem.prompt.value)):
        return None
    ordered = sorted(by_preset.values(), key=len)
    others = (amateur for amateur in chain.from_iterable(ordered) if amateur.source is not None)
    return next(others, None)
