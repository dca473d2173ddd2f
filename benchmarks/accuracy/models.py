# SPDX-License-Identifier: Apache-2.0
"""The models that are measured: entries of ``models.toml``, which every cell reads."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("models.toml")


@dataclass(frozen=True)
class Model:
    """A model.

    Attributes:
        name: On the command line and in the answers' files.
        title: For the report.
        source: A folder, a hub's name, or a module with a function ``model_path``.
        chat: Whether it reads chat messages; otherwise documents.
        stop: Strings that end an answer, besides the cell's.
        dtype: Of weights and activations.
        max_length: Of prompt and answer, in tokens.
        cache_gib: KV cache, in GiB.
    """

    name: str
    title: str
    source: str
    chat: bool
    stop: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    max_length: int = 1024
    cache_gib: float = 4.0

    def path(self) -> str:
        """The folder or the hub's name that vLLM and transformers load."""
        if self.source.startswith("examples."):
            return str(import_module(self.source).model_path())
        return self.source


def read(table: Path = TABLE) -> dict[str, Model]:
    """The models of a table, by name.

    Raises:
        ValueError: an entry lacks a field or has an unknown one.
    """
    entries: dict[str, dict[str, Any]] = tomllib.loads(table.read_text(encoding="utf-8"))
    models = {}
    for name, entry in entries.items():
        try:
            models[name] = Model(name, **entry | {"stop": tuple(entry.get("stop", ()))})
        except TypeError as error:
            raise ValueError(f"{table}: [{name}]: {error}; fields are those of {TABLE}") from error
    return models
