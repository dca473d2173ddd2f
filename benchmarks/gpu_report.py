#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check vllm-cold on your GPU, measure it, and write a report to send in.

Needs    one NVIDIA GPU (sm_80 or newer) or AMD GPU with 8 GiB free; Linux; an installed vLLM of the
         range that vllm-cold names, and beside it vllm-cold from its checkout or wheel (pip install
         PATH/TO/vllm-cold); 16 GiB of memory; 8 GiB free on disk for temporary files.
Takes    10 to 25 minutes (an estimate: it has not run on a GPU yet). Nothing else should use it.
Sends    nothing, and fetches nothing: no model, no hub. It writes vllm-cold-gpu-report.json and
         .md here, without host name, user name, addresses or paths. Read them, then send them in.

First the Triton kernels are compared with a float64 reference, in float32, bfloat16 and float16,
and the tokens of real engines, in float32, with those of a plain implementation without vLLM. What
is wrong has no speed: if any of that is, nothing is measured.

Long, because it is all that you need beside the installation: one file, no checkout.
"""

# Each stage is a process of its own, started by this one, which imports neither torch nor vLLM: a
# kernel that fails breaks the GPU for its process, an engine may die or hang, and Triton's
# interpreter (--dry-run) is chosen when Triton is imported. npu_report.py, which needs the
# checkout, has its frame and most of its stages from here.

from __future__ import annotations

import argparse
import getpass
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

if sys.argv[1:2] == ["--stage"] or "torch" in sys.modules:
    with suppress(Exception):  # stage_machine says what is missing
        import torch

        from vllm_cold.ops import Groups, contrastive_scores, contrastive_topk
        from vllm_cold.ops.scoring_reference import group_scores

NAME = "vllm-cold-gpu-report"
DRY_NOTE = "dry run: figures mean nothing"
INSTALL = (
    "install vllm-cold from its checkout or wheel (pip install PATH/TO/vllm-cold) beside an "
    "installed vLLM"
)
MEDIANS = (
    "Medians (20th to 80th percentile), ratios within a round. Scoring: as engines do it, in CUDA "
    "graphs, from a cold cache where the table says so. GB/s: both rows of a pair are read and "
    "the expert's is written once. Decoding: engine and caller are one process. Peaks: beyond what "
    "was allocated."
)
MIB, GIB = 2**20, 2**30
FREE_MEMORY, FREE_DISK = 8, 8  # GiB
LOG_LINES = 40
INF = math.inf
EPS, TINY = 2.0**-23, 2.0**-126  # of float32
DTYPES = ("float32", "bfloat16", "float16")
Json = dict[str, Any]


class WrongError(Exception):
    """A result that is not what it must be."""


def need(condition: Any, what: str) -> None:
    """Not an assertion: PYTHONOPTIMIZE would switch that off."""
    if not condition:
        raise WrongError(what)


def check(name: str, wrong: str = "") -> Json:
    """An entry of a stage's ``checks``; right if nothing is said to be wrong."""
    return {"name": name, "ok": not wrong, "result": wrong or "ok"}


def attempt(name: str, run: Callable[[], object]) -> Json:
    """The check that ``run`` raises nothing."""
    try:
        run()
    except Exception as error:  # whatever it is, it is reported, and the others go on
        return check(name, f"{type(error).__name__}: {error}")
    return check(name)


def spread(values: Sequence[float]) -> list[float]:
    """Median, 20th and 80th percentile."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return [statistics.median(values), fifths[0], fifths[-1]]


# --- The machine


def stage_machine(settings: Json, folder: Path) -> Json:
    """What is installed, why the report cannot be made here ("refused"), and whether vLLM is as
    the plugin needs it.
    """
    try:
        import torch
    except Exception as error:  # a library of CUDA's may be missing, too
        return {"refused": f"{error}: {INSTALL}."}
    if not settings["dry"] and not torch.cuda.is_available():
        return {"refused": "torch sees no GPU. Run it where there is one, with a driver that "
                "this torch can use. On a CPU there is --dry-run."}  # fmt: skip
    found = installed()
    if settings["dry"] or "refused" in found:
        return found
    gpu, hip = torch.cuda.get_device_properties(0), torch.version.hip
    free, total = torch.cuda.mem_get_info(0)
    if free < FREE_MEMORY * GIB:
        return {"refused": f"{free / GIB:.1f} GiB of GPU memory are free, not {FREE_MEMORY}."}
    if not hip and gpu.major < 8:
        return {"refused": f"{gpu.name} is sm_{gpu.major}{gpu.minor}, older than sm_80."}
    facts = found["facts"]
    facts |= {
        "GPU memory": f"{free / GIB:.1f} of {total / GIB:.1f} GiB free",
        "architecture": gpu.gcnArchName if hip else f"sm_{gpu.major}{gpu.minor}",
        "multiprocessors": str(gpu.multi_processor_count),
        "L2 cache": f"{gpu.L2_cache_size / MIB:.0f} MiB",
    }
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        if Path(path).exists():
            numbers = re.findall(r"\b\d+\.\d[.\d]*", Path(path).read_text(errors="replace"))
            facts["driver"] = numbers[0] if numbers else "unknown"
    return found


def installed() -> Json:
    """What the doctor says of packages, devices and contracts; or what is missing ("refused")."""
    try:
        import vllm  # noqa: F401

        from vllm_cold.tools.doctor import machine, sections
        from vllm_cold.tools.doctor.report import Status
        from vllm_cold.vllm import versions
    except Exception as error:
        return {"refused": f"{error}: {INSTALL}."}
    version = versions.vllm_version()
    if not versions.in_supported_range(version):
        return {"refused": f"vLLM {version} is installed; vllm-cold works with {versions.RANGE}."}
    facts = {entry.name: entry.value for entry in (*machine.installed(), *sections.devices())}
    facts["vLLM"] = version
    checks = [
        check(entry.name, entry.value if entry.status is Status.PROBLEM else "")
        for entry in (*sections.plugin(), *sections.contracts())
        if entry.status is not Status.FACT
    ]
    return {"facts": facts, "checks": checks}


def device_of(settings: Json) -> str:
    """torch's name of the device that a stage is about."""
    return "cpu" if settings["dry"] else str(settings.get("device", "cuda"))


# --- The kernels against the reference

KINDS = (
    "normal", "ties", "expert -inf", "amateur -inf", "NaN", "-NaN", "+inf", "ascending",
    "nothing left", "zeros", "tiny",
)  # fmt: skip


class Case(NamedTuple):
    """Arguments of the op: ``args`` is what comes behind the logits [R, V]."""

    logits: Any
    args: tuple[Any, ...]

    def to(self, device: Any) -> Case:
        """A copy on the device."""
        args = (a.to(device) if hasattr(a, "to") else a for a in self.args)
        return Case(self.logits.clone().to(device), tuple(args))


def rows_of(kind: str, streams: int, vocab: int, dtype: Any, generator: Any) -> Any:
    """[S, V] logits of one of ``KINDS``, the expert's first."""
    rows = torch.randn(streams, vocab, generator=generator) * 4
    half = torch.rand(vocab, generator=generator) < 0.5
    if kind == "ties":
        rows = (rows * 2).round() / 8
    elif kind == "ascending":  # the worst for a running top-k
        rows = rows.sort().values
    elif kind == "nothing left":
        rows[0] = -INF
    elif kind == "zeros":
        rows = torch.where(rows < 0, -0.0, 0.0)
    elif kind == "tiny":
        rows *= torch.finfo(dtype).tiny * 8
    elif kind == "expert -inf":
        rows[0, half] = -INF
    elif kind == "amateur -inf":
        rows[1:, half] = -INF
    rows = rows.to(dtype)
    if kind in ("NaN", "-NaN", "+inf"):  # of one token or many, of one row or all
        at = half if half[0] else torch.randint(vocab, (1,), generator=generator)
        of_one = torch.randint(streams + 1, (), generator=generator)
        for row in range(streams) if of_one == streams else (of_one,):
            if kind == "-NaN":
                bits(rows)[row, at] = -1  # all bits set
            else:
                rows[row, at] = math.nan if kind == "NaN" else INF
    return rows


def make_case(seed: int, groups: int, vocab: int, dtype: str) -> Case:
    """Groups scattered over some more rows; weights, alpha, cap and adaptive are drawn for each.
    Group i is of kind ``seed + i``. They have up to 2, 3 or 4 streams, by the seed. With even seeds
    no weight is adaptive.
    """
    generator = torch.Generator().manual_seed(seed)
    most, kind = 2 + seed % 3, getattr(torch, dtype)
    sizes = [most - i % (most - 1) for i in range(groups)]

    def one_of(*values: Any, shape: tuple[int, ...] = ()) -> Any:
        drawn = torch.randint(len(values), (groups, *shape), generator=generator)
        return torch.tensor(values)[drawn]

    logits = torch.full((sum(sizes) + 3, vocab), 7.0, dtype=kind)
    parts = torch.randperm(len(logits), generator=generator)[: sum(sizes)].split(sizes)
    rows = torch.full((groups, most), -1)
    for group, part in enumerate(parts):
        rows[group, : len(part)] = part
        name = KINDS[(seed + group) % len(KINDS)]
        logits[part] = rows_of(name, len(part), vocab, kind, generator)
    there, each = rows[:, 1:] >= 0, (most - 1,)
    log_alpha = one_of(math.log(0.1), math.log(1e-6), 0.0, -INF)
    weights = torch.where(there, one_of(-0.5, 0.0, -10.0, 0.75, shape=each), 0.0)
    caps = one_of(0, 0, 3, 0, 1, 0, 50, 0, 0, 10**9)
    adaptive = one_of(False, True, shape=each) & there if seed % 2 else None
    cap = int(caps.max())
    return Case(logits, (rows, weights, log_alpha, caps if cap else None, cap, adaptive))


def bits(x: Any) -> Any:
    """The same memory as integers: NaN is like itself, and -0 is not 0."""
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def not_finite(case: Case) -> Any:
    """[G] whether a group's rows hold NaN or +inf."""
    bad = case.logits.isnan().any(1) | (case.logits == INF).any(1)
    rows = case.args[0]
    return (bad[rows] & (rows >= 0)).any(1)


def check_scores(case: Case, got: Any) -> None:
    """``got`` [G, V] are the scores of the case; both are on the CPU."""
    need(not got.isnan().any(), "NaN: not written, or made")
    need((got < INF).all(), "a score is infinite")
    rows, weights, log_alphas, caps, _, adaptives = case.args
    bad = not_finite(case).tolist()
    for group, scores in enumerate(got):
        valid = scores > -INF
        if bad[group]:
            need(valid.any(), f"nothing can be sampled from group {group}, with NaN or +inf")
            continue
        log_alpha, cap = float(log_alphas[group]), 0 if caps is None else int(caps[group])
        e, *amateurs = (case.logits[row].double() for row in rows[group].tolist() if row >= 0)
        w, num = weights[group].tolist(), len(amateurs)
        adaptive = [False] * num if adaptives is None else adaptives[group, :num].tolist()
        exact = group_scores(e, amateurs, log_alpha, w[:num], cap, adaptive)
        edge = (e - e.max() - log_alpha).abs() <= EPS * (e.max().abs() + abs(log_alpha))
        edge &= (e < e.max()) & (log_alpha > -INF)  # tokens that rounding may let in or out
        if any(adaptive) and edge.any():
            continue  # and so it moves weights, and all scores of the group
        right = exact > -INF
        what = f"group {group}: log_alpha {log_alpha}, weights {w}, cap {cap}, adaptive {adaptive}"
        need(not ((valid != right) & ~edge).any(), f"other candidates in {what}")
        e, *amateurs = (torch.where(x == -INF, 0.0, x) for x in (e, *amateurs))
        # Relative to the terms, which may cancel. An adaptive weight errs by 36 EPS of its most.
        terms = sum((abs(f) * (e - a).abs() for f, a in zip(w, amateurs, strict=False)), e.abs())
        error = ((scores.double() - exact).abs() - 64 * EPS * terms - 2 * TINY)[valid & right]
        need((error <= 0).all(), f"scores beyond the tolerance in {what}")


def check_best(scores: Any, best: Sequence[Any], k: int) -> None:
    """The best k are those of the backend's own scores, exactly; ties go to the lower id."""
    order, ids = scores.sort(dim=1, descending=True, stable=True)
    room = (0, max(0, k - scores.shape[1]))  # where there are fewer than k tokens
    order = torch.nn.functional.pad(order[:, :k], room, value=-INF)
    ids = torch.nn.functional.pad(ids[:, :k], room)
    need(torch.equal(best[0].cpu(), order), f"wrong scores of the best {k}")
    ids = torch.where(order > -INF, ids, -1)
    need(torch.equal(best[1].cpu(), ids), f"wrong ids of the best {k}")


def conform(case: Case, device: Any, backend: str = "triton", ks: Sequence[int] = (1, 64)) -> None:
    """All forms of the op on a case, which is on the CPU; WrongError says what is wrong. What is
    not written shows in outputs.
    """
    there, knobs = case.to(device), {"check": False, "backend": backend}
    logits, args, before = there.logits, there.args, there.logits.clone()
    bad, groups = not_finite(case), Groups(*args)
    experts, amateurs = groups.rows[:, 0], groups.rows[:, 1:]
    dense = torch.full((len(groups), logits.shape[1]), math.nan, device=device)
    counts = torch.full((len(groups), 3), -7, device=device)

    def check_counts() -> None:
        need(torch.equal(counts[:, 2].cpu(), bad.long()), "NaN or +inf: not told of, or elsewhere")
        need(torch.equal(counts[~bad.to(device), :2].cpu(), right[~bad]), "wrong statistics")

    contrastive_scores(logits, groups, out=dense, statistics=counts, **knobs)
    scored, rows = dense.cpu(), case.logits[case.args[0][:, 0]].float()
    check_scores(case, scored)
    changed = scored.argmax(1) != rows.argmax(1)
    right = torch.stack([(scored > -INF).sum(1), changed.long()], 1)
    check_counts()
    for k in ks:
        check_best(scored, contrastive_topk(logits, groups, k=k, **knobs), k)
    need(torch.equal(bits(logits.cpu()), bits(case.logits)), "the input was written to")
    if logits.dtype != torch.float32:
        return
    counts.fill_(-7)
    contrastive_scores(logits, groups, inplace=True, statistics=counts, **knobs)
    need(torch.equal(logits[experts], dense), "in place: other scores than elsewhere")
    others = amateurs[amateurs >= 0]
    need(bool((logits[others] < INF).all()), "in place: an amateur cannot be sampled from")
    logits[experts] = before[experts]
    spoiled = amateurs[(amateurs >= 0) & bad.to(device).unsqueeze(1)]
    logits[spoiled] = before[spoiled]
    check_counts()
    same = torch.equal(bits(logits.cpu()), bits(case.logits))
    need(same, "in place: another row was written to")


def stage_kernels(settings: Json, folder: Path) -> Json:
    """contrastive_scores and contrastive_topk, as Triton or what is asked for, in all forms."""
    dry = settings["dry"]
    knobs: Json = {"device": device_of(settings), "backend": settings.get("backend", "triton")}
    knobs |= {"ks": (20,)} if dry else {}

    def run(seed: int, *size: Any) -> Json:
        name = "G={}, V={}, {}".format(*size)
        return attempt(name, lambda: conform(make_case(seed, *size), **knobs))

    return {"checks": [run(*case) for case in kernel_cases(dry)]}


def kernel_cases(dry: bool) -> list[tuple[int, int, int, str]]:
    """Seed, groups, vocabulary and dtype."""
    if dry:  # not the tiniest bfloat16 numbers: Triton's interpreter reads them as others
        sizes = [(22, 31, "float32"), (2, 4097, "bfloat16"), (2, 1025, "float16"),
                 (3, 2049, "float32"), (1, 151936, "float16")]  # fmt: skip
    else:
        vocabs = (1, 31, 64, 1025, 4096, 4097, 32001, 49152, 128256, 151936, 152064, 256000)
        sizes = [(p, v, d) for v in vocabs for d in DTYPES for p in (1, 2, 13)]
        sizes += [(64, v, d) for v in (64, 4097, 151936) for d in DTYPES]
    return [(5 * number, *size) for number, size in enumerate(sizes)]


# --- The engine's tokens against a reference without vLLM


def stage_reference(settings: Json, folder: Path) -> Json:
    """Write the doctor's tiny model, and the tokens that are right."""
    from vllm_cold.tools.doctor import reference, tiny

    tiny.write(folder)
    decoded = reference.decode(folder)
    (folder / "right.json").write_text(json.dumps([[d.tokens, d.margin] for d in decoded]))
    return {"facts": {"smallest margin, logits": min(d.margin for d in decoded)}}


def about(config: Any) -> Json:
    """What an engine is, from its configuration. The engine runs in this very process, so that it
    is the one that the model runner has settled.
    """
    from vllm_cold.vllm.frontend.config import model_runner

    compilation, scheduler = config.compilation_config, config.scheduler_config
    return {
        "model runner": model_runner(config),
        "scheduling": "async" if scheduler.async_scheduling else "sync",
        "scheduler": str(scheduler.scheduler_cls or "vLLM's own").split(".")[-1],
        "compilation": getattr(compilation.mode, "name", "NONE"),
        "graphs": getattr(compilation.cudagraph_mode, "name", "NONE"),
        "eager": bool(config.model_config.enforce_eager),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
    }


def stage_engine(settings: Json, folder: Path) -> Json:
    """The doctor's self-test in an engine with other options."""
    from vllm_cold.tools.doctor import self_test
    from vllm_cold.tools.doctor.reference import Decoded
    from vllm_cold.tools.doctor.report import Status

    asked = settings["asked"]
    options = {"enforce_eager": asked["eager"], "async_scheduling": asked["scheduling"] == "async"}
    config, got = self_test.decode(folder, options=options)
    facts = about(config)
    right = [Decoded(*pair) for pair in json.loads((folder / "right.json").read_text())]
    entries = self_test.compare(got, right)[:-1]
    checks = [check(e.name, e.value if e.status is Status.PROBLEM else "") for e in entries]
    return {"checks": checks + as_asked(facts, asked), "facts": facts}


def as_asked(facts: Json, asked: Json) -> list[Json]:
    """Checks that an engine is what was asked for: without "eager", compiled and with graphs."""
    checks = [check(name, "" if facts[name] == value else f"{facts[name]}, not {value}")
              for name, value in asked.items()]  # fmt: skip
    if not asked["eager"]:
        checks += [check(name, "there is none" if facts[name] == "NONE" else "")
                   for name in ("compilation", "graphs")]  # fmt: skip
    return checks


# --- Speeds


def timer(run: Callable[[], object], device: str, graph: bool = True) -> Callable[[], float]:
    """Seconds of a run, for which all is compiled: between events, in a graph if one is wanted; on
    a CPU by the clock.
    """
    if device == "cpu":
        return partial(timeit.timeit, run, number=1)
    there: Any = getattr(torch, device)
    there.synchronize()  # what was copied is there, for the capturing stream too
    launch = run
    if graph:
        captured = there.CUDAGraph() if device == "cuda" else there.NPUGraph()
        with there.graph(captured):
            run()
        launch = captured.replay

    def seconds() -> float:
        start, end = (there.Event(enable_timing=True) for _ in "se")
        there.synchronize()
        start.record()
        launch()
        end.record()
        there.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return seconds


def usual_case(pairs: int, vocab: int, adaptive: bool) -> Case:
    """What an engine scores: normal rows, one amateur each, alpha 0.1, beta 0.5, no cap."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2 * pairs, vocab, generator=generator) * 4
    rows = torch.randperm(2 * pairs, generator=generator).view(pairs, 2)
    weights, log_alpha = torch.full((pairs, 1), -0.5), torch.full((pairs,), math.log(0.1))
    ones = torch.ones(pairs, 1, dtype=torch.bool) if adaptive else None
    return Case(logits, (rows, weights, log_alpha, None, 0, ones))


def copies_for(size: int, cache: int, hip: bool) -> tuple[int, bool]:
    """How many copies of the logits, ``size`` bytes each, a run goes over, so that the cache holds
    nothing of them from before; and whether they suffice: of small ones it would take too many.
    """
    # torch does not tell of AMD's Infinity Cache, of up to 256 MiB.
    wanted = max(4 * cache, 256 * MIB) if hip else 4 * cache
    count = min(256, max(2, -(-wanted // size)))
    return count, count * size >= (wanted if hip else cache)


def cache_of(device: str) -> int:
    """Bytes of the device's last cache."""
    if device == "cpu":
        return 0
    properties = getattr(torch, device).get_device_properties(0)
    return int(getattr(properties, "L2_cache_size", 0)) or 192 * MIB  # of an Atlas A2


def measure_scoring(
    adaptive: bool, vocab: int, pairs: int, rounds: int, device: str, ours: str, graph: bool
) -> Json:
    """A row of the table, after a check of our backend and torch's on this very work."""
    case = usual_case(pairs, vocab, adaptive)
    there = case.to(device)
    moved = pairs * vocab * (2 + 1) * 4  # both rows read, one written
    cache = cache_of(device)
    count, cold = copies_for(case.logits.nbytes, cache, bool(torch.version.hip))
    copies = [there.logits.clone() for _ in range(count)]

    def score(backend: str, *rows: Any) -> None:
        for logits in rows:
            counts = torch.empty(pairs, 3, dtype=torch.int64, device=logits.device)
            contrastive_scores(logits, Groups(*there.args), inplace=True, statistics=counts,
                               check=False, backend=backend)  # fmt: skip

    timers, peaks = {}, {}
    for backend in (ours, "torch"):
        out = there.logits.clone()
        _, peaks[backend] = peak_of(partial(score, backend, out), device)
        check_scores(case, out.cpu()[case.args[0][:, 0]])
        timers[backend] = timer(partial(score, backend, *copies), device, graph)

    def restore() -> None:
        for logits in copies:
            logits.copy_(there.logits)

    times = in_turns(timers, rounds, count, restore)
    return {
        "beta": "adaptive" if adaptive else "fixed", "V": vocab, "P": pairs,
        "cold": "yes" if cold else "no",
        **{f"{backend}, us": spread(times[backend]) for backend in times},
        f"torch / {ours}": ratios(times["torch"], times[ours]),
        f"{ours}, GB/s": moved / statistics.median(times[ours]) / 1e3,
        **{f"{backend}, peak MiB": peaks[backend] for backend in times},
    }  # fmt: skip


def in_turns(
    timers: dict[str, Callable[[], float]], rounds: int, count: int, restore: Callable[[], None]
) -> dict[str, list[float]]:
    """Microseconds of one of the ``count`` calls of a run, in rounds of an order drawn anew."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(rounds + 1):  # one to warm up
        for name in random.sample(sorted(timers), len(timers)):
            restore()
            seconds = timers[name]() / count
            if turn:
                times[name].append(seconds * 1e6)
    return times


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The spread of the ratios of what was measured in the same rounds."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def peak_of(run: Callable[[], Any], device: str) -> tuple[Any, float | None]:
    """What it returns, and the MiB that it needs of a GPU beyond what was allocated before."""
    if device == "cpu":
        return run(), None
    there: Any = getattr(torch, device)
    there.synchronize()
    there.reset_peak_memory_stats()
    before = there.memory_allocated()
    returned = run()
    there.synchronize()
    return returned, (there.max_memory_allocated() - before) / MIB


def stage_scoring(settings: Json, folder: Path) -> Json:
    """Our kernels against torch operations. What finds no room is left out, and said to be."""
    dry = settings["dry"]
    how = device_of(settings), settings.get("backend", "triton"), settings.get("graph", True)
    sizes = [(1500, 2)] if dry else product((32000, 128256, 151936), (1, 8, 32, 128))
    rows: list[Json] = []
    found: Json = {"checks": [], "facts": {}, "rows": rows}
    for (vocab, pairs), adaptive in product(sizes, (False, True)):
        name = f"V={vocab}, P={pairs}{', adaptive' if adaptive else ''}"
        try:
            rows.append(measure_scoring(adaptive, vocab, pairs, 2 if dry else 30, *how))
        except torch.OutOfMemoryError:
            found["facts"][name] = "no room"
        except Exception as error:  # the others go on
            found["checks"].append(check(name, f"{type(error).__name__}: {error}"))
    return found


# Shapes of a Llama of about a billion parameters, and of next to nothing.
REAL = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}  # fmt: skip
SMALL = dict(zip(REAL, (512, 128, 256, 2, 2, 1), strict=True))
RANK = 16


def write_model(folder: Path, shape: dict[str, int], dtype: str) -> None:
    """``big`` and ``big-adapter``: random, with logits as far apart as real ones, so that a few
    tokens are candidates, not one and not all.
    """
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))  # or it would take twice the memory
    std = shape["hidden_size"] ** -0.5
    config = LlamaConfig(**shape, max_position_embeddings=2048, initializer_range=std)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.lm_head.weight.data.mul_(4)
    model.save_pretrained(folder / "big")
    adapter, modules = {}, set()
    for name, weight in model.named_parameters():
        if "_proj" in name:
            (out, into), name = weight.shape, name.removesuffix(".weight")
            a, b = torch.randn(RANK, into) * into**-0.5, torch.randn(out, RANK) * 0.5 * RANK**-0.5
            for letter, factor in (("A", a), ("B", b)):
                key = f"base_model.model.{name}.lora_{letter}.weight"
                adapter[key] = factor.to(weight.dtype)
            modules.add(name.rpartition(".")[2])
    peft = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK,
            "target_modules": sorted(modules), "bias": "none"}  # fmt: skip
    (folder / "big-adapter").mkdir()
    (folder / "big-adapter" / "adapter_config.json").write_text(json.dumps(peft))
    save_file(adapter, folder / "big-adapter" / "adapter_model.safetensors")


def decode_batch(llm: Any, prompts: list[list[int]], params: Any, lora: Any) -> Json:
    """Decode, and say when tokens came: milliseconds for each further token (the median over the
    requests), and tokens a second of the whole batch.
    """
    engine = llm.llm_engine
    stamps: list[list[float]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    started = time.perf_counter()
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params, lora_request=lora)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            tokens[int(output.request_id)] += (new := output.outputs[0].token_ids)
            stamps[int(output.request_id)] += [now] * len(new)
    need(all(len(row) == params.max_tokens for row in tokens), "not as many tokens as asked for")
    each = [1e3 * (times[-1] - times[0]) / (len(times) - 1) for times in stamps]
    speed = len(prompts) * params.max_tokens / (now - started)
    return {"tokens": tokens, "ms/token": statistics.median(each), "tokens/s": speed}


def stage_latency(settings: Json, folder: Path) -> Json:
    """The same engine and adapter, greedy and with CoLD, in turns."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    from vllm_cold import ColdParams

    dry, device = settings["dry"], device_of(settings)
    shape, dtype = (SMALL, "float32") if dry else (REAL, "bfloat16")
    batches, rounds, prompt, tokens = ([1, 2], 2, 8, 6) if dry else ([1, 8, 32], 10, 128, 128)
    write_model(folder, shape, dtype)
    llm = LLM(
        model=str(folder / "big"), skip_tokenizer_init=True, dtype=dtype, enforce_eager=dry,
        max_model_len=512, max_num_seqs=2 * batches[-1], enable_lora=True, max_lora_rank=RANK,
        enable_prefix_caching=False, kv_cache_memory_bytes=GIB // 16 if dry else GIB,
        gpu_memory_utilization=0.05, disable_log_stats=True,
    )  # fmt: skip
    facts = {**about(llm.llm_engine.vllm_config), "model": json.dumps(shape),
             "prompt": prompt, "tokens": tokens, "rounds": rounds}  # fmt: skip
    if not dry:
        facts["weights, KV cache and graphs, GiB"] = getattr(torch, device).memory_allocated() / GIB
    options: Json = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True,
                     "detokenize": False, "output_kind": RequestOutputKind.DELTA}  # fmt: skip
    cold = ColdParams(alpha=0.1, beta=0.5, **options)
    systems = {"greedy": SamplingParams(**options), "CoLD": cold}
    lora = LoRARequest("adapter", 1, str(folder / "big-adapter"))
    draw = random.Random(0)
    rows, same = [], True
    for batch in batches:
        prompts = [[draw.randrange(3, shape["vocab_size"]) for _ in range(prompt)]
                   for _ in range(batch)]  # fmt: skip
        decode_batch(llm, prompts, cold, lora)  # warms up
        first = {name: peak_of(partial(decode_batch, llm, prompts, params, lora), device)
                 for name, params in systems.items()}  # fmt: skip
        same = same and first["CoLD"][0]["tokens"] == first["greedy"][0]["tokens"]
        runs: dict[str, list[Json]] = {name: [] for name in systems}
        for _ in range(rounds):
            for name in random.sample(sorted(systems), len(systems)):
                runs[name].append(decode_batch(llm, prompts, systems[name], lora))
        row: Json = {"batch": batch}
        for unit in ("ms/token", "tokens/s"):
            each = {name: [run[unit] for run in runs[name]] for name in systems}
            row |= {f"{name}, {unit}": spread(each[name]) for name in systems}
            if unit == "ms/token":
                row["CoLD / greedy"] = ratios(each["CoLD"], each["greedy"])
        row |= {f"{name}, peak MiB": first[name][1] for name in systems}
        rows.append(row)
    llm.llm_engine.engine_core.shutdown()
    wrong = "CoLD and greedy decoding gave the same tokens in every batch" if same else ""
    return {"checks": [check("CoLD changes tokens", wrong)], "facts": facts, "rows": rows}


# --- The report


class Stage(NamedTuple):
    """A process of its own: ``do`` names its function, ``speed`` says that it measures. The report
    has ``log`` lines of its output even if all is right. A ``trial`` may die without being wrong.
    """

    title: str
    do: str
    settings: Json = {}
    environment: dict[str, str] = {}
    speed: bool = False
    log: int = 0
    trial: bool = False


class Kind(NamedTuple):
    """What a report is of."""

    name: str  # of its files
    text: str  # for --help
    program: tuple[str, ...]  # Python's arguments for a stage's process
    plan: Callable[[bool, str], list[Stage]]
    environment: Callable[[Stage, Path, bool], dict[str, str]]
    note: str  # on its figures
    dry: str  # what a dry run is


# Triton multiplies float32 as tf32 by default, also in vLLM's kernels for LoRA and attention. What
# that loses is more than what the tiny model's tokens can bear.
EXACT = {"TRITON_F32_DEFAULT": "ieee", "VLLM_FLOAT32_MATMUL_PRECISION": "highest"}


def plan(dry: bool, vllm: str) -> list[Stage]:
    """The stages behind the first, in their order."""
    two = tuple(int(part) for part in vllm.split(".")[:2]) >= (0, 31)
    ways = ((True, "sync"), (True, "async"), (False, "async"))
    asked: list[Json] = [{"eager": True, "scheduling": "sync"}]  # of the runner that is there
    if not dry:
        asked = [{"model runner": runner, "eager": eager, "scheduling": scheduling}
                 for runner in ("V1", "V2")[: 1 + two] for eager, scheduling in ways]  # fmt: skip
    engines = []
    for engine in asked:
        variables = dict(EXACT)
        if two and not dry:
            variables["VLLM_USE_V2_MODEL_RUNNER"] = str(int(engine["model runner"] == "V2"))
        shown = {**engine, "eager": "eager" if engine["eager"] else "compiled, graphs"}
        title = f"engine: {', '.join(shown.values())}"
        engines.append(Stage(title, "engine", {"asked": engine}, variables))
    return [
        Stage("kernels against the reference", "kernels"),
        Stage("reference tokens of the tiny model", "reference"),
        *engines,
        Stage("scoring speed", "scoring", speed=True),
        Stage("CoLD against greedy", "latency", speed=True),
    ]


def passed_on(name: str, dry: bool) -> bool:
    """Whether the stages get this variable of the user's: nothing that changes what is tested."""
    if name.startswith("VLLM_CPU_") or name in ("VLLM_PLUGINS", "VLLM_USE_V2_MODEL_RUNNER"):
        return dry and name != "VLLM_CPU_KVCACHE_SPACE"  # it wins over kv_cache_memory_bytes
    if name == "VLLM_VERSION":  # what vllm-ascend takes a vLLM built from source for
        return True
    return not name.startswith(("COLD_", "VLLM_")) and (dry or name != "TRITON_INTERPRET")


def environment_of(stage: Stage, folder: Path, dry: bool) -> dict[str, str]:
    """A stage's environment: offline, the engine in its own process, caches in the folder."""
    return {
        **{name: value for name, value in os.environ.items() if passed_on(name, dry)},
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1", "COLD_SCORING": "triton", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": str(folder / "vllm"), "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        **({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if dry else {}),
        **stage.environment,
    }  # fmt: skip


GPU = Kind(
    NAME, __doc__ or "",
    ("-P", __file__),  # -P: files beside this one must not stand in for modules
    plan, environment_of, MEDIANS,
    "try the program without a GPU, with Triton's interpreter and vLLM's CPU build: tiny sizes, "
    "engines eager and synchronous, no CUDA graphs and no memory figures",
)  # fmt: skip


def run_stage(stage: Stage, folder: Path, dry: bool, timeout: float, kind: Kind = GPU) -> Json:
    """Run a stage in its own process: what it returned, with "error" and "log" if it failed."""
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    settings = json.dumps({**stage.settings, "dry": dry})
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *kind.program, "--stage", stage.do, settings, str(folder)],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=kind.environment(stage, folder, dry), start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout)
            wrong = f"the process ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            wrong = f"the process had not finished after {timeout:g} s"
        finally:
            with suppress(ProcessLookupError):  # all of its processes have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found: Json = json.loads(result.read_text()) if result.exists() else {}
    wrong = wrong or ("" if found else "the process left no result")
    if wrong:  # also behind a result that is right
        found["error"] = f"{found['error']}; {wrong}" if "error" in found else wrong
    if stage.log or "error" in found or not all(c["ok"] for c in found.get("checks", [])):
        lines = log.read_text(errors="replace").splitlines()
        found["log"] = "\n".join(lines[-(stage.log or LOG_LINES) :])
    return found


def in_stage(do: str, settings: str, folder: Path, stages: Json | None = None) -> None:
    """The stage's process: write what the stage returns, or its exception, to the folder."""
    try:
        found = (stages or globals())[f"stage_{do}"](json.loads(settings), folder)
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    half = folder / "result.half"  # a process that is killed leaves no half of a result
    half.write_text(json.dumps(found))
    half.replace(folder / "result.json")


def make_report(dry: bool, run: Callable[[Stage], Json], kind: Kind = GPU) -> Json:
    """Run all stages by ``run``; those that measure only if all before are right.

    Returns:
        What is written as JSON; or just ``refused``, with the reason.
    """
    begun = time.monotonic()
    stages, right = [Stage("machine", "machine")], True
    entries: list[Json] = []
    machine, speeds = {}, {}
    for number, stage in enumerate(stages, 1):  # the first one's facts say what follows
        if stage.speed and not right:
            entries.append({"stage": stage.title, "status": "left out"})
            continue
        print(f"[{number}] {stage.title} ...", flush=True)
        start = time.monotonic()
        found = run(stage)
        if "refused" in found:
            return {"refused": found["refused"]}
        wrong = [c for c in found.get("checks", []) if not c["ok"]]
        status = "failed" if wrong or ("error" in found and not stage.trial) else "ok"
        status = "not possible" if status == "ok" and "error" in found else status
        seconds = round(time.monotonic() - start, 1)
        entry = {"stage": stage.title, "status": status, "seconds": seconds}
        keys = ("error", "checks", "facts", "log")
        entries.append(entry | {key: found[key] for key in keys if key in found})
        print(f"    {status}, {seconds:.0f} s {found.get('error', '')}".rstrip())
        for c in wrong:
            print(f"    {c['name']}: {c['result']}")
        # A stage that measures and dies says nothing against the others.
        right = right and not wrong and (stage.speed or status != "failed")
        if stage.do == "machine" and "facts" in found:
            machine = found["facts"]
            stages += kind.plan(dry, machine["vLLM"])
        elif stage.speed and found.get("rows"):
            speeds[stage.title] = found["rows"]
    note = DRY_NOTE if dry else kind.note
    if not right:
        speeds, note = {}, "No speeds: a check failed. What is wrong has no speed."
    failed = [entry["stage"] for entry in entries if entry["status"] == "failed"]
    return {
        "report": kind.name, "format": 1, "dry run": dry,
        "verdict": f"FAIL: {', '.join(failed)}" if failed else "PASS",
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "machine": machine, "stages": entries, "speeds": {"note": note, **speeds},
    }  # fmt: skip


def nameless(value: Any, names: Sequence[str]) -> Any:
    """Without names, addresses and paths, in all text of a report."""
    if isinstance(value, dict):
        return {key: nameless(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [nameless(item, names) for item in value]
    if not isinstance(value, str):
        return value
    part = r"[^\s'\",:;()<>\[\]=|/]+"
    value = re.sub(rf"(?<![\w.])(/{part})*/site-packages/", "", value)
    value = re.sub(rf"(?<![\w.<])(~|\.\.?)?(/{part})*/({part})", r".../\3", value)
    value = re.sub(r"\b\d{1,3}(\.\d{1,3}){3}\b", "ADDRESS", value)
    value = re.sub(r"\b([0-9a-fA-F]{0,4}:){4,}[0-9a-fA-F]*", "ADDRESS", value)
    for name in names:
        value = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "NAME", value)
    return value


def names_here() -> list[str]:
    """Host and user name, unless they say nothing about anyone."""
    host = socket.gethostname()  # not getfqdn, which asks the network
    names = [host, host.split(".")[0]]
    with suppress(KeyError, OSError):  # no such user
        names.append(getpass.getuser())
    plain = {"", "root", "user", "ubuntu", "vllm", "torch", "localhost", "runner", "node"}
    return [name for name in dict.fromkeys(names) if name.lower() not in plain]


def cell(value: Any) -> str:
    """A value of the JSON in a table of the Markdown."""
    if isinstance(value, list):
        return "{} ({}-{})".format(*map(cell, value))
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def to_markdown(report: Json) -> str:
    """The report for readers: what the JSON has, less the names of checks that are right."""
    lines = [f"# {report['report']}", "", f"**{report['verdict']}**", ""]
    lines += [f"**{DRY_NOTE}**", ""] if report["dry run"] else []
    lines += [f"Took {cell(report['minutes'])} minutes.", "", "## Machine", ""]
    lines += [f"- {k}: {cell(v)}" for k, v in report["machine"].items()]
    lines += ["", "## Checks", ""]
    dry = "dry run, " if report["dry run"] else ""
    for stage in report["stages"]:
        checks = stage.get("checks", [])
        right = f", {sum(c['ok'] for c in checks)} of {len(checks)} right" if checks else ""
        lines.append(f"- {dry}{stage['stage']}: {stage['status']}{right}")
        lines += [f"  - error: {cell(stage['error'])}"] if "error" in stage else []
        lines += [f"  - wrong: {c['name']}: {cell(c['result'])}" for c in checks if not c["ok"]]
        if stage["stage"] != "machine":
            lines += [f"  - {k}: {cell(v)}" for k, v in stage.get("facts", {}).items()]
        if stage.get("log"):
            lines += ["", "```text", stage["log"].replace("```", "'''"), "```", ""]
    lines += ["", "## Speeds", "", report["speeds"]["note"]]
    for title, rows in report["speeds"].items():
        if title == "note":
            continue
        table = [list(rows[0]), ["---"] * len(rows[0]), *(map(cell, r.values()) for r in rows)]
        lines += ["", f"### {dry}{title}", "", *(f"| {' | '.join(line)} |" for line in table)]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None, kind: Kind = GPU) -> int:
    """0 if all is right, 1 if something is wrong, 2 if the report cannot be made here."""
    parser = argparse.ArgumentParser(
        description=kind.text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS",
                        help="the most that a stage may take (default: %(default)g)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help=f"{kind.dry}; {DRY_NOTE}")  # fmt: skip
    options = parser.parse_args(arguments)
    dry = options.dry_run
    print(parser.description, flush=True)
    for number in (signal.SIGHUP, signal.SIGTERM):  # so that the running stage ends, too
        if signal.getsignal(number) is not signal.SIG_IGN:  # which nohup asks for
            signal.signal(number, lambda received, frame: sys.exit(128 + received))

    def refuse(reason: str) -> int:
        print(f"No report can be made here: {reason}", file=sys.stderr)
        return 2

    if not os.access(".", os.W_OK):
        return refuse("the report cannot be written to this folder.")
    with tempfile.TemporaryDirectory(prefix=kind.name) as name:
        free = shutil.disk_usage(name).free / GIB
        if free < FREE_DISK and not dry:
            return refuse(f"{free:.1f} GiB are free for temporary files, not {FREE_DISK}. "
                          "TMPDIR chooses another disk.")  # fmt: skip
        knobs = Path(name), dry, options.timeout, kind
        report = make_report(dry, lambda stage: run_stage(stage, *knobs), kind)
    if "refused" in report:
        return refuse(report["refused"])
    dropped = sorted(variable for variable in os.environ if not passed_on(variable, dry))
    report["machine"]["set here, not passed on"] = ", ".join(dropped) or "nothing"
    report = nameless(report, names_here())
    markdown = to_markdown(report)
    Path(f"{kind.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    Path(f"{kind.name}.md").write_text(markdown)
    files = f"{kind.name}.json and {kind.name}.md"
    print(f"\n{markdown}\nWritten: {files}. Read them, then send both in.")
    return int(report["verdict"] != "PASS")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        in_stage(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        sys.exit(main())
