# SPDX-License-Identifier: Apache-2.0
"""The ``vllm serve`` line for what was found, and what requests have to send beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_cold.errors import ColdError
from vllm_cold.method.arguments import parse_engine_defaults
from vllm_cold.method.settings import PREFIX
from vllm_cold.tools.adapters import Adapter


def server_defaults(args: Mapping[str, Any]) -> dict[str, Any] | None:
    """A request's flat arguments as a server's defaults, by the knob's name; None where a server
    has no defaults for them, and each request has to send them.
    """
    defaults = {key.removeprefix(PREFIX): value for key, value in args.items()}
    try:
        parse_engine_defaults(defaults)
    except ColdError:
        return None
    return defaults


def _module(adapter: Adapter) -> str:
    # vLLM splits NAME=PATH at "=" and takes anything with a comma for JSON.
    if set("=,") & set(adapter.name + adapter.folder):
        return json.dumps({"name": adapter.name, "path": adapter.folder})
    return f"{adapter.name}={adapter.folder}"


def serve_line(
    model: str,
    adapters: Sequence[Adapter],
    engine: Mapping[str, Any],
    defaults: Mapping[str, Any] | None,
) -> str:
    """The command that serves what was measured, quoted for a shell.

    Args:
        model: Folder or hub name.
        adapters: All that are used.
        engine: Further arguments of ``vllm.LLM``; they become options, but for None, which is
            vLLM's word for a default.
        defaults: Of CoLD, by the knob's name; None for a server that decodes greedily.
    """
    words = ["vllm", "serve", model]
    for name, value in engine.items():
        option = "--" + name.replace("_", "-")
        if name == "additional_config" and isinstance(value, dict):
            # What is said of CoLD there is for the engine that tunes.
            value = {key: item for key, item in value.items() if key != "cold"} or None
        if value is None or value == []:  # vLLM's parser has no words for these
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            # A list is one option with several words.
            several = value if isinstance(value, list) else [value]
            words += [option, *(v if isinstance(v, str) else json.dumps(v) for v in several)]
    if adapters:
        words += ["--lora-modules", *map(_module, adapters)]
    if defaults is not None:
        words += ["--sampler", "cold"]
        rules = (engine.get("additional_config") or {}).get("cold", {}).get("rules", ())
        words += [word for path in rules for word in ("--cold-rule", path)]
        for name, value in defaults.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += ["--cold-" + name.replace("_", "-"), text]
    return shlex.join(words)
