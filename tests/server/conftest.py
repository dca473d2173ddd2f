# SPDX-License-Identifier: Apache-2.0
"""A real ``vllm serve`` process on the tiny model, and the openai client that talks to it."""

import json
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
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.examples.installed import install

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 480.0


@dataclass
class Server:
    """A running server."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]
    ends: bool = False
    """Set by a test that ends the server itself."""
    read: int = 0
    """How much of its log belongs to other tests."""

    def new_log(self) -> str:
        """What it has said since this was called last."""
        text = self.log.read_text()[self.read :]
        self.read += len(text)
        return text

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=120
        )

    def ask(
        self,
        prompt: Any,
        model: str = "one",
        stream: bool = False,
        n: int = 1,
        max_tokens: int = 12,
        **xargs: Any,
    ) -> list[int]:
        """The greedy tokens of a completion, or of a chat with these messages, from a stock client;
        of several answers, which are equal.
        """
        options: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "stream": stream,
            "n": n,
            # vLLM takes several greedy answers in these words only.
            "temperature": 0.0 if n == 1 else 1.0,
            "extra_body": {"return_token_ids": True, "ignore_eos": True, "top_k": 1},
        }
        if xargs:
            options["extra_body"]["vllm_xargs"] = xargs
        if isinstance(prompt, list) and isinstance(prompt[0], dict):
            answer: Any = self.client.chat.completions.create(messages=prompt, **options)
        else:
            answer = self.client.completions.create(prompt=prompt, **options)
        tokens: list[list[int]] = [[] for _ in range(n)]
        for event in answer if stream else [answer]:
            for choice in event.choices:
                tokens[choice.index] += getattr(choice, "token_ids", None) or []
        assert all(one == tokens[0] for one in tokens)
        return tokens[0]

    def samples(self, prefix: str) -> list[Any]:
        """All whose names begin so on vLLM's /metrics page, of one moment."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as page:
            families = text_string_to_metric_families(page.read().decode())
        return [s for family in families for s in family.samples if s.name.startswith(prefix)]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        values = [sample.value for sample in self.samples(name) if sample.name == name]
        assert values, f"no metric {name}"
        return sum(values)

    def post(self, path: str, body: object, **headers: str) -> tuple[int, str]:
        """Status and text of the answer to a JSON body; bytes are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait_until_idle(self, timeout: float = 60.0) -> None:
        """Until no request and no block is in use; fails if some still are after ``timeout``."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        deadline = time.monotonic() + timeout
        while any(left := {n: self.metric(f"vllm:{n}") for n in names}.values()):
            assert time.monotonic() < deadline, f"still in use: {left}"
            time.sleep(0.2)
            # The gauges are set by steps, so give each engine one.
            for _ in self.samples("vllm:num_requests_running"):
                self.client.completions.create(model="base", prompt=[5], max_tokens=1)


@contextmanager
def serve(
    folder: Path, arguments: list[str], *, command: list[str] | None = None, **environment: str
) -> Iterator[Server]:
    """Start ``vllm serve``, or another command that does, with these arguments on a free port; end
    it afterwards.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    command = command or [str(Path(sys.executable).with_name("vllm")), "serve"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments, "--host", "127.0.0.1", "--port", str(port)],
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
        server = Server(port, log, process)
        yield server
        assert server.ends or process.poll() is None, f"the server died:\n{log.read_text()[-4000:]}"
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
        # vLLM's default asks for nearly all memory, and others may use some.
        *("--gpu-memory-utilization", "0.2"),
    ]


# Names of adapters on the shared server, and of the tiny ones that they stand for: "sql" and
# "chat" are the pages', and one looks like an alias. "nan" and "inf" come on top; they are sick.
NAMES = {"one": "one", "two": "two", "one:cold": "two", "sql": "one", "chat": "two"}
# Whose classes the shared server serves.
RULES = tuple(f"tests.server.own_rules:{name}" for name in ("Fading", "Breaks", "Raises"))
# Room for about a third of what 32 sequences of 96 tokens take.
BLOCKS = ("--block-size", "32", "--num-gpu-blocks-override", "33")


@pytest.fixture(scope="session")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by all tests that want nothing special. Without a default: each request asks for
    itself.
    """
    from tests.tiny import make_sick_adapter  # torch: not before --runner v2 is read

    folder = tmp_path_factory.mktemp("server")
    adapters = {name: tiny / at for name, at in NAMES.items()}
    for name in ("nan", "inf"):
        adapters[name] = make_sick_adapter(tiny / "one", folder / name, float(name))
    options = [*arguments(tiny), *BLOCKS, "--lora-modules"]
    options += [f"{name}={at}" for name, at in adapters.items()]
    for rule in RULES:
        options += ["--cold-rule", rule]
    path = (str(ROOT), str(install(folder)), os.environ.get("PYTHONPATH"))
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    with serve(folder, options, **environment) as running:
        yield running


@pytest.fixture(scope="session")
def default_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Contrastive decoding by default: the sampler from a YAML file, its values from the command
    line.
    """
    folder = tmp_path_factory.mktemp("default_server")
    config = folder / "server.yaml"
    config.write_text("sampler: cold\ncold-alpha: 0.05\nseed: 0\n")
    command = [*arguments(tiny), "--config", str(config), "--cold-beta", "2.0"]
    command += ["--block-size", "32", "--num-gpu-blocks-override", "15", "--lora-modules"]
    command += [f"{name}={tiny / at}" for name, at in NAMES.items()]
    with serve(folder, command) as running:
        yield running
