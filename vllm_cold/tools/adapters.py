# SPDX-License-Identifier: Apache-2.0
"""Models, adapters and the engine's options on a command line."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_cold.frontend import adapter_config
from vllm_cold.tools.command_error import ToolError

_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for --max-lora-rank
# Arguments of vllm serve.
ENGINE_OPTIONS: dict[str, Any] = {
    "dtype": {"choices": _DTYPES, "help": "(default: the model's)"},
    "max_model_len": {"type": int, "help": "(default: the model's)"},
    "max_num_seqs": {"type": int, "help": "a contrastive request counts twice or more"},
    "gpu_memory_utilization": {"type": float},
    "tensor_parallel_size": {"type": int},
    "enforce_eager": {
        "action": argparse.BooleanOptionalAction,
        "help": "do not compile the model",
    },
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on disk: the name that requests use, its folder (absolute) and its rank."""

    name: str
    folder: str
    rank: int

    @property
    def module(self) -> str:
        """As vllm serve's ``--lora-modules`` takes it."""
        # vLLM splits NAME=PATH at "=" and takes anything with a comma for JSON, and a "-" in front
        # for an option.
        if self.name.startswith("-") or set("=,") & set(self.name + self.folder):
            return json.dumps({"name": self.name, "path": self.folder})
        return f"{self.name}={self.folder}"


def read_adapter(option: str, text: str) -> Adapter:
    """Read ``[NAME=]FOLDER``; without a name it is the folder's own, or that of a link to it."""
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
        rank = adapter_config.read_rank(str(path))
    except ValueError as error:
        raise ToolError(f"{option}={text!r}: {error}") from None
    return Adapter(name, str(path), rank)


def read_adapters(expert: str | None, amateurs: Sequence[str] = ()) -> list[Adapter]:
    """Read the adapters of ``--adapter`` and each ``--amateur``, which must all differ."""
    adapters = [] if expert is None else [read_adapter("--adapter", expert)]
    for text in amateurs:
        adapter = read_adapter("--amateur", text)
        if any(adapter.name == other.name or adapter.folder == other.folder for other in adapters):
            raise ToolError(
                f"--amateur={text!r}: has the name or the folder of another adapter; give it a "
                "name as NAME=FOLDER, or leave it out: an amateur is the base model, or the "
                "expert's adapter if it has another prompt"
            )
        adapters.append(adapter)
    return adapters


def engine_arguments(
    adapters: Sequence[Adapter], rules: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return arguments of ``vllm.LLM`` for an engine that takes contrastive requests with these
    adapters and rules, and decodes every other request without a contrast.
    """
    cold: dict[str, Any] = {"enabled": False}
    if rules:
        cold["rules"] = list(rules)
    config = {} if adapters and not rules else {"additional_config": {"cold": cold}}
    if not adapters:
        return config
    needed = max(adapter.rank for adapter in adapters)
    if needed > RANKS[-1]:
        raise ToolError(f"an adapter has rank {needed}, and vLLM serves ranks up to {RANKS[-1]}")
    rank = next(rank for rank in RANKS if rank >= needed)
    return {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": rank, **config}


def read_model(model: str) -> str:
    """Return ``--model``: a folder as an absolute path, or a hub's name as it is."""
    path = Path(model).expanduser()
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if not looks_local and not path.exists():
        return model
    if not (path / "config.json").is_file():
        raise ToolError(
            f"--model={model!r}: no config.json there; give a model's folder or its hub name"
        )
    return str(path.resolve())
