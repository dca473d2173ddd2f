# SPDX-License-Identifier: Apache-2.0
"""The load benchmark: its rates, what it reads of results, and what it takes for wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_load
from benchmarks.load import client, run, show, workload
from benchmarks.load.client import Load
from benchmarks.load.server import Answer

pytestmark = [pytest.mark.unit, pytest.mark.slow]

TOKENS = 3


def answer(text: str, said: Mapping[str, Any] | None = None) -> Answer:
    """Each character a token, that the likeliest other one, x, is half a nat behind."""
    return Answer(text, tuple((c, {c: -0.1, "x": -0.6, "y": -3.0}) for c in text), said)


def result(count: int = 4, rate: float = 2.0, **changes: Any) -> dict[str, Any]:
    """What ``vllm bench serve`` saves of requests of ``TOKENS`` tokens."""
    percentiles = {
        f"p{p}_{metric}_ms": 10.0 * p + len(metric)
        for p in client.PERCENTILES
        for metric in ("ttft", "tpot", "itl")
    }
    return {
        "failed": 0, "completed": count, "errors": [""] * count,
        "output_lens": [TOKENS] * count, "duration": 2.5,
        "start_times": [100 + index / rate for index in range(count)],
        "request_throughput": count / 2.5, "request_goodput": count / 5,
        "generated_texts": ["abc"] * count,
    } | percentiles | changes  # fmt: skip


def load(count: int = 4, rate: float = 2.0, **changes: Any) -> Load:
    return Load(**{  # type: ignore[arg-type]
        "prompts": [str(n) for n in range(count)], "tokens": TOKENS, "models": ("a",),
        "xargs": {"cold": 0}, "rate": rate,
    } | changes)  # fmt: skip


def test_what_is_wrong_with_a_run() -> None:
    assert client.problems(result(), load()) == []
    (failed,) = client.problems(result(failed=1, completed=3, errors=["", "a\nBad"]), load())
    assert failed == "3 of 4 requests completed: ['Bad']"
    (short,) = client.problems(result(output_lens=[3, 2, 3, 3]), load())
    assert "1 requests did not generate 3 tokens" in short
    (late,) = client.problems(result(rate=1.0), load())
    assert "took 3.0 s to send what should arrive in 2.0 s" in late
    assert client.problems(result(rate=1.0), load(rate=math.inf)) == []


class FakeServer:
    """Says what it is asked for: ``say`` of the system's ``xargs``."""

    url = ""

    def __init__(self, kind: str) -> None:
        self.kind, self.looked_up = kind, 0

    def forget(self) -> None:
        self.looked_up = 0

    def prefix_cache(self) -> tuple[int, int]:
        self.looked_up += 10
        return self.looked_up, self.looked_up // 2

    def ask(self, model: str, prompt: str, tokens: int, xargs: Mapping[str, Any]) -> Answer:
        said = None if self.kind == "stock" else {"cold": int("cold_preset" in xargs)}
        return answer("abd" if "cold_preset" in xargs else "abc", said)


class FakePrompts:
    """Prompts without a tokenizer."""

    def make(self, name: str, count: int) -> list[str]:
        return [f"{name} {n}" for n in range(count)]

    def xargs(self, system: workload.System) -> dict[str, Any]:
        return dict(system.xargs)


def found(monkeypatch: pytest.MonkeyPatch, text: str | None = None) -> run.Findings:
    """All of the quick plan, with servers that answer at once; loaded ones ``text``, if given."""

    @contextmanager
    def serve(kind: str, *_: Any) -> Iterator[FakeServer]:
        yield FakeServer(kind)

    def bench(sent: Load, *_: Any) -> dict[str, Any]:
        count = len(sent.prompts)
        right = "abd" if "cold_preset" in sent.xargs else "abc"
        return result(
            count, sent.rate, output_lens=[sent.tokens] * count, duration=10.0,
            request_throughput=count / 10, generated_texts=[text or right] * count,
        )  # fmt: skip

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(run, "bench", bench)
    plan = bench_load.parse(["--quick"]).plan
    prompts: Any = FakePrompts()
    return run.Bench(plan, Path("m"), prompts, Path("f"), {}, lambda said: None).run()


def test_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of = found(monkeypatch)
    assert of.wrong == [] and of.capacity == dict.fromkeys(workload.SYSTEMS, 0.8)
    assert len(of.runs) == 5 + 3
    assert all((row["rate"], row["looked_up"], row["hits"]) == (0.64, 10, 5) for row in of.runs)
    assert all((row["checked"], row["equal"]) == (3, 3) for row in of.runs)
    assert of.notes[0] == "stock adapter and adapter: 3 of 3 answers equal"

    plan = {"tokens": 8, "middle": 80}
    told = " ".join(show.text({"plan": plan, "capacity": of.capacity, "runs": of.runs}).split())
    assert "| stock adapter | 0.80 | 6.40 |" in told
    assert "| CoLD | 4 | 80 % | 0.64 | 8 | 504 / 994 | 504 / 994 | 1.60 | 200 % | 50 % |" in told
    assert "| CAD, context | - | 80 % |" in told

    twice = [row | {"load": n} for row in of.runs for n in (50, 80)]
    assert [len(rows) for rows in show.curves(twice).values()] == [2] * 5
    show.picture(twice, tmp_path / "load.svg")
    drawn = (tmp_path / "load.svg").read_text()
    assert "CAD, base model" in drawn and "p99" in drawn


def test_other_tokens_than_alone_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = found(monkeypatch, "zzz").wrong
    assert len(wrong) == 8 * 3 and "'zzz', alone 'abc', inf apart" in wrong[0]
    ties = found(monkeypatch, "xbc")
    assert ties.wrong == [] and {row["equal"] for row in ties.runs} == {0}
    assert all(row["worst_tie"] == pytest.approx(0.5) for row in ties.runs)


def test_contrast_that_changes_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeServer, "ask", lambda *_: answer("abc", {"cold": 0}))
    wrong = found(monkeypatch, "abc").wrong
    assert "adapter and CoLD: all answers are equal" in wrong
    for system in ("CoLD", "stock adapter"):
        assert f"{system}, 1 adapters, 80 %: the header x-cold is {{'cold': 0}}" in wrong
    assert not any(each.startswith("base, context,") for each in wrong)
