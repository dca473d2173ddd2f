# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune --url`` against a small server on loopback, which keeps what it is asked."""

import base64
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import loopback
from tests.unit.test_pictures import file, pixels
from vllm_cold.settings.table import MAX_EXPERT_TOP_K
from vllm_cold.tools.main import main
from vllm_cold.tools.tune.baselines import BETTER

pytestmark = [pytest.mark.unit, pytest.mark.slow]

COUNT = 16
KEY = "key-0f3a"
GUIDED = ("--without", "system", "--preset", "cfg")
SYSTEM = {"role": "system", "content": "Be right."}


class Fake:
    """What a server would be, as far as this command sees it, and a folder with problems.

    Attributes:
        bodies: Of all requests for an answer, in order.
        keys: Headers with the key.
        most: Requests that were there at a time.
        right: What is right: the value of ``cold`` in a request.
        fails: The number of the request that is refused, or during which Ctrl-C is pressed.
        finish: Why answers end, and how many tokens were used.
        slow: Seconds that an answer takes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most = self._now = 0
        self.right: int | None = 1
        self.fails: int | None = None
        self.interrupts = False
        self.finish: tuple[str, dict[str, int] | None] = ("stop", None)
        self.slow = 0.0
        self._lock = threading.Lock()
        users = ({"role": "user", "content": f"p{n}"} for n in range(COUNT))
        self.write({"messages": [SYSTEM, user], "answer": "right"} for user in users)

    def write(self, rows: Any) -> None:
        (self.folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def tune(self, *more: str) -> int:
        """The command's status."""
        paths = (str(self.folder / "p.jsonl"), "--output", str(self.folder / "out"))
        return main(["tune", *paths, "--url", self.url, *more])

    @property
    def report(self) -> Any:
        return json.loads((self.folder / "out" / "report.json").read_text())

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["vllm_xargs"].get("cold_alpha") == -1:
            return 400, {"message": "cold_alpha=-1: must be a number in [0, 1]"}
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.bodies.append(body)
            fails = len(self.bodies) == self.fails
        time.sleep(self.slow)
        with self._lock:
            self._now -= 1
        if fails and self.interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        elif fails:
            return 400, {"message": "too long"}
        text = "right" if body["vllm_xargs"]["cold"] == self.right else "wrong"
        said = {"message": {"content": text}} if "chat" in path else {"text": text}
        reason, usage = self.finish
        return 200, {"choices": [{**said, "finish_reason": reason}], "usage": usage}

    @property
    def cold(self) -> list[dict[str, Any]]:
        """The arguments of requests that are no greedy ones, each once."""
        found = [body["vllm_xargs"] for body in self.bodies if body["vllm_xargs"]["cold"]]
        return [args for i, args in enumerate(found) if args not in found[:i]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    kept = Fake(tmp_path)
    monkeypatch.delenv("COLD_API_KEY", raising=False)

    class Handler(loopback.Answering):
        def do_GET(self) -> None:
            kept.keys.add(self.headers["Authorization"])
            parents = {"base": None, "sql": "base", "chat": "base"}
            cards = [{"id": i, "parent": of, "owned_by": "vllm"} for i, of in parents.items()]
            self.send(200, {"data": cards})

        def do_POST(self) -> None:
            kept.keys.add(self.headers["Authorization"])
            self.send(*kept.answer(self.path, self.body()))

    with loopback.serving(Handler) as kept.url:
        yield kept


def test_images_are_sent_and_not_kept(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    picture = fake.folder / "a.png"
    picture.write_bytes(data := file(pixels()))
    fake.write({"prompt": f"p{n}", "image": "a.png", "answer": "right"} for n in range(COUNT))
    options = ("--images", "noise:500", "--preset", "vcd")
    assert fake.tune(*options) == 0
    assert len(fake.bodies) == 2 * COUNT
    for body in fake.bodies:
        [image, text] = body["messages"][0]["content"]
        assert base64.b64decode(image["image_url"]["url"].partition(",")[2]) == data
        assert re.fullmatch(r"p\d+", text["text"])
    [told] = fake.cold
    assert (told["cold_preset"], told["cold_images"]) == ("vcd", "noise:500")
    answers = (fake.folder / "out" / "answers.jsonl").read_text()
    printed = capsys.readouterr().out + answers + json.dumps(fake.report)
    assert "a.png" in answers and "base64" not in printed and "iVBOR" not in printed
    # What is there is found again, unless the image changes.
    for content, count in ((data, 2 * COUNT), (file(pixels((3, 3))), 4 * COUNT)):
        picture.write_bytes(content)
        assert fake.tune(*options) == 0 and len(fake.bodies) == count


def test_chats_are_asked_as_a_client_asks(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("COLD_API_KEY", KEY)
    assert fake.tune(*GUIDED, "--max-tokens", "9", "--stop", "\n") == 0
    assert len(fake.bodies) == 5 * COUNT  # greedy, three baselines and the preset
    same = {"model": "base", "temperature": 0.0, "max_tokens": 9, "stop": ["\n"]}
    assert all(same.items() <= body.items() for body in fake.bodies)
    messages = [(body["messages"], body["vllm_xargs"]["cold"]) for body in fake.bodies]
    for n in range(COUNT):
        better = f"{BETTER['instruction']} p{n}"
        said = [([SYSTEM], f"p{n}", 1), ([SYSTEM], f"p{n}", 0), ([], f"p{n}", 0)]
        said += [([SYSTEM], better, 0), ([SYSTEM], f"p{n}\n\nBe right.", 0)]
        for before, text, cold in said:
            assert ([*before, {"role": "user", "content": text}], cold) in messages
    fields = {
        "cold": 1,
        "cold_expert_top_k": MAX_EXPERT_TOP_K,
        "cold_preset": "cfg",
        "cold_without": "system",
    }
    assert fake.cold == [fields]
    found, printed = fake.report, capsys.readouterr().out
    assert found["gain"] and json.loads(found["serve"]) == {"model": "base", "vllm_xargs": fields}
    assert "Ask for it with contrastive decoding:" in printed and found["serve"] in printed
    assert fake.keys == {f"Bearer {KEY}"} and KEY not in printed
    assert not any(KEY in kept.read_text() for kept in (fake.folder / "out").iterdir())
    (fake.folder / "out" / "answers.jsonl").unlink()
    fake.right = None
    assert fake.tune(*GUIDED) == 1
    assert fake.report["serve"] == '{"model": "base", "vllm_xargs": {"cold": 0}}'


def test_texts_and_adapters(fake: Fake) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"It is {n}. What?", "answer": "right"} for n in range(COUNT)
    ]
    rows[0]["cold_part"] = [0, 5]
    fake.write(rows)
    more = ("--adapter", "sql", "--alpha", "0.1", "--beta", "1", "--rule", "adaptive")
    more += ("--expert-top-k", "9")
    assert fake.tune(*more) == 0
    assert {body["model"] for body in fake.bodies} == {"sql"}
    assert "It is 0. What?" in {body["prompt"] for body in fake.bodies}
    # What is not said would be the server's default: the cap, and what it leaves out of chats.
    both = {"cold": 1, "cold_expert_top_k": 9, "cold_alpha": 0.1}
    number = both | {"cold_beta": 1.0}
    adaptive = both | {"cold_rule": "adaptive", "cold_rule_parameters": '{"beta_max": 1.0}'}
    whole = [args for args in fake.cold if "cold_part" not in args]
    assert len(whole) == 2  # which of them came first is chance
    assert all(one | {"cold_amateur": "base"} in whole for one in (number, adaptive))
    part = {"cold_part": [0, 5]}
    assert number | part in fake.cold or adaptive | part in fake.cold
    # A row's key goes there.
    assert "cold_amateur" not in json.loads(fake.report["serve"])["vllm_xargs"]
    fake.bodies.clear()
    assert fake.tune(*more, "--amateur", "chat") == 0  # which changes what is asked
    assert {args["cold_amateur"] for args in fake.cold if "cold_part" not in args} == {"chat"}


def test_going_on_after_an_error_and_an_interruption(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fails = 7
    assert fake.tune(*GUIDED, "--concurrency", "1") == 2
    said = rf"problem 'line-(\d+)' \(line \1\): --url={fake.url}: HTTP 400: too long\n$"
    assert re.search(said, capsys.readouterr().err)
    assert len(fake.bodies) == 7
    fake.fails, fake.interrupts = 10, True
    # What a shell starts in the background ignores it.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert fake.tune(*GUIDED, "--concurrency", "1") == 130
    signal.signal(signal.SIGINT, former)
    printed = capsys.readouterr().err
    assert re.search(r"stopped; [89] answers are kept in .*, and the same command goes", printed)
    done = int(printed.partition("stopped; ")[2][0])
    fake.bodies.clear()
    fake.fails, fake.slow = None, 0.02
    assert fake.tune(*GUIDED, "--concurrency", "3") == 0
    assert len(fake.bodies) == 5 * COUNT - done and fake.most == 3
    assert fake.tune(*GUIDED, "--adapter", "sql") == 2
    assert "adapter was None and is 'sql'" in capsys.readouterr().err


def test_the_first_error_ends_all(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is still being answered."""
    answer = fake.answer

    def slowly(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, reply = answer(path, body)
        time.sleep(4 if status == 200 else 0)
        return status, reply

    monkeypatch.setattr(fake, "answer", slowly)
    fake.fails, start = 6, time.monotonic()
    assert fake.tune(*GUIDED, "--concurrency", "12") == 2
    assert time.monotonic() - start < 3 and len(fake.bodies) <= 12


def test_a_prompt_without_room_for_its_answer(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = {"prompt_tokens": 95, "completion_tokens": 4, "total_tokens": 99}
    fake.finish = ("length", tokens)
    assert fake.tune(*GUIDED, "--max-tokens", "9", "--concurrency", "1") == 2
    said = "its prompt has 95 tokens, with --max-tokens 104 in all, which exceeds the model's"
    assert said in capsys.readouterr().err and len(fake.bodies) == 1
