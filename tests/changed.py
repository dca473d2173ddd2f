# SPDX-License-Identifier: Apache-2.0
"""Parts of the tests that ``make test`` runs only where something that they are about has changed.

All other tests are in every run. ``pytest --changed`` leaves these parts out; ``make test-all``
runs everything. CONTRIBUTING.md says what a change is counted from.
"""

import os
import subprocess
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BASE = "COLD_TEST_BASE"
"""The environment variable that names the commit that changes are counted from."""


class Part(NamedTuple):
    """Tests that belong together.

    Attributes:
        name: What they are called in the list of what was left out.
        tests: Globs of their files, from the project's folder, separated by spaces; ``*`` matches
            folders, too.
        about: Globs of what can break them. Their own files belong to it.
    """

    name: str
    tests: str
    about: str


_SCHEDULING = "vllm_cold/group/* vllm_cold/vllm/scheduler/* tests/scheduler/*"
_COMPUTING = (
    "vllm_cold/vllm/* vllm_cold/group/* vllm_cold/ops/* vllm_cold/cpu/* csrc/cpu/* "
    "vllm_cold/settings/* vllm_cold/rules/* vllm_cold/*.py tests/engine/*.py"
)
PARTS = (
    Part(
        "benchmarks",
        "tests/*/test_bench_*.py tests/*/test_accuracy*.py tests/*/test_device_report.py "
        "tests/*/test_facts.py tests/*/test_tasks.py",
        "benchmarks/* examples/* docs/accuracy.md vllm_cold/ops/*",
    ),
    Part(
        "tune",
        "tests/*/test_tune*.py",
        "vllm_cold/tools/* vllm_cold/settings/* vllm_cold/rules/* vllm_cold/vllm/frontend/* "
        "docs/tuning.md",
    ),
    Part(
        "explain",
        "tests/*/test_explain*.py",
        "vllm_cold/tools/* vllm_cold/settings/* vllm_cold/rules/* vllm_cold/vllm/frontend/* "
        "docs/explain*",
    ),
    Part(
        "the pages' examples",
        "tests/docs/test_server.py tests/docs/test_offline.py",
        "docs/*.md vllm_cold/vllm/frontend/* vllm_cold/settings/* vllm_cold/rules/* vllm_cold/*.py",
    ),
    Part(
        "the quick start",
        "tests/docs/test_quick_start.py",
        "README.md examples/* vllm_cold/vllm/frontend/* vllm_cold/cpu/* vllm_cold/*.py",
    ),
    Part(
        "the site",
        "tests/docs/test_site.py",
        "docs/* mkdocs.yml README.md CHANGELOG.md vllm_cold/*.py",
    ),
    Part(
        "kernels for Ascend on CPU",
        "tests/ops/test_ascend*.py",
        "csrc/ascend/* vllm_cold/ops/* vllm_cold/npu/* tests/ops/*",
    ),
    Part(
        "vllm-ascend's own classes",
        "tests/ascend/*",
        f"{_SCHEDULING} csrc/ascend/* vllm_cold/ops/* vllm_cold/npu/* vllm_cold/*.py "
        "vllm_cold/vllm/*ascend*",
    ),
    Part(
        "what an engine does beside decoding",
        "tests/engine/test_features_under_pressure.py tests/engine/test_pause.py "
        "tests/engine/test_sick_requests.py tests/engine/test_speculation.py "
        "tests/engine/test_streams_offline.py tests/engine/test_workarounds.py",
        _COMPUTING,
    ),
    Part(
        "what a server does beside answering",
        "tests/server/test_adapters_at_runtime.py tests/server/test_load.py "
        "tests/server/test_metrics.py tests/server/test_shutdown.py "
        "tests/server/test_sick_requests.py tests/server/test_streams.py",
        _COMPUTING + " tests/server/*.py docs/serving.md",
    ),
    Part("other families of models", "tests/engine/test_families.py", _COMPUTING),
    Part("quantised models", "tests/engine/test_quantised.py", _COMPUTING + " benchmarks/quant*"),
    Part(
        "engines of several processes",
        "tests/engine/test_scale_out.py tests/server/test_data_parallel.py",
        _COMPUTING,
    ),
    Part(
        "a changed vLLM",
        "tests/engine/test_changed_vllm.py tests/engine/change*.py",
        _COMPUTING,
    ),
    Part(
        "releases",
        "tests/unit/test_release.py tests/unit/test_set_up.py tests/ops/test_native.py",
        "packaging/* docker/* .github/* csrc/* CHANGELOG.md CITATION.cff vllm_cold/__init__.py",
    ),
)
# After a change in one of these, everything runs; here ``*`` does not match folders.
EVERYTHING = ("Makefile", "pyproject.toml", "requirements.lock", "setup.py", "tests/*.py")


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails or is missing."""
    try:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def base() -> str | None:
    """The commit that changes are counted from, or None: then everything runs."""
    if (named := os.environ.get(BASE)) is not None:
        return _git("rev-parse", "--verify", "--quiet", f"{named}^{{commit}}")
    head = _git("rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        fork = _git("merge-base", "HEAD", main)
        if fork and fork != head:
            return fork
    return None  # on main itself nobody knows what has passed


def changed_files(since: str) -> list[str] | None:
    """Files that differ from a commit, those that git does not know yet among them."""
    tracked = _git("diff", "--name-only", "--no-renames", since)
    new = _git("ls-files", "--others", "--exclude-standard")
    return None if tracked is None or new is None else [*tracked.splitlines(), *new.splitlines()]


def left_out(changed: Iterable[str] | None) -> list[Part]:
    """The parts that these changes cannot break."""
    files = list(changed) if changed is not None else None
    if files is None or any(PurePath(f).match(glob) for f in files for glob in EVERYTHING):
        return []
    return [part for part in PARTS if not _any(files, f"{part.tests} {part.about}")]


def now() -> list[Part]:
    """The parts that this checkout's changes cannot break."""
    since = base()
    return left_out(changed_files(since) if since else None)


def is_in(path: Path, parts: Iterable[Part]) -> bool:
    """Whether a test file belongs to one of these parts."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    return any(_any([name], part.tests) for part in parts)


def _any(files: Iterable[str], globs: str) -> bool:
    return any(fnmatch(file, glob) for file in files for glob in globs.split())
