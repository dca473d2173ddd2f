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
from vllm_cold.settings.presets import PRESETS

# What the amateur is: the expert with the prompt without its part or with the question alone, the
# base model with the expert's own prompt (CoLD) or the problem's prompt for it, or the expert's
# adapter after a quarter of its training (autoguidance, arXiv 2406.02507). Or there are several,
# each without another part.
AmateurKind = Literal["without", "question", "base", "quarter", "each"]
# By which a fixed weight's one-stream rivals are scaled: (1 + beta) of the preset cold.
ONE_STREAM = 1.5


@dataclass(frozen=True)
class Stream:
    """What an expert or an amateur is: its prompt, its adapter's folder (None: the base model), by
    what the adapter is multiplied, and an amateur's weight (None: that of the settings).
    """

    prompt: Prompt
    adapter: str | None = None
    weight: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Request:
    """All that an answer depends on.

    Attributes:
        model: Who answers.
        expert: It; without amateurs, an ordinary request.
        amateurs: What it is contrasted with.
        settings: Fields of ``ColdParams`` besides the amateurs.
        sampling: Fields of ``SamplingParams``.
        scored: An answer whose mean log probability of a token is asked for instead of a new one.
    """

    model: Model
    expert: Stream
    amateurs: tuple[Stream, ...]
    settings: Mapping[str, Any]
    sampling: Mapping[str, Any]
    scored: str | None = None

    @property
    def mark(self) -> str:
        """A hash of it, with the adapters' weights and without the places where they lie."""
        told = asdict(self)
        told["knobs"] = told.pop("settings")  # so called when the first answers were recorded
        told["model"] = (self.model.title, self.model.source, self.model.dtype)
        if self.model.template or not self.model.system:  # other tokens of the same messages
            told["model"] += (dict(self.model.template), self.model.system)
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
        settings: Fields of ``ColdParams`` besides the amateurs; none for a method without a
            contrast.
        prompt: "prompt", "without" (what the amateur reads, alone), or the name of one of the
            problem's plain prompts.
        amateur: What it is.
        weights: Of the amateur and of a second one that reads the part and not what is asked; none:
            there is one amateur, and the settings say its weight.
        bare: Whether the expert takes its adapter off.
        percent: Of the adapter's training, which the expert has had.
        scale: By what the expert's adapter is multiplied.
        sampling: Fields of ``SamplingParams`` other than greedy decoding's.
        chooses: Whether it decodes nothing and chooses between two finished answers.
        filters: Whether the cell's filter reads the answers of greedy decoding.
    """

    key: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = "prompt"
    amateur: AmateurKind = "without"
    weights: tuple[float, ...] = ()
    bare: bool = False
    percent: int = 100
    scale: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    chooses: bool = False
    filters: bool = False

    def is_for(self, cell: Cell, problem: Problem) -> bool:
        """Whether the cell asks for such methods and the problem has such prompts."""
        adapted = self.bare or self.percent != 100 or self.scale != 1 or self.sampling
        worn = self.settings and self.amateur in ("base", "quarter")
        if cell.adapter is None and (adapted or worn) or (self.filters and cell.filter is None):
            return False
        if self.amateur == "question" and self.amateur not in problem.plain:
            return False
        if self.amateur == "each" and not problem.lacking:
            return False
        stages = [25] * (self.amateur == "quarter") + [self.percent] * (self.percent != 100)
        if any(_after(cell.adapter, each) in (None, cell.adapter) for each in stages):
            return False
        lacks = (self.amateur if self.settings else self.prompt) == "without"
        if (lacks or self.chooses) and problem.without == problem.prompt:
            return False
        if (self.weights[1:] and problem.unasked is None) or (self.chooses and not cell.chosen):
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
            own = model.adapters.get(adapter or "")
            if own and Path(own).is_dir():
                return str(Path(own).resolve())
            return adapter and str(adapters / adapter)  # an absolute path stays what it is

        mine = {"prompt": problem.prompt, "without": problem.without, **problem.plain}[self.prompt]
        worn = cell.adapter if self.percent == 100 else _after(cell.adapter, self.percent)
        expert = Stream(mine, None if self.bare else folder(worn), scale=self.scale)
        amateurs: list[Stream] = []
        if self.amateur == "each":
            amateurs = [Stream(prompt, folder(cell.adapter)) for prompt in problem.lacking]
        elif self.settings:
            prompts = {"without": problem.without, **problem.plain}
            theirs = prompts.get(self.amateur, problem.prompt)
            others = {"base": None, "quarter": _after(cell.adapter, 25)}
            worn = others.get(self.amateur, cell.adapter)
            amateurs.append(Stream(theirs, folder(worn), self.weights[0] if self.weights else None))
        if self.weights[1:]:
            assert problem.unasked is not None
            amateurs.append(Stream(problem.unasked, folder(cell.adapter), self.weights[1]))
        sampling = {
            "temperature": 0.0, "max_tokens": cell.max_tokens, "stop": cell.stops(model),
            **self.sampling,
        }  # fmt: skip
        if "temperature" in self.sampling:
            sampling["seed"] = 0
        # A prompt without the part has nothing to be contrasted with.
        if any((each.prompt, each.adapter) == (mine, expert.adapter) for each in amateurs):
            return Request(model, expert, (), {}, sampling)
        return Request(model, expert, tuple(amateurs), self.settings, sampling)

    def read(self, answer: str, cell: Cell, problem: Problem) -> str:
        """What is judged of an answer."""
        return cell.filter(answer, problem) if self.filters and cell.filter else answer


def _after(adapter: str | None, percent: int) -> str | None:
    """The same adapter after so much of its training; None if it is none of ``train``'s."""
    found = re.fullmatch(r"([^/]*-r\d+)-\d+", adapter or "")
    return found and f"{found[1]}-{percent}"


def preset(name: str, key: str = "", prompt: str = "prompt", **more: Any) -> Method:
    """A contrast by a preset's values."""
    found = PRESETS[name]
    return Method(key or name, found.settings, prompt, weights=found.weights, **more)


GREEDY = Method("greedy")
# Whole answers are chosen between these two.
MEMORY = Method("without the part", prompt="without")
# Without a contrast, for one stream, where a better answer may be had for less.
PLAIN = (
    GREEDY,
    MEMORY,
    Method("better prompt", prompt="better"),
    Method("part repeated", prompt="repeated"),
    Method("best passage", prompt="best"),
    Method("best passage or none", prompt="enough"),
)
CONTRASTS = (
    preset("cad"),  # cfg has the same values
    preset("cad", "better prompt + cad", "better"),
    preset("cad", "part repeated + cad", "repeated"),
    preset("cad", "best passage or none + cad", "enough"),
    preset("grounded"),
    preset("adacad"),
    Method("alpha 0.1, beta 1", {"alpha": 0.1, "beta": 1.0}),
    Method("cad, beta 0.25", {"alpha": 0.0, "beta": 0.25}),
    Method("cad, beta 1", {"alpha": 0.0, "beta": 1.0}),
)
RULES = tuple(preset(name) for name in ("acd", "arr", "cocoa", "grd", "m3id", "mti"))
CHOICE = Method("whole answers chosen", chooses=True)
_DRAWN = {"temperature": 1.0}
# Of an expert with an adapter. The last ones draw: a contrast is a mask and a sharpening, too.
ADAPTED = (
    Method("base model", bare=True),
    preset("cold", amateur="base"),
    Method(f"adapter x {ONE_STREAM:g}", scale=ONE_STREAM),
    Method("adaptive", {"alpha": 0.1, "rule": "adaptive"}, amateur="base"),
    preset("cold", "cold, amateur: quarter", amateur="quarter"),
    Method("drawn", sampling=_DRAWN),
    preset("cold", "drawn, cold", amateur="base", sampling=_DRAWN),
    Method("drawn, min_p", sampling={**_DRAWN, "min_p": 0.1}),
    Method("drawn, min_p, sharper", sampling={"temperature": 1 / ONE_STREAM, "min_p": 0.1}),
)
FILTERED = Method("output filtered", filters=True)
# Prompts against instructions in documents, and none of these.
GUARDED = tuple(
    Method(name, prompt=name)
    for name in ("sandwich", "warning", "marked", "marked and sandwich", "no documents")
)
# What the part may add at most to an answer, over the prompt without it or the question alone; what
# each of several parts may.
BOUNDS = tuple(
    Method(f"{bits:g} bits{over}", {**PRESETS["bound"].settings, "bits": bits}, amateur=amateur)
    for amateur, over, sizes in (
        ("without", "", (4.0, 8.0, 16.0, 32.0)),
        ("question", " over the question", (16.0, 32.0, 64.0)),
        ("each", " of each", (8.0, 16.0, 32.0)),
    )
    for bits in sizes
)
# The same for an adapter of somebody else, over the base model with its own prompt, and rivals.
_OVER_BASE = {**PRESETS["bound"].settings, "bits": 8.0}
POISONED = (
    Method("base model, own prompt", prompt="base", bare=True),
    *(Method(f"adapter x {scale:g}", scale=scale) for scale in (0.25, 0.5, 0.75)),
    *(
        Method(f"base weighs {w:g}", {"alpha": 0.0}, amateur="base", weights=(w,))
        for w in (0.25, 0.5, 0.75)
    ),
    Method("clean_gen", {"alpha": 0.0, "rule": "clean_gen"}, amateur="base"),
    Method("a quarter of the steps", percent=25),
    Method("half of the steps", percent=50),
    *(
        Method(f"{bits:g} bits over the base", {**_OVER_BASE, "bits": bits}, amateur="base")
        for bits in (8.0, 16.0, 32.0)
    ),
    Method(
        "8 bits and 0.5 a token over the base",
        {**_OVER_BASE, "bits_per_token": 0.5},
        amateur="base",
    ),
)
METHODS = {
    method.key: method
    for method in (
        *PLAIN,
        *CONTRASTS,
        CHOICE,
        *RULES,
        *ADAPTED,
        FILTERED,
        *GUARDED,
        *BOUNDS,
        *POISONED,
    )
}
