# SPDX-License-Identifier: Apache-2.0
"""The tests without a model on other vLLMs: ``python -m tests.upstream.versions 0.23.0 ...``.

Only vLLM's Python part is there. Each release gets a virtual environment of its own that holds
vLLM's modules from the source distribution; every other package comes from .venv, which is behind
it on ``sys.path``. Scheduler, configuration and contracts need no more.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.upstream import compare, guard, sdist

# What is not or cannot be run, by release: file or test -> why.
_EVERYWHERE = {"tests/scheduler/test_mutations.py": "is about our tests, not about a release"}
_PINNED = "asks for pinned memory on the CPU, which .venv's torch refuses"
LEFT_OUT: dict[str, dict[str, str]] = {
    "0.23.0": {
        "tests/unit/test_processor_v2.py": "the interface came with 0.31",
        "tests/unit/test_grouped_lora.py::test_linear": _PINNED,
        "tests/unit/test_grouped_lora.py::test_a_base_row_beside_the_only_adapter": _PINNED,
        "tests/unit/test_grouped_lora.py::test_stock_vllm_gives_the_base_row": _PINNED,
        "tests/unit/test_grouped_lora.py::test_where_stock_is_right_all_agree": _PINNED,
        "tests/unit/test_grouped_lora.py::"
        "test_layers_get_objects_of_their_own_but_for_classification_heads": _PINNED,
        "tests/unit/test_grouped_lora.py::test_the_next_steps_batch": _PINNED,
        "tests/unit/test_grouped_lora.py::test_logits": _PINNED,
        "tests/unit/test_grouped_lora.py::test_embedding": _PINNED,
    },
    "0.33.0": {
        "tests/unit/test_grouped_lora.py::test_stock_vllm_gives_the_base_row": "0.33 is cured",
    },
}


def environment(version: str) -> Path:
    """The interpreter of the release's environment, made when it is not there."""
    folder = sdist.ROOT / ".venv" / "versions" / version
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, symlinks=True)
    sdist.unpack(version, "vllm", packages / "vllm")
    # "+cpu" is how vLLM recognizes its CPU build; this also hides .venv's distribution `vllm`.
    info = packages / f"vllm-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    behind = sysconfig.get_path("purelib")
    (packages / "behind.pth").write_text(f"import site; site.addsitedir({behind!r})\n")
    return folder / "bin" / "python"


def unit(version: str, python: Path) -> bool:
    """Run our own tests that need no model."""
    left_out = _EVERYWHERE | LEFT_OUT.get(version, {})
    print(*(f"left out: {test}: {why}" for test, why in left_out.items()), sep="\n", flush=True)
    command = [str(python), "-m", "pytest", "-q", "-p", guard.__name__]
    command += ["-p", "no:cacheprovider", "-m", "not engine and not server and not slow"]
    for test in left_out:
        command.append(f"--{'deselect' if '::' in test else 'ignore'}={test}")
    command += ["tests/scheduler", "tests/unit"]
    variables = os.environ | {guard.WANTED: version}
    return subprocess.run(command, cwd=sdist.ROOT, env=variables).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    bad = []
    for version in parser.parse_args().versions:
        python = environment(version)
        print(f"\n== vLLM {version}", flush=True)
        if not unit(version, python):
            bad.append(f"vLLM {version}: tests/scheduler, tests/unit")
        if not compare.upstream(version, python):
            bad.append(f"vLLM {version}: its own scheduler tests")
    if bad:
        print("\nfailed:", *bad, sep="\n  ")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
