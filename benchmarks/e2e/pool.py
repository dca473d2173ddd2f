# SPDX-License-Identifier: Apache-2.0
"""Worker processes, started when wanted and asked one at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.rounds import Say

ROOT = Path(__file__).parents[2]


class Worker:
    """A worker process; ``ask`` waits for its answer, and raises RuntimeError with what it died of.

    Args:
        settings: What its ``make`` is given; ``family`` is its name.
        env: Its environment.
        log: What it prints.
        module: Its program, which calls ``benchmarks.e2e.worker.main``.

    Attributes:
        facts: What it says about its engine.
        peak: The most memory it had resident, bytes; None where the system does not tell.
        idle: Seconds it waited for commands, and seconds of CPU time that it used meanwhile.
    """

    def __init__(
        self, settings: Mapping[str, Any], env: dict[str, str], log: Path,
        module: str = "benchmarks.e2e.worker",
    ) -> None:  # fmt: skip
        self.family = settings["family"]
        self.peak: int | None = None
        self.idle = (0.0, 0.0)
        self._log = log
        # vLLM writes to stdout and stderr as it likes; the answers have a pipe of their own.
        read, write = os.pipe()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(write)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env=env,
                cwd=ROOT,
                text=True,
                start_new_session=True,
            )
        os.close(write)
        self._replies = os.fdopen(read, encoding="utf-8")
        try:
            self.facts: dict[str, Any] = self._exchange(settings)["facts"]
        except BaseException:
            self.close(at_once=True)
            raise

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let the worker do one thing."""
        reply = self._exchange({"do": do, **arguments})
        self.peak = reply["peak"]
        waited, burnt = reply["idle"]
        self.idle = (self.idle[0] + waited, self.idle[1] + burnt)
        return reply

    def _exchange(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            reply = json.loads(self._replies.readline() or "null")
        except BrokenPipeError:
            reply = None
        if reply is None or "error" in reply:
            tail = reply["error"] if reply else self._log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"the worker {self.family} failed:\n{tail}")
        return dict(reply)

    def close(self, at_once: bool = False) -> None:
        """End the process, even in the middle of a run if ``at_once``."""
        assert self._process.stdin is not None
        try:
            if at_once:
                self._kill()
            self._process.stdin.close()
            self._process.wait(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self._kill()
            self._process.wait()
        finally:
            self._replies.close()

    def _kill(self) -> None:
        """With the engine's processes, if it has some: they are of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class Workers:
    """The workers of one dtype, each started when it is first wanted.

    Attributes:
        running: The workers by family.
    """

    def __init__(self, settings: Mapping[str, Any], kv_gib: int, folder: Path, say: Say) -> None:
        self.running: dict[str, Worker] = {}
        self._settings, self._kv_gib, self._folder, self._say = settings, kv_gib, folder, say

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close(at_once=kind is not None)

    def close(self, at_once: bool = False) -> None:
        """End all of them, even in the middle of a run if ``at_once``."""
        while self.running:
            self.running.popitem()[1].close(at_once)

    def get(self, family: str) -> Worker:
        """The worker of a family."""
        if family not in self.running:
            self._say(f"{self._settings['dtype']}: starting {family}")
            self.running[family] = Worker(
                {**self._settings, "family": family},
                environment(family, self._kv_gib, os.environ),
                self._folder / f"{family}-{self._settings['dtype']}.log",
            )
        return self.running[family]


def environment(family: str, kv_gib: int, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: plugin on or off, a small KV cache, idle threads that sleep."""
    # These would switch the plugin on or off, or make threads spin while another process runs.
    unwanted = {"VLLM_PLUGINS", "COLD_ENABLED", "VLLM_COLD"}
    unwanted |= {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    env = {key: value for key, value in base.items() if key not in unwanted}
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all prompts are queued before the first step
    env["VLLM_CPU_KVCACHE_SPACE"] = str(kv_gib)
    # numba, which looks up n-grams, would give torch as many threads as there are cores.
    if "OMP_NUM_THREADS" in env:
        env["NUMBA_NUM_THREADS"] = env["OMP_NUM_THREADS"]
    if not family.startswith("plugin"):
        env["VLLM_PLUGINS"] = ""
    return env
