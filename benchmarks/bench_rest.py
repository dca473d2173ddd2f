# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs an engine that contrasts nothing: at start, in memory, and in each step.

``python -m benchmarks.bench_rest --json benchmarks/measured/rest.json``: 20 minutes on two cores on
which nothing else runs; then ``python -m docs.tables``. ``--quick``: a trial of a minute or two,
which says nothing about speed. ``--from FILE`` shows what an earlier run wrote.

Tiny random models, so that a step is vLLM's Python above all, to which a plugin adds: a Llama that
decodes a batch of 8, the same that embeds it, and LLaVA with an image in each prompt. An engine is
a process of its own, with the front end in it, started anew in each round; all of a round are
started one after the other, in an order that is shuffled anew:

- ``without``: ``VLLM_PLUGINS=``, the plugin is not loaded;
- ``unused``: ``VLLM_PLUGINS=cold``, and nobody asks for contrasts;
- ``with kernels``: ``VLLM_PLUGINS=cold,cold_cpu``, as installed: also this package's kernels for
  CPUs, which take the place of vLLM's;
- ``asked``: as ``unused``, but the engine was asked for contrasts (``additional_config`` has
  ``"cold": true``), and none is running.

Start: seconds until an engine is ready, Python and imports included; of these what loading vLLM's
plugins took, which is measured more exactly. Memory: resident after some batches. Figures are
medians over the rounds; differences from ``without`` have intervals of 95 % (bootstrap of rounds).

Goals: ``unused``, below 0.3 s and 30 MB at start, and 2 % of a step; ``asked``, that of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.beside.resting import MEDIA, POOLING, TEXT
from benchmarks.beside.spans import Estimate, difference
from benchmarks.e2e.pool import Worker, environment
from benchmarks.rounds import in_rounds, new_file, positive, progress, short, table

WITHOUT = "without"


class System(NamedTuple):
    """How an engine is started: vLLM's plugins, and whether it is asked for contrasts."""

    plugins: str
    asked: bool = False


SYSTEMS = {
    WITHOUT: System(""),
    "unused": System("cold"),
    "with kernels": System("cold,cold_cpu"),
    "asked": System("cold", asked=True),
}
KINDS = (TEXT, POOLING, MEDIA)
GOALS = {"start": 0.3, "memory": 30.0}  # of ``unused``: seconds, MB
STEP = 0.02  # of ``unused`` and ``asked``: of a step without the plugin
TOKENS = {TEXT: 128, POOLING: 24, MEDIA: 128}  # batches, where they are pooled
HEAD = (
    "model", "engine", "start, s", "difference", "plugins, ms", "memory, MB", "difference",
    "step, ms", "difference", "first token, ms", "difference",
)  # fmt: skip


def pairs() -> list[tuple[str, str]]:
    """Kind and system; engines that pool are refused contrasts, so that none is asked."""
    return [
        (kind, name)
        for kind in KINDS
        for name, system in SYSTEMS.items()
        if not (kind == POOLING and system.asked)
    ]


def start(kind: str, name: str, model: Path, tokens: int, folder: Path) -> dict[str, Any]:
    """Start an engine, measure, and end it."""
    system = SYSTEMS[name]
    settings = {
        "family": f"{kind}, {name}", "kind": kind, "model": str(model), "tokens": tokens,
        "cold": True if system.asked else None, "ours": system.asked,
    }  # fmt: skip
    env = environment("plugin", 1, os.environ) | {"VLLM_PLUGINS": system.plugins}
    log = folder / f"{kind}-{name}.log".replace(" ", "-")
    started = time.perf_counter()
    worker = Worker(settings, env, log, "benchmarks.beside.resting")
    try:
        seconds = time.perf_counter() - started
        found = worker.ask("measure")
    finally:
        worker.close()
    kept = {key: found[key] for key in ("first", "step", "memory")}
    return {"kind": kind, "system": name, "start": seconds, **worker.facts, **kept}


def make_models(folder: Path) -> dict[str, Path]:
    """Write the tiny models, by kind."""
    from tests.engine.families import make_model
    from tests.engine.media import MEDIA as FAMILIES
    from tests.tiny import make_tiny_model

    (folder / "media").mkdir()
    text = make_tiny_model(folder / "text")
    media = make_model(FAMILIES["llava-1.5"].model, folder / "media")
    return {TEXT: text, POOLING: text, MEDIA: media}


def differing(found: Estimate, form: Callable[[float], str], goal: float | None = None) -> str:
    """A difference with its interval; bold if all of it is below a goal, with a dagger if none of
    it is.
    """
    text = f"{form(found.value)} ({form(found.low)} to {form(found.high)})"
    if goal is None:
        return text
    return f"**{text}**" if found.high < goal else text + "†" * (found.low >= goal)


def rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each model and engine."""
    order = {pair: place for place, pair in enumerate(pairs())}
    runs = sorted(
        content["runs"], key=lambda run: (order[run["kind"], run["system"]], run["round"])
    )
    by: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        for key in ("start", "memory", "step", "first", "plugins, ms"):
            by.setdefault((run["kind"], run["system"]), {}).setdefault(key, []).append(run[key])

    def less(kind: str, name: str, key: str, form: Callable[[float], str]) -> str:
        if name == WITHOUT:
            return ""
        found = difference(by[kind, name][key], by[kind, WITHOUT][key])
        if key == "step" and name in ("unused", "asked"):
            return differing(found, form, STEP * median(by[kind, WITHOUT][key]))
        return differing(found, form, GOALS.get(key) if name == "unused" else None)

    for kind, name in by:
        of = by[kind, name]
        yield [
            kind, name,
            f"{median(of['start']):.2f}", less(kind, name, "start", "{:+.2f}".format),
            short(median(of["plugins, ms"])),
            f"{median(of['memory']):.0f}", less(kind, name, "memory", "{:+.0f}".format),
            f"{median(of['step']):.3f}", less(kind, name, "step", "{:+.3f}".format),
            f"{median(of['first']):.2f}", less(kind, name, "first", "{:+.2f}".format),
        ]  # fmt: skip


def text(content: Mapping[str, Any]) -> str:
    """The machine and the table."""
    return f"{machine.text(content['machine'])}\n\n{table(HEAD, rows(content), left=2)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=8)
    parser.add_argument("--quick", action="store_true", help="a trial: a round of the text model")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="all measurements")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="of --json")
    options = parser.parse_args(arguments)
    if options.source is not None:
        print(text(json.loads(options.source.read_text())))
        return 0
    say, facts = progress(), machine.look()
    chosen = [pair for pair in pairs() if not options.quick or pair[0] == TEXT]
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder)
        # Once, uncounted: files and vLLM's caches are read from disk the first time.
        for kind in dict.fromkeys(kind for kind, _ in chosen):
            start(kind, WITHOUT, models[kind], 2, folder)
        rounds = 1 if options.quick else options.rounds
        for round_, (kind, system) in in_rounds(chosen, rounds, random.Random(0)):
            tokens = 8 if options.quick else TOKENS[kind]
            runs.append({"round": round_, **start(kind, system, models[kind], tokens, folder)})
            say(f"round {round_ + 1} of {rounds}: {kind}, {system}")
    machine.look_again(facts)
    content = {"machine": facts, "runs": runs}
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    print(text(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
