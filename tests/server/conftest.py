# SPDX-License-Identifier: Apache-2.0
"""A real ``vllm serve`` process on the tiny model, and the openai client that talks to it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

START_TIMEOUT = 240.0


@dataclass
class Server:
    """A running server."""

    port: int
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=120
        )

    def metric(self, name: str) -> float:
        """The sum of a metric of vLLM's /metrics page over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        values = [
            float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith((name + "{", name + " "))
        ]
        assert values, f"no metric {name}"
        return sum(values)


@contextmanager
def serve(folder: Path, arguments: list[str], **environment: str) -> Iterator[Server]:
    """Start ``vllm serve`` with these arguments on a free port; end it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    command = [str(Path(sys.executable).with_name("vllm")), "serve", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        yield Server(port, log)
        assert process.poll() is None, f"the server died:\n{log.read_text()[-4000:]}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def arguments(tiny: Path) -> list[str]:
    """What every test server has: the tiny model with two adapters."""
    return [
        str(tiny / "model"),
        *("--served-model-name", "base", "--dtype", "float32", "--enforce-eager"),
        *("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"),
        *("--lora-modules", f"one={tiny / 'one'}", f"two={tiny / 'two'}"),
        *("--max-model-len", "256", "--max-num-seqs", "32", "--max-num-batched-tokens", "256"),
    ]
