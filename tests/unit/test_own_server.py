# SPDX-License-Identifier: Apache-2.0
"""A ``vllm serve`` of a command's own, played by a small program."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.vllm_parser import serve_parser
from vllm_cold.tools import own_server
from vllm_cold.tools.adapters import Adapter, engine_arguments
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.own_server import serving

pytestmark = [pytest.mark.unit, pytest.mark.slow]

# As vllm serve it has a process of its own beside it, and may be slow to end.
PROGRAM = """
import http.server, json, os, signal, subprocess, sys, time
here, words = os.environ["FAKE"], sys.argv[1:]
json.dump(words, open(here + "/words", "w"))
fails = os.environ.get("FAILS", "")
if fails:
    print("INFO: all is well")
    print(fails)
    print("RuntimeError: Engine core initialization failed. See root cause above.")
    sys.exit(1)
child = subprocess.Popen(["sleep", "600"])
json.dump([os.getpid(), child.pid], open(here + "/pids", "w"))
if os.environ.get("STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

class Handler(http.server.BaseHTTPRequestHandler):
    def say(self, status, value):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def do_GET(self):
        name = words[words.index("--served-model-name") + 1]
        self.say(200, {"data": [{"id": name, "parent": None}, {"id": "sql", "parent": name}]})

    def do_POST(self):
        good = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.say(400 if good else 401, {"error": {"message": "cold_alpha=-1: must be"}})

    def log_message(self, *args):
        pass

port = int(words[words.index("--port") + 1])
http.server.HTTPServer((words[words.index("--host") + 1], port), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, in which the program says how it was called."""
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for folder in (package.parents[1], package.parent, package):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(PROGRAM)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    environment = own_server._environment

    def with_fake(key: str) -> dict[str, str]:
        found = environment(key)
        return {**found, "PYTHONPATH": f"{tmp_path}{os.pathsep}{found['PYTHONPATH']}"}

    monkeypatch.setattr(own_server, "_environment", with_fake)
    monkeypatch.setenv("FAKE", str(tmp_path))
    return tmp_path


def gone(pids: Sequence[int]) -> bool:
    """Whether these processes end, within seconds."""
    for _ in range(100):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def started(folder: Path) -> Sequence[int]:
    """The processes of the server and its child."""
    found: Sequence[int] = json.loads((folder / "pids").read_text())
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_served(fake: Path) -> None:
    model, adapter = str(fake / "model"), Adapter("sql", "/path/to sql,r=8", 8)
    engine = {**engine_arguments([adapter], ["my_rules:Mine"]), "enforce_eager": True}
    with serving(model, [adapter], "sql", dtype="float32", max_model_len=None, **engine) as server:
        words = json.loads((fake / "words").read_text())
        assert (server.base, server.expert) == (model, "sql")
        assert (server.title, server.where) == ("model", f"--model={model!r}")
        assert server.about.startswith("vLLM ")
        key = httpx.post(f"{server.root}/v1/completions", json={}).status_code
        assert key == 401  # for others
    assert gone(started(fake))
    found = serve_parser().parse_args(words[1:])
    assert words[:2] == ["serve", model]
    assert (found.host, found.dtype, found.enforce_eager) == ("127.0.0.1", "float32", True)
    assert (found.max_lora_rank, found.max_loras) == (8, 1)
    assert found.additional_config == {"cold": {"enabled": False, "rules": ["my_rules:Mine"]}}
    assert [(one.name, one.path) for one in found.lora_modules] == [("sql", "/path/to sql,r=8")]
    with socket.create_server(("127.0.0.1", found.port)):
        pass  # it is free


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("(EngineCore pid=7) ValueError: no such dtype", "ValueError: no such dtype"),
        ("  Value error, Unrecognized model [type=value_error, ...]", "Unrecognized model"),
        ("vllm serve: error: argument --dtype: invalid", "error: argument --dtype: invalid"),
        ("killed", "status 1; the end of its log is above"),
    ],
)
def test_why_it_does_not_start(
    line: str,
    said: str,
    fake: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a line, with the end of the log."""
    monkeypatch.setenv("FAILS", line)
    model = str(fake / "model")
    with pytest.raises(ToolError) as error, serving(model):
        pass
    assert str(error.value) == f"--model={model!r}: vllm serve did not start: {said}"
    assert f"INFO: all is well\n{line}\n" in capsys.readouterr().err


def test_a_server_that_dies(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ToolError, match="vllm serve ended: status"), serving(str(fake / "model")):
        os.kill(started(fake)[0], signal.SIGKILL)
        time.sleep(0.5)
        raise ToolError("no server can be reached there")
    assert gone(started(fake))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_command(
    number: signal.Signals, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the end, if the command itself ends it; else it ends by itself."""
    if number == signal.SIGINT:
        monkeypatch.setenv("STUBBORN", "1")
    code = (
        "import sys, time; from vllm_cold.tools import own_server\n"
        "own_server._PATIENCE = 0.5\n"
        f"sys.path.insert(0, {str(fake)!r})\n"
        f"with own_server.serving({str(fake / 'model')!r}): print('up', flush=True); time.sleep(99)"
    )
    former: Callable[..., Any] = signal.signal(signal.SIGINT, signal.default_int_handler)  # type: ignore[assignment]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        signal.signal(signal.SIGINT, former)
        assert process.stdout and process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(20) != 0
    server, child = started(fake)
    if number != signal.SIGINT:  # nobody is left to end what vllm serve would end itself
        assert gone([server])
        os.kill(child, signal.SIGKILL)
    assert gone([server, child])
