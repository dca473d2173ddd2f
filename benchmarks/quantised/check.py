# SPDX-License-Identifier: Apache-2.0
"""Quantised base models with LoRA and CoLD on CPU: are the tokens right, and what does it save?

``python -m benchmarks.quantised.check [NAME ...] [--dtype bfloat16] [--batch 1 8] [--tokens 48]
[--rounds 5] [--skip-times] [--json FILE]``. Names are those of ``benchmarks.quantised.make``, which
makes the checkpoints that are missing; the adapter is the sorting one.

Each checkpoint, and the model as it is, has an engine of this package in a process of its own; one
computes at a time, in rounds whose order is shuffled. Every token of every engine is judged by
the same checkpoint in transformers and peft (``reference``), in float32, which reads the text up to
that token, one pass for each stream: how far is it behind the best one, or outside the candidates?
What rounding may do is measured: the reference, rounded to the engine's dtype, reads the same
texts, and what it would have chosen is judged likewise; an engine may be about as far off as that
(``judge``). Where inputs are rounded to int8 that can be far: all layers behind see a step
of one. What the model as it is chose is judged by the quantised references too: where that would
pass, the tables say that these texts cannot tell the two apart. Speeds are printed only if all
tokens are right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.e2e import show
from benchmarks.e2e.jobs import Job, Jobs, Say, System
from benchmarks.e2e.pool import Worker, Workers, environment
from benchmarks.e2e.run import DTYPES, TASK, kv_gib, measure
from benchmarks.e2e.speculation import table
from benchmarks.quantised.judge import TIE, Reference, Verdict, too_far, too_often
from benchmarks.quantised.make import SCHEMES, checkpoint
from benchmarks.rounds import positive, ratios, show_if_right, spread_text
from examples.demo import ADAPTERS, quiet

PLAIN = "unquantised"
DEFAULT = ("w8a8", "w4a16", "awq", "gptq", "fp8")  # each kernel once, and the formats
NOT_IN_FLOAT32 = ("w4a16", "w4a16-asym", "awq", "gptq")
DECODED = ("base", "adapter", "cold")


class Engines(Workers):
    """An engine of this package for each checkpoint; a family is a checkpoint's name."""

    models: Mapping[str, Path] = {}

    def get(self, family: str) -> Worker:
        """The worker of a checkpoint."""
        if family not in self.running:
            self._say(f"{self._settings['dtype']}: starting {family}")
            self.running[family] = Worker(
                {**self._settings, "family": "plugin", "model": str(self.models[family])},
                environment("plugin", self._kv_gib, os.environ),
                self._folder / f"{family}.log",
            )
        return self.running[family]


@dataclass
class Found:
    """All that was measured: jobs and verdicts by batch, checkpoint and mode."""

    jobs: dict[tuple[int, str, str], Job] = field(default_factory=dict)
    verdicts: dict[tuple[int, str, str], Verdict] = field(default_factory=dict)
    others: dict[str, Verdict] = field(default_factory=dict)
    alike: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)


def collect(
    options: argparse.Namespace, models: dict[str, Path], prompts: list[list[int]], say: Say
) -> Found:
    """Run all engines, then judge their tokens by one reference after the other."""
    found = Found(bytes={name: weight_bytes(folder) for name, folder in models.items()})
    streams = 2 * options.batch[-1]
    longest = max(map(len, prompts)) + options.tokens
    config = json.loads((models[PLAIN] / "config.json").read_text(encoding="utf-8"))
    gib = kv_gib(config, DTYPES[options.dtype], [(streams, longest)])
    settings = {
        "adapter": str(ADAPTERS / TASK),
        "dtype": options.dtype,
        "rank": 8,
        "max_loras": 1,
        "max_model_len": max(512, longest),
        "max_num_seqs": streams,
    }
    rng = random.Random(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        Engines(settings, gib, Path(folder), say) as engines,
    ):
        engines.models = models
        found.facts = {name: engines.get(name).facts for name in models}
        for batch in options.batch:
            jobs: Jobs = {}
            for name in models:
                for mode in DECODED:
                    label = f"{name}, {mode}"
                    system = System(label, label, name, mode)
                    rounds = 0 if options.skip_times else options.rounds
                    job = Job(
                        system, label, prompts[:batch], options.tokens, rounds, options.tokens
                    )
                    jobs[label] = found.jobs[batch, name, mode] = job
            found.wrong += measure(jobs, engines, rng, f"batch {batch}", say)
        found.peaks = {name: worker.peak for name, worker in engines.running.items()}
    for name, path in models.items():
        say(f"judging {name}")
        folder = None if name == PLAIN else path
        judge(found, name, Reference(models[PLAIN], folder, options.dtype), options)
    return found


def judge(found: Found, name: str, reference: Reference, options: argparse.Namespace) -> None:
    """Judge a checkpoint's tokens, and for comparison those of the model as it is."""
    tie = TIE[options.dtype]
    verdicts, largest = {}, {}  # the largest batch has the texts of all others
    for (batch, whose, mode), job in found.jobs.items():
        if whose == name:
            verdict = found.verdicts[batch, name, mode] = reference.judge(job, tie)
            verdicts[f"{job.label}, batch {batch}"] = verdict
            if batch == options.batch[-1]:
                largest[job.label] = verdict
    found.wrong += too_far(verdicts, tie) + too_often(largest)
    if name != PLAIN:
        strange = found.jobs[options.batch[-1], PLAIN, "cold"]
        other = found.others[name] = reference.judge(strange, tie)
        if not too_far({name: other}, tie) + too_often({name: other}):
            found.alike.append(name)


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def page(found: Found, options: argparse.Namespace) -> str:
    """The tables, in Markdown."""
    names = list(dict.fromkeys(name for _, name, _ in found.jobs))
    columns = ["checkpoint", "MB", "batch", *(f"{m}: equal, worst" for m in DECODED),
               f"tokens of {PLAIN}"]  # fmt: skip
    rows = [
        [
            name,
            f"{found.bytes[name] / 1e6:.0f}",
            str(batch),
            *(text(found.verdicts[batch, name, mode]) for mode in DECODED),
            text(found.others[name]) if name in found.others else "-",
        ]
        for batch in options.batch
        for name in names
    ]
    parts = [
        f"### Tokens against the same checkpoint in transformers, {options.dtype}",
        table(columns, rows),
        "Equal: the share that is the reference's best; worst: how far behind, in logits; in "
        "brackets: the same of what the rounded reference would have chosen.",
        *(f"These texts do not tell {name} from {PLAIN}." for name in found.alike),
    ]
    if options.skip_times:
        return "\n\n".join(parts)
    columns = ["checkpoint", "batch", *(f"{m}, s" for m in DECODED),
               *(f"{m} / {PLAIN}" for m in DECODED), "cold / adapter"]  # fmt: skip
    rows = []
    for batch in options.batch:
        for name in names:
            own = [found.jobs[batch, name, mode].seconds for mode in DECODED]
            plain = [found.jobs[batch, PLAIN, mode].seconds for mode in DECODED]
            shares = [spread_text(ratios(a, b)) for a, b in zip(own, plain, strict=True)]
            rows.append(
                [
                    name,
                    str(batch),
                    *(spread_text(seconds, show.short) for seconds in own),
                    *(shares if name != PLAIN else ["1"] * len(DECODED)),
                    spread_text(ratios(own[2], own[1])),
                ]
            )
    parts += [f"### Seconds for {options.tokens} tokens of each request", table(columns, rows)]
    return "\n\n".join(parts)


def text(verdict: Verdict) -> str:
    """A verdict in a cell."""
    rounded = f"{verdict.rounded_equal:.1%}, {verdict.rounded_behind:.2f}"
    return f"{verdict.equal:.1%}, {verdict.behind:.2f} ({rounded})"


def content(found: Found) -> dict[str, Any]:
    """Everything for a file; speeds only if the tokens are right."""
    return {
        "machine": show.machine().splitlines(),
        "load average after": os.getloadavg(),
        "problems": found.wrong,
        "workers": found.facts,
        "weight bytes": found.bytes,
        "peak bytes": found.peaks,
        "judged for comparison": {name: vars(v) for name, v in found.others.items()},
        "runs": [
            {
                "checkpoint": name,
                "batch": batch,
                "mode": mode,
                **vars(found.verdicts[batch, name, mode]),
                **({} if found.wrong else show.as_json(job)),
            }
            for (batch, name, mode), job in found.jobs.items()
        ],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCHEMES)}")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--tokens", type=positive, default=48, help="of each request, 2 or more")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--skip-times", action="store_true", help="tokens alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all measurements")
    options = parser.parse_args(arguments)
    options.names = options.names or list(DEFAULT)
    for name in (name for name in options.names if name not in SCHEMES):
        parser.error(f"{name}: must be among {', '.join(SCHEMES)}")
    if options.dtype == "float32" and (four := [n for n in options.names if n in NOT_IN_FLOAT32]):
        parser.error(f"--dtype float32: vLLM has no kernel for {', '.join(four)}")
    if options.tokens < 2:
        parser.error(f"--tokens {options.tokens}: must be 2 or more, or there is no TPOT")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: must be a file in a folder that exists")
    options.batch = sorted(set(options.batch))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; the exit status is 1 if tokens are wrong."""
    options = parse(arguments)
    quiet()

    from transformers import AutoTokenizer

    from examples.smollm2 import model_path
    from examples.tasks import TASKS, chat_prompt

    began = time.monotonic()

    def say(what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3d}:{seconds:02d}  {what}", file=sys.stderr, flush=True)

    print(show.machine())
    print(f"{show.load()} before")
    models = {PLAIN: model_path()}
    for name in options.names:
        say(f"checkpoint {name}")
        models[name] = checkpoint(name)
    tokenizer = AutoTokenizer.from_pretrained(models[PLAIN])
    prompts = [
        tokenizer(chat_prompt(tokenizer, problem), add_special_tokens=False)["input_ids"]
        for problem in TASKS[TASK].prompts("test", options.batch[-1])
    ]
    found = collect(options, models, prompts, say)
    print(f"{show.load()} after")
    for name, facts in found.facts.items():
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in facts.items())}")
    if options.json is not None:
        options.json.write_text(json.dumps(content(found), indent=1) + "\n")
    return show_if_right(found.wrong, lambda: print(f"\n{page(found, options)}"))


if __name__ == "__main__":
    sys.exit(main())
