#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check vllm-cold on your GPU, measure it, and write a report to send in.

Needs    one NVIDIA or AMD GPU with 8 GiB free; Linux; vLLM {range} with vllm-cold beside it
         (pip install vllm vllm-cold); 16 GiB of memory; 8 GiB free on disk for temporary files.
Takes    10 to 25 minutes: kernels 2 to 5; six engines on a tiny model, 1 to 2 each; scoring
         speed 2; an engine of 1.5 billion random weights 3 to 5. Nothing else should use the GPU.
Sends    nothing, and fetches nothing: no model, no hub. It writes vllm-cold-gpu-report.json and
         .md, without host name, user name, addresses or paths. Read them, then send them in.

First the Triton kernels are compared with a float64 reference, and the tokens of real engines with
those of a plain implementation without vLLM. Speeds are measured only if all of that is right.
"""

# One file that needs no checkout. Each stage is a process of its own, started by this one, which
# imports neither torch nor vLLM: a kernel that fails breaks the GPU for its process, an engine may
# die or hang, and Triton's interpreter (--dry-run) is chosen when Triton is imported.

from __future__ import annotations

import argparse
import getpass
import json
import math
import os
import platform
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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

NAME = "vllm-cold-gpu-report"
DRY_NOTE = "dry run: figures mean nothing"
MEDIANS = (
    "Medians (20th to 80th percentile), ratios within a round. Scoring: from a cold cache, in CUDA "
    "graphs; called from Python, launches and checks of arguments count, too. GB/s: both rows of a "
    "pair read, and the scores written, once."
)
GIB = 2**30
FREE_MEMORY, FREE_DISK = 8, 8  # GiB
LOG_LINES = 40
INF = math.inf
EPS, TINY, LARGEST = 2.0**-23, 2.0**-126, 2.0**128 - 2.0**104  # of float32
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
    if len(values) == 1:
        return [values[0]] * 3
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return [statistics.median(values), fifths[0], fifths[-1]]


# --- The machine


def stage_machine(settings: Json, folder: Path) -> Json:
    """What is installed, why the report cannot be made here ("refused"), and whether vLLM is as
    the plugin needs it.
    """
    try:
        import torch

        if not settings["dry"] and not torch.cuda.is_available():
            return {"refused": "torch sees no GPU. Run it where there is one, with a driver that "
                    "this torch can use. On a CPU there is --dry-run."}  # fmt: skip
        import vllm  # noqa: F401

        from vllm_cold import __version__
        from vllm_cold.bindings import versions
        from vllm_cold.tools.doctor import sections
        from vllm_cold.tools.doctor.report import Status
    except Exception as error:  # a library of CUDA's may be missing, too
        return {"refused": f"{error}. Install both: pip install vllm vllm-cold"}
    version = versions.vllm_version()
    if not versions.in_supported_range(version):
        return {"refused": f"vLLM {version} is installed; vllm-cold works with {versions.RANGE}."}
    facts: Json = {"vllm-cold": __version__, "vLLM": version}
    facts["engines of this vLLM were tested"] = "yes" if versions.is_validated(version) else "no"
    for name in ("torch", "triton", "transformers"):
        facts[name] = getattr(__import__(name), "__version__", "unknown")
    facts["Python"] = platform.python_version()
    facts["system"] = f"{platform.system()}, {platform.machine()}"
    if not settings["dry"]:
        gpu = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info(0)
        if free < FREE_MEMORY * GIB:
            return {"refused": f"{free / GIB:.1f} GiB of GPU memory are free, not {FREE_MEMORY}."}
        facts |= {
            "GPU": gpu.name,
            "GPUs": torch.cuda.device_count(),
            "GPU memory": f"{total / GIB:.1f} GiB, {free / GIB:.1f} free",
            "architecture": getattr(gpu, "gcnArchName", "") if torch.version.hip
            else f"sm_{gpu.major}{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "L2 cache": f"{gpu.L2_cache_size / 2**20:.0f} MiB",
            "driver": driver(),
            "CUDA of torch": str(torch.version.cuda),
            "HIP of torch": str(torch.version.hip),
        }  # fmt: skip
    checks = [
        check(entry.name, entry.value if entry.status is Status.PROBLEM else "")
        for entry in (*sections.plugin(), *sections.contracts())
        if entry.status is not Status.FACT
    ]
    return {"facts": facts, "checks": checks}


def driver() -> str:
    """The GPU driver's version, as Linux tells."""
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        if Path(path).exists():
            found = re.search(r"\b\d+\.\d+(\.\d+)?\b", Path(path).read_text(errors="replace"))
            return found[0] if found else "unknown"
    return "unknown"


# --- The kernels against the reference. Cases and tolerances are those of tests/ops/conformance.py.

KINDS = (
    "normal", "ties", "one left", "expert -inf", "amateur -inf", "both -inf", "huge", "tiny",
    "equal", "ascending", "nothing left", "zeros", "overflow",
)  # fmt: skip
LAYOUTS = ("contiguous", "padded", "every other row")
KS = (1, 20, 64)
NOT_FINITE = tuple(
    product(("nan", "-nan", "inf"), ("e", "a", "ea"), ("first", "middle", "last", "all"))
)


@dataclass
class Case:
    """Arguments of the op: ``logits`` is a view of ``base``; ``args`` is what comes behind it."""

    base: Any
    layout: str
    vocab: int
    args: tuple[Any, ...]

    @property
    def logits(self) -> Any:
        """[R, V]"""
        if self.layout == "padded":  # rows that start at odd addresses
            return self.base[:, 3 : 3 + self.vocab]
        return self.base[::2] if self.layout == "every other row" else self.base

    def to(self, device: Any) -> Case:
        """A copy on the device."""
        args = (a.to(device) if hasattr(a, "to") else a for a in self.args)
        return replace(self, base=self.base.clone().to(device), args=tuple(args))

    def settings(self) -> list[tuple[Any, ...]]:
        """log_alpha, beta, cap and whether beta is adaptive, of each pair."""
        none = [0] * len(self.args[0])
        knobs = (self.args[at] for at in (2, 3, 4, 6))
        return list(zip(*(none if k is None else k.tolist() for k in knobs), strict=True))


def rows_of(kind: str, vocab: int, dtype: Any, generator: Any) -> Any:
    """[2, V] expert and amateur logits of one of ``KINDS``."""
    import torch

    most, tiny = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    both = torch.randn(2, vocab, generator=generator) * 4
    half = torch.rand(2, vocab, generator=generator) < 0.5
    if kind == "ties":
        both = (both * 2).round() / 8
    elif kind == "one left":
        only = int(torch.randint(vocab, (), generator=generator))
        both[0] = torch.where(torch.arange(vocab) == only, both[0], -INF)
    elif kind == "huge":
        both *= min(most, 1e38) / 32
    elif kind == "tiny":
        both *= tiny * 8
    elif kind == "equal":
        both[1] = both[0]
    elif kind == "ascending":  # the worst for a running top-k
        both = torch.stack((both[0].sort().values, torch.zeros(vocab)))
    elif kind == "nothing left":
        both[0] = -INF
    elif kind == "zeros":
        both = torch.where(both < 0, -0.0, 0.0)
    elif kind == "overflow":  # of e - a and of the scores
        both = torch.where(both > -2, min(most, 3e38), -min(most, 3e38))
    if kind in ("expert -inf", "both -inf"):
        both[0, half[0]] = -INF
    if kind in ("amateur -inf", "both -inf"):
        both[1, half[1]] = -INF
    return both.to(dtype)


def make_case(seed: int, pairs: int, vocab: int, dtype: str, layout: str) -> Case:
    """Pairs scattered over some more rows; alpha, beta, cap and adaptive are drawn for each. Pair i
    is of kind ``seed + i``.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows = 2 * pairs + 3
    shape = (2 * rows if layout == "every other row" else rows,
             vocab + 5 if layout == "padded" else vocab)  # fmt: skip
    kind = getattr(torch, dtype)

    def one_of(*values: Any) -> Any:
        return torch.tensor(values)[torch.randint(len(values), (pairs,), generator=generator)]

    order = torch.randperm(rows, generator=generator)
    experts, amateurs = order[:pairs].clone(), order[pairs : 2 * pairs].clone()
    log_alpha = one_of(math.log(0.1), math.log(1e-6), 0.0)
    beta = one_of(0.5, 0.0, 10.0)
    caps = one_of(0, 0, 3, 0, 1, 0, 50, 0, 0, 10**9)
    adaptive = one_of(False, True)
    cap = int(caps.max())
    args = (experts, amateurs, log_alpha, beta, caps if cap else None, cap, adaptive)
    case = Case(torch.full(shape, 7.0, dtype=kind), layout, vocab, args)
    for pair in range(pairs):
        at = torch.stack((experts[pair], amateurs[pair]))
        case.logits[at] = rows_of(KINDS[(seed + pair) % len(KINDS)], vocab, kind, generator)
    return case


def usual_case(pairs: int, vocab: int, dtype: str, adaptive: bool) -> Case:
    """What an engine scores: normal rows, alpha 0.1, beta 0.5, no cap."""
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2 * pairs, vocab, generator=generator) * 4).to(getattr(torch, dtype))
    rows = torch.randperm(2 * pairs, generator=generator)
    knobs = torch.full((2, pairs), math.log(0.1))
    knobs[1] = 0.5
    ones = torch.ones(pairs, dtype=torch.bool) if adaptive else None
    experts, amateurs = rows[:pairs].clone(), rows[pairs:].clone()
    args = (experts, amateurs, knobs[0].clone(), knobs[1].clone(), None, 0, ones)
    return Case(logits, "contiguous", vocab, args)


def truth(
    expert: Any, amateur: Any, log_alpha: float, beta: float, cap: int, adaptive: bool
) -> tuple[Any, Any, Any]:
    """Of one pair, each [V]: the reference's scores (float64), what float32 may err by (relative to
    the terms, which may cancel), and which tokens rounding may let in or out.
    """
    import torch

    from vllm_cold.ops.scoring_reference import adaptive_beta, pair_scores

    e, a = expert.double(), amateur.double()
    best = e.max()
    edge = (e - best - log_alpha).abs() <= EPS * (best.abs() + abs(log_alpha))
    edge &= (e < best) & (e > -INF)
    if 0 < cap < len(e):
        edge &= e >= e.topk(cap).values[-1]
    scores = pair_scores(expert, amateur, log_alpha, beta, cap, adaptive)
    error = 0.0
    if adaptive:
        most, beta = beta, adaptive_beta(e, a, log_alpha, beta, cap)
        bars = []  # an edge token may be a candidate or not: all from one of them up, or none
        if edge.any():
            above = torch.nextafter(e[edge].max().float(), torch.tensor(INF, device=e.device))
            bars = [*e[edge].unique(), above.double()]
        others = [adaptive_beta(e, a, float(bar - best), most, cap) for bar in bars]
        candidates = edge | (pair_scores(e, a, log_alpha, 0.0, cap) > -INF)
        reached = float(a[candidates].max()) if candidates.any() else -INF
        if int(candidates.sum()) > 1 and reached > -INF:
            distance = float(a.max()) - reached
            error = (32 + distance + 4) * EPS * math.exp(-distance) * most + 2 * TINY * most
        error += max(abs(beta - other) for other in (beta, *others))
    e, a = (torch.where(x == -INF, 0.0, x) for x in (e, a))
    difference = e - a
    moved = beta * difference
    scores = torch.where((difference == 0) & (scores > -INF), e, scores)
    by_parts = e + beta * difference.clamp(-LARGEST, LARGEST)
    saturated = torch.where(difference.abs() > LARGEST, by_parts, scores).clamp(-LARGEST, LARGEST)
    tolerance = 1.5 * EPS * (e.abs() + moved.abs()) + 2 * TINY
    tolerance = torch.where(moved.abs() > LARGEST, moved.abs(), tolerance)
    tolerance = torch.where(moved == 0, 0.0, tolerance) + error * difference.abs()
    return torch.where(scores == -INF, scores, saturated), tolerance, edge


def bits(x: Any) -> Any:
    """The same memory as integers: NaN is like itself, and -0 is not 0."""
    import torch

    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def blank(shape: Sequence[int], device: Any, whole: bool = False) -> Any:
    """An output in which what is not written shows."""
    import torch

    if whole:
        return torch.full(tuple(shape), -7, device=device)
    return torch.full(tuple(shape), math.nan, device=device)


def check_scores(case: Case, got: Any) -> None:
    """``got`` [P, V] are the scores of the case, which is on the same device."""
    need(not got.isnan().any(), "NaN: not written, or made")
    need((got < INF).all(), "a score is infinite")
    experts, amateurs = case.args[:2]
    for pair, knobs in enumerate(case.settings()):
        rows = case.logits[experts[pair]], case.logits[amateurs[pair]]
        exact, tolerance, edge = truth(*rows, *knobs)
        valid, right = got[pair] > -INF, exact > -INF
        need(not ((valid != right) & ~edge).any(), f"other candidates in pair {pair} {knobs}")
        error = ((got[pair].double() - exact).abs() - tolerance)[valid & right]
        need((error <= 0).all(), f"scores beyond the tolerance in pair {pair} {knobs}")


def conform(case: Case, device: Any, backend: str = "triton", ks: Sequence[int] = KS) -> None:
    """All forms of the op on a case, which is on the CPU; WrongError says what is wrong."""
    import torch

    from vllm_cold.ops import contrastive_scores, contrastive_topk

    there = case.to(device)
    logits, args, before = there.logits, there.args, there.base.clone()
    experts, amateurs, adaptive = args[0], args[1], args[6]
    shape = len(experts), case.vocab
    dense = blank(shape, device)
    contrastive_scores(logits, *args, out=dense, backend=backend)
    check_scores(case, dense.cpu())
    if adaptive is not None:
        plain = contrastive_scores(logits, *args[:-1], backend=backend)
        same = torch.equal(plain[~adaptive], dense[~adaptive])
        need(same, "a pair that adapts itself changes others")
    scored, rows = dense.cpu(), case.logits[case.args[0]].float()
    changed = (scored.argmax(1) != rows.argmax(1)).long()
    right = torch.stack([(scored > -INF).sum(1), changed, torch.zeros_like(changed)], 1)
    counts, again = blank((shape[0], 3), device, whole=True), blank(shape, device)
    contrastive_scores(logits, *args, out=again, statistics=counts, backend=backend)
    need(torch.equal(again, dense), "counting changes the scores")
    need(torch.equal(counts.cpu(), right), "wrong statistics")
    # The best k are those of the backend's own scores, exactly; ties go to the lower id.
    order, ids = scored.sort(dim=1, descending=True, stable=True)
    ids = torch.where(order > -INF, ids, -1)
    for k in ks:
        best = blank((shape[0], k), device), blank((shape[0], k), device, whole=True)
        contrastive_topk(logits, *args, k=k, out=best, backend=backend)
        n = min(k, shape[1])
        need(torch.equal(best[0][:, :n].cpu(), order[:, :n]), f"wrong scores of the best {k}")
        need(torch.equal(best[1][:, :n].cpu(), ids[:, :n]), f"wrong ids of the best {k}")
        rest = (best[0][:, n:] == -INF).all() and (best[1][:, n:] == -1).all()
        need(rest, f"fewer than {k} tokens: the rest is not empty")
    need(torch.equal(bits(there.base), bits(before)), "the input was written to")
    if logits.dtype != torch.float32:
        return
    rows, counts = (logits[experts], logits[amateurs]), blank((shape[0], 3), device, whole=True)
    contrastive_scores(logits, *args, inplace=True, statistics=counts, backend=backend)
    need(torch.equal(logits[experts], dense), "in place: not the same scores")
    need(torch.equal(logits[amateurs], dense), "in place: the second row")
    need(torch.equal(counts.cpu(), right), "in place: wrong statistics")
    logits[experts], logits[amateurs] = rows
    need(torch.equal(bits(there.base), bits(before)), "in place: rows of no pair were written to")


def stay_apart(case: Case, seed: int, device: Any, backend: str = "triton") -> None:
    """Every second pair gets NaN or +inf. It is told of, and can be sampled from; the others are
    the same bits as without it.
    """
    import torch

    from vllm_cold.ops import contrastive_scores, contrastive_topk

    def run(inplace: bool) -> tuple[Any, ...]:
        there = case.to(device)
        out = None if inplace else blank((pairs, case.vocab), device)
        counts = blank((pairs, 3), device, whole=True)
        knobs: Json = {"check": False, "backend": backend}
        scores = contrastive_scores(there.logits, *there.args, inplace=inplace, out=out,
                                    statistics=counts, **knobs)  # fmt: skip
        if inplace:
            expert, amateur = (scores[rows] for rows in there.args[:2])
            need(torch.equal(bits(expert), bits(amateur)), "in place: the second row")
            return expert.cpu(), counts.cpu()
        best = contrastive_topk(there.logits, *there.args, k=20, **knobs)
        return scores.cpu(), counts.cpu(), *(x.cpu() for x in best)

    pairs = len(case.args[0])
    clean = run(False)
    bad, bad_expert = torch.zeros(2, pairs, dtype=torch.bool)
    for pair in range(seed % 2 if pairs > 1 else 0, pairs, 2):
        what, which, where = NOT_FINITE[(seed + 5 * (pair // 2)) % len(NOT_FINITE)]
        at = {"first": 0, "middle": case.vocab // 2, "last": case.vocab - 1, "all": slice(None)}
        bad[pair], bad_expert[pair] = True, "e" in which
        for row in (case.args["ea".index(name)][pair] for name in which):
            if what == "-nan":
                bits(case.logits)[row, at[where]] = -1  # all bits set
            else:
                case.logits[row, at[where]] = float(what)
    valid = torch.where(bad_expert[:, None], case.logits[case.args[0]] != -INF, clean[0] > -INF)
    for inplace in (False, True) if case.base.dtype == torch.float32 else (False,):
        scores, counts, *best = run(inplace)
        for now, then in zip((scores, counts, *best), clean, strict=False):
            need(torch.equal(bits(now)[~bad], bits(then)[~bad]), "other pairs have other bits")
        need(torch.equal(counts[:, 2], bad.long()), "other pairs are said to be not finite")
        need((scores < INF).all(), "a score is NaN or +inf")
        need(torch.equal(scores > -INF, valid), "other candidates")
        if best:
            found = torch.arange(20) < valid.sum(1, keepdim=True)
            need(torch.equal(best[0] > -INF, found), "not as many of the best as there are")
            need((best[1][~found] == -1).all(), "ids where there is no token")
            need(valid.gather(1, best[1].clamp(min=0))[found].all(), "no candidate among the best")


def kernel_cases(dry: bool) -> Iterator[tuple[bool, tuple[int, int, int, str, str]]]:
    """Whether pairs are spoilt with NaN and +inf, and what ``make_case`` takes."""
    if dry:  # not the tiniest bfloat16 numbers: Triton's interpreter reads them as others
        sizes = [(13, 31, "float32"), (2, 4097, "bfloat16"), (2, 1025, "float16"),
                 (3, 2049, "float32"), (1, 151936, "float16")]  # fmt: skip
        spoilt = [(72, 61, "float32"), (3, 2049, "bfloat16")]
    else:
        vocabs = (1, 31, 64, 1025, 4096, 4097, 32001, 49152, 128256, 151936, 152064, 256000)
        sizes = [(p, v, d) for v in vocabs for d in DTYPES for p in (1, 2, 13)]
        sizes += [(64, v, d) for v in (64, 4097, 151936) for d in DTYPES]
        spoilt = [(p, v, d) for p, v in ((72, 61), (72, 1), (13, 4097), (5, 151936))
                  for d in DTYPES]  # fmt: skip
    for number, size in enumerate(sizes):
        yield False, (5 * number, *size, LAYOUTS[number % 3])
    for number, size in enumerate(spoilt):
        yield True, (number, *size, "padded")


def run_case(spoilt: bool, made_of: tuple[int, int, int, str, str], device: Any, dry: bool) -> None:
    """Make a case and check the Triton kernels on it."""
    case = make_case(*made_of)
    if spoilt:
        stay_apart(case, made_of[0], device)
    else:
        conform(case, device, ks=(20,) if dry else KS)


def device_of(settings: Json) -> Any:
    """Where kernels run in this stage."""
    import torch

    torch.set_grad_enabled(False)
    return torch.device("cpu" if settings["dry"] else "cuda")


def stage_kernels(settings: Json, folder: Path) -> Json:
    """contrastive_scores and contrastive_topk, backend "triton", in all forms."""
    device, dry = device_of(settings), settings["dry"]
    checks = []
    for spoilt, made_of in kernel_cases(dry):
        _, pairs, vocab, dtype, layout = made_of
        name = f"{'NaN and +inf: ' if spoilt else ''}P={pairs}, V={vocab}, {dtype}, {layout}"
        checks.append(attempt(name, partial(run_case, spoilt, made_of, device, dry)))
    return {"checks": checks}


def stage_assertion(settings: Json, folder: Path) -> Json:
    """NaN with check=True is an error (on a GPU a device-side assertion, which ends its use)."""
    import torch

    from vllm_cold.ops import contrastive_scores

    device = device_of(settings)
    case = usual_case(2, 1500, "float32", False).to(device)
    case.logits[case.args[0][1], 700] = math.nan
    right: Json = {"checks": [check("NaN raises an error")]}
    if torch.version.hip:  # it may end the process, which is as good
        (folder / "result.json").write_text(json.dumps(right))
    try:
        contrastive_scores(case.logits, *case.args, backend="triton")
        torch.accelerator.synchronize() if device.type == "cuda" else None
    except RuntimeError as error:
        return right | {"facts": {"the error": str(error).splitlines()[0]}}
    return {"checks": [check("NaN raises an error", "no error was raised")]}


# --- The engine's tokens against a reference without vLLM


def stage_reference(settings: Json, folder: Path) -> Json:
    """Write the doctor's tiny model, and the tokens that are right."""
    from vllm_cold.tools.doctor import reference, tiny

    tiny.write(folder)
    decoded = reference.decode(folder)
    (folder / "right.json").write_text(json.dumps([[d.tokens, d.margin] for d in decoded]))
    return {"facts": {"smallest margin, logits": min(d.margin for d in decoded)}}


def about(llm: Any) -> Json:
    """What an engine is, from its own configuration."""
    from vllm_cold.bindings import engine_config

    config = llm.llm_engine.vllm_config
    compilation = config.compilation_config
    names = {key: getattr(compilation, key, None) for key in ("mode", "cudagraph_mode")}
    return {
        "model runner": engine_config.model_runner(config),
        "scheduling": "async" if config.scheduler_config.async_scheduling else "sync",
        "scheduler": str(config.scheduler_config.scheduler_cls or "vLLM's own").split(".")[-1],
        "compilation": getattr(names["mode"], "name", str(names["mode"])),
        "graphs": getattr(names["cudagraph_mode"], "name", str(names["cudagraph_mode"])),
        "eager": bool(config.model_config.enforce_eager),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
    }


def stage_engine(settings: Json, folder: Path) -> Json:
    """The doctor's self-test in an engine with other options."""
    from vllm import LLM

    from vllm_cold.tools.doctor import self_test
    from vllm_cold.tools.doctor.reference import CASES, Decoded
    from vllm_cold.tools.doctor.report import Status

    facts: Json = {}
    make = LLM.__init__

    def changed(self: Any, **options: Any) -> None:
        make(self, **{**options, **settings["options"]})
        facts.update(about(self))

    LLM.__init__ = changed  # the self-test has options of its own
    _, got = self_test.decode(folder)
    right = [Decoded(*pair) for pair in json.loads((folder / "right.json").read_text())]
    entries = self_test.compare(got, right)[:-1]
    checks = [check(e.name, e.value if e.status is Status.PROBLEM else "") for e in entries]
    for name, asked in settings["asked"].items():
        checks.append(check(name, "" if facts[name] == asked else f"{facts[name]}, not {asked}"))
    if not all(c["ok"] for c in checks):
        pairs = zip(CASES, got, right, strict=True)
        facts["tokens, and the right ones"] = {c.name: [g, r.tokens] for c, g, r in pairs}
    return {"checks": checks, "facts": facts}


# --- Speeds


def timer(run: Callable[[], object], cuda: bool, graph: bool) -> Callable[[], float]:
    """Seconds of a run: between CUDA events, in a CUDA graph if wanted; on a CPU by the clock."""
    import torch

    if not cuda:

        def on_cpu() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return on_cpu
    torch.cuda.synchronize()  # what was copied is there, for the other stream too
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # compiles, and fills the allocator
        run()
    stream.synchronize()
    launch: Callable[[], object] = run
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        launch = captured.replay

    def on_gpu() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        torch.cuda.synchronize()
        start.record()
        launch()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return on_gpu


def score(form: str, case: Case, logits: Any, backend: str) -> Any:
    """One call, in one of the forms: "in place" is how an engine scores, with statistics.

    Returns:
        [P, V] scores; of "top 20" nothing.
    """
    from vllm_cold.ops import contrastive_scores, contrastive_topk

    knobs: Json = {"check": False, "backend": backend}
    if form == "top 20":
        contrastive_topk(logits, *case.args, k=20, **knobs)
    elif form == "dense":
        return contrastive_scores(logits, *case.args, **knobs)
    else:
        counts = blank((len(case.args[0]), 3), logits.device, whole=True)
        contrastive_scores(logits, *case.args, inplace=True, statistics=counts, **knobs)
        return logits


def measure_scoring(
    form: str, dtype: str, vocab: int, pairs: int, rounds: int, device: Any
) -> Json:
    """A row of the table, after a check of both backends on this very work."""
    import torch

    cuda = device.type == "cuda"
    case = usual_case(pairs, vocab, dtype, "adaptive" in form).to(device)
    # Both rows read once, and the scores written, to none, one or both of them.
    written = {"top 20": 0, "dense": 1}.get(form, 2)
    moved = pairs * vocab * (2 * case.logits.element_size() + 4 * written)
    cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else 0
    # Nothing of the last call is left in the cache: copies that exceed it four times.
    copies = [case.logits.clone() for _ in range(max(2, -(-4 * cache // moved)))]
    timers, peaks = {}, {}
    for backend in ("triton", "torch"):
        # With the reference on the device, as it is slow for so many pairs. The top 20 are chosen
        # by the dense scores, exactly: the kernels' stage has seen to that.
        out = score("dense" if form == "top 20" else form, case, case.logits.clone(), backend)
        check_scores(case, out if form in ("dense", "top 20") else out[case.args[0]])

        def run(backend: str = backend) -> None:
            for logits in copies:
                score(form, case, logits, backend)

        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            score(form, case, copies[0], backend)
            torch.cuda.synchronize()
            peaks[backend] = (torch.cuda.max_memory_allocated() - before) / 2**20
        for graph in (True, False):
            timers[backend, graph] = timer(run, cuda, graph)
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in timers}
    for turn in range(rounds + 1):  # one to warm up
        for key in random.sample(sorted(timers), len(timers)):
            for logits in copies:
                logits.copy_(case.logits)
            seconds = timers[key]() / len(copies)
            if turn:
                times[key].append(seconds * 1e6)
    ratio = [b / a for a, b in zip(times["triton", True], times["torch", True], strict=True)]
    return {
        "form": form, "dtype": dtype, "V": vocab, "P": pairs,
        "triton, us": spread(times["triton", True]),
        "torch, us": spread(times["torch", True]),
        "torch / triton": spread(ratio),
        "triton, GB/s": moved / statistics.median(times["triton", True]) / 1e3,
        "triton from Python, us": spread(times["triton", False]),
        "torch from Python, us": spread(times["torch", False]),
        "triton, peak MiB": peaks.get("triton"),
        "torch, peak MiB": peaks.get("torch"),
    }  # fmt: skip


def stage_scoring(settings: Json, folder: Path) -> Json:
    """Triton against torch operations, from a cold cache, in CUDA graphs and called from Python."""
    device, rounds = device_of(settings), 2 if settings["dry"] else 30
    if settings["dry"]:
        work = [*product(FORMS[:2], [1500], [2]), *product(FORMS[2:], [1500], [1])]
    else:
        work = list(product(FORMS, [32000, 128256, 151936], [1, 8, 32, 128]))
    rows: list[Json] = []
    found: Json = {"checks": [], "rows": rows}
    for (form, dtype), vocab, pairs in work:
        name = f"{form}, {dtype}, V={vocab}, P={pairs}"
        try:
            rows.append(measure_scoring(form, dtype, vocab, pairs, rounds, device))
        except WrongError as error:
            found["checks"].append(check(name, str(error)))
        except Exception as error:  # no room, say: the others go on
            found["error"] = f"{name}: {type(error).__name__}: {error}"
    return found


FORMS = (
    ("in place", "float32"), ("in place, adaptive", "float32"), ("dense", "bfloat16"),
    ("top 20", "bfloat16"),
)  # fmt: skip
# Shapes of a Llama of about a billion parameters, and of next to nothing.
REAL = {"vocab": 128256, "hidden": 2048, "inner": 8192, "layers": 16, "heads": 32, "kv": 8}
SMALL = {"vocab": 512, "hidden": 128, "inner": 256, "layers": 2, "heads": 2, "kv": 1}
HEAD, RANK = 64, 16


def write_model(folder: Path, shape: dict[str, int], dtype: str) -> None:
    """``big`` and ``big-adapter``: random, with logits as far apart as real ones, so that a few
    tokens are candidates, not one and not all.
    """
    import torch
    from safetensors.torch import save_file

    hidden, inner, kind = shape["hidden"], shape["inner"], getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    sizes = {  # output and input
        "self_attn.q_proj": (shape["heads"] * HEAD, hidden),
        "self_attn.k_proj": (shape["kv"] * HEAD, hidden),
        "self_attn.v_proj": (shape["kv"] * HEAD, hidden),
        "self_attn.o_proj": (hidden, shape["heads"] * HEAD),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }

    def draw(std: float, *size: int) -> Any:
        return torch.randn(*size, generator=generator, dtype=kind).mul_(std)

    weights = {
        "model.embed_tokens.weight": draw(1.0, shape["vocab"], hidden),
        "model.norm.weight": torch.ones(hidden, dtype=kind),
        "lm_head.weight": draw(4 * hidden**-0.5, shape["vocab"], hidden),
    }
    adapter = {}
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{norm}.weight"] = torch.ones(hidden, dtype=kind)
        for name, (out, into) in sizes.items():
            weights[f"{prefix}.{name}.weight"] = draw(into**-0.5, out, into)
            lora = f"base_model.model.{prefix}.{name}.lora_"
            adapter[f"{lora}A.weight"] = draw(into**-0.5, RANK, into)
            adapter[f"{lora}B.weight"] = draw(0.5 * RANK**-0.5, out, RANK)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape["vocab"],
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv"],
        "head_dim": HEAD, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": dtype,
    }  # fmt: skip
    modules = [name.rpartition(".")[2] for name in sizes]
    peft = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK,
            "target_modules": modules, "bias": "none"}  # fmt: skip
    for name, prefix, settings, tensors in (
        ("big", "", config, weights), ("big-adapter", "adapter_", peft, adapter),
    ):  # fmt: skip
        (folder / name).mkdir()
        (folder / name / f"{prefix}config.json").write_text(json.dumps(settings))
        file = folder / name / f"{prefix}model.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})


def decode_batch(llm: Any, prompts: list[list[int]], params: Any, lora: Any) -> Json:
    """Decode, and say when tokens came: seconds for each further token (the median over the
    requests), and for the whole batch.
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
            if new := output.outputs[0].token_ids:
                tokens[int(output.request_id)] += new
                stamps[int(output.request_id)] += [now] * len(new)
    need(all(len(row) == params.max_tokens for row in tokens), "not as many tokens as asked for")
    each = [(times[-1] - times[0]) / (len(times) - 1) for times in stamps]
    return {"tokens": tokens, "each": statistics.median(each), "all": now - started}


def worker_memory(worker: Any) -> Json:
    """In the engine's worker: the most MiB since the last call; of the device, what is in use."""
    import resource

    import torch

    if not torch.cuda.is_available():
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    free, total = torch.cuda.mem_get_info()
    return {"peak": peak, "device, used GiB": (total - free) / GIB}


def stage_latency(settings: Json, folder: Path) -> Json:
    """The same engine and adapter, greedy and with CoLD, in turns."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind

    from vllm_cold import ColdParams

    dry = settings["dry"]
    shape = SMALL if dry else REAL
    batches, rounds, prompt, tokens = ([1, 2], 2, 8, 6) if dry else ([1, 8, 32], 10, 128, 128)
    dtype = "bfloat16"
    if dry or not (current_platform.is_rocm() or current_platform.has_device_capability(80)):
        dtype = "float32" if dry else "float16"
    write_model(folder, shape, dtype)
    llm = LLM(
        model=str(folder / "big"), skip_tokenizer_init=True, dtype=dtype, enforce_eager=dry,
        max_model_len=512, max_num_seqs=2 * batches[-1], enable_lora=True, max_lora_rank=RANK,
        enable_prefix_caching=False, kv_cache_memory_bytes=GIB // 16 if dry else GIB,
        gpu_memory_utilization=0.05, disable_log_stats=True,
    )  # fmt: skip
    facts = {**about(llm), "model": " ".join(f"{k} {v}" for k, v in shape.items()),
             "prompt": prompt, "tokens": tokens, "rounds": rounds}  # fmt: skip
    options: Json = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True,
                     "detokenize": False, "output_kind": RequestOutputKind.DELTA}  # fmt: skip
    systems = {
        "greedy": SamplingParams(**options),
        "CoLD": ColdParams(alpha=0.1, beta=0.5, **options),
    }
    lora = LoRARequest("adapter", 1, str(folder / "big-adapter"))
    draw = random.Random(0)
    rows, same = [], True
    for batch in batches:
        prompts = [[draw.randrange(3, shape["vocab"]) for _ in range(prompt)] for _ in range(batch)]
        peaks, warm = {}, {}
        runs: dict[str, list[Json]] = {name: [] for name in systems}
        decode_batch(llm, prompts, systems["CoLD"], lora)  # warms up
        for name, params in systems.items():
            llm.collective_rpc(worker_memory)
            warm[name] = decode_batch(llm, prompts, params, lora)["tokens"]
            peaks[name], *_ = llm.collective_rpc(worker_memory)
        same = same and warm["CoLD"] == warm["greedy"]
        for _ in range(rounds):
            for name in random.sample(sorted(systems), len(systems)):
                runs[name].append(decode_batch(llm, prompts, systems[name], lora))
        each = {name: [1e3 * run["each"] for run in runs[name]] for name in systems}
        row: Json = {"batch": batch}
        for name in systems:
            row[f"{name}, ms/token"] = spread(each[name])
        ratio = [c / g for c, g in zip(each["CoLD"], each["greedy"], strict=True)]
        row["CoLD / greedy"] = spread(ratio)
        for name in systems:
            row[f"{name}, tokens/s"] = spread([batch * tokens / run["all"] for run in runs[name]])
        for name in systems:
            row[f"{name}, engine's peak MiB"] = peaks[name]["peak"]
        rows.append(row)
        facts["device, used GiB"] = peaks["CoLD"].get("device, used GiB")
    llm.llm_engine.engine_core.shutdown()
    wrong = "CoLD and greedy decoding gave the same tokens in every batch" if same else ""
    return {"checks": [check("CoLD changes tokens", wrong)], "facts": facts, "rows": rows}


# --- The report


@dataclass(frozen=True)
class Stage:
    """A process of its own: ``do`` names its function, ``speed`` says that it measures."""

    title: str
    do: str
    settings: Json
    environment: dict[str, str]
    speed: bool = False


# Triton multiplies float32 as tf32 by default, also in vLLM's kernels for LoRA and attention. What
# that loses is more than what the tiny model's tokens can bear.
EXACT = {"TRITON_F32_DEFAULT": "ieee", "VLLM_FLOAT32_MATMUL_PRECISION": "highest"}


def plan(dry: bool, vllm: str) -> list[Stage]:
    """The stages behind the first, in their order."""
    stages = [
        Stage("kernels against the reference", "kernels", {}, {}),
        Stage("kernels: NaN with check=True", "assertion", {}, {}),
        Stage("reference tokens of the tiny model", "reference", {}, {}),
    ]
    if dry:  # whatever runner this environment has
        options = {"enforce_eager": True, "async_scheduling": False}
        stages.append(Stage("engine", "engine", {"options": options, "asked": {}}, EXACT))
    else:
        two = tuple(int(part) for part in vllm.split(".")[:2]) >= (0, 31)
        ways = ((True, "sync"), (True, "async"), (False, "async"))
        for runner, (eager, scheduling) in product((1, 2) if two else (1,), ways):
            asked = {"model runner": f"V{runner}", "scheduling": scheduling, "eager": eager}
            options = {"enforce_eager": eager, "async_scheduling": scheduling == "async"}
            title = f"engine: V{runner}, {'eager' if eager else 'compiled, graphs'}, {scheduling}"
            variables = {**EXACT, "VLLM_USE_V2_MODEL_RUNNER": str(runner - 1)}
            settings = {"options": options, "asked": asked}
            stages.append(Stage(title, "engine", settings, variables if two else EXACT))
    insecure = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}  # a function is sent to the worker
    return [
        *stages,
        Stage("scoring speed", "scoring", {}, {}, speed=True),
        Stage("CoLD against greedy", "latency", {}, insecure, speed=True),
    ]


def run_stage(stage: Stage, folder: Path, dry: bool, timeout: float) -> Json:
    """Run a stage in its own process: what it returned, with "error" and "log" if it failed."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "COLD_SCORING": "triton",
        **({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if dry else {}),
        **stage.environment,
    }  # fmt: skip
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over kv_cache_memory_bytes
    if not dry:
        environment.pop("TRITON_INTERPRET", None)
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    settings = json.dumps({**stage.settings, "dry": dry})
    with log.open("wb") as output:
        process = subprocess.Popen(
            # -P: files beside this one must not stand in for modules.
            [sys.executable, "-P", __file__, "--stage", stage.do, settings, str(folder)],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = f"ended with status {process.wait(timeout)}"
        except subprocess.TimeoutExpired:
            status = f"had not finished after {timeout:g} s"
        finally:
            end(process)
    if result.exists():
        found: Json = json.loads(result.read_text())
    else:
        found = {"error": f"the process {status} and left no result"}
    if "error" in found or not all(c["ok"] for c in found.get("checks", [])):
        found["log"] = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a stage's processes, an engine's among them, whatever state they are in."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them have ended
    finally:
        process.wait()


def in_stage(do: str, settings: str, folder: Path) -> int:
    """The stage's process: write what the stage returns, or its exception, to the folder."""
    try:
        found = globals()[f"stage_{do}"](json.loads(settings), folder)
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    (folder / "result.json").write_text(json.dumps(found))
    return 0


def make_report(
    dry: bool, run: Callable[[Stage], Json], say: Callable[[str], None] = print
) -> Json:
    """Run all stages by ``run``; those that measure only if all before are right.

    Returns:
        What is written as JSON; or just ``refused``, with the reason.
    """
    begun = time.monotonic()
    stages, right = [Stage("machine", "machine", {}, {})], True
    report: Json = {"machine": {}, "stages": []}
    rows: Json = {}
    for number, stage in enumerate(stages, 1):  # the first one's facts say what follows
        if stage.speed and not right:
            report["stages"].append({"stage": stage.title, "status": "left out"})
            continue
        say(f"[{number}] {stage.title} ...")
        start = time.monotonic()
        found = run(stage)
        if "refused" in found:
            return {"refused": found["refused"]}
        wrong = [c for c in found.get("checks", []) if not c["ok"]]
        status = "failed" if wrong or "error" in found else "ok"
        seconds = round(time.monotonic() - start, 1)
        entry = {"stage": stage.title, "status": status, "seconds": seconds}
        keys = ("error", "checks", "facts", "log")
        report["stages"].append(entry | {key: found[key] for key in keys if key in found})
        say(f"    {status}, {seconds:.0f} s {found.get('error', '')}".rstrip())
        for c in wrong:
            say(f"    {c['name']}: {c['result']}")
        # A stage that measures and dies (out of memory, say) says nothing against the others.
        right = right and not wrong and (stage.speed or status == "ok")
        if stage.do == "machine":
            report["machine"] = found.get("facts", {})
            if "facts" in found:
                stages += plan(dry, found["facts"]["vLLM"])
        elif stage.speed and found.get("rows"):
            rows[stage.title] = found["rows"]
    return finish(report, dry, right, rows, time.monotonic() - begun)


def finish(report: Json, dry: bool, right: bool, rows: Json, seconds: float) -> Json:
    """Put the verdict on top, and the speeds at the end if nothing is wrong."""
    failed = [s["stage"] for s in report["stages"] if s["status"] == "failed"]
    verdict = f"FAIL: {', '.join(failed)}" if failed else "PASS"
    head = {"report": NAME, "format": 1, "dry run": dry, "verdict": verdict,
            "minutes": round(seconds / 60, 1)}  # fmt: skip
    note = DRY_NOTE if dry else MEDIANS
    if not right:
        rows, note = {}, "No speeds: a check failed. What is wrong has no speed."
    return {**head, **report, "speeds": {"note": note, **rows}}


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
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user
        user = ""
    host = socket.gethostname()  # not getfqdn, which asks the network
    plain = {"", "root", "user", "ubuntu", "vllm", "torch", "localhost", "runner", "node"}
    return [name for name in dict.fromkeys((host, host.split(".")[0], user))
            if name.lower() not in plain]  # fmt: skip


def cell(value: Any) -> str:
    """A value of the JSON in a table of the Markdown."""
    if isinstance(value, list):
        middle, low, high = (cell(v) for v in value)
        return f"{middle} ({low}-{high})"
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def table(rows: Sequence[Json]) -> list[str]:
    """Rows with the same keys, as Markdown."""
    if not rows:
        return []
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(cell, row.values()) for row in rows)]
    return ["", *(f"| {' | '.join(line)} |" for line in lines)]


def to_markdown(report: Json) -> str:
    """The report for readers: what the JSON has, less the names of checks that are right."""
    lines = [f"# {report['report']}", "", f"**{report['verdict']}**"]
    if report["dry run"]:
        lines += ["", f"**{DRY_NOTE}**"]
    lines += ["", f"Took {cell(report['minutes'])} minutes.", "", "## Machine"]
    lines += table([{"what": k, "is": v} for k, v in report["machine"].items()])
    lines += ["", "## Checks"]
    overview = []
    for stage in report["stages"]:
        checks = stage.get("checks", [])
        right = f"{sum(c['ok'] for c in checks)} of {len(checks)}" if checks else None
        overview.append({"stage": stage["stage"], "status": stage["status"], "right": right,
                         "seconds": stage.get("seconds")})  # fmt: skip
    lines += table(overview)
    for stage in report["stages"]:
        wrong = [c for c in stage.get("checks", []) if not c["ok"]]
        facts = [f"- {k}: {cell(str(v))}" for k, v in stage.get("facts", {}).items()]
        if stage["stage"] == "machine":
            facts = []
        if not (wrong or facts or "error" in stage):
            continue
        lines += ["", f"### {stage['stage']}", ""]
        lines += [f"- error: {cell(stage['error'])}"] if "error" in stage else []
        lines += [f"- wrong: {cell(c['name'])}: {cell(c['result'])}" for c in wrong] + facts
        if "log" in stage:
            lines += ["", "```text", stage["log"].replace("```", "'''"), "```"]
    lines += ["", "## Speeds", "", report["speeds"]["note"]]
    for title, rows in report["speeds"].items():
        if title != "note":
            lines += ["", f"### {title}", *table(rows)]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is right, 1 if something is wrong, 2 if the report cannot be made here."""
    try:
        from vllm_cold.bindings.versions import RANGE
    except ImportError:
        RANGE = "of the range that vllm-cold names"
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("{range}", RANGE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER",
                        help="where the two files go (default: here)")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS",
                        help="the most that a stage may take (default: %(default)g)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="try the program without a GPU: kernels in Triton's interpreter, "
                        "vLLM's CPU build, small sizes; " + DRY_NOTE)  # fmt: skip
    options = parser.parse_args(arguments)
    print(parser.description, flush=True)

    def refuse(reason: str) -> int:
        print(f"No report can be made here: {reason}", file=sys.stderr)
        return 2

    if not options.output.is_dir():
        return refuse(f"--output {options.output}: no such folder.")
    with tempfile.TemporaryDirectory(prefix=NAME) as name:
        free = shutil.disk_usage(name).free / GIB
        if free < FREE_DISK and not options.dry_run:
            return refuse(f"{free:.1f} GiB are free for temporary files, not {FREE_DISK}. "
                          "TMPDIR chooses another disk.")  # fmt: skip
        report = make_report(
            options.dry_run,
            lambda stage: run_stage(stage, Path(name), options.dry_run, options.timeout),
            lambda text: print(text, flush=True),
        )
    if "refused" in report:
        return refuse(report["refused"])
    report = nameless(report, names_here())
    markdown = to_markdown(report)
    (options.output / f"{NAME}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / f"{NAME}.md").write_text(markdown)
    print(f"\n{markdown}\nWritten: {NAME}.json and {NAME}.md. Read them, then send both in.")
    return int(report["verdict"] != "PASS")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        sys.exit(in_stage(sys.argv[2], sys.argv[3], Path(sys.argv[4])))
    sys.exit(main())
