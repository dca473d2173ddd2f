# SPDX-License-Identifier: Apache-2.0
"""Models and adapters as they are named on a command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold import adapter_config
from vllm_cold.tools.errors import ToolError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for --max-lora-rank


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on disk: the name that requests use, its folder (absolute) and its rank."""

    name: str
    folder: str
    rank: int


def read_adapter(option: str, text: str) -> Adapter:
    """Read ``[NAME=]FOLDER``; without a name it is the folder's own, or that of a link to it.

    Raises:
        ToolError: no such folder, or no usable adapter_config.json in it.
    """
    name, separator, folder = text.partition("=")
    if not separator or Path(text).is_dir():
        folder = text
        name = os.path.basename(os.path.abspath(os.path.expanduser(text)))
    path = Path(folder).expanduser().resolve()
    if not name or not path.is_dir():
        raise ToolError(
            f"{option}={text!r}: no such folder; give one that peft's save_pretrained wrote, as "
            "FOLDER or NAME=FOLDER"
        )
    try:
        rank = adapter_config.read(str(path)).rank
    except adapter_config.AdapterConfigError as error:
        raise ToolError(f"{option}={text!r}: {error}") from None
    return Adapter(name, str(path), rank)


def read_adapters(expert: str | None, amateurs: Sequence[str] = ()) -> list[Adapter]:
    """The adapters of ``--adapter`` and each ``--amateur``, which all differ.

    Raises:
        ToolError: see ``read_adapter``; or two are the same, or have the same name.
    """
    found = [] if expert is None else [read_adapter("--adapter", expert)]
    for text in amateurs:
        one = read_adapter("--amateur", text)
        for number, other in enumerate(found):
            if one.folder == other.folder:
                raise ToolError(
                    f"--amateur={text!r}: is the adapter itself; leave it out: an amateur is the "
                    "base model, or the adapter where it has another prompt"
                    if expert is not None and number == 0
                    else f"--amateur={text!r}: is given twice"
                )
            if one.name == other.name:
                raise ToolError(
                    f"--amateur={text!r}: has the name {other.name!r} of another adapter; give it "
                    "one of its own as NAME=FOLDER"
                )
        found.append(one)
    return found


def engine_arguments(adapters: Sequence[Adapter], rank: int | None = None) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` for an engine that takes CoLD requests with these adapters, or
    with other prompts alone, and decodes no request with CoLD that does not ask.

    Args:
        adapters: All that are used.
        rank: ``--max-lora-rank``; None for what they need.

    Raises:
        ToolError: a rank without adapters; see also ``lora_rank``.
    """
    if not adapters:
        if rank is not None:
            raise ToolError(f"--max-lora-rank={rank}: there is no adapter here; leave it out")
        return {"additional_config": {"cold": {"enabled": False}}}
    return {
        "enable_lora": True,
        "max_loras": len(adapters),
        "max_lora_rank": lora_rank(adapters, rank),
    }


def lora_rank(adapters: Sequence[Adapter], given: int | None = None) -> int:
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


def read_model(model: str) -> str:
    """``--model``: a folder as an absolute path, or a hub's name as it is.

    Raises:
        ToolError: it looks like a path, or is a folder, and there is no model.
    """
    path = Path(model).expanduser()
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if not looks_local and not path.exists():
        return model
    if not (path / "config.json").is_file():
        raise ToolError(
            f"--model={model!r}: no config.json there; give a model's folder or its hub name"
        )
    return str(path.resolve())
