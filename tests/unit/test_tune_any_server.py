# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune --url`` against servers without vllm-cold: one that is no vLLM and refuses what
OpenAI's API does not have, and one that looks like stock vLLM.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import loopback
from vllm_cold.tools.main import main
from vllm_cold.tools.tune import answers
from vllm_cold.tools.tune.baselines import BEST, BETTER, STRONGER

pytestmark = [pytest.mark.unit, pytest.mark.slow]

COUNT = 48
KEY = "key-7b1e"
STANDARD = {"model", "messages", "prompt", "temperature", "max_tokens", "stop"}
Capture = pytest.CaptureFixture[str]


class Other:
    """A server, and a folder with problems.

    Its answer is "right" where a prompt has a good passage and nothing else, "unknown" where it has
    none.

    Attributes:
        bodies: Of all requests, in order.
        answered: Bodies of those that got an answer.
        headers: Their headers.
        cards: The list of models; None for HTTP 404.
        limited: Whether the server refuses each request once, for a moment.
        stops: The number of answers after which it refuses all.
        newer: Whether it knows max_completion_tokens alone.
        finish: Why answers end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.bodies: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.cards: list[dict[str, Any]] | None = [{"id": "m", "owned_by": "acme"}]
        self.limited = self.newer = False
        self.stops: int | None = None
        self.finish: str | None = "eos"
        self.write(map(row, range(COUNT)))

    def write(self, rows: Any) -> None:
        (self.folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def tune(self, *more: str) -> int:
        paths = (str(self.folder / "p.jsonl"), "--output", str(self.folder / "out"))
        return main(["tune", *paths, "--url", self.url, *more])

    @property
    def report(self) -> Any:
        return json.loads((self.folder / "out" / "report.json").read_text())

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append(body)
        known = STANDARD | {"max_completion_tokens"} - ({"max_tokens"} if self.newer else set())
        if self.newer and "max_tokens" in body:
            message = "'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": message, "param": "max_tokens"}}
        if body.keys() - known:
            return 400, {"error": {"message": f"Unknown parameter: {body.keys() - known}"}}
        if self.limited and self.bodies.count(body) == 1:
            return 429, {"error": {"message": "slow down"}}
        if self.stops is not None and len(self.answered) >= self.stops:
            return 429, {"error": {"message": "quota"}}
        self.answered.append(body)
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        said = "wrong"
        if "noise" not in text:
            said = "right" if "good" in text else "unknown"
        choice = {"text": said} if "prompt" in body else {"message": {"content": said}}
        return 200, {"choices": [{**choice, "finish_reason": self.finish}]}


def row(n: int) -> dict[str, Any]:
    """Context and question in one user's message. Of every fourth no passage answers."""
    found = [("noise x", 0.4), (f"noise {n}", 0.2)] if n % 4 == 3 else [("noise", 0.3), ("good", 1)]
    texts = "\n".join(text for text, _ in found)
    content = f"Use these passages:\n{texts}\n\nQuestion: q{n}?"
    return {
        "messages": [{"role": "user", "content": content}],
        "passages": [{"text": text, "score": score} for text, score in found],
        "answers": n % 4 != 3,
        "answer": "unknown" if n % 4 == 3 else "right",
    }


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Other]:
    kept = Other(tmp_path)
    for name in ("COLD_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(loopback.Answering):
        def do_GET(self) -> None:
            kept.headers.append({k.lower(): v for k, v in self.headers.items()})
            if kept.cards is None:
                return self.send(404, {})
            self.send(200, {"data": kept.cards})

        def do_POST(self) -> None:
            kept.headers.append({k.lower(): v for k, v in self.headers.items()})
            self.send(*kept.answer(self.body()), Retry_After="0.01")

    with loopback.serving(Handler) as kept.url:
        yield kept


def test_passages_on_a_server_that_is_no_vllm(
    other: Other, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other.limited = True
    assert other.tune("--baselines", "--max-tokens", "9", "--concurrency", "4") == 0
    # What is asked, and nothing twice: the last baseline has the answers of others.
    asked = Counter(body["messages"][0]["content"] for body in other.answered)
    start, question = "Use these passages:\n", "Question: q0?"
    assert {content for content in asked if content.endswith(question)} == {
        f"{start}noise\ngood\n\n{question}",
        f"{start}\n\n\n{question}",
        f"{start}noise\ngood\n\n{BETTER['text']} {question}",
        f"{start}noise\ngood\n\n{start}noise\ngood\n\n{question}",
        f"{start}\ngood\n\n{question}",
    }
    assert set(asked.values()) == {1} and len(asked) == 5 * COUNT
    # Nothing but what is standard, from the rows' prompts, and no word of this machine.
    assert {key for body in other.bodies for key in body} == STANDARD - {"prompt", "stop"}
    sent = json.dumps(other.bodies)
    assert "answer" not in sent and "score" not in sent and "unknown" not in sent
    names = {name for headers in other.headers for name in headers}
    assert not any(name.startswith("x-stainless") for name in names)
    assert {headers["user-agent"] for headers in other.headers} == {"vllm-cold"}
    assert {headers["authorization"] for headers in other.headers} == {f"Bearer {KEY}"}
    written = "".join(file.read_text() for file in (other.folder / "out").iterdir())
    printed = capsys.readouterr()
    assert KEY not in written + printed.out + printed.err
    # The verdict.
    name = f"{BEST}, or none below 1.0"
    report = other.report
    assert report["headline"].startswith(f"Use {name}: +100.0 points on 18 held-out problems")
    assert "where the text does not answer, +100.0 points on 6 held-out" in report["headline"]
    names_tried = ["no text", STRONGER, "the text repeated", BEST, name]
    assert [row["name"] for row in report["settings"]] == names_tried
    assert "Ask for it:" in printed.out and "vllm_xargs" not in printed.out
    serve = json.loads(report["serve"])
    assert serve["model"] == "m" and "good" in serve["messages"][0]["content"]
    assert "The server has no vllm-cold, so that no contrast was tried." in report["notes"]
    assert other.tune("--baselines", "--max-tokens", "9") == 0
    assert len(other.answered) == 5 * COUNT


def test_what_is_refused_for_long_is_asked_again_by_the_same_command(
    other: Other, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(answers, "RETRIES", 2)
    other.stops = 7
    assert other.tune("--concurrency", "1") == 2
    printed = capsys.readouterr().err
    assert len(other.bodies) == 7 + 3
    assert "stopped; 7 answers are kept in" in printed and "the same command goes on" in printed
    said = "HTTP 429: quota; ask for less with --concurrency or --requests-per-minute\n"
    assert printed.endswith(said)
    other.stops = None
    other.answered.clear()
    assert other.tune() == 0 and len(other.answered) == 5 * COUNT - 7


def test_how_many_begin_in_a_minute(other: Other) -> None:
    start = time.monotonic()
    assert other.tune("--requests-per-minute", "6000") == 0
    assert time.monotonic() - start > 5 * COUNT * 0.01


def test_systems_and_texts(other: Other) -> None:
    """An instruction that is repeated; and completions, if there are any."""
    rows: list[dict[str, Any]] = [
        {"messages": [
            {"role": "system", "content": "Be good."}, {"role": "user", "content": f"{n}"}
        ], "answer": "right"}
        for n in range(COUNT)
    ]  # fmt: skip
    other.write(rows)
    other.newer = True  # as OpenAI's
    assert other.tune("--without", "system", "--stop", "\n") == 0
    assert other.report["headline"].startswith("Use the instruction repeated: +100.0 points on 24")
    assert other.answered[-1]["stop"] == ["\n"] and "max_tokens" not in other.answered[-1]
    assert other.answered[-1]["max_completion_tokens"] == 256
    other.newer = False
    other.write(
        {"prompt": f"Text {n}: noise. Q?", "answer": "unknown", "cold_part": [0, 16]}
        for n in range(10, COUNT)
    )
    assert other.tune("--output", str(other.folder / "texts")) == 0
    report = json.loads((other.folder / "texts" / "report.json").read_text())
    assert report["headline"].startswith("Leave the text out: +100.0 points on 19")
    assert "irrelevant context was not tested" in report["headline"]


def test_a_prompt_that_is_best_as_it_is(other: Other) -> None:
    other.write({"prompt": f"good {n}: Q?", "answer": "right", "cold_part": [0, 9]}
                for n in range(10, COUNT))  # fmt: skip
    assert other.tune("--baselines") == 1
    said = "Keep the prompt as it is: no baseline beats it significantly; a stronger prompt differs"
    assert other.report["headline"].startswith(said)
    assert json.loads(other.report["serve"])["prompt"].startswith("good ")


def test_stock_vllm_is_asked_once_whether_it_has_the_plugin(other: Other, capsys: Capture) -> None:
    """And never by a field that it would have to ignore again."""
    other.cards = [{"id": "m", "parent": None, "owned_by": "vllm"}]
    answer = other.answer

    def stock(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "vllm_xargs" in body:
            other.bodies.append(body)
            return 200, {"choices": [{"text": "", "finish_reason": "length"}]}
        return answer(body)

    other.answer = stock  # type: ignore[method-assign]
    assert other.tune() == 0
    assert [i for i, body in enumerate(other.bodies) if "vllm_xargs" in body] == [0]
    assert "48 problems (24 dev, 24 held out), baselines alone." in capsys.readouterr().err
    for options, said in (
        (("--preset", "cad"), "this server ignores cold_alpha, so vllm-cold is not active there"),
        (("--baselines", "--preset", "cad"), "--preset: is for a contrast, and --baselines tries"),
        (("--baselines", "--rule", "a:B"), "--rule: is for a contrast, and --baselines tries"),
    ):
        assert other.tune(*options) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cards", "options", "said"),
    [
        ([{"id": "a"}, {"id": "b"}], (), "--model is missing: the server has a, b"),
        (None, (), "no OpenAI-compatible server lists its models there"),
        ([{"id": "a"}], ("--adapter", "x"), "--adapter=x: no such adapter on the server"),
        (None, ("--model", "unlisted"), None),
        ([{"id": "a"}], ("--model", "unlisted"), None),
    ],
)
def test_names_of_models(
    other: Other, capsys: Capture, cards: Any, options: tuple[str, ...], said: str | None
) -> None:
    other.cards = cards
    assert other.tune("--baselines", *options) == (0 if said is None else 2)
    assert said is None or said in capsys.readouterr().err
    assert {body["model"] for body in other.answered} == ({"unlisted"} if said is None else set())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"passages": [{"text": "elsewhere"}]}, "passages='9 characters': no message has such"),
        ({"passages": ["x"]}, ":49: passages.0: "),
        ({"passages": []}, "no baselines, as nothing says what can be left out: give its"),
    ],
)
def test_a_row_without_its_passages(
    other: Other, capsys: Capture, change: dict[str, Any], said: str
) -> None:
    other.write([*map(row, range(COUNT)), {**row(COUNT), **change}])
    assert other.tune("--baselines") == 2
    assert said in capsys.readouterr().err and not other.bodies


def test_scores_that_do_not_help_or_are_not_there(other: Other) -> None:
    rows = [row(n) for n in range(COUNT)]
    for each in rows:
        for passage in each["passages"]:
            passage["score"] = 0.5
    other.write(rows)
    other.tune("--baselines")
    assert other.report["first"][-1] == (
        "Baseline not tried: no passage below a score. On the dev problems no score does better "
        "than showing it always."
    )
    del rows[7]["passages"][1]["score"]
    other.write(rows)
    other.tune("--baselines")
    assert other.report["first"][-1] == (
        "Baseline not tried: no passage below a score. In problem 'line-8' (line 8) not all "
        "passages have one."
    )


def test_an_answer_that_is_not_whole(other: Other, capsys: Capture) -> None:
    other.finish = None
    assert other.tune("--baselines", "--concurrency", "1") == 2
    assert "was ended with None" in capsys.readouterr().err
    other.finish = "content_filter"
    assert other.tune("--baselines") == 0
    assert "the answers of greedy were ended by the server's content filter" in " ".join(
        other.report["notes"]
    )


def test_the_usual_key_goes_to_openai_and_to_this_machine_alone(
    other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_cold.tools.server import _read_key, _takes_usual_key

    goes = ("https", "api.openai.com"), ("http", "127.0.0.1"), ("http", "localhost")
    stays = ("http", "api.openai.com"), ("https", "example.com"), ("https", "openai.com.evil.com")
    assert [_takes_usual_key(*each) for each in (*goes, *stays)] == 3 * [True] + 3 * [False]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert _read_key(None, may_be_usual=True) == KEY
    assert _read_key(None, may_be_usual=False) is None
    monkeypatch.setenv("COLD_API_KEY", "")
    assert _read_key(None, may_be_usual=True) is None
