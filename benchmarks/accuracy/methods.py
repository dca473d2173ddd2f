# SPDX-License-Identifier: Apache-2.0
"""The ways to decode that are compared, and what each asks of the engine for a problem."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt
from vllm_cold.method.presets import PRESETS, PresetName

# What the amateur is: the expert with the prompt without its part, the base model with it, the
# base model with the expert's own prompt (CoLD), or the expert's adapter as it was after a quarter
# of its training (autoguidance, arXiv 2406.02507).
AmateurKind = Literal["without", "base without", "base", "quarter"]


@dataclass(frozen=True)
class Stream:
    """What an expert or an amateur is: its prompt, its adapter's folder (None: the base model), and
    an amateur's weight (None: that of the knobs).
    """

    prompt: Prompt
    adapter: str | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Request:
    """All that an answer depends on.

    Attributes:
        model: Who answers.
        expert: It; without amateurs, an ordinary request.
        amateurs: What it is contrasted with.
        knobs: Fields of ``ColdParams`` besides the amateurs.
        sampling: Fields of ``SamplingParams``.
    """

    model: Model
    expert: Stream
    amateurs: tuple[Stream, ...]
    knobs: Mapping[str, Any]
    sampling: Mapping[str, Any]

    @property
    def mark(self) -> str:
        """A hash of it, with the adapters' weights and without the places where they lie."""
        told = asdict(self)
        told["model"] = (self.model.name, self.model.source, self.model.dtype)
        for stream in (told["expert"], *told["amateurs"]):
            stream["adapter"] = stream["adapter"] and _digest(stream["adapter"])
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _digest(adapter: str) -> str:
    """Of an adapter's files.

    Raises:
        FileNotFoundError: the adapter is not there.
    """
    told = []
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = Path(adapter, name)
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no adapter is there; python -m benchmarks.accuracy train makes those of "
                "the tasks"
            )
        told.append(_file_digest(path, path.stat().st_mtime_ns))
    return " ".join(told)


@cache
def _file_digest(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        key: Names it.
        knobs: Fields of ``ColdParams`` besides the amateurs; none for a method without a contrast.
        prompt: "prompt", "without" (what the amateur reads, alone), or the name of one of the
            problem's plain prompts.
        amateur: What it is.
        weights: Of an amateur without the part and of one that reads the part and not what is
            asked; none: there is one amateur, and the knobs say its weight.
        bare: Whether the expert takes its adapter off.
        sampling: Fields of ``SamplingParams`` other than greedy decoding's.
        votes: Answers drawn, of which the most frequent one counts.
    """

    key: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = "prompt"
    amateur: AmateurKind = "without"
    weights: tuple[float, ...] = ()
    bare: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    votes: int = 1

    def is_for(self, cell: Cell, problem: Problem) -> bool:
        """Whether the cell asks for such methods and the problem has such prompts."""
        if self.sampling and not cell.sampled:
            return False
        if cell.adapter is None and (self.bare or (self.knobs and self.amateur != "without")):
            return False
        if self.amateur == "quarter" and (_quarter(cell.adapter) in (None, cell.adapter)):
            return False
        lacks = self.amateur.endswith("without") if self.knobs else self.prompt == "without"
        if lacks and problem.without == problem.prompt:
            return False
        if self.weights and problem.unasked is None:
            return False
        return self.prompt in ("prompt", "without", *problem.plain)

    def request(self, model: Model, cell: Cell, problem: Problem, adapters: Path) -> Request:
        """What is asked of the engine.

        Args:
            model: Whose answer.
            cell: The problem's.
            problem: One that the method ``is_for``.
            adapters: The folder in which a cell's adapter lies, if the cell says no other.
        """

        def folder(adapter: str | None) -> str | None:
            return adapter and str(adapters / adapter)  # an absolute path stays what it is

        mine = {"prompt": problem.prompt, "without": problem.without, **problem.plain}[self.prompt]
        expert = Stream(mine, None if self.bare else folder(cell.adapter))
        amateurs: list[Stream] = []
        if self.knobs:
            lacking = self.amateur.endswith("without")
            theirs = problem.without if lacking else problem.prompt
            worn = {"without": cell.adapter, "quarter": _quarter(cell.adapter)}.get(self.amateur)
            amateurs.append(Stream(theirs, folder(worn), self.weights[0] if self.weights else None))
        if self.weights:
            assert problem.unasked is not None
            amateurs.append(Stream(problem.unasked, folder(cell.adapter), self.weights[1]))
        sampling = {
            "temperature": 0.0, "max_tokens": cell.max_tokens, "stop": cell.stops(model),
            "n": self.votes, **self.sampling,
        }  # fmt: skip
        return Request(model, expert, tuple(amateurs), self.knobs, sampling)


def _quarter(adapter: str | None) -> str | None:
    """The same adapter after a quarter of its training; None if it is none of ``train``'s."""
    found = re.fullmatch(r"([^/]*-r\d+)-\d+", adapter or "")
    return found and f"{found[1]}-25"


def fixed(alpha: float, beta: float, amateur: AmateurKind = "without") -> Method:
    """A contrast with a mask and a weight."""
    told = "" if amateur == "without" else f", amateur: {amateur}"
    return Method(
        f"alpha {alpha:g}, beta {beta:g}{told}", {"alpha": alpha, "beta": beta}, amateur=amateur
    )


def preset(name: PresetName, key: str = "", amateur: AmateurKind = "without") -> Method:
    """A contrast by a preset's values."""
    found = PRESETS[name]
    return Method(key or name, found.knobs, amateur=amateur, weights=found.weights)


_ADAPTIVE = {"alpha": 0.1, "beta": "adaptive", "beta_max": 1.0}
# Without a contrast, for one stream, where a better answer may be had for less.
PLAIN = (
    Method("greedy"),
    Method("base model", bare=True),
    Method("without the part", prompt="without"),
    Method("better prompt", prompt="better"),
    Method("part repeated", prompt="repeated"),
)
CONTRASTS = (
    preset("cad"),  # cfg has the same values
    preset("adacad"),
    preset("grounded"),
    fixed(0.1, 0.5),
    fixed(0.1, 1.0),
    Method("adaptive", _ADAPTIVE),
)
# Of an expert with an adapter.
ADAPTED = (
    preset("cold", amateur="base"),
    preset("cold", "cold without the part", amateur="base without"),
    Method("adaptive, amateur: base", _ADAPTIVE, amateur="base"),
    preset("cold", "cold, amateur: quarter", amateur="quarter"),
    fixed(0.01, 2.0, "base"),
)
# As many tokens as a contrast takes, and more.
VOTES = tuple(Method(f"vote of {n}", sampling={"temperature": 0.7}, votes=n) for n in (3, 5))
METHODS = {method.key: method for method in (*PLAIN, *CONTRASTS, *ADAPTED, *VOTES)}
# Settings of which the best on dev is decoded on test; of equal ones the first, which is milder.
GRID = tuple(
    fixed(alpha, beta, amateur)
    for amateur in ("without", "base")
    for beta in (0.25, 0.5, 1.0, 2.0)
    for alpha in (0.3, 0.1)
)
