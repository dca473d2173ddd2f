# SPDX-License-Identifier: Apache-2.0
"""What regular requests notice of contrastive ones beside them, against equal work on stock vLLM.

``python -m benchmarks.bench_beside --json benchmarks/measured/beside.json``: 50 minutes on two
cores on which nothing else runs; then ``python -m docs.tables`` and ``python -m docs.pictures``.
``--quick`` tries everything in some minutes and says nothing about speed; ``--workloads``,
``--shares``, ``--loads``, ``--regular``, ``--seconds``, ``--rounds`` measure less or more. ``--from
FILE`` shows what an earlier run wrote.

Traffic is open-loop: requests come at random times (Poisson) whether or not the server keeps up,
and a request's first token is counted from when it was due. Prompts and answers have lognormal
lengths (``benchmarks.beside.traffic``), scaled to SmolLM2-135M-Instruct on two cores: medians 24
and 8 tokens, documents 96. Of the requests 0, 10 or 30 % are contrastive: with one amateur, which
reads another instruction (``adapters``: has no adapter); with one that does not read the document;
with four. The systems, an ``AsyncLLM`` process each:

- ``stock``: the same traffic with each contrastive request replaced, at the same time, by as many
  regular ones as it has streams, of the same prompts, adapters and lengths. Of the ``text``
  workload it is vLLM without the plugin (``VLLM_PLUGINS=``), and of ``adapters`` vLLM with this
  package's kernels for CPUs alone (``VLLM_PLUGINS=cold_cpu``): vLLM's own LoRA on CPU is several
  times slower, and the comparison would show that.
- ``vllm-cold``: ``VLLM_PLUGINS=cold``, with ``adapters`` also ``cold_cpu``: the same kernels as
  ``stock``'s, so that what they gain pays for nothing here.
- ``stock again``, where nothing is contrastive: another process of ``stock``, for what two of one
  system differ by.
- ``capped``, in a flood: ``vllm-cold`` with ``--max-share`` of the seats for contrastive requests
  (``--cold-max-share``). A flood is ``text`` with the most and the largest contrastive requests, at
  ``FLOOD`` % of what the machine can do.

100 % is what ``stock`` does of the same mix in a closed loop that fills its seats, seen first.
In each round all points come in an order that is shuffled anew, and at each point the systems do,
one after the other, with an empty prefix cache: all of a round get the same requests at the same
times. The processes live throughout; one computes at a time. Percentiles are of the regular
requests of all rounds, their quotients have intervals of 95 % by a bootstrap that draws rounds
(expanded for their small number: ``spans``).

Speeds are measured in bfloat16, as servers are run; in it a token may depend on the batch, so of
these tokens only the share that equals stock's is told, beside the share of stock's own second run.
Therefore an extra pass is in float32: all contrasts at once at 30 %, and the tokens of each regular
request must be those that stock vLLM, without any plugin, gives it alone, but for choices up to
``TIE`` nats apart. No speed is shown if one is not, or if an answer is too short.

Aims, for the first token: p99 at most 1.1 times that of equal work, p50 at most 1.03; where nothing
is contrastive, no more than the interval of two processes of stock allows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.beside import pages
from benchmarks.beside.pages import AGAIN, CAPPED, OURS, STOCK
from benchmarks.beside.traffic import (
    ADAPTERS,
    CONTRASTS,
    LOADS,
    LONGEST,
    REGULAR,
    SHARES,
    Mix,
    Request,
    Text,
    equal_work,
    mixes,
    schedule,
)
from benchmarks.e2e.pool import Worker, environment
from benchmarks.rounds import (
    Say,
    new_file,
    positive,
    progress,
    show_if_right,
    table,
)

PLUGINS = {
    "text": {STOCK: "", OURS: "cold"},
    "adapters": {STOCK: "cold_cpu", OURS: "cold,cold_cpu"},
}
SEATS = 32  # --max-num-seqs, and sequences of the closed loop
OF_CAPACITY = 128  # regular requests, in it
FLOOD = 150  # percent of the capacity
FLOOD_TIMES = 2  # as many requests as elsewhere, so that more and more wait
KV_GIB = 1
TIE = 1e-3  # nats, float32


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        workloads: Of ``traffic.CONTRASTS``.
        shares: Percent of the requests that are contrastive, besides 0.
        loads: Percent of the capacity.
        regular: Regular requests of a run, at least.
        seconds: For which requests come in a run on average, at least.
        rounds: Runs of each system at each point.
        exact: Regular requests whose tokens are compared in float32.
        max_share: The cap of ``capped``.
        eager: Whether the model is not compiled.
    """

    workloads: Sequence[str] = tuple(CONTRASTS)
    shares: Sequence[int] = SHARES
    loads: Sequence[int] = LOADS
    regular: int = 50
    seconds: float = 6.0
    rounds: int = 5
    exact: int = 60
    max_share: float = 0.25
    eager: bool = False


QUICK: dict[str, Any] = {
    "workloads": ["text"], "shares": [30], "loads": [80], "regular": 6, "seconds": 0.0, "rounds": 2,
    "exact": 6, "eager": True,
}  # fmt: skip


@dataclass
class Findings:
    """All that was measured.

    Attributes:
        capacity: Requests per second of stock, by mix.
        runs: Of each run its point, system, round and figures in milliseconds.
        engines: What the processes say of themselves.
        wrong: What is wrong with results; figures count only if this stays empty.
        notes: What else the checks found.
    """

    capacity: dict[str, float] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    engines: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Bench:
    """Runs the plan in processes that it starts."""

    def __init__(self, plan: Plan, model: Path, text: Text, folder: Path, say: Say) -> None:
        self.found = Findings()
        self._plan, self._model, self._text = plan, model, text
        self._folder, self._say = folder, say
        self._equal: dict[str, list[bool]] = {OURS: [], AGAIN: []}

    def run(self) -> Findings:
        """All of the plan, or as much of it as the processes survive."""
        try:
            for workload in self._plan.workloads:
                self._exact(workload)
                self._measure(workload)
        except RuntimeError as error:
            self.found.wrong.append(str(error))
        for system, equal in self._equal.items():
            if equal:
                self.found.notes.append(
                    f"bfloat16: {np.mean(equal):.1%} of {len(equal)} answers of {system} to "
                    "regular requests equal stock's of the same round"
                )
        return self.found

    @contextmanager
    def _servers(
        self, workload: str, dtype: str, plugins: Mapping[str, str]
    ) -> Iterator[dict[str, Worker]]:
        """A process for each system, started one after the other."""
        from examples.demo import ADAPTERS as FOLDER

        options = {
            "model": str(self._model), "dtype": dtype, "max_model_len": LONGEST + 1,
            "max_num_seqs": SEATS, "enforce_eager": self._plan.eager,
        }  # fmt: skip
        adapters = {name: str(FOLDER / name) for name in ADAPTERS} if workload == "adapters" else {}
        with ExitStack() as stack:
            servers = {}
            for system, names in plugins.items():
                self._say(f"{workload}, {dtype}: starting {system}")
                ours = system in (OURS, CAPPED)
                cap = {"max_share": self._plan.max_share} if system == CAPPED else {}
                settings = {
                    "family": f"{system} of {workload}", "options": options, "adapters": adapters,
                    "contrasts": ours, "cold": {"enabled": False, **cap} if ours else None,
                }  # fmt: skip
                env = environment("plugin", KV_GIB, os.environ) | {
                    "VLLM_PLUGINS": names, "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
                }  # fmt: skip
                log = self._folder / f"{system}-{workload}-{dtype}.log".replace(" ", "-")
                servers[system] = Worker(settings, env, log, "benchmarks.beside.server")
                stack.callback(servers[system].close)
                self.found.engines[f"{workload}, {dtype}, {system}"] = servers[system].facts
            yield servers

    def _send(
        self, label: str, server: Worker, requests: Sequence[Request], **how: Any
    ) -> dict[str, Any]:
        got = server.ask("run", requests=[each.as_json() for each in requests], **how)
        self.found.wrong += pages.problems(label, requests, got)
        return got

    def _exact(self, workload: str) -> None:
        """Compare tokens in float32 of regular requests among contrastive ones of all kinds."""
        share = max(self._plan.shares)
        kinds = [Mix(workload, share, kind) for kind in CONTRASTS[workload]]
        each = math.ceil(self._plan.exact / len(kinds))
        crowd = [
            request
            for seed, mix in enumerate(kinds)
            for request in schedule(mix, each, math.inf, self._text, seed)
        ]
        regular = [index for index, request in enumerate(crowd) if request.kind == REGULAR]
        plugins = {STOCK: "", OURS: PLUGINS[workload][OURS]}
        with self._servers(workload, "float32", plugins) as servers:
            label = f"{workload}, float32"
            got = self._send(label, servers[OURS], crowd)
            alone = self._send(
                label, servers[STOCK], [crowd[index] for index in regular], at_a_time=1,
                logprobs=True,
            )  # fmt: skip
        wrong, ties = pages.parts(
            alone["tokens"], alone["likely"], [got["tokens"][index] for index in regular], TIE
        )
        self.found.wrong += [f"{label}: {each}" for each in wrong]
        self.found.notes.append(
            f"{label}: {len(regular)} regular requests among {len(crowd) - len(regular)} "
            f"contrastive ones got stock's tokens alone, {ties} of them up to a tie"
        )

    def _measure(self, workload: str) -> None:
        plan, plugins = self._plan, PLUGINS[workload]
        plugins = plugins | {AGAIN: plugins[STOCK]}
        if workload == "text":
            plugins[CAPPED] = plugins[OURS]
        with self._servers(workload, "bfloat16", plugins) as servers:
            of = mixes(workload, plan.shares)
            for system, server in servers.items():  # warm
                mix = of[-1]
                self._send(system, server, self._traffic(mix, math.inf, 0, system))
            for mix in of:
                self.found.capacity[str(mix)] = self._capacity(mix, servers[STOCK])
            self._say(f"{workload}: {self._estimate(of):.0f} minutes of traffic")
            points = [(mix, load) for mix in of for load in plan.loads]
            if CAPPED in servers:
                points.append((of[-1], FLOOD))
            rng = random.Random(0)
            for round_ in range(plan.rounds):
                rng.shuffle(points)
                for mix, load in points:
                    self._round(round_, mix, load, servers, rng)
                self._say(f"{workload}: round {round_ + 1} of {plan.rounds}")

    def _traffic(
        self, mix: Mix, rate: float, seed: int, system: str, times: int = 1
    ) -> list[Request]:
        made = schedule(mix, times * self._regular(mix, rate), rate, self._text, seed)
        return made if system in (OURS, CAPPED) else equal_work(made)

    def _regular(self, mix: Mix, rate: float) -> int:
        """How many regular requests a run has in which so many requests come in a second."""
        if math.isinf(rate):
            return self._plan.regular
        least = self._plan.seconds * rate * (1 - mix.percent / 100)
        return max(self._plan.regular, math.ceil(least))

    def _capacity(self, mix: Mix, server: Worker) -> float:
        """Requests per second of a mix in a closed loop, while all seats are taken."""
        made = equal_work(schedule(mix, OF_CAPACITY, math.inf, self._text, 10_000))
        got = self._send(f"{mix}, closed loop", server, made, at_a_time=SEATS)
        clients = {request.number for request in made}
        return throughput(got["done"]) * len(clients) / len(made)

    def _estimate(self, of: Sequence[Mix]) -> float:
        """Minutes that the traffic of these takes, without the flood."""
        seconds = 0.0
        for mix, load in product(of, self._plan.loads):
            rate = self.found.capacity[str(mix)] * load / 100
            requests = self._regular(mix, rate) / (1 - mix.percent / 100)
            seconds += requests / rate * (2 + (mix.percent == 0))
        return seconds * self._plan.rounds / 60

    def _round(
        self, round_: int, mix: Mix, load: int, servers: Mapping[str, Worker], rng: random.Random
    ) -> None:
        """All systems at one point."""
        rate = self.found.capacity[str(mix)] * load / 100
        order = [OURS, STOCK] + [AGAIN] * (mix.percent == 0) + [CAPPED] * (load == FLOOD)
        rng.shuffle(order)
        tokens = {}
        seed = 1000 * load + round_
        for system in order:
            made = self._traffic(mix, rate, seed, system, FLOOD_TIMES if load == FLOOD else 1)
            label = f"{mix} at {load} %, {system}"
            got = self._send(label, servers[system], made)
            point = asdict(mix) | {"load": load, "round": round_, "system": system, "rate": rate}
            self.found.runs.append(point | figures(made, got))
            tokens[system] = [
                row for each, row in zip(made, got["tokens"], strict=True) if each.kind == REGULAR
            ]
        for system in self._equal:
            if system in tokens:
                pairs = zip(tokens[system], tokens[STOCK], strict=True)
                self._equal[system] += [a == b for a, b in pairs]


def throughput(done: Sequence[float]) -> float:
    """Answers per second of those between the first and the last ``SEATS``, or the middle half."""
    times = sorted(done)
    edge = min(SEATS, len(times) // 4)
    first, last = edge, len(times) - 1 - edge
    return (last - first) / (times[last] - times[first])


def figures(made: Sequence[Request], got: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds of a run: regular requests' ``first`` token and each ``further`` one;
    ``contrastive`` ones' first token, of equal work that of the slowest stream; how ``late`` the
    client sent at most.
    """
    first: list[float] = []
    further: list[float] = []
    contrastive: dict[int, float] = {}
    for request, begin, end in zip(made, got["first"], got["last"], strict=True):
        if request.kind == REGULAR:
            first.append(round(1e3 * begin, 2))
            further.append(round(1e3 * (end - begin) / (request.tokens - 1), 3))
        else:
            slowest = max(contrastive.get(request.number, 0.0), 1e3 * begin)
            contrastive[request.number] = round(slowest, 2)
    return {
        "first": first, "further": further, "contrastive": list(contrastive.values()),
        "late": round(1e3 * max(got["sent"]), 2),
    }  # fmt: skip


def percent(text: str) -> int:
    """An integer from 1 to 99, for argparse."""
    value = int(text)
    if not 1 <= value <= 99:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 to 99")
    return value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; ``plan`` is what follows from them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", choices=CONTRASTS, nargs="+")
    parser.add_argument("--shares", type=percent, nargs="+", help="percent contrastive, besides 0")
    parser.add_argument("--loads", type=percent, nargs="+", help="percent of the capacity")
    parser.add_argument("--regular", type=positive, help="regular requests of a run, at least")
    parser.add_argument("--seconds", type=float, help="in which they come on average, at least")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--max-share", type=float, help="the cap in a flood, of the seats")
    parser.add_argument("--quick", action="store_true", help="a trial of a minute or two")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="all measurements")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="of --json")
    options = parser.parse_args(arguments)
    named = ("workloads", "shares", "loads", "regular", "seconds", "rounds", "max_share")
    given = {name: value for name in named if (value := getattr(options, name)) is not None}
    options.plan = Plan(**(QUICK if options.quick else {}) | given)
    return options


def text(content: Mapping[str, Any]) -> str:
    """The machine, what was checked, and all tables."""
    parts = [machine.text(content["machine"]), *(f"- checked: {n}" for n in content["notes"])]
    rates = ", ".join(f"{name}: {rate:.2f}/s" for name, rate in content["capacity"].items())
    parts += [f"- capacity of stock: {rates}", *(f"- {v}" for v in pages.verdicts(content))]
    for workload in content["plan"]["workloads"]:
        for metric, title in pages.METRICS.items():
            rows = pages.rows(content, workload, metric)
            parts.append(f"\n{workload}, {title}:\n\n{table(pages.HEAD, rows)}")
    parts.append(f"\na flood:\n\n{table(pages.FLOOD_HEAD, pages.flood(content))}")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 if a check failed."""
    options = parse(arguments)
    if options.source is not None:
        content = json.loads(options.source.read_text())
        return show_if_right(content["wrong"], lambda: print(text(content)))
    from examples.demo import quiet

    quiet()
    from transformers import AutoTokenizer

    from examples.smollm2 import model_path

    path, facts = model_path(), machine.look()
    with tempfile.TemporaryDirectory() as folder:
        words = Text.of_facts(AutoTokenizer.from_pretrained(path))
        found = Bench(options.plan, path, words, Path(folder), progress()).run()
    machine.look_again(facts)
    content = {"machine": facts, "plan": asdict(options.plan), **asdict(found)}
    if options.json is not None:
        options.json.write_text(json.dumps(content) + "\n")
    return show_if_right(found.wrong, lambda: print(text(content)))


if __name__ == "__main__":
    sys.exit(main())
