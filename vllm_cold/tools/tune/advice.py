# SPDX-License-Identifier: Apache-2.0
"""The ``vllm serve`` line for what was found, and what requests have to send beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_cold.method.settings import PREFIX
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.tune.grid import Setting, weights_of

_WITHOUT = PREFIX + "without"


def request_args(
    setting: Setting, args: Mapping[str, Any], own_contrasts: bool = False
) -> dict[str, Any]:
    """What a request has to say itself, as flat arguments: a server has defaults for the knobs, for
    what is left out of chats and for no other contrast.

    Args:
        setting: The setting.
        args: What all problems are contrasted with, as flat arguments.
        own_contrasts: Whether problems say it themselves.
    """
    said: dict[str, Any] = {} if _is_default(args, own_contrasts) else dict(args)
    if weights := weights_of(setting):
        said[PREFIX + "weights"] = list(weights) if len(weights) > 1 else weights[0]
        if setting.beta_max is not None:
            said[PREFIX + "beta_max"] = setting.beta_max
    return said


def _is_default(args: Mapping[str, Any], own_contrasts: bool) -> bool:
    """Whether a server contrasts with it where a request says nothing."""
    return args.keys() <= {_WITHOUT} and not own_contrasts


def _module(adapter: Adapter) -> str:
    # vLLM splits NAME=PATH at "=" and takes anything with a comma for JSON.
    if set("=,") & set(adapter.name + adapter.folder):
        return json.dumps({"name": adapter.name, "path": adapter.folder})
    return f"{adapter.name}={adapter.folder}"


def serve_line(
    model: str,
    adapters: Sequence[Adapter],
    engine: Mapping[str, Any],
    setting: Setting | None,
    args: Mapping[str, Any] | None = None,
    own_contrasts: bool = False,
) -> str:
    """The command that serves what was measured, quoted for a shell.

    Args:
        model: Folder or hub name.
        adapters: All that are used.
        engine: Further arguments of ``vllm.LLM``; they become options, but for None, which is
            vLLM's word for a default.
        setting: None for greedy decoding, that is without CoLD.
        args: See ``request_args``.
        own_contrasts: The same.
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
    if setting is not None:
        words += _cold_options(setting, args or {}, own_contrasts)
    return shlex.join(words)


def _cold_options(setting: Setting, args: Mapping[str, Any], own_contrasts: bool) -> list[str]:
    """The line's options for a setting, and for what is left out of every chat."""
    is_default = _is_default(args, own_contrasts)
    if weights_of(setting):  # which only requests can say
        said = {k: v for k, v in setting.knobs.items() if k not in ("beta", "beta_max")}
    else:
        # A server takes a preset whose amateur reads another prompt only if it knows which.
        said = setting.values if is_default else setting.knobs
    if is_default and _WITHOUT in args:
        items = args[_WITHOUT]
        said["without"] = ",".join(map(str, items)) if isinstance(items, list) else items
    words = ["--sampler", "cold"]
    for name, value in said.items():
        words += ["--cold-" + name.replace("_", "-"), str(value)]
    return words
