# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark around its engine: no figure stands beside a wrong result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy.answers import Folder, judged, read
from benchmarks.accuracy.engine import Engine
from benchmarks.accuracy.methods import GRID, METHODS, Request
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Split
from benchmarks.accuracy.report import Difference, compare, correct, picked, render
from benchmarks.accuracy.tasks import CELLS
from vllm_cold import Amateur, ColdParams

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "nowhere", chat=True)
BASE = replace(CHAT, chat=False)
CELL = CELLS["false"]
MEASURED = Path(command.__file__).with_name("measured")
DOCS = Path(__file__).parents[2] / "docs"


class FakeEngine:
    """Answers as it is told, and counts."""

    versions = "fake 1"

    def __init__(self, says: Callable[[Request], str]) -> None:
        self.says = says
        self.asked: list[Request] = []

    def run(self, requests: Sequence[Request]) -> list[tuple[str, int]]:
        self.asked += requests
        return [(self.says(each), 2) for each in requests]


def decode(
    folder: Folder,
    says: Callable[[Request], str],
    methods: Sequence[str] = ("greedy", "cad"),
    cell: Cell = CELL,
    split: Split = "test",
    count: int = 12,
) -> FakeEngine:
    runner = command.Runner(CHAT, folder, adapters=False)
    runner._engine = FakeEngine(says)
    known = METHODS | {method.key: method for method in GRID}
    runner.run(cell, split, [known[key] for key in methods], count)
    return runner._engine  # type: ignore[no-any-return]


def knowing(cell: Cell = CELL, split: Split = "test", count: int = 12) -> dict[Any, str]:
    """The right answer to each prompt."""
    problems = cell.make(CHAT, split, count)
    return {repr(p.prompt): p.judged.right[0] for p in problems}


def contrast_is_right(request: Request) -> str:
    known = knowing() | knowing(split="dev")
    return known[repr(request.expert.prompt)] if request.amateurs else "no"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


class TestRequests:
    PROBLEM = CELL.make(CHAT, "dev", 1)[0]

    def request(self, key: str, cell: Cell = CELL, model: Model = CHAT) -> Request:
        return METHODS[key].request(model, cell, self.PROBLEM, Path("/adapters"))

    @pytest.mark.parametrize("key", ["cad", "adacad", "grounded"])
    def test_presets_are_the_products(self, key: str) -> None:
        """What is measured is what a user of the preset gets."""
        request = self.request(key)
        amateurs = [Amateur(prompt=each.prompt) for each in request.amateurs]  # type: ignore[arg-type]
        preset = ColdParams.preset(key, amateurs=amateurs)  # type: ignore[arg-type]
        mine = ColdParams(
            amateurs=[
                Amateur(prompt=each.prompt, weight=each.weight)  # type: ignore[arg-type]
                for each in request.amateurs
            ],
            **request.knobs,
        )
        assert (mine.alpha, mine.beta) == (preset.alpha, preset.beta)
        assert [a.weight for a in mine.amateurs or ()] == [a.weight for a in preset.amateurs or ()]
        assert mine.beta_max == preset.beta_max

    def test_who_reads_what(self) -> None:
        problem, cell = self.PROBLEM, replace(CELL, adapter="t-r4-100")
        worn = "/adapters/t-r4-100"

        def streams(key: str) -> list[tuple[Any, str | None]]:
            found = self.request(key, cell)
            return [(each.prompt, each.adapter) for each in (found.expert, *found.amateurs)]

        assert streams("greedy") == [(problem.prompt, worn)]
        assert streams("base model") == [(problem.prompt, None)]
        assert streams("without the part") == [(problem.without, worn)]
        assert streams("better prompt") == [(problem.plain["better"], worn)]
        assert streams("cad") == [(problem.prompt, worn), (problem.without, worn)]
        assert streams("grounded")[2:] == [(problem.unasked, worn)]
        assert streams("cold") == [(problem.prompt, worn), (problem.prompt, None)]
        assert streams("cold without the part")[1:] == [(problem.without, None)]
        assert streams("cold, amateur: quarter")[1:] == [(problem.prompt, "/adapters/t-r4-25")]

    def test_the_mark_says_all_that_an_answer_depends_on(self, tmp_path: Path) -> None:
        problem = replace(self.PROBLEM, prompt="Another?")
        marks = [self.request(key).mark for key in METHODS if METHODS[key].is_for(CELL, problem)]
        assert len(set(marks)) == len(marks)
        others = [
            METHODS["cad"].request(CHAT, CELL, problem, tmp_path),
            self.request("cad", replace(CELL, max_tokens=17)),
            self.request("cad", replace(CELL, stop=("!",))),
            self.request("cad", model=replace(CHAT, dtype="float32")),
            self.request("cad", model=replace(CHAT, source="elsewhere")),
        ]
        assert len({self.request("cad").mark, *(each.mark for each in others)}) == 6

    @pytest.mark.parametrize("key", METHODS)
    def test_the_engine_is_told_all_of_it(self, key: str) -> None:
        engine = Engine.__new__(Engine)  # without a model
        engine._adapters = {}
        request = self.request(key, replace(CELL, adapter="t-r4-100"))
        params = engine._params(request)
        assert (params.temperature, params.max_tokens, params.stop, params.n) == (
            request.sampling["temperature"], 16, ["\n"], METHODS[key].votes,
        )  # fmt: skip
        assert isinstance(params, ColdParams) == bool(request.amateurs)
        for name, value in request.knobs.items():
            assert getattr(params, name) == value
        for stream, amateur in zip(request.amateurs, getattr(params, "amateurs", ()), strict=True):
            reads = amateur.prompt and [dict(message) for message in stream.prompt]
            assert amateur.prompt == reads, "None is the expert's"
            assert (amateur.prompt is None) == (stream.prompt == request.expert.prompt)
            worn = amateur.lora_request and amateur.lora_request.lora_path
            assert (worn, amateur.weight) == (stream.adapter, stream.weight)


class TestAnswers:
    def test_a_run_goes_on_where_it_was_stopped(self, folder: Folder) -> None:
        assert len(decode(folder, lambda _: "no", ["greedy"], count=5).asked) == 5
        assert len(decode(folder, lambda _: "no", count=12).asked) == 7 + 12
        assert decode(folder, lambda _: "no", count=12).asked == []
        # Two names for one request: alpha 0 is cad's, and so is cfg's.
        path = folder.answers(CHAT, CELL, "test")
        assert len(read(path)) == len(path.read_text().splitlines()) == 24

    def test_answers_to_something_else_are_never_counted(self, folder: Folder) -> None:
        decode(folder, contrast_is_right)
        found = judged(folder, CHAT, CELL, "test", list(METHODS.values()), 12)
        assert set(found) == {"greedy", "cad"}
        assert found["cad"].right.tolist() == [1.0] * 12
        assert found["greedy"].right.tolist() == [0.0] * 12
        assert (found["cad"].tokens, found["cad"].by) == (24, {"fake 1"})
        other = replace(CELL, max_tokens=99)
        assert judged(folder, CHAT, other, "test", list(METHODS.values()), 12) == {}

    def test_a_method_without_all_answers_is_left_out(self, folder: Folder) -> None:
        decode(folder, contrast_is_right, ["greedy"], count=12)
        decode(folder, contrast_is_right, ["cad"], count=11)
        assert set(judged(folder, CHAT, CELL, "test", list(METHODS.values()), 12)) == {"greedy"}
        assert len(judged(folder, CHAT, CELL, "test", [METHODS["cad"]], 11)["cad"].right) == 11


class TestStatistics:
    def pairs(self, better: int, worse: int, count: int) -> Difference:
        mine, other = np.zeros(count), np.zeros(count)
        mine[:better] = 1.0
        other[better : better + worse] = 1.0
        return compare(mine, other)

    def test_mcnemar(self) -> None:
        found = self.pairs(20, 5, 500)
        assert found.points == pytest.approx(3.0)
        assert found.p == pytest.approx(0.00408, abs=1e-5)  # binomial, 20 of 25
        assert 0 < found.low < 3.0 < found.high < 5.0
        assert self.pairs(5, 20, 500).points == pytest.approx(-3.0)
        assert self.pairs(5, 20, 500).p == found.p

    @pytest.mark.parametrize("better", range(26))
    def test_the_interval_leaves_out_zero_where_the_test_rejects(self, better: int) -> None:
        found = self.pairs(better, 25 - better, 100)
        assert (found.low <= 0 <= found.high) is (found.p >= 0.05)

    def test_none_that_differs_is_no_proof(self) -> None:
        found = self.pairs(0, 0, 100)
        assert (found.points, found.p) == (0.0, 1.0)
        assert found.low == -found.high < -2.5

    def test_holm(self) -> None:
        found = [Difference(1, 0, 2, p) for p in (0.01, 0.04, 0.02, 0.9)]
        correct(found)
        assert [each.corrected for each in found] == pytest.approx([0.04, 0.08, 0.06, 0.9])
        assert [str(each).split()[0] for each in found] == ["**+1.0**", "+1.0?", "+1.0?", "+1.0"]


class TestReport:
    def text(self, folder: Folder, cells: Sequence[Cell] = (CELL,), split: Split = "test") -> str:
        return render(folder, [CHAT], cells, split, 12)

    def test_says_what_the_answers_are_worth(self, folder: Folder) -> None:
        decode(folder, contrast_is_right, ["greedy", "cad", "better prompt"])
        text = self.text(folder)
        assert "## A text against memory: Small" in text
        assert "| problems | 12 |\n| greedy, % | 0.0 |\n" in text
        assert "| cad | **+100.0** (" in text and "| better prompt | 0.0 (" in text
        assert "| cad | 100.0 |" in text.split("other measures, % | false: named |")[1]
        assert "Decoded by fake 1." in text and "dev" not in text
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block

    def test_settings_are_chosen_on_dev_alone(self, folder: Folder) -> None:
        keys = [method.key for method in GRID if method.amateur == "without"]
        known, best = knowing(split="dev"), GRID[4]

        def says(request: Request) -> str:
            on_dev = repr(request.expert.prompt) in known
            right = dict(request.knobs) == best.knobs if on_dev else bool(request.amateurs)
            return (known | knowing())[repr(request.expert.prompt)] if right else "no"

        decode(folder, says, ["greedy", *keys[:-1]], split="dev")
        assert picked(folder, CHAT, CELL) is None, "one is missing"
        decode(folder, says, ["greedy", *keys], split="dev")
        assert picked(folder, CHAT, CELL) == best
        decode(folder, says, ["greedy", best.key, keys[0]])
        assert "| picked on dev | **+100.0**" in self.text(folder)
        assert picked(folder, CHAT, CELL) == best, "whatever test says"


class TestCommand:
    def test_a_run_and_its_report(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        engine = FakeEngine(lambda _: "no")
        monkeypatch.setattr(command.Runner, "_start", lambda self: engine)
        table = tmp_path / "models.toml"
        table.write_text('[own]\ntitle = "Own"\nsource = "x"\nchat = false\n')
        common = ["--table", str(table), "--folder", str(tmp_path), "--cells", "true", "documents"]
        more = ["--problems", "3"]
        command.main(["run", *common, *more, "--methods", "cad", "--grid"])
        grid = sum(method.amateur == "without" for method in GRID)
        # Of the three cells, greedy, cad, and on dev the grid; on test what is picked.
        assert len(engine.asked) == 3 * 3 * (2 + grid + 2 + 1)
        assert all(isinstance(each.expert.prompt, str) for each in engine.asked)
        command.main(["report", *common, *more])
        text = (tmp_path / "report-test.md").read_text()
        assert "## Pages and documents: Own" in text and "- *true*: " in text
        assert "report-test.md" in capsys.readouterr().out


# What docs/accuracy.md calls a row, and the cells that it is of.
_INSTRUCTIONS = ["language", "persona", "tone", "forbidden", "required", "length", "json"]
_ADAPTED = ["sums", "sorting", "phonemes", "dates", "feelings", "verdicts", "people"]
ROWS = {
    "one sentence, which contradicts memory": ["false"],
    "the same among five others": ["false-among"],
    "five sentences, of which none answers": ["nothing"],
    "a page, of which a sentence answers": ["page"],
    "three documents, of which one answers": ["documents"],
    "summaries": ["summaries"],
    "instructions of nine kinds": [*_INSTRUCTIONS, "several", "turns"],
    "JSON, by an adapter": ["orders"],
    "an adapter against the base model, 7 tasks": [f"{t}-r16-100-ordinary" for t in _ADAPTED],
}
COLUMNS = {
    "`cold`": ("alpha 0.1, beta 0.5", "cold 0.1 0.5"),
    "`cad`, `cfg`": ("cad",),
    "`adacad`": ("adacad",),
    "`grounded`": ("grounded",),
    "alpha 0.1, beta 1": ("alpha 0.1, beta 1",),
    "better prompt": ("better prompt",),
}


def test_the_figures_of_the_page_are_those_that_were_measured() -> None:
    outcomes = {
        (each["model"], each["cell"]): each["outcomes"]
        for each in map(json.loads, (MEASURED / "outcomes.jsonl").read_text().splitlines())
        if each["split"] == "test"
    }
    page = (DOCS / "accuracy.md").read_text(encoding="utf-8")
    head, *rows = re.findall(r"^\| (.*) \|$", page, re.M)
    headings, about, checked = head.split(" | "), "", 0
    for row in rows:
        said, count, percent, *entries = row.split(" | ")
        *named, model = said.split(": ")
        about = named[0] if named else about
        model = {"*SmolLM2*": "smollm2", "*Gemma*": "gemma"}[model]
        there = [o for name in ROWS[about] if (o := outcomes.get((model, name)))]

        def right(key: str, there: list[Any] = there) -> Any:
            bits = "".join(next(iter(o[key]["measures"].values())) for o in there)
            return np.array([float(bit) for bit in bits])

        greedy = right("greedy")
        assert (len(greedy), f"{100 * greedy.mean():.1f}") == (int(count), percent), about
        for heading, entry in zip(headings[3:], entries, strict=True):
            if not entry.strip():
                continue
            key = next(key for key in COLUMNS[heading] if key in there[0])
            found = compare(right(key), greedy)
            points = entry.strip("*? ")
            assert float(points) == pytest.approx(found.points, abs=0.0501), (about, model, heading)
            assert (found.p < 0.05) is (entry.strip() != points), (about, model, heading)
            checked += 1
    assert checked == 58
