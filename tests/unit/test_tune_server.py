# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune --url`` against a small server on loopback, which keeps what it is asked."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import loopback
from tests.unit.test_pictures import file, pixels
from vllm_cold.method.settings import MAX_EXPERT_TOP_K
from vllm_cold.tools.main import main
from vllm_cold.tools.tune.plain import BETTER

pytestmark = [pytest.mark.unit, pytest.mark.slow]

COUNT = 16
KEY = "key-0f3a"


class Fake:
    """What a server would be, as far as this command sees it.

    Attributes:
        bodies: Of all requests for an answer, in order.
        most: Requests that were there at a time.
        text: Gives the answer.
        status: Of answers, by the number of the request.
        slow: Seconds that an answer takes.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most = self._now = 0
        self.text: Callable[[dict[str, Any]], str] = lambda body: (
            "wrong" if body["vllm_xargs"].get("cold") == 0 else "right"
        )
        self.status: dict[int, int] = {}
        self.finish = "stop"
        self.slow = 0.0
        self._lock = threading.Lock()

    def models(self) -> dict[str, Any]:
        adapters = [{"id": name, "parent": "base"} for name in ("sql", "chat")]
        return {"data": [{"id": "base", "parent": None, "max_model_len": 99}, *adapters]}

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["vllm_xargs"].get("cold_alpha") == -1:
            return 400, {"message": "cold_alpha=-1: must be a number in [0, 1]"}
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.bodies.append(body)
            status = self.status.get(len(self.bodies), 200)
        time.sleep(self.slow)
        with self._lock:
            self._now -= 1
        text = self.text(body)
        said = {"message": {"content": text}} if "chat" in path else {"text": text}
        choice = {**said, "finish_reason": self.finish}
        reply = {"choices": [choice], "usage": {"completion_tokens": 1}}
        return status, reply if status == 200 else {"message": "too long"}

    @property
    def cold(self) -> list[dict[str, Any]]:
        """The arguments of requests that are no greedy ones, each once."""
        found = [body["vllm_xargs"] for body in self.bodies if body["vllm_xargs"]["cold"]]
        return [args for i, args in enumerate(found) if args not in found[:i]]


@pytest.fixture
def fake() -> Iterator[tuple[Fake, str]]:
    kept = Fake()

    class Handler(loopback.Answering):
        def do_GET(self) -> None:
            kept.keys.add(self.headers["Authorization"])
            self.send(200, kept.models())

        def do_POST(self) -> None:
            kept.keys.add(self.headers["Authorization"])
            self.send(*kept.answer(self.path, self.body()))

    with loopback.serving(Handler) as address:
        yield kept, address


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.delenv("COLD_API_KEY", raising=False)


@pytest.fixture
def line(fake: tuple[Fake, str], tmp_path: Path) -> Callable[..., list[str]]:
    """``line(*more)``: a command line with chats that have a system prompt."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be right."},
                {"role": "user", "content": f"p{n}"},
            ],
            "answer": "right",
        }
        for n in range(COUNT)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*more: str) -> list[str]:
        out = ("--output", str(tmp_path / "out"))
        return ["tune", str(tmp_path / "p.jsonl"), "--url", fake[1], *out, *more]

    return make


GUIDED = ("--without", "system", "--preset", "cfg")


def report(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "report.json").read_text())  # type: ignore[no-any-return]


def test_images_are_sent_and_not_kept(
    fake: tuple[Fake, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, url = fake
    (tmp_path / "a.png").write_bytes(data := file(pixels()))
    rows = [{"prompt": f"p{n}", "image": "a.png", "answer": "right"} for n in range(COUNT)]
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tune", str(path), "--url", url, "--output", str(out)]
    assert main([*command, "--images", "noise:500", "--preset", "vcd"]) == 0
    assert len(kept.bodies) == 2 * COUNT
    for body in kept.bodies:
        [image, text] = body["messages"][0]["content"]
        assert base64.b64decode(image["image_url"]["url"].partition(",")[2]) == data
        assert re.fullmatch(r"p\d+", text["text"])
    [told] = kept.cold
    assert (told["cold_preset"], told["cold_images"]) == ("vcd", "noise:500")
    answers = (out / "answers.jsonl").read_text()
    printed = capsys.readouterr().out + answers + (out / "report.json").read_text()
    assert "a.png" in answers and "base64" not in printed and "iVBOR" not in printed
    # What is there is found again, unless the image changes.
    assert main([*command, "--images", "noise:500", "--preset", "vcd"]) == 0
    assert len(kept.bodies) == 2 * COUNT
    (tmp_path / "a.png").write_bytes(file(pixels((3, 3))))
    assert main([*command, "--images", "noise:500", "--preset", "vcd"]) == 0
    assert len(kept.bodies) == 4 * COUNT


def test_chats_are_asked_as_a_client_asks(
    fake: tuple[Fake, str],
    line: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept, url = fake
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("COLD_API_KEY", KEY)
    assert main(line(*GUIDED, "--max-tokens", "9", "--stop", "\n")) == 0
    assert len(kept.bodies) == 5 * COUNT  # greedy, three plain prompts and the preset
    system, better = {"role": "system", "content": "Be right."}, BETTER["instruction"]
    for body in kept.bodies:
        asked = {name: body[name] for name in ("model", "temperature", "max_tokens", "stop")}
        assert asked == {"model": "base", "temperature": 0.0, "max_tokens": 9, "stop": ["\n"]}
    messages = [(body["messages"], body["vllm_xargs"]["cold"]) for body in kept.bodies]
    for n in range(COUNT):
        said = [[system, {"role": "user", "content": f"p{n}"}]] * 2
        said += [[{"role": "user", "content": f"p{n}"}]]
        said += [[system, {"role": "user", "content": f"{better} p{n}"}]]
        said += [[system, {"role": "user", "content": f"p{n}\n\nBe right."}]]
        for chat, cold in zip(said, (1, 0, 0, 0, 0), strict=True):
            assert (chat, cold) in messages
    fields = {
        "cold": 1,
        "cold_expert_top_k": MAX_EXPERT_TOP_K,
        "cold_preset": "cfg",
        "cold_without": "system",
    }
    assert kept.cold == [fields]
    found = report(tmp_path)
    assert found["gain"] and json.loads(found["serve"]) == {"model": "base", "vllm_xargs": fields}
    assert found["run"]["server"] == url
    printed = capsys.readouterr().out
    assert kept.keys == {f"Bearer {KEY}"} and KEY not in printed
    assert not any(KEY in file.read_text() for file in (tmp_path / "out").iterdir())
    assert "Ask for it with CoLD:" in printed
    assert found["serve"] in printed.splitlines()
    said = "Use cfg, which beats greedy decoding: +100.0 points on 8 held-out"
    assert printed.splitlines()[-1].startswith(said) and found["headline"].startswith(said)
    kept.text = lambda body: "wrong"
    assert main(line(*GUIDED, "--output", str(tmp_path / "out" / "2"))) == 1
    again = json.loads((tmp_path / "out" / "2" / "report.json").read_text())
    assert again["serve"] == '{"model": "base", "vllm_xargs": {"cold": 0}}'


def test_texts_and_adapters(
    fake: tuple[Fake, str], line: Callable[..., list[str]], tmp_path: Path
) -> None:
    kept, _ = fake
    rows = [{"prompt": f"It is {n}. What?", "answer": "right"} for n in range(COUNT)]
    rows[0]["cold_part"] = [0, 5]  # type: ignore[assignment]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("--adapter", "sql", "--alpha", "0.1", "--beta", "adaptive,1", "--expert-top-k", "9")
    assert main(line(*more)) == 0
    assert {body["model"] for body in kept.bodies} == {"sql"}
    assert "It is 0. What?" in {body["prompt"] for body in kept.bodies}
    # What is not said would be the server's default: the cap, and what it leaves out of chats.
    number = {"cold": 1, "cold_expert_top_k": 9, "cold_alpha": 0.1, "cold_beta": 1.0}
    adaptive = number | {"cold_beta": "adaptive", "cold_rule_parameters": '{"beta_max": 1.0}'}
    assert [args for args in kept.cold if "cold_part" not in args] == [
        number | {"cold_amateur": "base"}, adaptive | {"cold_amateur": "base"},
    ]  # fmt: skip
    assert (
        number | {"cold_part": [0, 5]} in kept.cold or adaptive | {"cold_part": [0, 5]} in kept.cold
    )
    found = report(tmp_path)
    assert "cold_amateur" not in json.loads(found["serve"])["vllm_xargs"]  # a row's key goes there
    said = "With CoLD requests must also send the cold_* keys of its problem's row, in place of"
    assert any(note.startswith(said) for note in found["notes"])
    fake[0].bodies.clear()
    (tmp_path / "out" / "answers.jsonl").unlink()
    assert main(line(*more, "--amateur", "chat")) == 0
    assert {args["cold_amateur"] for args in kept.cold if "cold_part" not in args} == {"chat"}


def test_going_on_after_an_error(
    fake: tuple[Fake, str],
    line: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept, url = fake
    kept.status = {7: 400}
    assert main(line(*GUIDED, "--concurrency", "1")) == 2
    said = rf"problem 'line-(\d+)' \(line \1\): --url={url}: HTTP 400: too long\n$"
    assert re.search(said, capsys.readouterr().err)
    assert len(kept.bodies) == 7
    kept.status, kept.slow = {}, 0.02
    assert main(line(*GUIDED, "--concurrency", "3")) == 0
    assert len(kept.bodies) == 7 + 5 * COUNT - 6 and kept.most == 3
    assert main(line(*GUIDED)) == 0 and len(kept.bodies) == 7 + 5 * COUNT - 6
    assert main(line(*GUIDED, "--adapter", "sql")) == 2
    assert "adapter was None and is 'sql'" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_there(
    fake: tuple[Fake, str],
    line: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept, _ = fake

    def text(body: dict[str, Any]) -> str:
        if len(kept.bodies) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return "right"

    kept.text = text
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(line(*GUIDED, "--concurrency", "1")) == 130
    finally:
        signal.signal(signal.SIGINT, former)
    assert "stopped; 4 answers are kept in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--dtype", "half"), "--dtype: is for an engine in this process, and --url asks"),
        (("--adapter", "none"), "--adapter=none: no such adapter on the server (loaded: chat, sql"),
        (("--alpha", "0.1"), "nothing to contrast with"),
        (("--amateur", "base"), "nothing to contrast with"),
    ],
)
def test_mistakes(
    fake: tuple[Fake, str],
    line: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    said: str,
) -> None:
    assert main(line(*more)) == 2
    assert said in capsys.readouterr().err
    assert not fake[0].bodies
