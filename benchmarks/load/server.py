# SPDX-License-Identifier: Apache-2.0
"""A ``vllm serve`` process, and what it is asked for besides the load."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load.workload import ADAPTERS, BASE
from examples.demo import ADAPTERS as FOLDER

START = 300.0  # seconds
KV_GIB = 2
OPTIONS = ("--max-model-len", "1024", "--max-num-seqs", "64", "--max-num-batched-tokens", "2048")
# Of vLLM's page of metrics: tokens that were looked up in the prefix cache, and found.
QUERIES, HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
# Special tokens stand in texts, so that equal texts are equal tokens.
BODY: Mapping[str, Any] = {"add_special_tokens": False, "skip_special_tokens": False}


@dataclass(frozen=True)
class Answer:
    """What a request got that was alone on the server.

    Attributes:
        text: All of it.
        steps: Of each token: its text, and log-probabilities of the likeliest by their texts, of
            what the sampler saw: for CoLD of the scores.
        said: The header ``x-cold``, None without the plugin.
    """

    text: str
    steps: tuple[tuple[str, Mapping[str, float]], ...]
    said: Mapping[str, Any] | None

    def behind(self, text: str) -> float:
        """How far the choice of another answer is behind this one's where they part, in nats; 0
        if they do not, infinity if it was not likely at all.
        """
        place = 0
        for token, top in self.steps:
            rest = text[place:]
            if not rest.startswith(token):
                others = [value for key, value in top.items() if key and rest.startswith(key)]
                return top[token] - max(others, default=-math.inf)
            place += len(token)
        return 0.0 if text == self.text else math.inf


class Server:
    """A running server."""

    def __init__(self, port: int, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log, self.process = log, process

    def _open(
        self, path: str, body: Mapping[str, Any] | None = None, seconds: float = 300.0
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        return urllib.request.urlopen(request, timeout=seconds)

    def wait(self) -> None:
        """Until it answers; RuntimeError if it does not."""
        until = time.monotonic() + START
        while True:
            if self.process.poll() is not None or time.monotonic() > until:
                tail = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the server did not start:\n{tail}")
            try:
                self._open("/health", seconds=5).close()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)

    def prefix_cache(self) -> tuple[int, int]:
        """Tokens looked up so far, and found."""
        with self._open("/metrics") as page:
            return prefix_cache(page.read().decode())

    def forget(self) -> None:
        """Empty the prefix cache; RuntimeError if requests keep it in use."""
        for _ in range(20):
            with self._open("/reset_prefix_cache", {}) as reply:
                if json.load(reply)["success"]:
                    return
            time.sleep(0.25)
        raise RuntimeError("the prefix cache is in use")

    def ask(self, model: str, prompt: str, tokens: int, xargs: Mapping[str, Any]) -> Answer:
        """One request, to its end."""
        body = {
            **BODY, "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0,
            "ignore_eos": True, "logprobs": 5, "vllm_xargs": dict(xargs),
        }  # fmt: skip
        with self._open("/v1/completions", body) as reply:
            said = reply.headers.get("x-cold")
            choice = json.load(reply)["choices"][0]
        logprobs = choice["logprobs"]
        steps = zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
        return Answer(choice["text"], tuple(steps), said and json.loads(said))


def prefix_cache(page: str) -> tuple[int, int]:
    """Tokens looked up in the prefix cache, and found, on a page of metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    queries, hits = (
        int(sum(s.value for s in samples if s.name == name)) for name in (QUERIES, HITS)
    )
    return queries, hits


def environment(kind: str, base: Mapping[str, str]) -> dict[str, str]:
    """A server's environment: plugin on or off, and an endpoint to empty the prefix cache."""
    unwanted = {"VLLM_PLUGINS", "COLD_ENABLED", "VLLM_COLD"}
    unwanted |= {"VLLM_ENABLE_V1_MULTIPROCESSING"}
    env = {key: value for key, value in base.items() if key not in unwanted}
    env |= {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return env | ({"VLLM_PLUGINS": ""} if kind == "stock" else {})


@contextmanager
def serve(
    kind: str, model: Path, dtype: str, more: Sequence[str], folder: Path, base: Mapping[str, str]
) -> Iterator[Server]:
    """A server of the model with four adapters, on a free port; the last of equal options wins."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    modules = [f"{name}={FOLDER / name.partition('-')[0]}" for name in ADAPTERS]
    log = folder / f"server-{port}.log"
    command = [
        str(Path(sys.executable).with_name("vllm")), "serve", str(model),
        *("--host", "127.0.0.1", "--port", str(port), "--uvicorn-log-level", "warning"),
        *("--served-model-name", BASE, "--dtype", dtype, "--logprobs-mode", "processed_logprobs"),
        *("--enable-lora", "--max-loras", str(len(ADAPTERS)), "--max-lora-rank", "8"),
        *("--lora-modules", *modules, *OPTIONS, *more),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(kind, base),
            start_new_session=True,
        )
    try:
        server = Server(port, log, process)
        server.wait()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # of its own session: the engine with it
            process.wait()
