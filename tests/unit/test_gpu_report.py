# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/gpu_report.py`` piece by piece: what is wrong is seen and has no speed beside
it, and nothing in the report says whose machine it was.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks import gpu_report as report

pytestmark = pytest.mark.unit

RIGHT: dict[str, Any] = {"checks": [report.check("one"), report.check("two")]}
WRONG: dict[str, Any] = {
    "checks": [report.check("one"), report.check("two", "a | b")], "log": "the ``` end",
}  # fmt: skip
DEAD: dict[str, Any] = {"error": "the process ended with status -11 and left no result"}
ROWS: dict[str, Any] = {"scoring": [{"form": "dense", "us": [12.3, 11.0, 4567.8], "peak": None}],
                        "latency": [{"batch": 8, "CoLD / greedy": [1.25, 1.0, 1.5]}]}  # fmt: skip
SPEED = "12.3 (11-4568)"


def made(
    answers: dict[str, Any] | None = None, dry: bool = False, vllm: str = "0.32.0"
) -> tuple[dict[str, Any], list[str]]:
    """A report of stages that answer what is given, by name or title; and those that ran."""
    ran, given = [], answers or {}

    def run(stage: report.Stage) -> dict[str, Any]:
        ran.append(stage.title)
        found = dict(RIGHT)
        if stage.do == "machine":
            found["facts"] = {"vLLM": vllm, "GPU": "Imagined 9000"}
        if stage.speed:
            found["rows"] = ROWS[stage.do]
        return found | given.get(stage.do, {}) | given.get(stage.title, {})

    return report.make_report(dry, run), ran


def test_all_is_well() -> None:
    found, ran = made()
    assert found["verdict"] == "PASS" and not found["dry run"]
    assert [t for t in ran if t.startswith("engine")] == [
        f"engine: {runner}, {rest}"
        for runner in ("V1", "V2")
        for rest in ("eager, sync", "eager, async", "compiled, graphs, async")
    ]
    text = report.to_markdown(found)
    assert SPEED in text and "1.25 (1-1.5)" in text and "| 8 |" in text
    assert report.DRY_NOTE not in text
    dry, ran = made(dry=True)
    assert sum(title.startswith("engine") for title in ran) == 1
    assert report.to_markdown(dry).count(report.DRY_NOTE) == 2  # on top and beside the speeds


def test_v2_runner_only_where_it_has_logits_processors() -> None:
    old = [stage for stage in report.plan(False, "0.28.0") if stage.do == "engine"]
    assert len(old) == 3 and not any("V2" in stage.title for stage in old)
    assert all("VLLM_USE_V2_MODEL_RUNNER" not in stage.environment for stage in old)
    new = [stage for stage in report.plan(False, "0.33.0rc1") if stage.do == "engine"]
    assert [stage.environment["VLLM_USE_V2_MODEL_RUNNER"] for stage in new] == [*"000111"]
    assert all(stage.environment["TRITON_F32_DEFAULT"] == "ieee" for stage in (*old, *new))


@pytest.mark.parametrize("fault", [WRONG, DEAD], ids=["wrong", "dead"])
@pytest.mark.parametrize("at", ["machine", "kernels", "engine: V2, eager, async"])
def test_no_speed_beside_a_wrong_result(at: str, fault: dict[str, Any]) -> None:
    found, ran = made({at: fault})
    assert found["verdict"].startswith("FAIL: ")
    assert not {"scoring speed", "CoLD against greedy"} & set(ran)
    assert len(ran) == 9  # the other checks go on
    assert [s["status"] for s in found["stages"][-2:]] == ["left out"] * 2
    assert list(found["speeds"]) == ["note"] and "a check failed" in found["speeds"]["note"]
    text = report.to_markdown(found)
    assert SPEED not in text and found["speeds"]["note"] in text


def test_a_wrong_result_in_a_measurement_takes_all_speeds() -> None:
    found, _ = made({"latency": WRONG})
    assert list(found["speeds"]) == ["note"] and SPEED not in report.to_markdown(found)
    # One that has no room, or dies, is a failure too; the others' figures are right.
    found, _ = made({"latency": {**DEAD, "checks": [], "rows": []}})
    assert found["verdict"] == "FAIL: CoLD against greedy"
    assert SPEED in report.to_markdown(found)


def test_the_markdown_says_what_the_json_says() -> None:
    found, _ = made({"kernels": WRONG, "engine: V1, eager, sync": DEAD})
    text = report.to_markdown(json.loads(json.dumps(found)))
    assert f"**{found['verdict']}**" in text and "- GPU: Imagined 9000" in text
    for stage in found["stages"]:
        checks = stage.get("checks", [])
        right = f", {sum(c['ok'] for c in checks)} of {len(checks)} right" if checks else ""
        assert f"- {stage['stage']}: {stage['status']}{right}\n" in text
    assert "- wrong: two: a \\| b" in text and "the ''' end" in text
    assert f"- error: {DEAD['error']}" in text


def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused = report.stage_machine({"dry": False}, tmp_path)["refused"]
    assert "torch sees no GPU" in refused and "--dry-run" in refused
    monkeypatch.setattr(report, "run_stage", lambda *arguments: {"refused": refused})
    monkeypatch.setattr(report, "FREE_DISK", 0)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    assert report.main([]) == 2
    printed = capsys.readouterr()
    assert f"No report can be made here: {refused}\n" == printed.err
    assert "it has not run on a GPU yet" in printed.out
    monkeypatch.setattr(report, "FREE_DISK", 10**9)
    assert report.main([]) == 2
    assert "TMPDIR" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert report.main([]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    for module in ("vllm", "vllm_cold.tools.doctor"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert report.INSTALL in report.stage_machine({"dry": True}, tmp_path)["refused"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("File \"/home/ada/.venv/lib/python3.12/site-packages/vllm/engine/core.py\", line 3",
         "File \"vllm/engine/core.py\", line 3"),
        ("cannot open /home/ada/secret plans/x", "cannot open .../secret plans/x"),
        ("model='/tmp/ada-1/big', dtype=torch.bfloat16", "model='.../big', dtype=torch.bfloat16"),
        ("~/models/llama and ../up/there", ".../llama and .../there"),
        ("ada@analytical: by ada, not adapter", "NAME@NAME: by NAME, not adapter"),
        ("tcp://10.1.2.3:5555 and [fe80::1:2:3:4]", "tcp:/.../ADDRESS:5555 and [ADDRESS]"),
        ("1.5 GB/s, 3 of 4, 04:31:12, vLLM 0.32.0", "1.5 GB/s, 3 of 4, 04:31:12, vLLM 0.32.0"),
    ],
)  # fmt: skip
def test_nothing_personal(text: str, left: str) -> None:
    found = report.nameless({"a": [{"b": text}, 3, None]}, ["analytical", "ada"])
    assert found == {"a": [{"b": left}, 3, None]}


def test_names_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "engine.analytical.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    assert report.names_here() == ["engine.analytical.org", "engine", "ada"]
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert report.names_here() == ["engine.analytical.org", "engine"]


def test_it_imports_what_a_user_has() -> None:
    """The standard library, torch, vLLM and what they bring; no checkout."""
    source = Path(report.__file__).read_text()
    named = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.M))
    assert named - sys.stdlib_module_names == {
        "torch",
        "vllm",
        "vllm_cold",
        "safetensors",
        "transformers",
    }
    assert not {"benchmarks", "tests", "examples"} & named


def test_times_are_of_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA's names stood in for: a graph is captured once and replayed."""
    done: list[str] = []
    event = mock.Mock(side_effect=lambda enable_timing: mock.Mock(elapsed_time=lambda end: 8.0))
    graph = mock.Mock(return_value=mock.Mock(replay=lambda: done.append("replay")))
    for name, stand_in in {"Event": event, "CUDAGraph": graph, "graph": mock.MagicMock(),
                           "synchronize": mock.Mock()}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    replayed = report.timer(lambda: done.append("call"), "cuda")
    assert [replayed(), replayed()] == [8e-3] * 2
    assert done == ["call", "replay", "replay"]
    launched = report.timer(lambda: done.append("call"), "cuda", graph=False)
    assert launched() == 8e-3 and done[3:] == ["call"]
    assert report.timer(lambda: done.append("call"), "cpu")() > 0
    assert done[4:] == ["call"]


def test_a_cold_cache() -> None:
    mib = 2**20
    assert report.copies_for(10 * mib, 50 * mib, False) == (20, True)
    assert report.copies_for(10 * mib, 4 * mib, True) == (26, True)  # the Infinity Cache
    assert report.copies_for(mib // 8, 50 * mib, False) == (256, False)
    assert report.copies_for(mib // 8, 4 * mib, True) == (256, False)
    assert report.copies_for(mib, 0, False) == (2, True)


def test_rows_without_room_are_not_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(adaptive: bool, vocab: int, pairs: int, *rest: Any) -> dict[str, Any]:
        if pairs == 128:
            raise torch.OutOfMemoryError("none left")
        if vocab == 32000 and pairs == 1:
            raise RuntimeError("a launch failed")
        return {"V": vocab}

    monkeypatch.setattr(report, "measure_scoring", measure)
    found = report.stage_scoring({"dry": False}, tmp_path)
    assert len(found["rows"]) == 24 - 6 - 2
    assert list(found["facts"].values()) == ["no room"] * 6
    assert [c["result"] for c in found["checks"]] == ["RuntimeError: a launch failed"] * 2
    found, _ = made({"scoring": {**found, "checks": []}})
    assert found["verdict"] == "PASS"
    assert "- V=32000, P=128, adaptive: no room" in report.to_markdown(found)


def test_an_engine_is_what_was_asked_for() -> None:
    asked = {"scheduling": "async", "eager": False}
    facts = {**asked, "compilation": "VLLM_COMPILE", "graphs": "FULL"}

    def wrong(**other: Any) -> list[str]:
        checks = report.as_asked(facts | other, asked)
        return [f"{c['name']}: {c['result']}" for c in checks if not c["ok"]]

    assert wrong() == []
    assert wrong(graphs="NONE") == ["graphs: there is none"]
    assert wrong(compilation="NONE") == ["compilation: there is none"]
    assert wrong(scheduling="sync") == ["scheduling: sync, not async"]
    eager = {"scheduling": "sync", "eager": True}
    assert len(report.as_asked({**eager, "compilation": "NONE", "graphs": "NONE"}, eager)) == 2


# --- The stages' processes

STAND_IN = """
import json, os, sys, time
from pathlib import Path

_, _, do, settings, folder = sys.argv
print("a line of", do)
result = Path(folder, "result.json")
if do in ("right", "dies", "hangs"):
    result.write_text(json.dumps({"facts": {"settings": json.loads(settings)}}))
if do == "dies":
    os.abort()
if do == "half":
    Path(folder, "result.half").write_text('{"facts"')
if do == "hangs":
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a stage of ``STAND_IN``."""
    script = tmp_path / "script.py"
    script.write_text(STAND_IN)
    kind = report.GPU._replace(program=("-P", str(script)))
    return lambda do, timeout=60.0, log=0: report.run_stage(
        report.Stage(do, do, {"a": 1}, {}, log=log), tmp_path, True, timeout, kind
    )


def test_how_a_stage_ended_is_not_lost(stand_in: Callable[..., dict[str, Any]]) -> None:
    facts = {"settings": {"a": 1, "dry": True}}
    assert stand_in("right") == {"facts": facts}
    assert stand_in("right", log=9) == {"facts": facts, "log": "a line of right"}
    dead = {"error": "the process ended with status -6", "log": "a line of dies"}
    assert stand_in("dies")["facts"] == facts
    assert stand_in("dies")["error"] == dead["error"]
    assert stand_in("hangs", 3.0)["error"] == "the process had not finished after 3 s"
    half = stand_in("half")
    assert half == {"error": "the process left no result", "log": "a line of half"}


def test_a_result_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "stage_machine", lambda *a: {"facts": {"a": 1}})
    report.in_stage("machine", "{}", tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == {"facts": {"a": 1}}
    assert not (tmp_path / "result.half").exists()
    report.in_stage("nothing", "{}", tmp_path)
    assert "KeyError" in json.loads((tmp_path / "result.json").read_text())["error"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signals_end_the_stage(
    number: int, stand_in: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The parent's handlers leave by an exception, and the stage is killed on the way."""
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    monkeypatch.setattr(report, "make_report", lambda *a: {"refused": "it is a test"})
    monkeypatch.chdir(tmp_path)
    assert report.main(["--dry-run"]) == 2
    started: list[Any] = []

    class Popen(report.subprocess.Popen):  # type: ignore[misc,name-defined]
        def wait(self, timeout: float | None = None) -> int:
            started.append(self)
            if len(started) == 1:
                handlers[number](number, None)
            return int(super().wait(timeout))

    monkeypatch.setattr(report.subprocess, "Popen", Popen)
    with pytest.raises(SystemExit) as exit_:
        stand_in("hangs")
    assert exit_.value.code == 128 + number
    assert started[0].returncode == -signal.SIGKILL


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = {"COLD_LORA": "torch", "COLD_SCORING": "torch", "VLLM_ATTENTION_BACKEND": "X",
            "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "9", "VLLM_PLUGINS": "cold", "TRITON_INTERPRET": "1",
            "PYTHONPATH": "here"}  # fmt: skip
    monkeypatch.setattr(os, "environ", mine)
    stage = report.Stage("", "", {}, report.EXACT)
    assert {name for name in mine if not report.passed_on(name, True)} == {
        "COLD_LORA", "COLD_SCORING", "VLLM_ATTENTION_BACKEND", "VLLM_CPU_KVCACHE_SPACE",
    }  # fmt: skip
    assert [name for name in mine if report.passed_on(name, False)] == ["PYTHONPATH"]
    for dry in (True, False):
        found = report.environment_of(stage, tmp_path, dry)
        assert found["COLD_SCORING"] == "triton" and found["PYTHONPATH"] == "here"
        assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert ("TRITON_INTERPRET" in found) == dry
        for cache in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            assert Path(found[cache]).parent == tmp_path


# --- What is held to be right


@pytest.mark.parametrize("dtype", report.DTYPES)
def test_what_is_right_is_held_to_be_so(dtype: str) -> None:
    for seed, vocab in enumerate((1, 31, 97, 1025, 64)):
        report.conform(report.make_case(seed, len(report.KINDS), vocab, dtype), "cpu", "torch")
    for adaptive in (False, True):
        report.conform(report.usual_case(2, 99, adaptive), "cpu", "torch")


def wrong_backend(name: str, spoil: Callable[..., None]) -> Callable[[pytest.MonkeyPatch], None]:
    """A fault of the torch backend: its function ``name`` is followed by ``spoil``."""
    from vllm_cold.ops import scoring_torch

    def install(patch: pytest.MonkeyPatch) -> None:
        right = scoring_torch.BACKEND

        def wrong(*arguments: Any) -> None:
            before = arguments[0].clone()
            getattr(right, name)(*arguments)
            spoil(before, *arguments)

        patch.setattr(scoring_torch, "BACKEND", replace(right, **{name: wrong}))

    return install


def scores(spoil: Callable[[Any], object], inplace: bool | None = None) -> Callable[..., None]:
    """Spoil the scores of the first group, which is a normal one; of one form if it is given."""

    def of(before: Any, logits: Any, groups: Any, out: Any, statistics: Any) -> None:
        if inplace in (None, out is None):
            spoil(logits[groups.rows[0, 0]] if out is None else out[0])

    return of


def row_of_no_group(logits: Any, groups: Any) -> Any:
    return logits[min(set(range(len(logits))) - set(groups.rows.flatten().tolist()))]


def of_no_group(before: Any, logits: Any, groups: Any, out: Any, statistics: Any) -> None:
    if out is None:
        row_of_no_group(logits, groups).fill_(1)


def of_the_input(before: Any, logits: Any, groups: Any, *best: Any) -> None:
    row_of_no_group(logits, groups).fill_(1)


def of_an_amateur(before: Any, logits: Any, groups: Any, out: Any, statistics: Any) -> None:
    if out is None:
        logits[groups.rows[0, 2]].add_(1)


def of_a_sick_amateur(before: Any, logits: Any, groups: Any, out: Any, statistics: Any) -> None:
    if out is None:
        rows = groups.rows[:, 1:][groups.rows[:, 1:] >= 0]
        logits[rows] = before[rows]


FAULTS = {
    "a score": ("scores", scores(lambda row: row.mul_(1 + 2**-14)), "the tolerance in group"),
    "a candidate": ("scores", scores(lambda row: row.clamp_(min=-1e9)), "candidates in group"),
    "NaN": ("scores", scores(lambda row: row[:1].fill_(math.nan)), "NaN: not written, or made"),
    "infinite": ("scores", scores(lambda row: row[:1].fill_(math.inf)), "a score is infinite"),
    "in place": ("scores", scores(lambda row: row[:1].fill_(7.0), True), "in place: other scores"),
    "a row of no group": ("scores", of_no_group, "in place: another row was written to"),
    "an amateur's row": ("scores", of_an_amateur, "in place: another row was written to"),
    "a sick amateur": ("scores", of_a_sick_amateur, "in place: an amateur cannot be sampled"),
    "input": ("topk", of_the_input, "the input was written to"),
    "statistics": ("scores", lambda *a: a[4][:, 0].add_(1), "wrong statistics"),
    "not finite": ("scores", lambda *a: a[4][:, 2].fill_(0), "NaN or +inf: not told of"),
    "best scores": ("topk", lambda *a: a[3][0, :1].fill_(7.0), "wrong scores of the best 1"),
    "best ids": ("topk", lambda *a: a[4][0].add_(1), "wrong ids of the best 1"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, spoil, message = FAULTS[fault]
    case = report.make_case(22, 22, 97, "float32")
    assert report.attempt("right", lambda: report.conform(case, "cpu", "torch"))["ok"]
    wrong_backend(name, spoil)(monkeypatch)
    found = report.attempt("wrong", lambda: report.conform(case, "cpu", "torch"))
    assert found["result"].startswith("WrongError: ") and message in found["result"]


def test_nothing_to_sample_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group with NaN, whose scores are not compared otherwise."""
    case = report.make_case(report.KINDS.index("NaN"), 1, 97, "float32")
    wrong_backend("scores", scores(lambda row: row.fill_(-math.inf)))(monkeypatch)
    found = report.attempt("wrong", lambda: report.conform(case, "cpu", "torch"))
    assert "nothing can be sampled from group 0" in found["result"]
