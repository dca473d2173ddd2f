# SPDX-License-Identifier: Apache-2.0
"""What a prompt is contrasted with, in a file or on a command line, and what each stream reads.

A row's ``cold_*`` keys are those of ``vllm_xargs``: it is what a client would send. A command's
options are their defaults. Imports no vLLM.
"""

import argparse
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from vllm_cold.errors import ColdError
from vllm_cold.frontend.cli import RuleOption
from vllm_cold.rules import registry
from vllm_cold.settings.amateurs import AmateurSpec, ContrastSpec, describe, names_contrast
from vllm_cold.settings.arguments import parse_request_args
from vllm_cold.settings.images import Distorted
from vllm_cold.settings.sources import Messages, Part, Text, Without, WithoutText, media_parts
from vllm_cold.settings.table import (
    CONTRAST,
    LIMITS,
    MAX_EXPERT_TOP_K,
    PREFIX,
    SETTINGS,
    check,
    is_known,
    is_ours,
    read,
)
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.pictures import Picture, replace_pictures

Content = Text | Messages
"""What a stream reads, before it is token ids. In messages a picture is a ``Picture``."""

# Options that say what is contrasted with; a preset says how.
OPTIONS = tuple(name for name in CONTRAST if name != "preset")
# What may differ from prompt to prompt: what the amateur reads,
ROW_KEYS = tuple(
    PREFIX + name
    for name in ("amateur_prompt", "amateur_messages", "without", "without_text", "part", "images")
)
# and what the part that it does not read may add.
ROW_LIMITS = tuple(PREFIX + name for name in LIMITS)


def option_of(name: str) -> str:
    """Return the option of a setting."""
    return "--" + name.replace("_", "-")


def add_rule_option(group: argparse._ArgumentGroup, about: str = "") -> None:
    """Describe a command's option for a rule, and for rules of the user's own."""
    group.set_defaults(rules=None)
    group.add_argument(
        "--rule",
        action=RuleOption,
        metavar="NAME or MODULE:CLASS",
        help=f"{SETTINGS['rule'].about}{about} Or a rule of your own, as vllm serve's --cold-rule "
        "takes it, which a server must have been started with; may be repeated",
    )


def add_rules(paths: Sequence[str] | None) -> None:
    """Register the user's own rules, given as "module:Class"; ToolError for anything else."""
    try:
        for path in paths or ():
            registry.add(path)
    except ColdError as error:
        raise ToolError(f"--rule={error.value!r}: {error.problem}") from error


def as_written(error: ColdError, row_keys: Collection[str] = ()) -> str:
    """Return the message of an error about flat arguments with the names that the user has
    written: the command's options, or the keys of a file's row, which are ``row_keys``.
    """
    if error.field.partition("[")[0] in row_keys:
        return str(error)
    return re.sub(rf"\b{PREFIX}([a-z_]+)", lambda match: option_of(match[1]), str(error))


def option_args(options: argparse.Namespace, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the options about the contrast as flat arguments, without those that are not given.

    Args:
        options: Each of ``OPTIONS`` is None, or a list of texts.
        names: Adapters' names by the value of ``--amateur``.

    Raises:
        ToolError: one is out of range.
    """
    args: dict[str, Any] = {}
    try:
        for name in OPTIONS:
            if (texts := getattr(options, name)) is None:
                continue
            values = [
                read(name, names.get(text, text) if name == "amateur" else text) for text in texts
            ]
            value = values if len(values) > 1 else values[0]
            args[PREFIX + name] = check(name, value, PREFIX + name)
    except ColdError as error:
        raise ToolError(as_written(error)) from None
    return args


def row_args(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``cold_*`` keys of a row as flat arguments.

    Args:
        row: An object of a JSONL file; messages may stand there as JSON, not as text with JSON.

    Raises:
        ColdError: for a key that must be the same for all rows, or is unknown.
    """
    args: dict[str, Any] = {}
    for key, value in row.items():
        if value is None or not (is_known(key) or is_ours(key)):
            continue
        if key not in (*ROW_KEYS, *ROW_LIMITS):
            raise ColdError(key, value, f"a row may have {', '.join((*ROW_KEYS, *ROW_LIMITS))}")
        is_json = key == PREFIX + "amateur_messages" and isinstance(value, list)
        if is_json and not all(isinstance(message, str) for message in value):
            value = json.dumps(value)
        args[key] = value
    return args


def merge(defaults: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Put flat arguments of a row on top of those of the command's options. If the row says what
    its amateur reads, the options do not.
    """
    if row.keys() & set(ROW_KEYS):
        defaults = {key: value for key, value in defaults.items() if key not in ROW_KEYS}
    return {**defaults, **row}


def read_contrast(args: Mapping[str, Any]) -> ContrastSpec:
    """Read flat arguments, for an engine without defaults of its own.

    Raises:
        ColdError: they contradict each other, or a value is out of range.
    """
    request = parse_request_args(args)
    amateurs = describe(request)
    settings, weights = request.settings(weights=[amateur.weight for amateur in amateurs])
    return ContrastSpec(settings, amateurs, weights)


def request_args(args: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """Return ``vllm_xargs`` with a value for all that would otherwise be the server's default.
    ``base`` is the base model's name, to contrast with if ``args`` name nothing else.
    """
    settings = read_contrast(args).settings
    # A rule of scores says all of the distribution, whatever the default.
    is_exact = registry.is_of_scores(settings.rule)
    no_cap = {} if is_exact else {PREFIX + "expert_top_k": MAX_EXPERT_TOP_K}
    sent = {"cold": 1, **no_cap, **args}
    if base is not None and not names_contrast(parse_request_args(args)):
        sent[PREFIX + "amateur"] = base
    if settings.rule is not None:
        parameters = settings.rule_parameters or {}
        # Limits by the names that win over a default's.
        limits = {name: parameters[name] for name in LIMITS if name in parameters}
        others = {name: value for name, value in parameters.items() if name not in limits}
        sent |= {PREFIX + name: value for name, value in limits.items()}
        sent[PREFIX + "rule_parameters"] = json.dumps(others)
    return sent


def adapter_of(amateur: AmateurSpec, expert: str | None, base: str) -> str | None:
    """Return the name of an amateur's adapter, None for the base model, whose name is ``base``. The
    default is the expert's if the amateur has another prompt, else none.
    """
    if amateur.adapter is None:
        return None if amateur.source is None else expert
    return None if amateur.adapter == base else amateur.adapter


def as_chat(reads: Content) -> Messages:
    """Make a text a user's message; messages stay as they are."""
    if isinstance(reads, Messages):
        return reads
    return Messages([{"role": "user", "content": reads.value}])


def with_pictures(reads: Content, pictures: Sequence[Picture]) -> Content:
    """Return a prompt with pictures, if there are any: a chat in which they stand before the text
    of the first user's message; ValueError where there is none.
    """
    if not pictures:
        return reads
    messages = [*as_chat(reads).value]
    for place, message in enumerate(messages):
        if message["role"] == "user":
            parts = [{"type": "image_url", "image_url": picture} for picture in pictures]
            content = [*parts, {"type": "text", "text": message["content"]}]
            messages[place] = {**message, "content": content}
            return Messages(messages)
    raise ValueError(
        "pictures stand before the text of the first user's message, and there is none"
    )


def endpoint(reads: Content) -> tuple[str, dict[str, Any]]:
    """Return the path of a server that takes a prompt, and the prompt as a request's field."""
    if isinstance(reads, Messages):
        sent = replace_pictures(reads.value, lambda picture: {"url": picture.url})
        return "/chat/completions", {"messages": sent}
    return "/completions", {"prompt": reads.value}


def as_json(reads: Content) -> Any:
    """Return a prompt as JSON, with names and digests of its pictures."""
    if isinstance(reads, Text):
        return reads.value
    return replace_pictures(reads.value, lambda x: {"name": x.name, "sha256": x.digest})


def reads_args(reads: Content) -> dict[str, Any]:
    """Return an amateur's prompt as flat arguments."""
    if isinstance(reads, Text):
        return {PREFIX + "amateur_prompt": reads.value}
    return {PREFIX + "amateur_messages": json.dumps(reads.value)}


def amateur_reads(whole: Content, amateur: AmateurSpec) -> Content | None:
    """Return what an amateur reads if its expert reads ``whole``; None for the same.

    Raises:
        ColdError: it cannot be made of this prompt.
    """
    field, source = amateur.prompt_field, amateur.source
    match source:
        case None | Text() | Messages():
            return source
        case Part():
            return Text(source.of(field, whole.value if isinstance(whole, Text) else None))
        case WithoutText():
            if isinstance(whole, Messages):
                return Messages(source.of_messages(field, whole.value))
            return Text(source.of(field, whole.value))
        case Without():
            left = source.of(field, whole.value if isinstance(whole, Messages) else None)
            return Messages(left)
        case Distorted():
            if isinstance(whole, Text) or not any(map(media_parts, whole.value)):
                raise ColdError(field, source.value, "is for prompts with an image; give one")
            return Messages(replace_pictures(whole.value, partial(replace, seen=source)))
    raise AssertionError(source)  # token ids and media: no option, nor a row, has them


def check_amateurs(
    where: str, reads: Content, amateurs: Iterable[AmateurSpec], expert: str | None, base: str
) -> None:
    """Refuse an amateur that is its expert: that also reads ``reads``, with the same adapter.

    Raises:
        ColdError: what an amateur reads cannot be made of ``reads``.
        ToolError: an amateur is refused; it begins with ``where``.
    """
    for amateur in amateurs:
        amateur_reads(reads, amateur)
        if amateur.source is None and adapter_of(amateur, expert, base) == expert:
            raise ToolError(
                f"{where}: nothing to contrast with, as the amateur is the expert: give another "
                "--adapter or --amateur, or say what the amateur reads, with --without, "
                "--without-text, --images, --part, --amateur-prompt, --amateur-messages or the "
                "row's own cold_* keys"
            )
