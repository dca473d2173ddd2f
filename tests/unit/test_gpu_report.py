# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/gpu_report.py`` piece by piece: its tolerances are those of the tests, no speed
stands beside a wrong result, and nothing in it says whose machine it was.
"""

from __future__ import annotations

import getpass
import json
import math
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks import gpu_report as report
from tests.ops import conformance

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

    return report.make_report(dry, run, lambda text: None), ran


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
@pytest.mark.parametrize("at", ["machine", "kernels", "assertion", "engine: V2, eager, async"])
def test_no_speed_beside_a_wrong_result(at: str, fault: dict[str, Any]) -> None:
    found, ran = made({at: fault})
    assert found["verdict"].startswith("FAIL: ")
    assert not {"scoring speed", "CoLD against greedy"} & set(ran)
    assert len(ran) == 10  # the other checks go on
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
    assert f"**{found['verdict']}**" in text and "| GPU | Imagined 9000 |" in text
    for stage in found["stages"]:
        checks = stage.get("checks", [])
        right = f"{sum(c['ok'] for c in checks)} of {len(checks)}" if checks else "-"
        assert f"| {stage['stage']} | {stage['status']} | {right} |" in text
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
    assert report.main(["--output", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"No report can be made here: {refused}\n" == printed.err
    assert "vLLM 0.23 to 0.33" in printed.out and "{range}" not in printed.out
    monkeypatch.setattr(report, "FREE_DISK", 10**9)
    assert report.main(["--output", str(tmp_path)]) == 2
    assert "TMPDIR" in capsys.readouterr().err
    assert report.main(["--output", str(tmp_path / "none")]) == 2
    assert not list(tmp_path.iterdir())
    for module in ("vllm", "vllm_cold.tools.doctor"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert "pip install" in report.stage_machine({"dry": True}, tmp_path)["refused"]


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
    assert named - sys.stdlib_module_names == {"torch", "vllm", "vllm_cold", "safetensors"}
    assert not {"benchmarks", "tests", "examples"} & named


def test_times_are_of_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA's names stood in for: a graph is captured once and replayed, a call is called."""
    done: list[str] = []
    event = mock.Mock(side_effect=lambda enable_timing: mock.Mock(elapsed_time=lambda end: 8.0))
    graph = mock.Mock(return_value=mock.Mock(replay=lambda: done.append("replay")))
    for name, stand_in in {"Event": event, "CUDAGraph": graph, "Stream": mock.MagicMock(),
                           "stream": mock.MagicMock(), "graph": mock.MagicMock(),
                           "synchronize": mock.Mock()}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    replayed = report.timer(lambda: done.append("call"), cuda=True, graph=True)
    assert [replayed(), replayed()] == [8e-3] * 2
    assert done == ["call", "call", "replay", "replay"]  # to compile, to capture
    called = report.timer(lambda: done.append("call"), cuda=True, graph=False)
    assert called() == 8e-3 and done[4:] == ["call", "call"]


# --- What is held to be right


@pytest.mark.parametrize("layout", report.LAYOUTS)
@pytest.mark.parametrize("dtype", report.DTYPES)
def test_tolerances_are_those_of_the_tests(dtype: str, layout: str) -> None:
    for seed in range(3):
        case = report.make_case(seed, 40, 300, dtype, layout)
        theirs = conformance.Case(case.base, case.logits, list(report.KINDS), *case.args)
        for pair, knobs in enumerate(case.settings()):
            exact, tolerance, edge = report.truth(*(r[pair] for r in theirs.rows), *knobs)
            assert torch.equal(exact, theirs.exact[pair])
            assert torch.equal(tolerance, theirs.tolerance[pair])
            assert torch.equal(edge, theirs.edge[pair])
    rows = {"expert": "e", "amateur": "a", "both": "ea"}
    theirs_too = [(what, rows[row], where.replace("everywhere", "all"))
                  for what, row, where in conformance.NOT_FINITE]  # fmt: skip
    assert list(report.NOT_FINITE) == theirs_too
    assert set(report.KINDS) == set(conformance.KINDS)


def cases() -> list[Callable[[], object]]:
    """Checks of the torch backend, which must find nothing wrong."""
    device = torch.device("cpu")
    return [
        lambda: report.conform(report.make_case(0, 26, 97, "float32", "padded"), device, "torch"),
        lambda: report.conform(report.make_case(1, 13, 97, "bfloat16", "padded"), device, "torch"),
        lambda: report.stay_apart(report.make_case(0, 24, 61, "float32", "padded"), 0, device,
                                  "torch"),
    ]  # fmt: skip


def change(name: str, spoil: Callable[..., None]) -> Callable[[pytest.MonkeyPatch], None]:
    """A fault of the torch backend: its function ``name`` is followed by ``spoil``."""
    from vllm_cold.ops import scoring_torch

    def install(patch: pytest.MonkeyPatch) -> None:
        right = getattr(scoring_torch, name)

        def wrong(logits: Any, *arguments: Any) -> None:
            right(logits, *arguments)
            spoil(logits, *arguments)

        patch.setattr(scoring_torch, name, wrong)

    return install


def _scores(spoil: Callable[[Any], None]) -> Callable[..., None]:
    def of(logits: Any, e: Any, a: Any, *rest: Any) -> None:
        out = rest[5]
        for rows in [logits[e[0]], logits[a[0]]] if out is None else [out[0]]:
            spoil(rows)

    return of


FAULTS = {
    "a score": change("scores", _scores(lambda row: row.mul_(1 + 2**-20))),
    "a candidate": change("scores", _scores(lambda row: row[-1:].fill_(0.0))),
    "NaN": change("scores", _scores(lambda row: row[:1].fill_(math.nan))),
    "a row of no pair": change("scores", lambda logits, *a: logits.add_(0).fill_(1) if a[7] is None
                               else None),
    "statistics": change("scores", lambda *a: a[9][:, 0].add_(1) if a[9] is not None else None),
    "not finite": change("scores", lambda *a: a[9][:, 2].fill_(0) if a[9] is not None else None),
    "best scores": change("topk", lambda *a: a[8][0, :1].fill_(7.0)),
    "best ids": change("topk", lambda *a: a[9][0].copy_(a[9][0].flip(0))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(report.attempt("right", run)["ok"] for run in cases())
    FAULTS[fault](monkeypatch)
    found = [report.attempt("wrong", run) for run in cases()]
    assert not all(c["ok"] for c in found)
    assert all(c["ok"] or c["result"].startswith("WrongError: ") for c in found)
