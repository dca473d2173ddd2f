# SPDX-License-Identifier: Apache-2.0
"""Runs vLLM's own tests in this process, with the scheduler that ``--scheduler`` names.

Started as a script in the folder that holds vLLM's ``tests``, which must not meet ours of the same
name: it imports nothing from this repository's tests.

- ``stock``: nothing is replaced.
- ``cold``: wherever a test says Scheduler or AsyncScheduler it gets ours, to build, to subclass or
  to take methods from. vLLM's own modules are imported before and keep theirs; so its diffusion
  schedulers, which vllm-cold never replaces, stay as they are.
- ``hooks``: ours, which looks for groups in every step although there are none. Otherwise a
  scheduler without groups is vLLM's alone, and regular requests next to groups would not be tested.
"""

import argparse
import hashlib
import importlib
import json
import logging
import os
import random
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# They name the schedulers and are to keep vLLM's. Not all are in every version.
KEEP_STOCK = ("vllm.v1.core.sched.diffusion_scheduler", "vllm.v1.engine.core")
STEPS = 1000  # of the 20000 in test_priority_scheduler_random.py, which take four minutes a run


class Always(dict[str, Any]):
    """The empty table of groups of a scheduler that is to behave as if there were some."""

    def __bool__(self) -> bool:
        return True


class Run:
    """The pytest plugin: replaces the schedulers, counts them, notes what each test did."""

    def __init__(self, scheduler: str) -> None:
        self.mode = scheduler
        self.built: Counter[str] = Counter()  # by name; ours are marked
        self.hook_calls = 0
        self.tests: dict[str, dict[str, str]] = {}
        self.schedules: dict[str, Any] = defaultdict(hashlib.sha256)
        self.current = ""
        self.watch()
        if scheduler != "stock":
            self.replace()

    def watch(self) -> None:
        """Count the schedulers that are built, and note the outline of what they schedule."""
        from vllm.v1.core.sched.scheduler import Scheduler

        init, schedule = Scheduler.__init__, Scheduler.schedule

        def counted(this: Any, *args: Any, **kwargs: Any) -> None:
            ours = any(c.__module__ == "vllm_cold.scheduler.scheduler" for c in type(this).mro())
            self.built[("ours " if ours else "vLLM's ") + type(this).__name__] += 1
            init(this, *args, **kwargs)

        def noted(this: Any, *args: Any, **kwargs: Any) -> Any:
            output = schedule(this, *args, **kwargs)
            outline = (
                tuple(output.num_scheduled_tokens.values()),
                tuple(map(len, output.scheduled_spec_decode_tokens.values())),
                tuple(r.num_computed_tokens for r in output.scheduled_new_reqs),
                tuple(output.scheduled_cached_reqs.num_computed_tokens),
                len(output.preempted_req_ids or ()),
                len(output.finished_req_ids),
                this.kv_cache_manager.block_pool.get_num_free_blocks(),
            )
            self.schedules[self.current].update(repr(outline).encode())
            return output

        Scheduler.__init__, Scheduler.schedule = counted, noted

    def replace(self) -> None:
        for name in KEEP_STOCK:
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)
        from vllm.v1.core.sched import async_scheduler, scheduler

        from vllm_cold.scheduler.passes import Pass
        from vllm_cold.scheduler.scheduler import ColdAsyncScheduler, ColdScheduler

        classes: tuple[type[Any], type[Any]] = (ColdScheduler, ColdAsyncScheduler)
        if self.mode == "hooks":
            classes = (self.hooked(ColdScheduler), self.hooked(ColdAsyncScheduler))
            hook = Pass.cap

            def counted(*args: Any, **kwargs: Any) -> int:
                self.hook_calls += 1
                return hook(*args, **kwargs)

            Pass.cap = counted
        scheduler.Scheduler, async_scheduler.AsyncScheduler = classes

    def hooked(self, base: type[Any]) -> type[Any]:
        class Hooked(base):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                assert self._groups == {}
                self._groups = Always()

        Hooked.__name__ = f"{base.__name__} with hooks"
        return Hooked

    @pytest.fixture
    def caplog_vllm(self, caplog: Any) -> Iterator[Any]:
        """As in vLLM's conftest.py, which itself imports half of vLLM and more packages."""
        logger = logging.getLogger("vllm")
        before, logger.propagate = logger.propagate, True
        with caplog.at_level(logging.INFO):
            yield caplog
        logger.propagate = before

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Shorten the storm of test_priority_scheduler_random.py, vLLM's loop of 20000 steps."""

        def shorter(*args: int) -> range:
            return range(STEPS) if args == (20000,) else range(*args)

        for item in items:
            if item.module.__name__.endswith("test_priority_scheduler_random"):
                item.module.range = shorter

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Make a test's ids the same in every run: they break ties between priorities."""
        self.current = nodeid
        draw = random.Random(0).getrandbits
        uuid.uuid4 = lambda: uuid.UUID(int=draw(128), version=4)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            reason = ""
            if report.outcome != "passed":
                crash = getattr(report.longrepr, "reprcrash", None)
                lines = str(crash.message if crash else report.longrepr or "").splitlines()
                # A skip is (path, line, reason). pydantic says what is wrong in the second line.
                skip = isinstance(report.longrepr, tuple)
                reason = report.longrepr[2] if skip else " ".join(lines[:2]).split(" [type=")[0]
            self.tests[report.nodeid] = {"outcome": report.outcome, "reason": reason}

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            lines = str(report.longrepr).strip().splitlines()
            self.tests[report.nodeid] = {"outcome": "failed", "reason": lines[-1]}

    def result(self) -> dict[str, Any]:
        for nodeid, digest in self.schedules.items():
            self.tests.get(nodeid, {})["schedules"] = digest.hexdigest()
        return {"tests": self.tests, "built": self.built, "hook_calls": self.hook_calls}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scheduler", choices=("stock", "cold", "hooks"), required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--vllm", required=True, help="version that must be the one imported")
    args, pytest_args = parser.parse_known_args()

    sys.path[0] = os.getcwd()  # in place of this file's folder
    import vllm

    if vllm.__version__.split("+")[0] != args.vllm:
        raise SystemExit(f"vLLM {args.vllm} was wanted; {vllm.__file__} is {vllm.__version__}")
    run = Run(args.scheduler)
    # vLLM's conftest.py is for the whole of its tests and needs packages that these files do not.
    pytest.main(["--noconftest", "-p", "no:cacheprovider", "-q", *pytest_args], plugins=[run])
    args.report.write_text(json.dumps(run.result()))


if __name__ == "__main__":
    main()
