# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark around its engine: what is kept, what is picked, what the page says."""

import math
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from benchmarks.accuracy import choose, learned
from benchmarks.accuracy import screen as screening
from benchmarks.accuracy.compare import compared, row, together
from benchmarks.accuracy.engine import Engine
from benchmarks.accuracy.evaluate import WEAKER, cells, methods
from benchmarks.accuracy.learned import ACROSS, WITHIN, judge
from benchmarks.accuracy.lines import COLD, p_value
from benchmarks.accuracy.methods import (
    ADAPTIVE,
    BASE,
    BEAM,
    CONTRASTIVE_SEARCH,
    DEFAULT,
    DOLA,
    GREEDY,
    GRID,
    VOTE,
    Method,
)  # fmt: skip
from benchmarks.accuracy.position import Position, solved
from benchmarks.accuracy.screen import ALPHA, RULES, TOP, best_first, ties
from benchmarks.accuracy.store import Adapter, Cell, Outcome, Store
from benchmarks.accuracy.tables import aim, lines, name_of, render
from benchmarks.accuracy.tasks import BENCHMARKS
from vllm_cold.ops.scoring_reference import adaptive_weight
from vllm_cold.tools.tune.stats import mcnemar

pytestmark = pytest.mark.unit

MAIN = Cell(Adapter("sums", 16, 100), "ordinary")
HARD = Cell(Adapter("sums", 16, 100), "hard")


def outcome(right: str, tokens: int = 0, **counts: int) -> Outcome:
    return Outcome(right, tokens or 5 * len(right), 1.0, **counts)


def with_gains(greedy: str, better: int, worse: int) -> str:
    """``greedy`` with its first ``better`` wrong answers right, and ``worse`` right ones wrong."""
    places = [place for place, bit in enumerate(greedy) if bit == "0"][:better]
    places += [place for place, bit in enumerate(greedy) if bit == "1"][:worse]
    return "".join("10"[int(b)] if i in places else b for i, b in enumerate(greedy))


GREEDY_RIGHT = "".join(Random(0).choices("01", k=500))


def measure(root: Path, cell: Cell, gains: dict[str, tuple[int, int]]) -> None:
    """Results of a cell on both splits: gains and losses by method key, none for the others."""
    for split in ("dev", "test"):
        store = Store(cell, split, "same problems", root)  # type: ignore[arg-type]
        keys = {GREEDY.key, BASE.key, *(method.key for method in choose.families(cell))}
        for key in sorted(keys):
            right = with_gains(GREEDY_RIGHT, *gains.get(key, (0, 0)))
            counts = (
                {} if key in ("greedy", "base") else {"steps": 100, "one_valid": 80, "changed": 3}
            )
            store.add(key, outcome(right, **counts))


class TestStore:
    def test_goes_on_where_it_was(self, tmp_path: Path) -> None:
        Store(MAIN, "dev", "a", tmp_path).add("greedy", outcome("0110"))
        again = Store(MAIN, "dev", "a", tmp_path)
        assert again.outcomes == {"greedy": outcome("0110")}
        again.add("cold 0.1 0.5", outcome("0111"))
        again.refuse("dola", "not there")
        assert set(Store(MAIN, "dev", root=tmp_path).outcomes) == {"greedy", "cold 0.1 0.5"}
        assert Store(MAIN, "dev", root=tmp_path).not_offered == {"dola": "not there"}
        assert [path.name for path in tmp_path.iterdir()] == ["sums-r16-100-ordinary-dev.json"]

    def test_results_of_other_problems_are_not_written_over(self, tmp_path: Path) -> None:
        Store(MAIN, "dev", "a", tmp_path).add("greedy", outcome("0110"))
        with pytest.raises(ValueError, match="results of other problems or of another adapter"):
            Store(MAIN, "dev", "b", tmp_path)
        assert Store(MAIN, "dev", root=tmp_path).outcomes == {"greedy": outcome("0110")}


class TestPlan:
    def test_every_cell_is_there_once(self) -> None:
        found = cells(list(BENCHMARKS))
        assert len(set(found)) == len(found) == 7 * 6 + 6
        assert {(c.adapter.rank, c.adapter.percent) for c in found} == {
            (rank, percent) for rank in (4, 16) for percent in (25, 50, 100)
        }

    def test_no_method_is_named_twice(self) -> None:
        for cell in (MAIN, HARD):
            keys = [method.key for method in methods(cell, "dev")]
            assert len(set(keys)) == len(keys)

    def test_test_gets_what_was_picked_on_dev(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        best = GRID[-1]
        measure(tmp_path, MAIN, {best.key: (9, 0)})
        assert choose.pick("cold", MAIN, tmp_path) == best
        monkeypatch.setattr(
            "benchmarks.accuracy.evaluate.chosen", lambda cell: choose.chosen(cell, tmp_path)
        )
        keys = [method.key for method in methods(MAIN, "test")]
        assert best.key in keys
        assert GRID[0].key not in keys
        assert {GREEDY.key, BASE.key, DEFAULT.key, ADAPTIVE[0].key} <= set(keys)
        assert len(set(keys)) == len(keys)

    def test_what_is_best_on_test_is_not_picked(self, tmp_path: Path) -> None:
        measure(tmp_path, MAIN, {GRID[-1].key: (9, 0)})
        store = Store(MAIN, "test", root=tmp_path)
        store.add(GRID[-2].key, outcome("1" * len(GREEDY_RIGHT)))
        assert choose.pick("cold", MAIN, tmp_path) == GRID[-1]

    def test_of_equal_settings_the_mildest_is_picked(self, tmp_path: Path) -> None:
        measure(tmp_path, MAIN, {})
        assert choose.pick("cold", MAIN, tmp_path) == GRID[0]
        assert GRID[0].beta == min(method.beta for method in GRID)  # type: ignore[type-var]

    def test_nothing_is_picked_before_all_is_measured(self, tmp_path: Path) -> None:
        Store(MAIN, "dev", "a", tmp_path).add(GRID[0].key, outcome("01"))
        with pytest.raises(KeyError):
            choose.pick("cold", MAIN, tmp_path)


def test_a_row_says_what_the_outcomes_say() -> None:
    greedy = outcome(GREEDY_RIGHT)
    found = row(
        "m",
        outcome(with_gains(GREEDY_RIGHT, 20, 5), 2500, steps=200, one_valid=150, changed=4),
        greedy,
    )
    assert (found.better, found.worse, found.problems) == (20, 5, 500)
    assert found.difference == pytest.approx(3.0)
    assert found.low < 3.0 < found.high
    assert found.p == pytest.approx(0.00408, abs=1e-5)  # binomial, 20 of 25
    assert found.verdict == "better"
    assert (found.length, found.one_valid, found.changed) == (5.0, 75.0, 2.0)
    assert row("m", outcome(with_gains(GREEDY_RIGHT, 5, 20)), greedy).verdict == "worse"
    # p .064 and .043
    assert row("m", outcome(with_gains(GREEDY_RIGHT, 17, 7)), greedy).verdict == "equal"
    assert row("m", outcome(with_gains(GREEDY_RIGHT, 18, 7)), greedy).verdict == "better"


def test_a_p_says_on_which_side_of_the_level_it_is() -> None:
    found = [p_value(p) for p in (0.0004, 0.0012, 0.0498, 0.0502, 0.051, 0.9996)]
    assert found == ["< .001", ".001", ".0498", ".0502", ".051", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results in ``r``; the page's pictures will be in ``d``."""
    found = tmp_path_factory.mktemp("page")
    gains = {DEFAULT.key: (2, 30), ADAPTIVE[0].key: (25, 3), GRID[0].key: (40, 2)}
    measure(found / "r", MAIN, gains)
    measure(found / "r", HARD, {DEFAULT.key: (4, 4), ADAPTIVE[0].key: (1, 20)})
    Store(MAIN, "test", root=found / "r").refuse(DOLA.key, "needs | another package")
    return found


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return render(folder / "r", folder / "d")


class TestPage:
    def test_shows_losses_as_plainly_as_gains(self, page: str, folder: Path) -> None:
        assert "significantly better than greedy on 0, significantly worse on 1 of\n  2" in page
        assert "6 / 34 with the default (p < .001)" in page
        pictures = re.findall(r"\((pictures/[^)]+)\)", page)
        assert len(pictures) == 2
        for picture in pictures:
            assert (folder / "d" / picture).read_text(encoding="utf-8").startswith("<?xml")
        assert "needs | another package" in page

    def test_says_where_an_aim_is_missed(self, page: str, folder: Path) -> None:
        assert (
            "| nowhere significantly below greedy | no | below on: sums, rank 16, 100 %, harder"
            in page
        )
        assert "two tasks or more | no | above on: sums, rank 16, 100 % |" in page
        assert "never more than 1.0 point below" in page
        found = aim(compared([MAIN, HARD], folder / "r"))
        assert [len(found[key]) for key in ("below", "above", "behind")] == [1, 1, 2]

    def test_tables_are_whole(self, page: str) -> None:
        widths = {}
        for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            widths[block] = counts
            assert len(counts) == 1, block
        assert len(widths) >= 4

    def test_names_what_is_not_measured(self, page: str) -> None:
        assert "Not measured yet:" in page
        assert "people, rank 4, 25 %" in page

    def test_needs_results(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="run benchmarks.accuracy.train"):
            render(tmp_path, tmp_path)


def test_answers_of_several_adapters_to_a_problem_count_as_one(tmp_path: Path) -> None:
    """Six adapters with the same gains on the same problems are no stronger evidence than one."""
    others = [Cell(Adapter("sums", rank, percent), "ordinary") for rank, percent in WEAKER]
    for cell in (MAIN, *others):
        measure(tmp_path, cell, {DEFAULT.key: (9, 3)})
    one = together(compared([MAIN], tmp_path), lambda cell: DEFAULT.key)
    found = together(compared([MAIN, *others], tmp_path), lambda cell: DEFAULT.key)
    assert (one["better"], one["worse"]) == (9, 3)
    assert (found["better"], found["worse"]) == (54, 18)
    assert found["p"] == pytest.approx(one["p"], abs=0.01)
    assert found["p"] == pytest.approx(0.146, abs=0.01)

    # And the gains of any adapter count, whichever it is.
    measure(tmp_path / "uneven", MAIN, {DEFAULT.key: (9, 0)})
    for cell in others:
        measure(tmp_path / "uneven", cell, {})
    uneven = together(compared([MAIN, *others], tmp_path / "uneven"), lambda cell: DEFAULT.key)
    assert (uneven["better"], uneven["worse"]) == (9, 0)
    assert uneven["p"] < 0.01


class TestParams:
    """What the engine is told."""

    class Fake(Engine):
        def __init__(self) -> None:
            self._ids = {}

    def params(self, method: Method) -> Any:
        return self.Fake()._params(method, MAIN.adapter, 40)

    def test_every_knob_arrives(self) -> None:
        for method in (*methods(MAIN, "dev"), DEFAULT, *ADAPTIVE):
            params = self.params(method)
            assert (params.temperature, params.max_tokens) == (0.0, 40)
            if method == GREEDY:
                assert type(params) is SamplingParams
                continue
            assert (params.alpha, params.beta) == (method.alpha, method.beta)
            assert params.beta_max == dict(method.knobs).get("beta_max")
            assert (params.beta_max is None) == (method.beta != "adaptive")
            name = params.amateur and params.amateur.lora_name
            assert name == (f"sums-r16-{method.amateur}" if method.amateur else None)

    def test_the_vote_samples(self) -> None:
        params = self.params(VOTE)
        assert (params.n, params.temperature, params.top_p) == (5, 1.0, 0.9)


class TestScreening:
    """Two tokens matter: 0, the expert's best, and 1, the right one."""

    def position(self, e: list[float], a: list[float], gold: int, abest: float) -> dict[str, Any]:
        fill = [-90.0] * (TOP - len(e))
        return {
            "prob": 0, "e": e + fill, "a": a + fill, "gold": gold, "abest": abest, "jsd": 0.5,
        }  # fmt: skip

    def found(self, *positions: dict[str, Any]) -> dict[str, Any]:
        return {key: np.array([at[key] for at in positions]) for key in positions[0]}

    def test_solved_is_what_the_scores_choose(self) -> None:
        flips = self.position([-0.6, -0.8], [-0.5, -3.0], 1, -0.5)
        one = self.found(flips)
        # s = e + beta (e - a): -0.6 - 0.1 beta against -0.8 + 2.2 beta.
        assert solved(one, lambda at: 0.1, ALPHA).tolist() == [True]
        assert solved(one, lambda at: 0.08, ALPHA).tolist() == [False]
        assert solved(one, lambda at: 0.1, 0.9).tolist() == [False]  # no candidate
        never = self.position([-0.1], [-0.1], -1, -0.1)
        assert solved(self.found(flips, never), lambda at: 1.0, ALPHA).tolist() == [False]

    def test_of_equal_tokens_the_first_is_greedys(self) -> None:
        logits = torch.randint(0, 4, (200, 500), generator=torch.Generator().manual_seed(0)).float()
        values, tokens = best_first(logits, TOP)
        assert torch.equal(values, logits.topk(TOP).values)
        assert torch.equal(logits.gather(1, tokens), values)
        equal = values[:, 1:] == values[:, :-1]
        assert (tokens[:, 1:] > tokens[:, :-1])[equal].all()
        e = self.position([-0.6, -0.6], [-0.5, -3.0], 1, -0.5)
        apart = self.position([-0.6, -0.7], [-0.5, -3.0], 1, -0.5)
        assert ties(self.found(e, apart, self.position([-0.1], [-0.1], 0, -0.1)), ALPHA) == [1, 2]

    def test_adapters_of_a_task_are_no_more_evidence_than_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flips = self.position([-0.6, -0.8], [-0.5, -3.0], 1, -0.5)
        stays = self.position([-0.6, -0.8], [-0.5, -3.0], 0, -0.5)
        found = self.found(*[flips] * 9, *[stays] * 3) | {"prob": np.arange(12)}
        monkeypatch.setattr(screening, "collect", lambda adapter, count: found)
        monkeypatch.setattr(screening, "BENCHMARKS", {"sums": None})
        monkeypatch.setattr(screening, "judge", lambda *_: {})
        seen = screening.screen(12)
        assert [pair["1"] for pair in seen["adapters"].values()] == [[9, 3]] * 6
        assert seen["p"]["1"] == pytest.approx(mcnemar(9, 3), abs=0.01)

    def test_the_built_in_rule_is_the_ops(self) -> None:
        generator = np.random.default_rng(0)
        e, a = -np.sort(generator.exponential(1, (50, TOP))), -generator.exponential(2, (50, TOP))
        at = Position({"e": e, "a": a, "abest": a.max(1), "jsd": e[:, 0]}, 0.1)
        beta = RULES["r D: adaptive, beta_max 1"](at)
        expected = [
            adaptive_weight(torch.tensor(x), torch.tensor(y), math.log(0.1), 1.0)
            for x, y in zip(e, a, strict=True)
        ]
        assert np.max(expected) > 0.1
        np.testing.assert_allclose(beta, expected, atol=1e-12)


class TestLearnedBeta:
    def steps(self, count: int) -> dict[str, Any]:
        """One a problem. The contrast is right where the amateur's best tokens are candidates, and
        greedy where they are not.
        """
        fill = [-90.0] * (TOP - 2)
        rng = np.random.default_rng(0)
        useful = rng.random(count) < 0.5
        reach = np.where(useful, 0.0, 6.0) + rng.random(count)
        return {
            "prob": np.arange(count), "gold": useful.astype(int),
            "e": np.array([[-0.6, -0.8, *fill]] * count),
            "a": np.stack([[-1.0 - r, -3.5 - r, *fill] for r in reach]),
            "abest": np.full(count, -1.0), "jsd": rng.random(count),
        }  # fmt: skip

    def test_finds_what_there_is_to_find(self) -> None:
        found = {"sums-1": self.steps(300), "dates-1": self.steps(200)}
        judged = judge(found, lambda name: name.split("-")[0], ALPHA)
        for name, steps in found.items():
            fixed = [solved(steps, lambda at, b=b: b, ALPHA).mean() for b in (0.0, 0.05, 0.5, 2.0)]
            assert max(fixed) < 0.6
            assert judged[ACROSS][name].mean() > 0.95
            assert judged[WITHIN][name].mean() > 0.95

    def test_is_judged_on_what_it_has_not_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The stand-in's rule is right on exactly the steps that it was fitted on."""

        def fit(parts: list[dict[str, Any]], alpha: float) -> Any:
            return {number for part in parts for number in part["prob"].tolist()}

        def solves(found: dict[str, Any], fitted: Any, alpha: float) -> Any:
            return np.isin(np.arange(len(found["prob"])), list(fitted))

        monkeypatch.setattr(learned, "fit", fit)
        monkeypatch.setattr(learned, "as_rule", lambda fitted: fitted)
        monkeypatch.setattr(learned, "solved", solves)
        # Problems of another task have other numbers here.
        other = self.steps(100) | {"prob": np.arange(1000, 1100)}
        judged = judge({"a-1": self.steps(100), "a-2": self.steps(100), "b-1": other},
                       lambda name: name[0], ALPHA)  # fmt: skip
        assert not judged[ACROSS]["a-1"].any()
        assert not judged[WITHIN]["a-1"].any()


def test_tasks_of_a_strength_are_one_line(tmp_path: Path) -> None:
    found = [MAIN, Cell(Adapter("dates", 16, 100), "ordinary"), HARD]
    for cell in found:
        measure(tmp_path, cell, {DEFAULT.key: (2, 30)} if cell == MAIN else {})
    main, hard = lines(compared(found, tmp_path))
    assert (main.about, main.problems) == ("rank 16, 100 %, 2 tasks", 2 * len(GREEDY_RIGHT))
    assert main.right[COLD].sum() - main.right["greedy"].sum() == 2 - 30
    assert hard.about == "rank 16, 100 %, 1 task, harder problems"


def test_every_method_has_a_name() -> None:
    rest = (BASE, BEAM, VOTE, DOLA, CONTRASTIVE_SEARCH)
    keys = [m.key for m in (*methods(MAIN, "dev"), *rest)]
    names = [name_of(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert all(name != key for name, key in zip(names, keys, strict=True))
