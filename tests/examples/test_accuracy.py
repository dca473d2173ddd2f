# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark around its engine: no figure stands next to a wrong result."""

import csv
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import models
from benchmarks.accuracy.answers import Folder, judged
from benchmarks.accuracy.engine import Engine
from benchmarks.accuracy.methods import GUARDED, METHODS, Request
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell
from benchmarks.accuracy.report import read_outcomes, render
from benchmarks.accuracy.tasks import CELLS
from examples.rule.cold_clean_gen import CleanGen
from tests.docs.blocks import block
from vllm_cold import ColdParams
from vllm_cold.rules import registry
from vllm_cold.settings.presets import PRESETS

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "chat", "nowhere")
CELL = CELLS["false"]
PROBLEM = CELL.make(CHAT, "dev", 1)[0]
ADAPTED = replace(CELL, adapter="t-r4-100")
MEASURED = Path(command.__file__).with_name("measured")


def request(key: str, cell: Cell = CELL, model: Model = CHAT) -> Request:
    return METHODS[key].request(model, cell, PROBLEM, Path("/adapters"))


def test_who_reads_what() -> None:
    adapter, without = "/adapters/t-r4-100", PROBLEM.without
    better = (PROBLEM.plain["better"], adapter)
    for key, streams in {
        "greedy": [(PROBLEM.prompt, adapter)],
        "base model": [(PROBLEM.prompt, None)],
        "without the part": [(without, adapter)],
        "better prompt + cad": [better, (without, adapter)],
        "cad": [(PROBLEM.prompt, adapter), (without, adapter)],
        "grounded": [(PROBLEM.prompt, adapter), (without, adapter), (PROBLEM.unasked, adapter)],
        "cold": [(PROBLEM.prompt, adapter), (PROBLEM.prompt, None)],
        "cold, amateur: quarter": [
            (PROBLEM.prompt, adapter), (PROBLEM.prompt, "/adapters/t-r4-25")
        ],
    }.items():  # fmt: skip
        contrast = request(key, ADAPTED)
        readers = (contrast.expert, *contrast.amateurs)
        assert [(reader.prompt, reader.adapter) for reader in readers] == streams, key


def test_the_mark_says_all_that_an_answer_depends_on() -> None:
    methods = [m for m in METHODS.values() if m.is_for(CELL, PROBLEM) and not m.chooses]
    cad = request("cad")
    models = ({"dtype": "float32"}, {"source": "elsewhere"}, {"template": {"thinks": False}},
              {"system": False})  # fmt: skip
    requests = [
        *(request(method.key) for method in methods),
        replace(cad, expert=replace(cad.expert, prompt="Another?")),
        replace(cad, sampling={**cad.sampling, "stop": ("!",)}),
        replace(cad, scored="Lima"),
        *(request("cad", model=replace(CHAT, **other)) for other in models),  # type: ignore[arg-type]
    ]
    assert len({each.mark for each in requests}) == len(requests)


@pytest.mark.parametrize("key", METHODS)
def test_the_engine_is_told_all_of_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The engine is started with it (``engine.py``).
    monkeypatch.setitem(registry._added, CleanGen.name, CleanGen())
    engine = Engine.__new__(Engine)  # without a model
    engine._adapters, engine._model = {}, CHAT
    searched = CELLS["retrieved"].make(CHAT, "dev", 1)[0].plain
    guarded = {guard.prompt: PROBLEM.plain["better"] for guard in GUARDED}
    problem = replace(
        PROBLEM,
        plain={**PROBLEM.plain, **searched, **guarded, "base": PROBLEM.without},
        lacking=(PROBLEM.without, PROBLEM.plain["better"]),
    )
    request = METHODS[key].request(CHAT, ADAPTED, problem, Path("/adapters"))
    params = engine._params(request)
    for name, value in {"min_p": 0.0, "seed": None, **request.sampling, **request.settings}.items():
        assert getattr(params, name) == value
    assert isinstance(params, ColdParams) == bool(request.amateurs)
    for stream, amateur in zip(request.amateurs, getattr(params, "amateurs", ()), strict=True):
        differs = stream.prompt != request.expert.prompt
        assert amateur.prompt == ([dict(m) for m in stream.prompt] if differs else None)
        adapter = amateur.lora_request and amateur.lora_request.lora_path
        assert (adapter, amateur.weight) == (stream.adapter, stream.weight)


@dataclass
class FakeEngine:
    """Answers by a function, with two tokens."""

    answer: Callable[[Request], str]
    versions: str = "fake 1"

    def close(self) -> None:
        pass

    def run(self, requests: Sequence[Request]) -> list[tuple[str, int]]:
        return [(self.answer(request), 2) for request in requests]


def decode(folder: Folder, keys: Sequence[str], count: int = 12, cell: Cell = CELL) -> None:
    """Only contrastive answers are right."""
    right = {repr(p.prompt): p.judged.right[0] for p in CELL.make(CHAT, "test", count)}
    runner = command.Runner(CHAT, folder, adapters=False)
    runner._engine = FakeEngine(lambda r: right[repr(r.expert.prompt)] if r.amateurs else "no")
    runner.run(cell, "test", [METHODS[key] for key in keys], count)


def test_answers_to_something_else_are_never_counted(tmp_path: Path) -> None:
    folder, methods = Folder(tmp_path), list(METHODS.values())
    decode(folder, ["greedy"])
    decode(folder, ["cad"], 11)
    assert set(judged(folder, CHAT, CELL, "test", methods, 12)) == {"greedy"}, "one is missing"
    assert len(judged(folder, CHAT, CELL, "test", [METHODS["cad"]], 11)["cad"].right) == 11
    decode(folder, ["cad"])
    found = judged(folder, CHAT, CELL, "test", methods, 12)
    assert set(found) == {"greedy", "cad"}
    assert found["cad"].right.tolist() == [1.0] * 12
    assert found["greedy"].right.tolist() == [0.0] * 12
    assert (found["cad"].tokens, found["cad"].by) == (24, {"fake 1"})
    assert not found["cad"].measures["cut off"].any()
    two = replace(CELL, max_tokens=2)  # as many as FakeEngine counts
    assert judged(folder, CHAT, two, "test", methods, 12) == {}
    decode(folder, ["greedy"], cell=two)
    cut_off = judged(folder, CHAT, two, "test", methods, 12)["greedy"].measures["cut off"]
    assert cut_off.all()


def test_a_run_that_decodes_records_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    folder, greedy = Folder(tmp_path), [METHODS["greedy"]]
    recorded = []

    def start(self: command.Runner) -> FakeEngine:
        recorded.extend(folder.records(CHAT))
        return FakeEngine(lambda _: "no")

    monkeypatch.setattr(command.Runner, "_start", start)
    for _ in range(2):  # nothing is left for the second
        runner = command.Runner(CHAT, folder, adapters=False)
        runner.run(CELL, "test", greedy, 2)
        runner.close()
    (before,), (facts,) = recorded, folder.records(CHAT)
    assert (len(before[machine.READ]), len(facts[machine.READ])) == (1, 2)
    assert before["versions"] == facts["versions"] and facts["processor"]["CPU"]
    text, _ = render(folder, [CHAT], [CELL], "test", 2)
    assert f"A run of *small*:\n\n{machine.text(facts)}\n" in text


def test_all_presets_are_compared_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the page, on 8 problems; contrasts alone are right here."""
    told = shlex.split(block("docs/benchmarking.md", "compare").splitlines()[-1])[3:]
    told += ["instructions", "--problems", "8", "--folder", str(tmp_path)]
    (model,), cells = (parsed := command.parse(told)).models, parsed.cells
    right = {
        repr(problem.prompt): problem.judged.right[0]
        for cell in cells[:2]
        for problem in cell.problems(model, "test", 8)
    }
    engine = FakeEngine(lambda r: right.get(repr(r.expert.prompt), "no") if r.amateurs else "no")
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    monkeypatch.setattr(Model, "path", lambda _: "nowhere")
    monkeypatch.setattr(command.Runner, "_start", lambda _: engine)
    command.main(told)
    with (tmp_path / "compare.csv").open(encoding="utf-8") as file:
        rows = {(row["task"], row["method"]): row for row in csv.DictReader(file)}
    of_texts = {name for name, preset in PRESETS.items() if preset.of_texts}
    plain = {"greedy", "without the part", "better prompt", "part repeated"}
    assert {method for task, method in rows if task == "false"} == of_texts | plain
    assert ("instructions", "cfg") in rows and ("instructions", "cad") not in rows
    greedy, cad = rows["false", "greedy"], rows["false", "cad"]
    assert (greedy["n"], greedy["right_percent"], greedy["points"]) == ("8", "0.0", "")
    assert (cad["n"], cad["right_percent"], cad["points"]) == ("8", "100.0", "100.0")
    assert float(cad["p"]) < 0.01 < float(cad["p_corrected"]) and float(cad["seconds"]) >= 0
    assert "points against greedy decoding" in (tmp_path / "compare.svg").read_text()


@pytest.mark.parametrize("name", ["test", "joint"])
def test_what_was_measured_is_that_of_the_run(name: str, tmp_path: Path) -> None:
    """With its differences, intervals, and marks after Holm's correction."""
    outcomes, table = MEASURED / f"outcomes-{name}.jsonl", models.read()
    before = read_outcomes(outcomes)
    tested = [table[model] for model, _ in before]
    text, raw = render(Folder(tmp_path), tested, list(CELLS.values()), "test", before=before)
    assert text == (MEASURED / f"report-{name}.md").read_text(encoding="utf-8")
    assert raw == outcomes.read_text(encoding="utf-8")
