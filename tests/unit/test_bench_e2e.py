# SPDX-License-Identifier: Apache-2.0
"""The end-to-end benchmark checks before it measures, and divides by the right numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_e2e as bench
from benchmarks import machine
from benchmarks.e2e import check, run
from benchmarks.e2e.jobs import SYSTEMS

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8]]
# Of a run, by family and mode.
SECONDS = {
    "stock-base base": 1.0,
    "plugin-base base": 1.0,
    "stock-lora base": 2.0,
    "stock-lora adapter": 4.0,
    "plugin base": 2.02,
    "plugin adapter": 2.2,
    "plugin cold": 1.9,
    "naive cold": 9.0,
}


class FakeWorkers:
    """Workers that answer at once: token i is i, the first takes half the time. The plugin's drafts
    are all right. A mode of the plugin's may be wrong in its first token, or the plugin's drafts.
    """

    wrong = ""

    def __init__(self, settings: Any, gib: int, folder: Path, say: Any) -> None:
        self.running: dict[str, Any] = {}
        self.facts, self.idle, self.peak = {"threads": 2}, (10.0, 0.01), 2**30
        self.family = ""

    def __enter__(self) -> "FakeWorkers":
        return self

    def __exit__(self, *error: object) -> None: ...

    def get(self, family: str) -> "FakeWorkers":
        self.running[family] = self
        self.family = family
        return self

    def ask(self, do: str, mode: str, tokens: int = 0, **more: Any) -> dict[str, Any]:
        if do == "gap":
            return {"gap": 1.0}
        seconds, num = SECONDS.get(f"{self.family} {mode}", 1.0), len(more["prompts"])
        rows = [list(range(tokens)) for _ in range(num)]
        if self.wrong in (f"{self.family} {mode}", self.family):
            rows[0][0] = 99
        drafted = 2 * num if self.family == "plugin-ngram" else 0
        counts = {"steps": num, "emitted": num + drafted, "drafted": drafted, "accepted": drafted}
        return {"seconds": seconds, "first": [seconds / 2] * num, "last": [seconds] * num,
                "tokens": rows, "blocks": 2 * num, "counts": counts}  # fmt: skip


def test_only_ties_may_differ() -> None:
    [cell] = run.system_cells("float32", bench.parse(["--batch", "1", "--tokens", "4"]), PROMPTS)
    for job in cell.jobs.values():
        job.output = [[0, 1, 2, 3]]
    cold = cell.jobs["plugin CoLD"]
    calls: list[Any] = []

    def gap(size: float) -> Any:
        return lambda *arguments: (calls.append(arguments), size)[1]

    problems, notes = check.check_cell(cell, gap(0.0))
    assert problems == [] and calls == [] and notes[0].count("100.0%") == 5
    cold.output = [[0, 1, 77, 3]]
    problems, notes = check.check_cell(cell, gap(5e-4))
    assert problems == [] and calls == [("cold", [[1, 2, 3, 0, 1]], [2, 77])]
    assert "5.0e-04 apart" in notes[-2] and "75.0%" in notes[-1]
    for size in (2e-3, float("inf")):
        problems, _ = check.check_cell(cell, gap(size))
        assert len(problems) == 1 and "part at token 3 of request 1" in problems[0]
    cell.exact = False
    assert check.check_cell(cell, gap(1.0))[0] == []
    cell.exact, cold.output = True, [[0, 1]]
    assert "where one of them ends" in check.check_cell(cell, gap(0.0))[0][0]


@pytest.fixture
def faked(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine, and a model of which nothing but the tokenizer and the sizes are used."""
    from examples import smollm2

    monkeypatch.setattr(smollm2, "model_path", lambda: tiny / "model")
    monkeypatch.setattr(bench, "quiet", lambda: None)
    monkeypatch.setattr(machine, "read_speed", lambda: 10.0)
    monkeypatch.setattr(run, "Workers", FakeWorkers)


@pytest.mark.usefixtures("faked")
def test_speeds_beside_right_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "out.json").read_text())
    assert "100.0% of plugin CoLD, beta 0 and plugin adapter" in printed
    cells = [(run["cell"], run["system"]) for run in saved["runs"]]
    assert len(cells) == len(set(cells)) == 2 * 2 * 9  # dtypes, batches, systems
    assert "| plugin CoLD / stock base, 2x | 1.90 (" in " ".join(printed.split())
    assert "| naive CoLD / plugin CoLD | 4.74 (" in " ".join(printed.split())
    row = next(x for x in printed.splitlines() if "plugin CoLD " in x and x.startswith("|"))
    # Seconds, TTFT, TPOT, the memory's limit, tokens per second (8 tokens), blocks, ratio.
    numbers = [cell.split()[0] for cell in row.strip("| ").split("|")[2:]]
    least = numbers.pop(3)
    assert numbers == ["1.90", "950", "136", "4.21", "2.00", "0.47"]
    size = next(r["step_bytes"] for r in saved["runs"] if r["system"] == "plugin CoLD")
    assert float(least) == pytest.approx(size / 10e9 * 1e3, rel=0.1)
    # The machine is in the file, and at the head of the tables.
    assert saved["machine"]["memory read, GB/s"] == [10.0, 10.0]
    assert "memory read, GB/s: 10.0 before, 10.0 after" in printed.partition("| cell")[0]


def test_bytes_that_a_step_reads(tiny: Path) -> None:
    """Two layers of 64 and 128, with heads of 4 and 2 times 32; the embedding is no product."""
    layer = 64 * (128 + 2 * 64) + 128 * 64 + 3 * 64 * 128 + 2 * 64
    assert run.num_weights(tiny / "model") == 2 * layer + 64 + 512 * 64
    of_a_layer = 64 + 128, 64 + 64, 64 + 64, 128 + 64, 64 + 128, 64 + 128, 128 + 64
    assert run.num_weights(tiny / "one") == 2 * 8 * sum(of_a_layer)
    sizes = {key: run.step_bytes(system, 100, 7) for key, system in SYSTEMS.items()}
    assert sizes["stock-base"] == sizes["base"] == 100
    # Expert and amateur share a pass, but in the naive loop.
    assert sizes["stock-adapter"] == sizes["adapter"] == sizes["cold"] == 107
    assert (sizes["naive"], sizes["naive-adapter"]) == (207, 107)


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("wrong", "more"),
    [
        ("plugin cold", ()),
        ("plugin beta-0", ("--one-engine", "--dtype", "float32")),
        ("plugin-ngram", ("--speculation",)),
    ],
)
def test_no_speeds_beside_wrong_results(
    wrong: str,
    more: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FakeWorkers, "wrong", wrong)
    status = bench.main(["--quick", *more, "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert status == 1 and "No speeds are shown" in printed
    assert "part at token 1 of request 1" in printed and "TTFT" not in printed
    assert list(json.loads((tmp_path / "out.json").read_text())) == ["problems"]
