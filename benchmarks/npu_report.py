# SPDX-License-Identifier: Apache-2.0
"""Check vllm-cold on your Ascend NPU, measure it, and write a report to send in.

``python -m benchmarks.npu_report`` in the checkout, with CANN's set_env.sh sourced.

Needs    one NPU of an Atlas A2 or A3 with 8 GiB free; CANN 9.1 with its kernels, CMake, make and
         g++; vllm-ascend 0.23 with torch and torch_npu; this checkout, installed from it; pytest,
         pytest-timeout and hypothesis; 16 GiB of memory; 8 GiB free on disk.
Takes    20 to 40 minutes (a guess: it has not run on an NPU yet). Nothing else should use the NPU.
Sends    nothing, and fetches nothing: no model, no hub. It writes vllm-cold-npu-report.json and
         .md here, without host name, user name, addresses or paths. Read them, then send them in.

First it builds the AscendC kernels (into vllm_cold/ops, where they stay; what the compiler says
goes into the report) and compares them with references. Then real engines decode with a tiny
random model, and their tokens are compared with a plain implementation in float32. What is wrong
has no speed: if any of that is, nothing is measured.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import gpu_report as frame
from benchmarks.gpu_report import Json, Kind, Stage, attempt, check, need

if sys.argv[1:2] == ["--stage"] or "torch" in sys.modules:
    with suppress(Exception):  # stage_machine says what is missing
        import torch

ROOT = Path(__file__).parents[1]
ASCEND = ROOT / "csrc" / "ascend"
NPU: Json = {"device": "npu", "backend": "ascend"}
NOTE = (
    "Medians (20th to 80th percentile), ratios within a round. Scoring and LoRA: from a cold cache "
    "where the table says so, each call launched from Python, or all in one ACL graph. GB/s: both "
    "rows of a pair are read and the expert's is written once. Decoding: engine and caller are one "
    "process. Peaks: beyond what was allocated."
)


# --- The machine


def cannot_build() -> str:
    """What the build lacks here, in a sentence; an empty string if nothing."""
    if not os.environ.get("ASCEND_HOME_PATH"):
        return "ASCEND_HOME_PATH is not set: install CANN and source its set_env.sh."
    if find_spec("torch_npu") is None:
        return "There is no torch_npu in this Python: install the one that fits torch."
    if not os.environ.get("SOC_VERSION"):
        return (
            "SOC_VERSION is not set: export SOC_VERSION=ascend910b1 (Atlas A2) or ascend910_9391 "
            "(Atlas A3); `npu-smi info` has the chip's name."
        )
    lacking = [tool for tool in ("cmake", "make", "g++") if shutil.which(tool) is None]
    modules = ("pytest", "pytest_timeout", "hypothesis")
    lacking += [name.replace("_", "-") for name in modules if find_spec(name) is None]
    return f"Not installed here, but needed: {', '.join(lacking)}." if lacking else ""


def stage_machine(settings: Json, folder: Path) -> Json:
    """As of a GPU's report."""
    if settings["dry"]:
        return frame.installed()
    reason = cannot_build()
    if reason:
        return {"refused": reason}
    try:
        import torch_npu  # noqa: F401

        there = torch.npu.is_available()
    except Exception as error:  # a library of CANN's may be missing
        return {"refused": f"torch and torch_npu cannot be used here: {error}."}
    if not there:
        return {"refused": "torch_npu sees no NPU. Run it where there is one, with its driver; in "
                "a container, with its devices. On a CPU there is --dry-run."}  # fmt: skip
    if find_spec("vllm_ascend") is None:
        return {"refused": "There is no vllm-ascend in this Python: install 0.23."}
    found = frame.installed()
    if "refused" in found:
        return found
    free, total = torch.npu.mem_get_info()
    if free < frame.FREE_MEMORY * frame.GIB:
        least = frame.FREE_MEMORY
        return {"refused": f"{free / frame.GIB:.1f} GiB of NPU memory are free, not {least}."}
    properties = torch.npu.get_device_properties(0)
    found["facts"] |= {
        "NPU": torch.npu.get_device_name(0),
        "NPU memory": f"{free / frame.GIB:.1f} of {total / frame.GIB:.1f} GiB free",
        "vector cores": str(getattr(properties, "vector_core_num", "unknown")),
        "SOC_VERSION": os.environ["SOC_VERSION"],
        "CANN": cann_version(Path(os.environ["ASCEND_HOME_PATH"])),
        "driver": version_in(Path("/usr/local/Ascend/driver/version.info")),
    }
    return found


def version_in(file: Path) -> str:
    """The first version that one of CANN's files names."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    found = re.search(r"^\s*version\s*=\s*(\S+)", text, re.IGNORECASE | re.MULTILINE)
    return found[1] if found else "unknown"


def cann_version(home: Path) -> str:
    """Of the toolkit or, in older layouts, of its compiler."""
    files = (*home.glob("*/ascend_toolkit_install.info"), home / "compiler" / "version.info",
             *home.glob("share/info/*/version.info"))  # fmt: skip
    return next((v for file in files if (v := version_in(file)) != "unknown"), "unknown")


# --- The build


def stage_build(settings: Json, folder: Path) -> Json:
    """Build the kernels and see that torch loads them; on a CPU, build their host versions."""
    if settings["dry"]:
        from tests.ops import ascend_host, lora_host

        def build_for_host() -> None:
            ascend_host.compile_host(ascend_host.KERNEL, ascend_host.RUNNER)
            lora_host.compile_lora()

        return {"checks": [attempt("g++, for this machine", build_for_host)]}
    return {"checks": build(ASCEND, folder / "build", ROOT / "vllm_cold" / "ops", kernels_load)}


def build(source: Path, folder: Path, target: Path, load: Callable[[], None]) -> list[Json]:
    """Configure, build, install and load, as far as that goes; output goes to this process's."""
    steps: dict[str, list[str]] = {
        "configure": ["-S", str(source), "-B", str(folder), "-G", "Unix Makefiles",
                      f"-DCMAKE_INSTALL_PREFIX={target}", f"-DPYTHON_EXECUTABLE={sys.executable}"],
        "build": ["--build", str(folder), "--parallel"],
        "install": ["--install", str(folder)],
    }  # fmt: skip
    checks = []
    for name, arguments in steps.items():
        done = subprocess.run(
            ["cmake", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(done.stdout, flush=True)  # it is the stage's log
        if done.returncode:
            return [*checks, check(name, said_by_cmake(done.stdout, done.returncode))]
        checks.append(check(name))
    return [*checks, attempt("load", load)]


def said_by_cmake(output: str, status: int) -> str:
    """The sentence that CMakeLists.txt stops with, if it does; the first error of a compiler."""
    stopped = re.search(r"CMake Error at .*:\n((?:  .+\n)+)", output)
    if stopped:
        return " ".join(stopped[1].split())
    errors = [line for line in output.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
    return f"cmake ended with status {status}: {errors[0] if errors else 'see the log'}"


def kernels_load() -> None:
    """torch finds both ops in the library."""
    from vllm_cold.npu import lora_ops

    reason = lora_ops.missing(torch.device("npu"))  # which asks for scoring's first
    need(reason is None, reason or "")


# --- The kernels against references


def kernels_on_host() -> None:
    """In this process, backend "ascend" is the kernels' host build, on CPU tensors."""
    from tests.ops import ascend_host
    from vllm_cold.ops import scoring_ascend

    program = ascend_host.compile_host(ascend_host.KERNEL, ascend_host.RUNNER)
    host: Any = ascend_host.Host(program)
    scoring_ascend.BACKEND = host


def on_host(stage: Callable[[Json, Path], Json]) -> Callable[[Json, Path], Json]:
    """The stage; on a dry run, with the kernels' host build."""

    def run(settings: Json, folder: Path) -> Json:
        if settings["dry"]:
            kernels_on_host()
        return stage(settings, folder)

    return run


def stage_tests(settings: Json, folder: Path) -> Json:
    """The tests of tests/ops that compare with references on the NPU. None may be skipped."""
    import pytest

    os.chdir(ROOT)
    found = folder / "tests.xml"
    chosen = settings["on a host" if settings["dry"] else "on the NPU"]
    arguments = ["-q", "-p", "no:cacheprovider", f"--junitxml={found}", "-k", chosen]
    status = pytest.main([*arguments, *settings["files"]])
    if not found.exists():
        return {"error": f"pytest ended with status {int(status)} and ran no test"}
    checks = [check(*tested(case)) for case in ElementTree.parse(found).iter("testcase")]
    return {"checks": checks or [check("tests", f"none is called {chosen!r}")]}


def tested(case: ElementTree.Element) -> tuple[str, str]:
    """A test's name, and what was wrong."""
    wrong = [f"{child.tag}: {child.get('message', '')}" for child in case
             if child.tag in ("failure", "error", "skipped")]  # fmt: skip
    return case.get("name", "?"), "; ".join(wrong)


# Rows' adapters, adapters, rank, length of x, and outputs of each slice.
PAIR = (0, -1)
LORA_CASES: tuple[tuple[tuple[int, ...], int, int, int, tuple[int, ...]], ...] = (
    (PAIR, 1, 8, 128, (128, 64, 64)),
    (PAIR * 2, 1, 16, 1024, (1000,)),
    ((-1, -1, -1), 2, 8, 256, (64,)),
    ((1, -1, 0, -1, 1), 2, 1, 97, (33, 65)),
    (PAIR * 16, 1, 64, 4096, (4096, 1024, 1024)),
    ((0, 1, 2, 3) * 16, 4, 16, 4096, (14336, 14336)),
    ((0,) * 300, 1, 32, 2048, (512,)),
    (PAIR * 600, 1, 16, 1024, (256, 256)),
    (PAIR, 1, 256, 14336, (4096,)),
)


def stage_lora_kernels(settings: Json, folder: Path) -> Json:
    """The LoRA kernels against float64, in all dtypes; rows of the base model to the bit."""
    from tests.ops import lora_host

    run_ours = ours_of(settings["dry"])
    cases = LORA_CASES[:4] if settings["dry"] else LORA_CASES

    def run(seed: int, dtype: str, rows: tuple[int, ...], adapters: int, *size: Any) -> Json:
        name = f"{len(rows)} rows, {adapters} adapters, rank, inputs, outputs {size}, {dtype}"

        def compare() -> None:
            case = lora_host.make_case(seed, list(rows), *size, getattr(torch, dtype), adapters)
            arguments = on_device(case, frame.device_of(settings))
            run_ours(*arguments)
            case.check(arguments[0].cpu())

        return attempt(name, compare)

    return {"checks": [run(seed, dtype, *case) for seed, case in enumerate(cases)
                       for dtype in frame.DTYPES]}  # fmt: skip


def on_device(case: Any, device: str) -> tuple[Any, ...]:
    """A copy of the arguments of a case: y, x, A's, B's, indices, scale."""
    a, b = ([w.to(device, copy=True) for w in weights] for weights in (case.a, case.b))
    y, x, indices = (t.to(device, copy=True) for t in (case.y, case.x, case.indices))
    return y, x, a, b, indices, case.scale


def ours_of(dry: bool) -> Callable[..., None]:
    """This package's LoRA kernels, as a function of the arguments; on a dry run, on a CPU."""
    if not dry:
        from vllm_cold.npu import lora_ops

        kernels_load()
        return lora_ops.shrink_expand
    from tests.ops import lora_host

    host = lora_host.LoraHost(lora_host.compile_lora())

    def on_host(y: Any, x: Any, a: Any, b: Any, indices: Any, scale: float) -> None:
        y.copy_(host.run(lora_host.Case(y, x, tuple(a), tuple(b), indices, scale)))

    return on_host


# --- Engines

# How far an engine's logits may be beside the reference's before it counts as wrong, by parts_by().
# transformers' halves of the tiny model, on a CPU, are up to 2**-5 (float16) and 2**-1 (bfloat16)
# beside; an expert without its adapter 8 or more, an amateur that gets one 0.5 or more: float16
# tells them all from rounding, bfloat16 the expert alone.
STEPS = tuple(2.0**power for power in range(-12, 6))
MOST = {"float32": STEPS[0], "float16": 0.125, "bfloat16": 2.0}


def stage_engine(settings: Json, folder: Path) -> Json:
    """The doctor's self-test in an engine with other options, all requests in one batch. In
    float32 tokens are the reference's; in halves, those of logits that are near to its.
    """
    from vllm_cold.tools.doctor import reference, self_test

    asked, loras, dtype = settings["asked"], settings["max_loras"], settings["asked"]["dtype"]
    cases = [case for case in reference.CASES if case.amateur is None or loras > 1]
    options = {"enforce_eager": asked["eager"], "async_scheduling": asked["scheduling"] == "async",
               "dtype": dtype, "max_loras": loras}  # fmt: skip
    config, got = self_test.decode(folder, cases, options=options)
    facts, models = about(config, settings), reference_models(folder)
    checks, parts = [], []
    for case, tokens in zip(cases, got, strict=True):
        need(len(tokens) == reference.MAX_TOKENS, f"{len(tokens)} tokens of {case.name}")
        parts.append(parts_by(models, case, tokens))
        wrong = f"tokens of logits that are {parts[-1]:g} beside the reference's"
        checks.append(check(case.name, wrong if parts[-1] > MOST[dtype] else ""))
    facts["beside the reference by, logits"] = max(parts)
    return {"checks": checks + frame.as_asked(facts, asked), "facts": facts}


def stage_sampling(settings: Json, folder: Path) -> Json:
    """Random sampling, with prompts that are split over steps: streams of a request prefill in
    different numbers of steps, and have to stay in step. With seeds and without.
    """
    from dataclasses import replace

    from vllm_cold.tools.doctor import reference

    asked, dtype = settings["asked"], settings["asked"]["dtype"]
    cases = [
        replace(case, name=f"{case.name}, {'seed' if number % 2 else 'no seed'}",
                prompt=case.prompt * (1 + number % 3))
        for number, case in enumerate(c for c in reference.CASES * 2 if c.cold and not c.amateur)
    ]  # fmt: skip
    llm = one_slot(settings, folder, enable_chunked_prefill=True, max_num_batched_tokens=16)
    facts = about(llm.llm_engine.vllm_config, settings)
    seeds = [number if number % 2 else None for number in range(len(cases))]
    got = generate(llm, folder, cases, [{"temperature": 1.0, "seed": seed} for seed in seeds])
    llm.llm_engine.engine_core.shutdown()
    models = reference_models(folder)

    def drawn(case: Any, tokens: Sequence[int]) -> None:
        need(len(tokens) == 24, f"{len(tokens)} tokens, not 24")
        beside = parts_by(models, case, tokens, greedy=False)
        need(beside <= MOST[dtype], f"a token is no candidate, by {beside:g} logits")

    checks = [attempt(case.name, partial(drawn, case, tokens))
              for case, tokens in zip(cases, got, strict=True)]  # fmt: skip
    same = len({tuple(tokens) for tokens in got}) < len(got)
    checks.append(check("tokens are drawn", "two requests have the same" if same else ""))
    return {"checks": checks + frame.as_asked(facts, asked), "facts": facts}


def stage_alone(settings: Json, folder: Path) -> Json:
    """Steps in which no row has an adapter, and steps of a pair, in graphs of the same size.

    In full graphs vllm-ascend may compute the former wrongly, or wait for ever (docs/ascend.md).
    CoLD cannot help it and warns; so what comes out there is a fact, and no check.
    """
    from dataclasses import replace

    from vllm_cold.tools.doctor import reference

    asked, dtype = settings["asked"], settings["asked"]["dtype"]
    base, _, pair = reference.CASES[:3]
    bases = [replace(base, name=f"base model, {times * len(base.prompt)} tokens",
                     prompt=base.prompt * times) for times in (1, 3)]  # fmt: skip
    graphs = {"cudagraph_mode": asked["graphs"]} if "graphs" in asked else {}
    llm = one_slot(settings, folder, **({"compilation_config": graphs} if graphs else {}))
    facts, models = about(llm.llm_engine.vllm_config, settings), reference_models(folder)
    checks = []
    for when, cases in (("before the pair", bases), ("pair", [pair]), ("behind it", bases)):
        got = generate(llm, folder, cases, [{"temperature": 0.0}] * len(cases))
        for case, tokens in zip(cases, got, strict=True):
            beside = parts_by(models, case, tokens)
            wrong = f"tokens of logits that are {beside:g} beside the reference's"
            checks.append(check(f"{when}: {case.name}", wrong if beside > MOST[dtype] else ""))
    llm.llm_engine.engine_core.shutdown()
    if "FULL" in facts["graphs"]:
        facts |= {c["name"]: c["result"] for c in checks}
        checks = []
    return {"checks": checks + frame.as_asked(facts, asked), "facts": facts}


def one_slot(settings: Json, folder: Path, **options: Any) -> Any:
    """An engine of the tiny model with ``max_loras=1``, as it was asked for."""
    from vllm import LLM

    from vllm_cold.tools.doctor import self_test

    asked = settings["asked"]
    return LLM(**{**self_test.engine_options(folder), "max_loras": 1, "dtype": asked["dtype"],
                  "enforce_eager": asked["eager"],
                  "async_scheduling": asked["scheduling"] == "async", **options})  # fmt: skip


def generate(llm: Any, folder: Path, cases: Sequence[Any], sampling: Sequence[Json]) -> list[Any]:
    """24 tokens of each case, all in one batch, sampled as is said for each."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from vllm_cold import ColdParams

    params = []
    for case, how in zip(cases, sampling, strict=True):
        how = {**how, "max_tokens": 24, "ignore_eos": True, "detokenize": False}
        if case.cold is None:
            params.append(SamplingParams(**how))
            continue
        alpha, beta, cap = case.cold
        knobs: Json = {"alpha": alpha, "beta": beta, "expert_top_k": cap}
        knobs |= {"beta": "adaptive", "beta_max": beta} if case.adaptive else {}
        params.append(ColdParams(**knobs, **how))
    one = LoRARequest("one", 1, str(folder / "one"))
    outputs = llm.generate(
        [{"prompt_token_ids": list(case.prompt)} for case in cases], params,
        lora_request=[one if case.adapter else None for case in cases], use_tqdm=False,
    )  # fmt: skip
    return [output.outputs[0].token_ids for output in outputs]


def about(config: Any, settings: Json) -> Json:
    """As of a GPU's report, and what scored and computed LoRA: they had no choice."""
    from vllm_cold.npu import npu_platform

    lora = "that of CPUs" if settings["dry"] else npu_platform.choice()
    return {**frame.about(config), "scoring": os.environ["COLD_SCORING"], "LoRA": lora}


def reference_models(folder: Path) -> Json:
    """The reference's models, by adapter."""
    from vllm_cold.tools.doctor import reference, tiny

    return {name: reference._model(folder, name) for name in (None, *tiny.ADAPTERS)}


def parts_by(models: Json, case: Any, tokens: Sequence[int], greedy: bool = True) -> float:
    """How far logits have to be from the reference's, at least, for these tokens to be right: the
    least of ``STEPS``, or twice the last of them. Each token is looked at behind those before it,
    so that one that rounding changes does not spoil the rest. Without ``greedy`` it has to be a
    candidate only.
    """
    ids = torch.tensor([[*case.prompt, *tokens[:-1]]])
    with torch.inference_mode():
        expert, amateur = (
            models[name](input_ids=ids).logits[0, len(case.prompt) - 1 :].double()
            for name in (case.adapter, case.amateur)
        )
    steps = list(zip(expert, amateur, tokens, strict=True))
    right = (most for most in STEPS if all(fits(case, *step, most, greedy) for step in steps))
    return next(right, 2 * STEPS[-1])


def fits(case: Any, e: Any, a: Any, token: int, most: float, greedy: bool) -> bool:
    """Whether logits at most ``most`` from e and a [V] could give the token."""
    from vllm_cold.ops.scoring_reference import adaptive_weight

    if case.cold is None:
        return bool(e[token] >= e.max() - 2 * most)
    alpha, beta, cap = case.cold
    bar = e.max() + math.log(alpha)
    if cap:
        bar = torch.maximum(bar, e.topk(cap).values[-1])
    if e[token] < bar - 2 * most:
        return False
    if not greedy:
        return True
    if case.adaptive:
        near = (e - bar).abs() < 2 * most
        near[e.argmax()] = False
        if near.any():
            return True  # another set of candidates is another weight
        beta = -adaptive_weight(e, a, math.log(alpha), -beta, cap or 0)
    scores = (1 + beta) * e - beta * a
    certain = scores[e >= bar + 2 * most]
    return not len(certain) or bool(scores[token] >= certain.max() - 2 * most * (1 + 2 * beta))


# --- Speeds


def replayed(run: Callable[[], object], restore: Callable[[], object], device: str) -> None:
    """Do the work by a graph that it was captured in; raises where it cannot be."""
    run()
    replay = frame.timer(run, device, graph=True)
    restore()
    replay()


def stage_scoring(settings: Json, folder: Path) -> Json:
    """As of a GPU's report. In graphs, what a captured one computes is looked at first."""
    if not settings.get("graph"):
        return frame.stage_scoring(settings, folder)
    from vllm_cold.ops import Groups, contrastive_scores

    device, case = frame.device_of(settings), frame.usual_case(2, 32000, False)
    there, before = case.to(device), case.logits.to(device)
    score = partial(contrastive_scores, there.logits, Groups(*there.args), inplace=True,
                    backend=settings["backend"], check=False)  # fmt: skip
    replayed(score, lambda: there.logits.copy_(before), device)
    scored = there.logits.cpu()[case.args[0][:, 0]]
    right = attempt("scores of a graph", lambda: frame.check_scores(case, scored))
    if not right["ok"]:
        return {"checks": [right]}
    return captured(frame.stage_scoring(settings, folder))


def captured(found: Json) -> Json:
    """A measurement in graphs, in which what cannot be captured is no wrong result, but a fact."""
    wrong = tuple(f"{error}: " for error in ("WrongError", "AssertionError"))
    checks = [c for c in found["checks"] if c["ok"] or c["result"].startswith(wrong)]
    facts = {c["name"]: c["result"] for c in found["checks"] if c not in checks}
    return {**found, "checks": checks, "facts": {**found.get("facts", {}), **facts}}


# Layers of a Llama of eight billion parameters: length of the input, outputs of each slice.
LAYERS = {"qkv": (4096, (4096, 1024, 1024)), "o": (4096, (4096,)),
          "gate, up": (4096, (14336, 14336)), "down": (14336, (4096,))}  # fmt: skip
SMALL = {"qkv": (96, (96, 32, 32))}


def theirs(y: Any, x: Any, a: Any, b: Any, indices: Any, scale: float) -> None:
    """vllm-ascend's BGMV kernels, called as its PunicaWrapperNPU calls them."""
    from vllm_ascend.lora import lora_ops

    rank, at = a[0].shape[-2], 0
    sums = [torch.zeros((len(x), rank), dtype=torch.float32, device=x.device) for _ in a]
    for weights, part in zip(a, sums, strict=True):
        lora_ops.bgmv_shrink(x, weights, part, indices, scale)
    for weights, part in zip(b, sums, strict=True):
        lora_ops.bgmv_expand_slice(part, weights, y, indices, at, weights.shape[-2], True)
        at += weights.shape[-2]


def with_torch(y: Any, x: Any, a: Any, b: Any, indices: Any, scale: float) -> None:
    """torch operations, that gather each row's weights."""
    chosen, active, at = indices.clamp(min=0), (indices >= 0).unsqueeze(1), 0
    for down, up in zip(a, b, strict=True):
        part = torch.einsum("nk,nrk->nr", x, down[chosen, 0])
        part = torch.einsum("nr,nor->no", part, up[chosen, 0])
        y[:, at : at + part.shape[1]] += torch.where(active, part * scale, 0)
        at += part.shape[1]


def measure_lora(
    name: str, case: Any, systems: dict[str, Callable[..., None]], rounds: int, device: str,
    graph: bool,
) -> Json:  # fmt: skip
    """A row of the table, after a check of all systems on this very work."""
    want, _ = case.reference()
    size = sum(w.nbytes for w in (*case.a, *case.b))
    cache = frame.cache_of(device)
    count, cold = frame.copies_for(size, cache, False)
    copies = [on_device(case, device) for _ in range(count)]

    def all_copies(system: Callable[..., None]) -> None:
        for arguments in copies:
            system(*arguments)

    before = case.y.to(device)

    def restore() -> None:
        for arguments in copies:
            arguments[0].copy_(before)

    timers = {}
    for system, run in systems.items():
        arguments = on_device(case, device)
        run(*arguments)
        got = arguments[0].cpu()
        if system == "ours":
            case.check(got)
        error = float((got.double() - want).abs().max() / want.abs().max())
        need(error < 0.02, f"{system} is wrong by {error:.2g} of the largest value")
        timers[system] = frame.timer(partial(all_copies, run), device, graph)
    times = frame.in_turns(timers, rounds, count, restore)
    return {
        "layer": name, "rows": len(case.x), "cold": "yes" if cold else "no",
        **{f"{system}, us": frame.spread(each) for system, each in times.items()},
        **{f"{system} / ours": frame.ratios(each, times["ours"])
           for system, each in times.items() if system != "ours"},
    }  # fmt: skip


def stage_lora(settings: Json, folder: Path) -> Json:
    """The LoRA kernels against vllm-ascend's and torch operations: pairs of an expert with the
    adapter and an amateur without, rank 16.
    """
    from tests.ops import lora_host

    dry, device, graph = settings["dry"], frame.device_of(settings), settings.get("graph", False)
    systems = {"ours": ours_of(dry), "torch": with_torch}
    if not dry:
        from vllm_ascend.utils import enable_custom_op

        need(enable_custom_op(), "vllm-ascend's own kernels do not load")
        systems["vllm-ascend"] = theirs
    layers, pairs = (SMALL, (1,)) if dry else (LAYERS, (1, 8, 32))
    dtype = torch.float32 if dry else torch.bfloat16
    found: Json = {"checks": [], "rows": []}
    if graph:
        case = lora_host.make_case(0, list(PAIR * 4), 16, *layers["qkv"], dtype)
        there, before = on_device(case, device), case.y.to(device)
        replayed(partial(systems["ours"], *there), lambda: there[0].copy_(before), device)
        found["checks"] = [attempt("LoRA of a graph", lambda: case.check(there[0].cpu()))]
        if not found["checks"][0]["ok"]:
            return found
    for name, layer in layers.items():
        for number in pairs:
            case = lora_host.make_case(0, list(PAIR * number), 16, *layer, dtype)
            try:
                row = measure_lora(name, case, systems, 2 if dry else 30, device, graph)
                found["rows"].append(row)
            except Exception as error:  # the others go on
                wrong = f"{type(error).__name__}: {error}"
                found["checks"].append(check(f"{name}, {2 * number} rows", wrong))
    return captured(found) if graph else found


# --- The report


def engine(title: str, do: str = "engine", loras: int = 1, trial: bool = False, *,
           asked: Json, **environment: str) -> Stage:  # fmt: skip
    """A stage of an engine."""
    return Stage(title, do, {"asked": asked, "max_loras": loras}, environment, trial=trial)


def plan(dry: bool, vllm: str) -> list[Stage]:
    """The stages behind the first, in their order."""
    eager: Json = {"eager": True, "scheduling": "sync", "dtype": "float16"}
    graphs: Json = {"eager": False, "scheduling": "async", "dtype": "float16"}
    exact = {**eager, "dtype": "float32"}
    engines = [
        engine("engine: eager, scoring by torch", asked=eager, loras=2, COLD_SCORING="torch"),
        # vllm-ascend's LoRA takes halves only, and its attention may: float32 is tried.
        engine("engine: eager, float32", asked=exact, loras=2, trial=True, COLD_LORA="ascendc"),
        engine("engine: eager, async", asked=eager | {"scheduling": "async"}, loras=2),
        engine("engine: graphs, async, max_loras 2", asked=graphs, loras=2),
        engine("engine: graphs, async, max_loras 1", asked=graphs),
        engine(
            "engine: graphs, async, bfloat16, in a process of its own",
            asked=graphs | {"dtype": "bfloat16"},
            VLLM_ENABLE_V1_MULTIPROCESSING="1",
        ),
        engine("sampling, split prompts: eager", "sampling", asked=eager),
        engine("sampling, split prompts: graphs, async", "sampling", asked=graphs),
        engine(
            "base requests alone: graphs in pieces", "alone", asked=graphs | {"graphs": "PIECEWISE"}
        ),
        engine("engine: eager, our LoRA kernels", asked=eager, loras=2, COLD_LORA="ascendc"),
        engine("engine: graphs, async, our LoRA kernels", asked=graphs, COLD_LORA="ascendc"),
        # Last, as it may hang.
        engine("base requests alone: full graphs", "alone", asked=graphs, trial=True),
    ]
    if dry:
        engines = [engine("engine: eager, float32", asked=exact, loras=2),
                   engine("engine: eager", asked=eager),
                   engine("sampling, split prompts: eager", "sampling", asked=eager),
                   engine("base requests alone: eager", "alone", asked=eager)]  # fmt: skip
    alone, graph = ({**NPU, "graph": captured} for captured in (False, True))
    tests = {"files": ["tests/ops/test_ascend.py"], "on the NPU": "on_the_npu",
             "on a host": "(test_conforms or test_plan) and not npu and not 256000"}  # fmt: skip
    stages = [
        Stage("build of the kernels", "build", log=400),
        Stage("scoring against the reference", "tests", tests),
        Stage("scoring against float64", "kernels", NPU),
        Stage("LoRA against float64", "lora_kernels", NPU),
        Stage("reference tokens of the tiny model", "reference"),
        *engines,
        Stage("scoring speed, launched from Python", "scoring", alone, speed=True),
        Stage("scoring speed, in ACL graphs", "scoring", graph, speed=True, trial=True),
        Stage("LoRA speed, launched from Python", "lora", NPU, speed=True),
        Stage("LoRA speed, in ACL graphs", "lora", graph, speed=True, trial=True),
        Stage("CoLD against greedy", "latency", NPU, speed=True),
    ]
    return [s for s in stages if not (dry and s.settings.get("graph"))]


def environment_of(stage: Stage, folder: Path, dry: bool) -> dict[str, str]:
    """As for a GPU's report, with this checkout, and our kernels or an error."""
    found = frame.environment_of(stage, folder, dry)
    paths = [str(ROOT), *filter(None, [found.get("PYTHONPATH")])]
    return {**found, "PYTHONPATH": os.pathsep.join(paths), "COLD_SCORING": "ascend",
            **stage.environment}  # fmt: skip


STAGES = {
    "stage_machine": stage_machine,
    "stage_build": stage_build,
    "stage_tests": stage_tests,
    "stage_kernels": on_host(frame.stage_kernels),
    "stage_lora_kernels": stage_lora_kernels,
    "stage_reference": frame.stage_reference,
    "stage_engine": on_host(stage_engine),
    "stage_sampling": on_host(stage_sampling),
    "stage_alone": on_host(stage_alone),
    "stage_scoring": on_host(stage_scoring),
    "stage_lora": stage_lora,
    "stage_latency": on_host(frame.stage_latency),
}
KIND = Kind(
    "vllm-cold-npu-report", __doc__ or "",
    ("-P", "-m", "benchmarks.npu_report"),  # -P: nothing but this checkout, which is on the path
    plan, environment_of, NOTE,
    "try the program without an NPU: the kernels built by g++ for this machine, vLLM's CPU build, "
    "tiny sizes, engines eager and synchronous, no ACL graphs and no memory figures",
)  # fmt: skip

if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        frame.in_stage(sys.argv[2], sys.argv[3], Path(sys.argv[4]), STAGES)
    else:
        sys.exit(frame.main(kind=KIND))
