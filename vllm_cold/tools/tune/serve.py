# SPDX-License-Identifier: Apache-2.0
"""Adapters as they are named on a command line, and the ``vllm serve`` line for what was found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.tune.grid import Setting

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for --max-lora-rank


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk: the name that requests use, its folder (absolute) and its rank."""

    name: str
    folder: str
    rank: int


def read_adapter(option: str, text: str) -> Adapter:
    """Read ``[NAME=]FOLDER``; the name is the folder's own if none is given.

    Raises:
        ToolError: no such folder, or no usable adapter_config.json in it.
    """
    name, separator, folder = text.partition("=")
    if not separator or Path(text).is_dir():
        name, folder = "", text
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ToolError(
            f"{option}={text!r}: no such folder; give one that peft's save_pretrained wrote"
        )
    config = path / "adapter_config.json"
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
        ranks = [fields["r"], *(fields.get("rank_pattern") or {}).values()]
        rank = max(int(rank) for rank in ranks)
    except FileNotFoundError:
        raise ToolError(
            f"{option}={text!r}: no adapter_config.json in {path}; give the folder that peft's "
            "save_pretrained wrote"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ToolError(
            f"{option}={text!r}: {config} names no rank ({type(error).__name__}: {error}); give "
            "the folder that peft's save_pretrained wrote"
        ) from None
    return Adapter(name or path.name, str(path), rank)


def lora_rank(adapters: Sequence[Adapter], given: int | None) -> int:
    """``--max-lora-rank``: as given, or the smallest of vLLM's choices that holds all adapters.

    Raises:
        ToolError: too small for an adapter, or none of vLLM's choices.
    """
    needed = max(adapter.rank for adapter in adapters)
    if given is not None:
        if given not in RANKS:
            raise ToolError(f"--max-lora-rank={given}: vLLM takes {', '.join(map(str, RANKS))}")
        if given < needed:
            raise ToolError(
                f"--max-lora-rank={given}: an adapter has rank {needed}; leave it out to have it "
                "read from adapter_config.json"
            )
        return given
    for rank in RANKS:
        if rank >= needed:
            return rank
    raise ToolError(f"an adapter has rank {needed}, and vLLM serves ranks up to {RANKS[-1]}")


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
) -> str:
    """The command that serves what was measured, quoted for a shell.

    Args:
        model: Folder or hub name.
        adapters: The expert, then the amateur if it is an adapter.
        engine: Further arguments of ``vllm.LLM``; they become options.
        setting: None for greedy decoding, that is without CoLD.
    """
    words = ["vllm", "serve", model, "--enable-lora", "--lora-modules", *map(_module, adapters)]
    for name, value in engine.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, (dict, list)):
            words += [option, json.dumps(value)]
        else:
            words += [option, str(value)]
    if setting is not None:
        words += ["--sampler", "cold"]
        words += ["--cold-alpha", repr(setting.alpha), "--cold-beta", repr(setting.beta)]
    return shlex.join(words)
