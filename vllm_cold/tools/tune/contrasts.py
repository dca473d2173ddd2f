# SPDX-License-Identifier: Apache-2.0
"""What problems are contrasted with: the options that say so, and whether it can be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_cold.method.amateurs import Part, Without, describe
from vllm_cold.method.arguments import parse_request_args
from vllm_cold.method.presets import PRESETS, PresetName
from vllm_cold.method.settings import PREFIX, ColdError
from vllm_cold.tools.contrast import (
    adapter_of,
    amateur_reads,
    as_written,
    read_contrast,
    refuse_equal,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.data import Problem
from vllm_cold.tools.tune.grid import Setting


def pop_weights(args: dict[str, Any]) -> tuple[Any, ...]:
    """Take the weights out of flat arguments: they are a setting's."""
    weights = args.pop(PREFIX + "weights", [])
    return tuple(weights) if isinstance(weights, list) else (weights,)


def fitting_presets(problems: Sequence[Problem]) -> list[PresetName]:
    """The presets that fit what each of the problems is contrasted with."""

    def fits(name: PresetName) -> bool:
        try:
            for problem in problems:
                read_contrast({**problem.args, PREFIX + "preset": name})
        except ColdError:
            return False
        return True

    return [name for name in PRESETS if fits(name)]


def check_problems(
    grid: Sequence[Setting], expert: str | None, base: str, adapters: Sequence[str], chat: bool
) -> Callable[[Problem], None]:
    """A function that raises for a problem which cannot be decoded with these settings, as far as
    no tokens matter: ValueError for the row's mistake, ToolError for one of the options.

    Args:
        grid: The settings.
        expert: The name of the expert's adapter, None for the base model.
        base: The base model's name.
        adapters: The names of all adapters.
        chat: Whether a text goes through the chat template.
    """
    methods = {setting.preset: setting for setting in grid}.values()

    def check_contrast(problem: Problem, setting: Setting) -> None:
        for one in read_contrast({**problem.args, **setting.args}).amateurs:
            amateur_reads(problem.prompt, one, chat)
            if one.source is None and adapter_of(one, expert, base, adapters) == expert:
                refuse_equal(problem.place)

    def check_problem(problem: Problem) -> None:
        for setting in methods:
            try:
                check_contrast(problem, setting)
            except ColdError as error:
                if error.field.partition("[")[0] in problem.own_keys:
                    raise
                raise ToolError(f"{problem.place}: {as_written(error)}") from None

    return check_problem


def amateurs_text(args: Mapping[str, Any], base: str, own_contrasts: bool) -> str:
    """What is contrasted with, for people: "the base model", "itself without system".

    Args:
        args: Of the options, as flat arguments.
        base: The base model's name.
        own_contrasts: Whether problems say it themselves.
    """
    found = []
    for one in describe(parse_request_args(args).contrast):
        name = f"adapter {one.adapter}"
        if one.adapter in (None, base):
            itself = one.adapter is None and one.source is not None
            name = "itself" if itself else "the base model"
        if isinstance(one.source, (Without, Part)):
            name += f" {one.source}"
        elif one.source is not None:
            name += " with another prompt"
        found.append(name)
    said = " and ".join(found)
    if not own_contrasts:
        return said
    return f"{said}, or what a problem says" if args else "what each problem says"
