# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/npu_report.py`` piece by piece, as far as it goes without an NPU. Its frame is
tested with ``gpu_report``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import gpu_report as frame
from benchmarks import npu_report as report
from tests.ascend import kernels as stock
from tests.ops import lora_host
from vllm_cold.tools.doctor import reference, tiny

pytestmark = pytest.mark.unit

RIGHT: dict[str, Any] = {"checks": [frame.check("one")]}
WRONG: dict[str, Any] = {"checks": [frame.check("one", "a reason")]}
DEAD: dict[str, Any] = {"error": "the process ended with status -11"}
ONE, TRIAL = "engine: graphs, async, max_loras 1", "engine: eager, float32"


def made(answers: dict[str, Any] | None = None, dry: bool = False) -> tuple[Any, list[str]]:
    """A report of stages that answer what is given, by name or title; and those that ran."""
    ran, given = [], answers or {}

    def run(stage: frame.Stage) -> dict[str, Any]:
        ran.append(stage.title)
        found = dict(RIGHT)
        if stage.do == "machine":
            found["facts"] = {"vLLM": "0.23.0", "NPU": "Imagined 9"}
        if stage.speed:
            found["rows"] = [{"rows": 2, "us": [12.3, 11.0, 4567.8]}]
        return found | given.get(stage.do, {}) | given.get(stage.title, {})

    return frame.make_report(dry, run, report.KIND), ran


def test_all_is_well() -> None:
    found, ran = made()
    assert (found["report"], found["verdict"]) == ("vllm-cold-npu-report", "PASS")
    assert found["speeds"]["note"] == report.NOTE
    assert ran[1] == "build of the kernels" and ran[-1] == "CoLD against greedy"
    text = frame.to_markdown(found)
    assert "12.3 (11-4568)" in text and "dry run" not in text


def test_what_a_dry_run_leaves_out() -> None:
    found, ran = made(dry=True)
    assert found["speeds"]["note"] == frame.DRY_NOTE
    assert not any("graphs" in title for title in ran)
    assert {s.do for s in report.plan(True, "")} == {s.do for s in report.plan(False, "")}
    lines = frame.to_markdown(found).splitlines()
    marked = [line for line in lines if line.startswith(("- dry run, ", "### dry run, "))]
    assert len(marked) == len(ran) + sum(stage.speed for stage in report.plan(True, ""))


def test_the_faults_of_vllm_ascend_are_among_what_is_run() -> None:
    """Experts that lose their adapter in compiled engines with one slot; split random prompts."""
    stages = {stage.title: stage for stage in report.plan(False, "0.23.0")}
    assert len(stages) == len(report.plan(False, "0.23.0"))
    asked = stages[ONE].settings
    assert asked["max_loras"] == 1 and not asked["asked"]["eager"]
    assert [not s.settings["asked"]["eager"] for s in stages.values() if s.do == "sampling"] == [
        False,
        True,
    ]
    alone = {s.settings["asked"].get("graphs"): s.trial for s in stages.values() if s.do == "alone"}
    assert alone == {"PIECEWISE": False, None: True}
    ours = [s for s in stages.values() if s.environment.get("COLD_LORA") == "ascendc"]
    assert {s.settings["asked"]["eager"] for s in ours} == {True, False}
    assert all(f"stage_{stage.do}" in report.STAGES for stage in stages.values())


@pytest.mark.parametrize("at", ["build", "tests", "kernels", "lora_kernels", ONE, "sampling"])
@pytest.mark.parametrize("fault", [WRONG, DEAD], ids=["wrong", "dead"])
def test_no_speed_beside_a_wrong_result(at: str, fault: dict[str, Any]) -> None:
    found, ran = made({at: fault})
    assert found["verdict"].startswith("FAIL: ") and list(found["speeds"]) == ["note"]
    checks = [stage.title for stage in report.plan(False, "") if not stage.speed]
    assert ran == ["machine", *checks]  # the other checks go on


def test_what_is_only_tried_may_fail() -> None:
    graphs = "LoRA speed, in ACL graphs"
    found, _ = made({TRIAL: {**DEAD, "checks": []}, graphs: {**DEAD, "checks": [], "rows": []}})
    assert found["verdict"] == "PASS" and graphs not in found["speeds"]
    assert "scoring speed, in ACL graphs" in found["speeds"]
    status = {stage["stage"]: stage["status"] for stage in found["stages"]}
    assert status[TRIAL] == status[graphs] == "not possible"
    assert f"- {TRIAL}: not possible\n  - error: {DEAD['error']}" in frame.to_markdown(found)
    found, _ = made({TRIAL: WRONG})  # but not be wrong
    assert found["verdict"] == f"FAIL: {TRIAL}"


def test_what_cannot_be_captured_is_no_wrong_result() -> None:
    checks = [frame.attempt("right", lambda: None)]
    checks += [frame.check(error, f"{error}: x")
               for error in ("RuntimeError", "WrongError", "AssertionError")]  # fmt: skip
    found = report.captured({"checks": checks, "rows": [], "facts": {"a": "no room"}})
    assert [c["name"] for c in found["checks"]] == ["right", "WrongError", "AssertionError"]
    assert found["facts"] == {"a": "no room", "RuntimeError": "RuntimeError: x"}


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = {"COLD_SCORING": "torch", "VLLM_ASCEND_ENABLE_NZ": "2", "VLLM_VERSION": "0.23.0",
            "ASCEND_RT_VISIBLE_DEVICES": "3", "PYTHONPATH": "here"}  # fmt: skip
    monkeypatch.setattr(os, "environ", mine)
    assert [n for n in mine if not frame.passed_on(n, False)] == list(mine)[:2]
    stages = {stage.title: stage for stage in report.plan(False, "")}
    found = report.environment_of(stages[ONE], tmp_path, False)
    assert found["COLD_SCORING"] == "ascend" and "COLD_LORA" not in found
    assert found["ASCEND_RT_VISIBLE_DEVICES"] == "3" and found["VLLM_VERSION"] == "0.23.0"
    assert found["PYTHONPATH"] == os.pathsep.join([str(report.ROOT), "here"])
    torch_only = stages["engine: eager, scoring by torch"]
    assert report.environment_of(torch_only, tmp_path, False)["COLD_SCORING"] == "torch"


# --- What is missing


def test_one_sentence_for_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there: set[str] = set()
    monkeypatch.setattr(report, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    for name in ("ASCEND_HOME_PATH", "SOC_VERSION"):
        monkeypatch.delenv(name, raising=False)
    assert "source its set_env.sh" in report.cannot_build()
    refused = report.stage_machine({"dry": False}, tmp_path)["refused"]
    assert refused == report.cannot_build()
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert "There is no torch_npu" in report.cannot_build()
    there.add("torch_npu")
    assert "export SOC_VERSION=ascend910b1" in report.cannot_build()
    monkeypatch.setenv("SOC_VERSION", "ascend910b1")
    assert report.cannot_build() == (
        "Not installed here, but needed: cmake, make, g++, pytest, pytest-timeout, hypothesis."
    )
    there |= {"cmake", "make", "g++", "pytest", "pytest_timeout", "hypothesis"}
    assert report.cannot_build() == ""

    monkeypatch.setitem(sys.modules, "torch_npu", None)
    assert "cannot be used here" in report.stage_machine({"dry": False}, tmp_path)["refused"]
    npu = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    assert "sees no NPU" in report.stage_machine({"dry": False}, tmp_path)["refused"]
    npu.is_available = lambda: True
    assert "no vllm-ascend" in report.stage_machine({"dry": False}, tmp_path)["refused"]

    monkeypatch.setattr(frame, "run_stage", lambda *arguments: {"refused": refused})
    monkeypatch.setattr(frame, "FREE_DISK", 0)
    monkeypatch.setattr(frame.signal, "signal", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    assert frame.main([], report.KIND) == 2
    printed = capsys.readouterr()
    assert printed.err == f"No report can be made here: {refused}\n"
    assert "it has not run on an NPU yet" in printed.out


def test_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    npu = SimpleNamespace(
        is_available=lambda: True,
        mem_get_info=lambda: (7 * 2**30, 64 * 2**30),
        get_device_properties=lambda device: SimpleNamespace(vector_core_num=40),
        get_device_name=lambda device: "Ascend910B3",
    )
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    monkeypatch.setattr(report, "cannot_build", lambda: "")
    monkeypatch.setattr(report, "find_spec", lambda name: name)
    monkeypatch.setattr(frame, "installed", lambda: {"facts": {"vLLM": "0.23.0"}, "checks": []})
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    monkeypatch.setenv("SOC_VERSION", "ascend910b3")
    assert "7.0 GiB of NPU memory" in report.stage_machine({"dry": False}, tmp_path)["refused"]
    npu.mem_get_info = lambda: (60 * 2**30, 64 * 2**30)
    facts = report.stage_machine({"dry": False}, tmp_path)["facts"]
    assert facts["CANN"] == "unknown"
    folder = tmp_path / "aarch64-linux"
    folder.mkdir()
    (folder / "ascend_toolkit_install.info").write_text("package_name=x\nversion=9.1.0\n")
    facts = report.stage_machine({"dry": False}, tmp_path)["facts"]
    assert facts["CANN"] == "9.1.0" and facts["NPU"] == "Ascend910B3"
    assert facts["vector cores"] == "40" and facts["vLLM"] == "0.23.0"


# --- The build


@pytest.fixture
def cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[dict[str, Any]]]:
    """The checks of a build with a cmake that is the lines given, a shell's."""

    def run(lines: str) -> list[dict[str, Any]]:
        program = tmp_path / "cmake"
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return report.build(tmp_path, tmp_path / "build", tmp_path, lambda: frame.need(0, "gone"))

    return run


def test_build(cmake: Callable[[str], list[dict[str, Any]]], capfd: Any) -> None:
    checks = cmake('echo "ran $1"')
    assert [(c["name"], c["result"]) for c in checks] == [
        ("configure", "ok"),
        ("build", "ok"),
        ("install", "ok"),
        ("load", "WrongError: gone"),
    ]
    assert capfd.readouterr().out.split("\n\n")[:3] == ["ran -S", "ran --build", "ran --install"]
    checks = cmake('[ "$1" = -S ] || { echo "x.cpp:3: error: no Exp"; exit 2; }')
    assert [c["ok"] for c in checks] == [True, False]
    assert checks[-1]["result"] == "cmake ended with status 2: x.cpp:3: error: no Exp"


def test_what_was_built_has_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_cold.npu import lora_ops

    monkeypatch.setattr(torch, "device", str)
    monkeypatch.setattr(lora_ops, "missing", lambda device: None)
    report.kernels_load()
    monkeypatch.setattr(lora_ops, "missing", lambda device: f"not on this {device}")
    with pytest.raises(frame.WrongError, match="not on this npu"):
        report.kernels_load()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_what_cmake_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    monkeypatch.setenv("SOC_VERSION", "ascend310p3")
    (wrong,) = report.build(report.ASCEND, tmp_path / "build", tmp_path, lambda: None)
    assert "for Atlas A2 and A3" in wrong["result"] and "\n" not in wrong["result"]


# --- Tests that are run


def test_tests_that_are_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    cases = (
        "<testcase name='a'/><testcase name='b'><failure message='1 is not 2'>x</failure>"
        "</testcase><testcase name='c'><skipped message='no NPU'/></testcase>"
    )

    def main(arguments: list[str]) -> int:
        asked.extend(arguments)
        (option,) = (a for a in arguments if a.startswith("--junitxml="))
        Path(option.partition("=")[2]).write_text(f"<suites><s>{cases}</s></suites>")
        return 1

    monkeypatch.setattr(pytest, "main", main)
    (stage,) = (s for s in report.plan(False, "") if s.do == "tests")
    found = report.stage_tests({**stage.settings, "dry": False}, tmp_path)
    assert [(c["name"], c["result"]) for c in found["checks"]] == [
        ("a", "ok"),
        ("b", "failure: 1 is not 2"),
        ("c", "skipped: no NPU"),
    ]
    assert asked[-1] == "tests/ops/test_ascend.py" and "on_the_npu" in asked
    cases = ""
    found = report.stage_tests({**stage.settings, "dry": True}, tmp_path)
    assert "none is called" in found["checks"][0]["result"]
    (tmp_path / "tests.xml").unlink()
    monkeypatch.setattr(pytest, "main", lambda arguments: 4)
    assert "status 4" in report.stage_tests({**stage.settings, "dry": False}, tmp_path)["error"]


def test_the_tests_that_are_run_exist() -> None:
    """By their names, in the files."""
    (stage,) = (s for s in report.plan(False, "") if s.do == "tests")
    for file in stage.settings["files"]:
        text = (report.ROOT / file).read_text()
        assert "_on_the_npu(" in text and "def test_conforms(" in text
    assert report.tested(ElementTree.fromstring("<testcase name='a'/>")) == ("a", "")


# --- Tokens of halves


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Any]:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write(folder)
    return report.reference_models(folder)


def right_tokens(models: dict[str | None, Any], case: reference.Case) -> list[int]:
    with torch.inference_mode():
        return reference._decode(models, case).tokens


@pytest.mark.parametrize("case", reference.CASES, ids=lambda case: case.name)
def test_tokens_of_a_half_and_of_a_lost_adapter(
    models: dict[str | None, Any], case: reference.Case
) -> None:
    assert report.parts_by(models, case, right_tokens(models, case)) == report.STEPS[0]
    for dtype in ("float16", "bfloat16"):
        halves = {name: halved(model, getattr(torch, dtype)) for name, model in models.items()}
        beside = report.parts_by(models, case, right_tokens(halves, case))
        assert beside <= report.MOST[dtype] / 4, (dtype, beside)
    if case.adapter is None:
        return
    lost = {**models, "one": models[None]}
    assert report.parts_by(models, case, right_tokens(lost, case)) > 2 * report.MOST["bfloat16"]
    given = {**models, None: models["one"]}
    if case.cold and not case.amateur and not case.adaptive:
        assert report.parts_by(models, case, right_tokens(given, case)) > 2 * report.MOST["float16"]


class halved:
    """A model whose weights were a half's, and whose logits are rounded to one."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        import copy

        self._model = copy.deepcopy(model).to(dtype)

    def __call__(self, input_ids: Any) -> Any:
        return SimpleNamespace(logits=self._model(input_ids=input_ids).logits.float())


def test_what_could_give_a_token() -> None:
    e = torch.tensor([4.0, 3.9, 3.0, -9.0]).double()
    a = torch.tensor([4.0, 3.0, 0.0, -9.0]).double()
    plain = reference.Case("", (1,))
    assert report.fits(plain, e, a, 1, 0.1, True) and not report.fits(plain, e, a, 2, 0.1, True)
    case = reference.Case("", (1,), "one", (0.1, 1.0, None))  # scores 4, 4.8, 6
    assert report.fits(case, e, a, 2, 0.1, True) and not report.fits(case, e, a, 1, 0.1, True)
    assert not report.fits(case, e, a, 3, 0.1, False)  # no candidate
    assert report.fits(case, e, a, 1, 0.1, False)  # it may be drawn
    capped = reference.Case("", (1,), "one", (0.1, 1.0, 2))
    assert not report.fits(capped, e, a, 2, 0.1, False) and report.fits(capped, e, a, 1, 0.1, True)


@pytest.mark.parametrize("graphs", ["PIECEWISE", "FULL_AND_PIECEWISE"])
def test_base_requests_alone(
    graphs: str, models: dict[str | None, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is wrong only behind a pair is found, and is a fact of full graphs."""
    made: list[dict[str, Any]] = []
    batches: list[list[str]] = []
    asked = {"eager": False, "scheduling": "async", "dtype": "float16"}
    about = asked | {"graphs": graphs, "compilation": "VLLM_COMPILE"}
    core = SimpleNamespace(shutdown=lambda: None)
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=None, engine_core=core))

    def generate(llm: Any, folder: Path, cases: Any, sampling: Any) -> list[list[int]]:
        batches.append([case.name for case in cases])
        tokens = [right_tokens(models, case) for case in cases]
        return [[*each[:-1], 1] for each in tokens] if len(batches) == 3 else tokens

    monkeypatch.setattr(report, "one_slot", lambda *args, **options: made.append(options) or llm)
    monkeypatch.setattr(report, "generate", generate)
    monkeypatch.setattr(report, "about", lambda *args: dict(about))
    monkeypatch.setattr(report, "reference_models", lambda folder: models)
    settings = {"asked": asked | ({"graphs": graphs} if graphs == "PIECEWISE" else {})}
    found = report.stage_alone(settings, tmp_path)
    assert [len(batch) for batch in batches] == [2, 1, 2] and batches[0] == batches[2]
    wrong = {c["name"] for c in found["checks"] if not c["ok"]}
    behind = {f"behind it: base model, {tokens} tokens" for tokens in (17, 51)}
    if graphs == "PIECEWISE":
        assert made == [{"compilation_config": {"cudagraph_mode": "PIECEWISE"}}]
        assert wrong == behind
        return
    assert made == [{}] and not wrong
    facts = {n: said for n, said in found["facts"].items() if n not in about}
    assert len(facts) == 5
    assert {name for name, said in facts.items() if "beside the reference's" in said} == behind


# --- LoRA


def shrink(x: Any, weights: Any, out: Any, indices: Any, scale: float) -> None:
    stock.bgmv_shrink(x, weights, indices, out, scale)


def expand(x: Any, weights: Any, out: Any, indices: Any, at: int, size: int, add: bool) -> None:
    stock.bgmv_expand(x, weights, indices, out, at, size)


def test_lora_of_others_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """vllm-ascend's kernels are stood in for, with the arguments that 0.23's take."""
    operations = ModuleType("vllm_ascend.lora.lora_ops")
    vars(operations).update(bgmv_shrink=shrink, bgmv_expand_slice=expand)
    package = ModuleType("vllm_ascend.lora")
    package.lora_ops = operations  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm_ascend", ModuleType("vllm_ascend"))
    monkeypatch.setitem(sys.modules, "vllm_ascend.lora", package)
    monkeypatch.setitem(sys.modules, "vllm_ascend.lora.lora_ops", operations)
    for seed, (rows, adapters, rank, length, widths) in enumerate(report.LORA_CASES[:4]):
        case = lora_host.make_case(seed, list(rows), rank, length, widths, adapters=adapters)
        for system in (report.theirs, report.with_torch):
            arguments = report.on_device(case, "cpu")
            system(*arguments)
            case.check(arguments[0])


def spoilt(spoil: Callable[[Any], object]) -> Callable[..., None]:
    """What our kernels should compute, and then some."""

    def run(y: Any, x: Any, a: Any, b: Any, indices: Any, scale: float) -> None:
        y.copy_(lora_host.Case(y, x, tuple(a), tuple(b), indices, scale).reference()[0])
        spoil(y)

    return run


@pytest.mark.parametrize("graph", [False, True])
def test_scoring_is_measured(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where a graph is the call itself."""
    settings = {"dry": True, "graph": graph, "backend": "reference"}
    found = report.stage_scoring(settings, Path())
    assert found["checks"] == [] and [row["beta"] for row in found["rows"]] == ["fixed", "adaptive"]
    # What is wrong after a replay ends the measurement.
    seen: list[int] = []
    monkeypatch.setattr(frame, "check_scores", lambda *a: frame.need(seen, "wrong"))
    monkeypatch.setattr(frame, "stage_scoring", lambda *a: seen.append(1) or {"checks": []})
    found = report.stage_scoring(settings, Path())
    assert [c["result"] for c in found["checks"]] == (["WrongError: wrong"] if graph else [])
    assert len(seen) == (not graph)


@pytest.mark.parametrize("spoil", [0.0, 1e-3, 1.0])
def test_no_speed_of_wrong_lora(spoil: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ours_of", lambda dry: spoilt(lambda y: y.mul_(1 + spoil)))
    found = report.stage_lora({"dry": True}, Path())
    if spoil:
        assert not found["rows"] and "AssertionError" in found["checks"][0]["result"]
        return
    (row,) = found["rows"]
    assert found["checks"] == [] and row["rows"] == 2
    (right,) = report.stage_lora({"dry": True, "graph": True}, Path())["checks"]
    assert right == frame.check("LoRA of a graph")
    assert list(row) == ["layer", "rows", "cold", "ours, us", "torch, us", "torch / ours"]


def test_lora_kernels_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_base_model(y: Any) -> None:
        if len(y) == 3:
            y[0, 0] += 1

    monkeypatch.setattr(report, "ours_of", lambda dry: spoilt(of_the_base_model))
    checks = report.stage_lora_kernels({"dry": True}, Path())["checks"]
    assert len(checks) == 12 and sum(c["ok"] for c in checks) == 9
    assert all("3 rows" in c["name"] for c in checks if not c["ok"])


def test_its_process_starts_without_torch() -> None:
    """The first process must not hold the NPU, nor die of a torch that cannot be imported."""
    code = "import sys; from benchmarks import npu_report; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=report.ROOT, check=False)
    assert done.returncode == 0
