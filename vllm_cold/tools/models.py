# SPDX-License-Identifier: Apache-2.0
"""What decodes for a command: a server that runs, or models and adapters for one that it starts."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any

from vllm_cold.tools.adapters import (
    ENGINE_OPTIONS,
    Adapter,
    engine_arguments,
    read_adapters,
    read_model,
)
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import add_rules, option_of
from vllm_cold.tools.own_server import serving
from vllm_cold.tools.server import Server


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models and adapters, or a server that has them."""

    model: str  # folder (absolute) or hub name; with a server, its name there
    expert: str | None  # the name of the expert's adapter, None for the base model
    server: Server | None = None  # a running one; without one, one is started with the others:
    adapters: Sequence[Adapter] = ()  # the expert's first
    engine: Mapping[str, Any] = field(default_factory=dict)  # arguments, as of vllm.LLM
    # What requests call an adapter, by the value of --amateur.
    amateur_names: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> AbstractContextManager[Server]:
        """Open the server, which is started if need be."""
        if self.server is not None:
            return closing(self.server)
        return serving(self.model, self.adapters, self.expert, **self.engine)


def read_models(options: argparse.Namespace, *, needs_cold: bool = True, **engine: Any) -> Models:
    """Read the options of ``options.add_models`` and ``--amateur``.

    Args:
        options: The command's.
        needs_cold: Whether a running server must have vllm-cold.
        engine: Arguments of a server that is started, where the options do not say them.

    Raises:
        ToolError: an option would be ignored, or what it names is not there.
    """
    add_rules(options.rules)
    _check_options(options)
    if options.url is not None:
        server = Server(
            options.url,
            options.adapter,
            options.model,
            insecure_http=options.insecure_http,
            needs_cold=needs_cold,
        )
        return Models(model=server.base, expert=server.expert, server=server)
    model = read_model(options.model)
    # What is no adapter: whichever the amateur has where none is named, and the base model.
    amateur_names = {"": "", options.model: model}
    folders = [text for text in options.amateur or () if text not in amateur_names]
    adapters = read_adapters(options.adapter, folders)
    names = [adapter.name for adapter in adapters]
    expert = None if options.adapter is None else names[0]
    amateur_names |= zip(folders, names[expert is not None :], strict=True)
    engine = engine_arguments(adapters, options.rules) | engine
    for name in ENGINE_OPTIONS:
        if (value := getattr(options, name)) is not None:
            engine[name] = value
    return Models(
        model=model, expert=expert, adapters=adapters, engine=engine, amateur_names=amateur_names
    )


def _check_options(options: argparse.Namespace) -> None:
    """Refuse what would be ignored: with --url an engine's options, without it a server's."""
    ignored = ["insecure_http"]
    problem = "is for a server; add --url, or leave it out"
    if options.url is not None:
        ignored = [*ENGINE_OPTIONS]
        problem = (
            "is for an engine that is started, and --url asks a server that is running; leave one "
            "of them out"
        )
    elif options.model is None:
        raise ToolError("--model is missing: name the base model, or a server with --url")
    for name in ignored:
        if getattr(options, name, None) is not None:
            raise ToolError(f"{option_of(name)}: {problem}")
