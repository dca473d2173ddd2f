# SPDX-License-Identifier: Apache-2.0
"""What scoring costs, on this machine's GPU or NPU or, without one, its CPU. Needs torch, no vLLM.

``python -m benchmarks.bench_scoring [--groups 1 8 32 128] [--streams 2 3 4]
[--vocab 49152 152064] [--rounds 30] [--dtype fp32 bf16] [--form dense inplace]
[--alpha 0.1] [--device cpu] [--check-only]``

Systems: this package's kernel, torch operations (backend "torch"), the same through torch.compile,
and a plain memory copy that moves as many bytes as scoring must: all rows of each group read once,
the scores written. Each system works on several copies of its data that together exceed the last
cache, so that nothing is left there from the call before. On a GPU it runs in a CUDA graph, on an
NPU in an ACL graph; ``--eager`` launches from Python instead. All systems run in each round, in an
order shuffled anew, and are compared within the round. Before that each result is compared with the
reference; with one wrong, no speed is printed.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.rounds import (
    in_rounds,
    positive,
    ratios,
    show_if_right,
    spread,
    spread_text,
    table,
)
from tests.ops.conformance import Case, check_dense, make_case
from vllm_cold.ops import backend_registry, cpu_library
from vllm_cold.ops.interface import Backend, Groups

FORMS = ("dense", "inplace")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COPY, EAGER, COMPILED = "memory copy", "torch eager", "torch.compile"


@dataclass(frozen=True)
class Workload:
    """G groups of S streams over V tokens, scored in one of ``FORMS``."""

    form: str
    dtype: str
    groups: int
    vocab: int
    streams: int = 2
    alpha: float = 0.1

    @property
    def bytes_moved(self) -> int:
        """Each logit read, each score written, once. (Of a third stream on, a backend may leave out
        what no candidate needs: then its share of the copy may be above 1.)
        """
        logits = self.streams * self.groups * self.vocab * DTYPES[self.dtype].itemsize
        return logits + self.groups * self.vocab * 4

    def case(self) -> Case:
        """Its data, on the CPU: about a dozen valid tokens a group at alpha 0.1."""
        dtype = DTYPES[self.dtype]
        shape = self.groups, self.vocab, dtype, "contiguous", ("normal",), self.streams
        case = make_case(0, *shape)
        case.log_alpha.fill_(math.log(self.alpha) if self.alpha else -math.inf)
        case.weights.fill_(-0.5)
        case.expert_top_k, case.max_expert_top_k = None, 0
        return case


def workloads(options: argparse.Namespace) -> Iterator[Workload]:
    """All that were asked for; in place is for float32 alone."""
    for streams, form, dtype, vocab, groups in product(
        options.streams, options.form, options.dtype, options.vocab, options.groups
    ):
        if form != "inplace" or dtype == "fp32":
            yield Workload(form, dtype, groups, vocab, streams, options.alpha)


class Buffers:
    """A workload's tensors on the device, in ``copies`` copies."""

    def __init__(self, load: Workload, case: Case, device: torch.device, copies: int = 1) -> None:
        def there(tensor: Tensor) -> Tensor:
            return tensor.to(device, copy=True)

        self.load = load
        self.pristine = there(case.logits)
        self.logits = [self.pristine.clone() for _ in range(copies)]
        given = (getattr(case.groups, each.name) for each in fields(Groups))
        self.groups = Groups(*(there(a) if isinstance(a, Tensor) else a for a in given))
        shape = (load.groups, load.vocab)
        self.out = [
            torch.full(shape, math.nan, device=device)
            for _ in range(copies if load.form == "dense" else 0)
        ]

    def restore(self) -> None:
        """Undo what scoring in place did."""
        if self.load.form == "inplace":
            for logits in self.logits:
                logits.copy_(self.pristine)

    def score(self, backend: Backend, copy: int) -> None:
        """One call of the backend."""
        out = self.out[copy] if self.load.form == "dense" else None
        backend.scores(self.logits[copy], self.groups, out, None)


def compiled(backend: Backend) -> Backend:
    """The same through torch.compile."""
    return Backend(backend.missing, torch.compile(backend.scores, dynamic=False))


def check(load: Workload, case: Case, backend: Backend, device: torch.device) -> str:
    """What is wrong with the backend's result, an empty string if nothing is."""
    buffers = Buffers(load, case, device)
    try:
        buffers.score(backend, 0)
        if load.form == "dense":
            check_dense(case, buffers.out[0].cpu())
        else:
            logits = buffers.logits[0].cpu()
            check_dense(case, logits[case.expert_rows])
            if not (logits[case.amateur_rows] < math.inf).all():
                raise ValueError("an amateur's row cannot be sampled from")
    except Exception as error:  # whatever it is, it must not end in a speed
        return f"{type(error).__name__}: {error}"
    return ""


# Seconds of a call in each round, by workload and system.
Times = dict[tuple[Workload, str], list[float]]


def last_cache(device: torch.device) -> int:
    """Bytes of the last cache before memory."""
    if device.type == "cpu":
        return machine.cpu_cache()
    properties = getattr(torch, device.type).get_device_properties(device)
    return int(getattr(properties, "L2_cache_size", 0)) or 192 * 2**20  # of an Atlas A2


def on_cpu(run: Callable[[], None]) -> Callable[[], float]:
    """Seconds of one run."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def on_gpu(run: Callable[[], None], eager: bool, device: str = "cuda") -> Callable[[], float]:
    """Seconds of one run, between events; in a graph unless ``eager``. For NPUs, too."""
    there = getattr(torch, device)
    stream = there.Stream()
    with there.stream(stream):  # compiles, and fills the allocator
        run()
    stream.synchronize()
    launch = run
    if not eager:
        graph = there.CUDAGraph() if device == "cuda" else there.NPUGraph()
        with there.graph(graph):
            run()
        launch = graph.replay

    def timed() -> float:
        start, end = (there.Event(enable_timing=True) for _ in "se")
        there.synchronize()
        start.record()
        launch()
        end.record()
        there.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return timed


def measure(
    load: Workload,
    case: Case,
    backends: dict[str, Backend],
    times: Times,
    device: torch.device,
    options: argparse.Namespace,
    rng: random.Random,
) -> None:
    """Add to the times: of one call, by one pass over all copies."""
    copies = max(2, -(-4 * last_cache(device) // load.bytes_moved))
    buffers = Buffers(load, case, device, copies)
    half = load.bytes_moved // 2
    source, target = (torch.zeros(copies, half, dtype=torch.uint8, device=device) for _ in "st")

    def copy_bytes() -> None:
        for one, other in zip(source, target, strict=True):
            other.copy_(one)

    def scoring(backend: Backend) -> Callable[[], None]:
        def score() -> None:
            for copy in range(copies):
                buffers.score(backend, copy)

        return score

    systems = {COPY: copy_bytes} | {name: scoring(b) for name, b in backends.items()}
    runs = {
        name: on_cpu(run) if device.type == "cpu" else on_gpu(run, options.eager, device.type)
        for name, run in systems.items()
    }
    for turn, name in in_rounds(runs, options.rounds + 2, rng):  # two to warm up
        buffers.restore()
        seconds = runs[name]() / copies
        if turn >= 2:
            times[load, name].append(seconds)


COLUMNS = ("form", "dtype", "V", "G", "S", "system", "us", "GB/s", f"{COPY} / it",
           f"{EAGER} / it", f"{COMPILED} / it")  # fmt: skip


def rows(times: Times) -> Iterator[list[str]]:
    """Times, bytes per second, and how many times as fast as the copy and torch, within rounds."""
    for (load, system), seconds in times.items():
        bases = [[] if b == system else times.get((load, b), []) for b in (COPY, EAGER, COMPILED)]
        yield [
            *(load.form, load.dtype, str(load.vocab), str(load.groups)),
            *(str(load.streams), system, spread_text(seconds, "{:.1f}".format, 1e6)),
            f"{load.bytes_moved / spread(seconds)[0] / 1e9:.1f}",
            *(spread_text(ratios(base, seconds)) for base in bases),
        ]


def describe(device: torch.device, backend: str) -> str:
    """Where it runs, and by what."""
    where = "the CPU"
    if device.type != "cpu":
        where = getattr(torch, device.type).get_device_name(device)
    elif backend == "cpu":
        where += f", {cpu_library.ISAS[cpu_library.best_isa()]}"
    cache = last_cache(device) / 2**20
    return f"scoring on {where}, last cache {cache:.0f} MiB; backend {backend}"


def best_device() -> str:
    """A GPU or an NPU, if there is one. (torch imports torch_npu where it is installed.)"""
    if torch.cuda.is_available():
        return "cuda"
    return "npu" if hasattr(torch, "npu") and torch.npu.is_available() else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print. Returns the exit status: 0 if every result is right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=positive, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--streams", type=positive, nargs="+", default=[2, 3, 4], help="of a group")
    parser.add_argument("--vocab", type=positive, nargs="+", default=[49152, 152064])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--form", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rounds", type=positive, default=30)
    parser.add_argument("--alpha", type=float, default=0.1, help="0: all valid, the worst case")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--backend", help="instead of the best one here")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--eager", action="store_true", help="no CUDA or ACL graphs")
    parser.add_argument("--check-only", action="store_true", help="compare, measure nothing")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    ours = backend_registry.choose(device, options.backend)
    backends = {ours: backend_registry.load(ours)}
    backends[EAGER] = backend_registry.load("torch")
    if not options.no_compile and not options.check_only:
        backends[COMPILED] = compiled(backends[EAGER])
    print(describe(device, ours))
    loads = list(workloads(options))
    times: Times = {(load, name): [] for load in loads for name in (COPY, *backends)}
    wrong = []
    for load in loads:
        for name, backend in backends.items():
            if found := check(load, load.case(), backend, device):
                wrong.append(f"{load}: {name}: {found}")
        torch._dynamo.reset()
    facts: machine.Facts = {}
    if not wrong and not options.check_only:
        facts, rng = machine.look(), random.Random(0)
        for load in loads:
            measure(load, load.case(), backends, times, device, options, rng)
            torch._dynamo.reset()
        machine.look_again(facts)

    def show() -> None:
        if options.check_only:
            print(f"{len(loads) * len(backends)} results, all right")
        else:
            print(f"{machine.text(facts)}\n\n{table(COLUMNS, rows(times), 6)}")

    return show_if_right(wrong, show)


if __name__ == "__main__":
    sys.exit(main())
