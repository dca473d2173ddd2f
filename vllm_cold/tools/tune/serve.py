# SPDX-License-Identifier: Apache-2.0
"""The ``vllm serve`` line for what was found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.tune.grid import Setting


def _module(adapter: Adapter) -> str:
    # vLLM splits NAME=PATH at "=" and takes anything with a comma for JSON.
    if set("=,") & set(adapter.name + adapter.folder):
        return json.dumps({"name": adapter.name, "path": adapter.folder})
    return f"{adapter.name}={adapter.folder}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def serve_line(
    model: str,
    adapters: Sequence[Adapter],
    engine: Mapping[str, Any],
    setting: Setting | None,
) -> str:
    """The command that serves what was measured, quoted for a shell.

    Args:
        model: Folder or hub name.
        adapters: The expert, then the amateur if it is an adapter.
        engine: Further arguments of ``vllm.LLM``; they become options, but for None, which is
            vLLM's word for a default.
        setting: None for greedy decoding, that is without CoLD.
    """
    words = ["vllm", "serve", model, "--enable-lora", "--lora-modules", *map(_module, adapters)]
    for name, value in engine.items():
        option = "--" + name.replace("_", "-")
        if value is None or value == []:  # vLLM's parser has no words for these
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            # A list is one option with several words.
            words += [option, *map(_word, value if isinstance(value, list) else [value])]
    if setting is not None:
        words += ["--sampler", "cold"]
        words += ["--cold-alpha", repr(setting.alpha), "--cold-beta", str(setting.beta)]
        if setting.beta_max is not None:
            words += ["--cold-beta-max", repr(setting.beta_max)]
    return shlex.join(words)
