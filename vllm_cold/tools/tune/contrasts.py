# SPDX-License-Identifier: Apache-2.0
"""What problems are contrasted with: the options that say so, and whether it can be done."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_cold.method.amateurs import Part, Without, describe
from vllm_cold.method.arguments import parse_request_args
from vllm_cold.method.settings import CONTRAST, PREFIX, ColdError, check, read
from vllm_cold.tools.contrast import adapter_of, amateur_reads, read_contrast
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.data import Problem, check_unicode
from vllm_cold.tools.tune.grid import Setting

# Options that say what is contrasted with; a preset is a setting.
OPTIONS = tuple(name for name in CONTRAST if name != "preset")


def contrast_args(options: argparse.Namespace, named: Mapping[str, str]) -> dict[str, Any]:
    """The options as a request's flat arguments.

    Args:
        options: Each of ``OPTIONS`` is None, or a list of texts: one for all amateurs, or one for
            each.
        named: What is called how, of what ``--amateur`` says.

    Raises:
        ToolError: they do not fit together, or one is out of range.
    """
    args: dict[str, Any] = {}
    for name in OPTIONS:
        if (texts := getattr(options, name)) is None:
            continue
        option = "--" + name.replace("_", "-")
        if name == "amateur":
            texts = [named[text] for text in texts]
        try:
            values = [read(name, check_unicode(text)) for text in texts]
            args[PREFIX + name] = check(name, values if len(values) > 1 else values[0], option)
        except ColdError as error:
            raise ToolError(str(error)) from None
        except ValueError as error:
            raise ToolError(f"{option}: {error}") from None
    try:
        describe(parse_request_args(args).contrast)
    except ColdError as error:
        option = "--" + error.field.removeprefix(PREFIX).replace("_", "-")
        raise ToolError(str(ColdError(option, error.value, error.problem))) from None
    return args


def pop_weights(args: dict[str, Any]) -> tuple[Any, ...]:
    """Take the weights out of flat arguments: they are a setting's."""
    weights = args.pop(PREFIX + "weights", [])
    return tuple(weights) if isinstance(weights, list) else (weights,)


def check_problems(
    grid: Sequence[Setting], expert: str | None, base: str, adapters: Sequence[str], chat: bool
) -> Callable[[Problem], None]:
    """A function that raises for a problem which cannot be decoded with these settings, as far as
    no tokens matter: ValueError, or ToolError where there is nothing to contrast with.

    Args:
        grid: The settings.
        expert: The name of the expert's adapter, None for the base model.
        base: The base model's name.
        adapters: The names of all adapters.
        chat: Whether a text goes through the chat template.
    """
    methods = {setting.preset: setting for setting in grid}.values()

    def check_problem(problem: Problem) -> None:
        for setting in methods:
            for one in read_contrast({**problem.args, **setting.args}).amateurs:
                amateur_reads(problem.prompt, one, chat)
                if one.source is None and adapter_of(one, expert, base, adapters) == expert:
                    raise ToolError(
                        f"{problem.place}: nothing to contrast with: give --adapter, or say what "
                        "the amateur reads, with --without, --part, --amateur-prompt, "
                        "--amateur-messages or the row's own cold_* keys"
                    )

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
