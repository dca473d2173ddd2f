# SPDX-License-Identifier: Apache-2.0
"""The whole test suite, step by step: ``python -m tests``; ``--all`` leaves nothing out.

All steps run, whatever fails.
"""

import argparse
import os
import subprocess
import sys

from tests.v2 import selection

# Folders that have tests of engines and servers; the first two have no others.
ENGINES = ("tests/engine", "tests/server", "tests/docs", "tests/examples", "tests/recipes")
V2 = "V2 model runner"


def pytest(workers: int, dist: str, *arguments: str) -> tuple[str, ...]:
    """A worker for each core, up to a number that fits into memory."""
    spread = ("--numprocesses", "auto", "--maxprocesses", str(workers), "--dist", dist)
    return ("-m", "pytest", "-q", *spread, *arguments)


def steps(everything: bool) -> dict[str, tuple[str, ...]]:
    """Name and Python's arguments of each step."""
    full, v2 = " and not full", selection.IN_EVERY_RUN
    if everything:
        full = ""
        # In Triton's interpreter.
        v2 = ("-o", "timeout=900", "-m", "(engine or server) and not full", *selection.FILES)
    rest = (f"--ignore={folder}" for folder in ENGINES[:2])
    # One worker has all tests of a file, and all those that share a server (conftest.py).
    return {
        "without engines": pytest(8, "worksteal", "-m", f"not engine and not server{full}", *rest),
        "engines and servers": pytest(4, "loadgroup", "-m", f"(engine or server){full}", *ENGINES),
        V2: pytest(4, "loadgroup", "--runner", "v2", *v2),
        "vllm-ascend's own classes": ("-m", "tests.ascend", "--if-possible"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="leave nothing out")
    parser.add_argument("--v2", action="store_true", help="the step of the V2 model runner alone")
    arguments = parser.parse_args()
    everything = arguments.all or arguments.v2
    # vLLM would bind all engines to the same cores.
    settings = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    failed = []
    for name, command in steps(everything).items():
        if arguments.v2 and name != V2:
            continue
        print(f"\n== {name}: python {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, *command], env=os.environ | settings).returncode:
            failed.append(name)
    if not everything:
        print("Left out: tests marked 'full', and most of those on the V2 model runner (make v2).")
    else:
        print(
            "Not run on the V2 model runner: what is marked 'full', and tests of engines and "
            f"servers in files other than {', '.join(selection.FILES)}."
        )
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
