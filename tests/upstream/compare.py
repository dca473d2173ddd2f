# SPDX-License-Identifier: Apache-2.0
"""Runs vLLM's scheduler tests three times (see ``child``) and compares what came out."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.upstream import models, sdist

# Those that are in the version at hand are run.
FILES = (
    "test_scheduler.py",
    "test_async_scheduler.py",
    "test_priority_scheduler_random.py",
    "test_deferred_block_free.py",
    "test_priority_preemption_bug.py",
    "test_prefix_caching.py",
    # Models with SSM layers.
    "test_mamba_align_chunk_split.py",
    "prefix_cache/test_partial_prefix_cache_hits.py",
    "prefix_cache/test_mamba_eagle_resume_checkpoint.py",
)
TIMEOUT = 120  # seconds for a test: a request that is lost makes some wait for ever

# Tests that cannot do the same with ours, by design.
ALLOWED: dict[str, set[str]] = {
    "cold": set(),
    "hooks": {
        # It puts a split of its own into the scheduler, where the hook is.
        "test_spec_decode_padding_dropped_when_recurrent_alignment_clips",
        # Encoder-decoder models have no groups: engines refuse the extension.
        "test_variable_length_cross_attn_block_allocation",
        "test_cross_attn_blocks_not_over_allocated",
        "test_cross_attn_blocks_not_under_allocated",
    },
}
# Where the scheduler is built.
REFUSED = (
    "vllm-cold does not support encoder-cache connectors",
    "vllm-cold does not support KV connectors with vLLM before 0.31",
)
NAMES = {
    "stock": "vLLM's",
    "cold": "contrastive decoding",
    "hooks": "contrastive decoding, hooks on",
}


class Result(NamedTuple):
    """How many tests passed, failed and were skipped."""

    passed: int
    failed: int
    skipped: int


def _run(mode: str, version: str, python: Path, redirects: Path) -> dict[str, Any]:
    root = sdist.CACHE / version
    report = root / f"{mode}.json"
    report.unlink(missing_ok=True)
    files = [f"tests/v1/core/{f}" for f in FILES if (root / "tests/v1/core" / f).exists()]
    command = [str(python), str(Path(__file__).with_name("child.py"))]
    command += ["--scheduler", mode, "--report", str(report), "--vllm", version]
    command += [f"--timeout={TIMEOUT}", "-c", "pytest.ini", "--tb=short", *files]
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MODEL_REDIRECT_PATH": str(redirects),
    }
    log = root / f"{mode}.log"
    print(f"vLLM {version}, {NAMES[mode]} schedulers ({log})", flush=True)
    with log.open("w") as output:
        subprocess.run(command, cwd=root, env=environment, stdout=output, stderr=output)
    if not report.exists():
        raise SystemExit(f"the run ended early: {log}")
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def _differences(mode: str, stock: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What is wrong with a run of ours, a line each."""
    # Elsewhere a test that does not pass with vLLM's says nothing; this one might, in more time.
    wrong = [
        f"too slow to compare: {name}"
        for name, test in stock["tests"].items()
        if "pytest-timeout" in test["reason"]
    ]
    if not any(name.startswith("ours ") for name in ours["built"]):
        wrong.append("no scheduler of ours was built")
    for name in ours["built"]:
        if name in ("vLLM's Scheduler", "vLLM's AsyncScheduler"):
            wrong.append(f"{ours['built'][name]} times {name} was built in place of ours")
    if mode == "hooks" and not ours["hook_calls"]:
        wrong.append("the hook was never called")
    for name, test in stock["tests"].items():
        other = ours["tests"].get(name, {"outcome": "not run", "reason": ""})
        function = name.partition("[")[0].rpartition("::")[2]
        refused = any(each in other["reason"] for each in REFUSED)
        if test["outcome"] != "passed" or function in ALLOWED[mode] or refused:
            continue
        if other["outcome"] != "passed":
            wrong.append(f"{other['outcome']}: {name}: {other['reason']}")
        elif other.get("schedules") != test.get("schedules"):
            wrong.append(f"schedules other tokens than vLLM's: {name}")
    return wrong


def _summary(runs: dict[str, dict[str, Any]]) -> None:
    """Print what was run, built and compared."""
    for mode, run in runs.items():
        passed = sum(test["outcome"] == "passed" for test in run["tests"].values())
        built = ", ".join(f"{number} {name}" for name, number in sorted(run["built"].items()))
        print(f"{NAMES[mode]} schedulers: {passed} tests passed; built: {built}")
    print(f"calls of the hook: {runs['hooks']['hook_calls']}")
    stock = runs["stock"]["tests"].values()
    print(f"tests whose schedules are compared: {sum('schedules' in test for test in stock)}")
    others = [test for test in stock if test["outcome"] != "passed"]
    reasons = Counter(f"{test['outcome']}: {test['reason']}" for test in others)
    print("not passed with vLLM's own schedulers:", "" if reasons else "none")
    for reason, number in reasons.most_common():
        print(f"  {number} {reason}")


def upstream(version: str, python: Path) -> Result:
    """Fetch, run, compare, print. Skipped are tests that do not pass with vLLM's own schedulers."""
    root = sdist.CACHE / version
    sdist.unpack(version, "tests", root / "tests")
    redirects = models.make_models(root / "models")
    # Ours, for pytest to take nothing from this repository's; the marks are vLLM's.
    (root / "pytest.ini").write_text("[pytest]\nmarkers =\n    cpu_test\n    skip_global_cleanup\n")
    runs = {mode: _run(mode, version, python, redirects) for mode in NAMES}
    _summary(runs)
    wrong = {m: _differences(m, runs["stock"], runs[m]) for m in ("cold", "hooks")}
    for mode, lines in wrong.items():
        if lines:
            print(f"\nwith {NAMES[mode]} schedulers:")
            print(*(f"  {line}" for line in lines), sep="\n")
    outcomes = [
        [run["tests"].get(name, {}).get("outcome") for run in runs.values()]
        for name in runs["stock"]["tests"]
    ]
    passed = sum(set(three) == {"passed"} for three in outcomes)
    skipped = sum(three[0] != "passed" for three in outcomes)
    return Result(passed, sum(map(len, wrong.values())), skipped)
