# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: the tiny model with its adapters, made once per run, and the naive reference."""

import functools
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports vLLM or transformers: no hub, no usage reports, a small KV cache.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# Which product is the fastest varies on a busy machine: what is tested shall not.
os.environ.setdefault("COLD_LINEAR", "packed")

import pytest
from hypothesis import HealthCheck, settings

from vllm_cold.compat import versions

# CI repeats the same examples; `--hypothesis-profile=fuzz` looks for new ones.
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("fuzz", settings.get_profile("ci"), derandomize=False, max_examples=3000)
settings.load_profile("ci")

# What takes minutes comes first: at the end, one worker would wait for the other one. (By itself
# xdist hands out groups by their number of tests.)
LONG = (
    "tests/engine/test_device_report.py",
    "tests/engine/test_speculation.py",
    "tests/engine/test_reference.py",
    "tests/docs/test_quick_start.py",
)
SHARED = ("server", "default_server")  # of tests/server/conftest.py, for the whole session
SERVERS = "servers"  # the group of files whose tests want one of them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--runner",
        choices=("v1", "v2"),
        default="v1" if versions.is_before("0.34") else "v2",
        help="vLLM's model runner in engines",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False
    if config.getoption("runner") == "v1" and not versions.is_before("0.34"):
        raise pytest.UsageError("--runner v1: vLLM has no V1 model runner since 0.34")
    if config.getoption("runner") == "v2":
        from tests import v2

        v2.switch_on()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda i: (_group(i.nodeid) != SERVERS, not i.nodeid.startswith(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup`` a group is one worker's. (xdist 3.8 tells groups by ids that pytest
    9.2 does not let it change: by itself it would hand out each test alone.)
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


def _group(nodeid: str) -> str:
    """A file, or those files whose tests share a server of the session."""
    file = nodeid.partition("::")[0]
    return SERVERS if _shares_a_server(file) else file


@functools.cache
def _shares_a_server(file: str) -> bool:
    """Not where it has one of its own under the same name."""
    if not file.startswith("tests/server/"):
        return False
    text, names = (Path(__file__).parents[1] / file).read_text(), "|".join(SHARED)
    used = re.search(rf"^def test_\w+\([^)]*\b({names}): ", text, re.M)
    return used is not None and "\ndef server(" not in text


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which files take longest."""
    seconds: Counter[str] = Counter()
    for report in itertools.chain(*terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):  # of a setup, a test or a teardown
            seconds[report.location[0]] += report.duration
    slowest = [f"{time:7.1f} s  {file}" for file, time in seconds.most_common(10) if time >= 1]
    if slowest:
        terminalreporter.section("slowest files")
        terminalreporter.write_line("\n".join(slowest))


@pytest.fixture(scope="session")
def runner(pytestconfig: pytest.Config) -> str:
    """vLLM's model runner in the engines of this run: "v1" or "v2"."""
    return str(pytestconfig.getoption("runner"))


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """What was logged below "vllm", each record once. (vLLM's logger does not propagate, and some
    pytest listens to it and to the root.)
    """
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("vllm")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model``, the adapters ``one`` and ``two``, and ``zero`` without effect."""
    from tests.tiny import make_tiny_adapter, make_tiny_model, make_zero_adapter

    folder = tmp_path_factory.mktemp("tiny")
    model = make_tiny_model(folder / "model")
    make_tiny_adapter(model, folder / "one", seed=1)
    make_tiny_adapter(model, folder / "two", seed=2)
    make_zero_adapter(model, folder / "zero")
    return folder


@pytest.fixture(scope="session")
def naive(tiny: Path):  # type: ignore[no-untyped-def]
    """The naive reference over the tiny model."""
    from tests.naive import NaiveCold

    return NaiveCold(tiny / "model", {name: tiny / name for name in ("one", "two", "zero")})


@pytest.fixture(autouse=True, scope="module")
def logs_of_the_next_module() -> Iterator[None]:
    """A command that runs in this process (``examples.engine``) silences vLLM for all that
    starts later, such as servers whose logs are looked at.
    """
    before = os.environ.get("VLLM_LOGGING_LEVEL")
    yield
    if before is None:
        os.environ.pop("VLLM_LOGGING_LEVEL", None)
    else:
        os.environ["VLLM_LOGGING_LEVEL"] = before
