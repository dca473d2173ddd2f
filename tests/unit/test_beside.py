# SPDX-License-Identifier: Apache-2.0
"""Traffic with contrastive requests and its equal work, percentiles and their quotients, and what a
benchmark of them refuses to show.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_beside as bench
from benchmarks import bench_rest
from benchmarks.beside import pages, spans, traffic
from benchmarks.beside.pages import AGAIN, CAPPED, OURS, STOCK
from benchmarks.beside.traffic import CONTRASTIVE, EQUAL_WORK, REGULAR, Mix, Text

pytestmark = pytest.mark.unit

TEXT = Text(range(5000))
ALL = [mix for workload in traffic.CONTRASTS for mix in traffic.mixes(workload)]


def made(mix: Mix, regular: int = 40, rate: float = 2.0, seed: int = 0) -> list[traffic.Request]:
    return traffic.schedule(mix, regular, rate, TEXT, seed)


# ---- traffic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ALL, ids=str)
def test_the_same_seed_gives_the_same_traffic(mix: Mix) -> None:
    assert made(mix) == made(mix) != made(mix, seed=1)
    kinds = Counter(request.kind for request in made(mix, 90))
    assert kinds[REGULAR] == 90
    assert kinds[CONTRASTIVE] == pytest.approx(90 * mix.percent / (100 - mix.percent), abs=0.5)
    assert all(len(r.streams) == 1 for r in made(mix) if r.kind == REGULAR)


def test_arrivals_are_at_random_and_as_fast_as_asked_for() -> None:
    times = [request.at for request in made(Mix("text"), 4000, rate=5.0)]
    gaps = np.diff(times)
    assert (gaps > 0).all()
    # Of Poisson's: the mean is the standard deviation.
    assert gaps.mean() == pytest.approx(0.2, rel=0.05) == pytest.approx(gaps.std(), rel=0.05)
    assert {request.at for request in made(Mix("text"), rate=math.inf)} == {0.0}


def test_what_the_streams_of_a_contrast_read() -> None:
    def contrasted(workload: str, kind: str) -> list[traffic.Request]:
        return [r for r in made(Mix(workload, 30, kind)) if r.kind == CONTRASTIVE]

    for request in contrasted("text", "document"):
        expert, amateur = request.streams
        length = len(expert.prompt) - len(amateur.prompt)
        assert traffic.DOCUMENT.least <= length <= traffic.DOCUMENT.most
        assert expert.prompt[length:] == amateur.prompt
    few = Text([*range(traffic.INSTRUCTION + 6), *[9] * traffic.PROMPT.most])
    alike = traffic._streams(Mix("text", 30, "four"), few, np.random.default_rng(0))
    assert len(set(alike)) == 5
    for kind, num in (("one", 2), ("four", 5)):
        for request in contrasted("text", kind):
            prompts = [stream.prompt for stream in request.streams]
            assert len(set(prompts)) == num and len(set(map(len, prompts))) == 1
            assert len({prompt[traffic.INSTRUCTION :] for prompt in prompts}) == 1
    for request in contrasted("adapters", "one"):
        expert, amateur = request.streams
        assert expert.adapter in traffic.ADAPTERS and amateur == traffic.Stream(expert.prompt)
    adapters = [r.streams[0].adapter for r in made(Mix("adapters")) if r.kind == REGULAR]
    assert set(adapters) == set(traffic.ADAPTERS)


@pytest.mark.parametrize("mix", ALL, ids=str)
def test_equal_work_has_the_same_streams_at_the_same_times(mix: Mix) -> None:
    def work(requests: list[traffic.Request]) -> Counter[Any]:
        return Counter((r.at, r.tokens, stream) for r in requests for stream in r.streams)

    before = made(mix)
    after = traffic.equal_work(before)
    assert work(after) == work(before)
    assert all(len(request.streams) == 1 for request in after)
    assert {request.kind for request in after} <= {REGULAR, EQUAL_WORK}
    of_both = [[r for r in requests if r.kind == REGULAR] for requests in (before, after)]
    assert of_both[0] == of_both[1]
    assert {request.number for request in after} == {request.number for request in before}


def test_lengths_are_skewed_and_within_bounds() -> None:
    rng = np.random.default_rng(0)
    for lengths in (traffic.PROMPT, traffic.ANSWER, traffic.DOCUMENT):
        drawn = np.array([lengths.draw(rng) for _ in range(4000)])
        assert lengths.least <= drawn.min() < drawn.max() <= lengths.most
        assert np.median(drawn) == pytest.approx(lengths.median, rel=0.1)
        assert np.median(drawn) < drawn.mean()
    assert traffic.ANSWER.least >= 2  # or there is no time between tokens


# ---- statistics ----------------------------------------------------------------------------------


def test_what_slows_a_round_down_for_both_cancels() -> None:
    rng = np.random.default_rng(0)
    under = [rng.exponential(slow, 50) for slow in (1.0, 1.0, 5.0, 1.0, 9.0)]
    found = spans.quotient([1.1 * each for each in under], under, 99)
    assert found == pytest.approx((1.1, 1.1, 1.1))
    other = [each * factor for each, factor in zip(under, (1, 1.2, 0.9, 1.1, 1), strict=True)]
    low, high = spans.quotient(other, under, 50)[1:]
    assert low < 1 < high
    assert spans.quotient(other, under, 50) == spans.quotient(other, under, 50)


def test_percentiles_are_of_all_rounds_at_once() -> None:
    assert spans.pooled([[1.0, 2.0], [3.0, 4.0, 100.0]], 50) == 3.0
    assert spans.quotient([[2.0, 4.0]], [[1.0, 2.0]], 50) == (2.0, 2.0, 2.0)  # no interval of one
    with pytest.raises(ValueError, match="2 rounds over 1"):
        spans.quotient([[1.0], [1.0]], [[1.0]], 50)
    with pytest.raises(ValueError, match="2 rounds less 1"):
        spans.difference([1.0, 1.0], [1.0])
    value, low, high = spans.difference([3.0, 4.0, 9.0], [1.0, 2.0, 2.0])
    assert (value, low, high) == (2.0, 2.0, 7.0)


def test_few_rounds_have_an_interval_as_wide_as_that_of_a_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In 95 % of the cases the truth is within it; of a plain bootstrap in fewer."""
    monkeypatch.setattr(spans, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(30):
        rounds = rng.normal(1.0, 0.1, 5)
        found = spans.over_rounds(5, lambda drawn, of=rounds: float(of[list(drawn)].mean()))
        inside += found.low <= 1.0 <= found.high
    assert inside >= 27
    assert spans.expanded(5) > spans.expanded(50) > spans.LEVEL


def test_throughput_is_of_the_middle() -> None:
    steady = [0.5 * number for number in range(201)]
    assert bench.throughput(steady) == pytest.approx(2.0)
    edge = bench.SEATS - 10
    slow = [each - 100 for each in range(edge)] + steady[edge:-edge]
    slow += [each + 1000 for each in range(edge)]
    assert bench.throughput(slow) == pytest.approx(2.0)


# ---- what is shown -------------------------------------------------------------------------------


def run(system: str, first: list[float], **point: Any) -> dict[str, Any]:
    chosen = {"workload": "text", "percent": 30, "contrast": "four", "load": 80, "rate": 1.0}
    metrics = {"first": first, "further": first, "contrastive": first}
    return {**chosen, "round": 0, **point, "system": system, **metrics}


def test_a_missed_aim_is_said() -> None:
    content = {
        "runs": [
            run(system, [scale * each for each in (10.0, 11.0, 30.0)], round=round_, load=load)
            for round_ in range(2)
            for load, factor in ((50, 1.0), (80, 1.07))
            for system, scale in ((STOCK, 1.0), (OURS, factor))
        ]
    }
    assert pages.verdicts(content) == [
        "3 aims kept, 1 not shown to be",
        "missed: text, 30 %, four amateurs, at 80 %: p50 1.07 (1.07 to 1.07), aim at most 1.03",
    ]
    half, most, *together = pages.rows(content, "text", "first")
    assert [row[1:3] + row[-1:] for row in together] == [
        ["50", "", "1.00 (1.00 to 1.00)"], ["80", "", "1.07 (1.07 to 1.07)"]
    ]  # fmt: skip
    assert half[:3] == ["30 %, four amateurs", "50", "1.00"]
    assert half[-3:] == [
        "**1.00 (1.00 to 1.00)**",
        "1.00 (1.00 to 1.00)",
        "**1.00 (1.00 to 1.00)**",
    ]
    assert most[-3:] == [
        "1.07 (1.07 to 1.07)†", "1.07 (1.07 to 1.07)", "**1.07 (1.07 to 1.07)**"
    ]  # fmt: skip
    assert "**" not in "".join(next(pages.rows(content, "text", "further")))
    assert not list(pages.rows(content, "adapters", "first"))


def test_all_contrasts_together_have_the_mean_of_their_quotients() -> None:
    runs = [
        run(system, [scale], contrast=contrast, round=round_)
        for contrast, factor in (("one", 0.5), ("four", 8.0))
        for round_ in range(3)
        for system, scale in ((STOCK, 1.0), (OURS, factor))
    ]
    for other in ({"percent": 0, "contrast": ""}, {"workload": "adapters"}):
        runs += [run(STOCK, [1.0], **other), run(OURS, [9.0], **other)]
    *_, row = pages.rows({"runs": runs}, "text", "first")
    assert row[0] == "all contrastive: mean" and row[-1] == "2.00 (2.00 to 2.00)"


def test_a_run_is_long_enough(tmp_path: Path) -> None:
    plan = bench.Plan(regular=40, seconds=6.0)
    here = bench.Bench(plan, tmp_path, TEXT, tmp_path, lambda _: None)
    assert here._regular(Mix("text"), 30.0) == 180
    assert here._regular(Mix("text", 30, "one"), 20.0) == 84
    assert here._regular(Mix("text", 30, "one"), 2.0) == 40
    assert here._regular(Mix("text"), math.inf) == 40
    assert len(here._traffic(Mix("text"), 30.0, 0, STOCK)) == 180
    assert len(here._traffic(Mix("text"), 30.0, 0, OURS, times=2)) == 360


def test_the_picture_has_a_dot_for_each_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from docs import charts

    runs = [
        run(system, [scale, 2 * scale], contrast=contrast)
        for system, scale in ((STOCK, 1.0), (OURS, 1.5))
        for contrast in ("one", "four")
    ]
    (tmp_path / "beside.json").write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(charts, "BESIDE", tmp_path / "beside.json")
    panels = charts.beside().axes
    for axis in panels:
        dots = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
        assert dots == [1.5] * 4
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "text, 30 %, one amateur", "text, 30 %, four amateurs",
    ]  # fmt: skip


def test_stock_is_compared_with_itself_where_nothing_is_contrastive() -> None:
    def runs(second: float, ours: float) -> dict[str, Any]:
        by = {STOCK: 2.0, OURS: ours, AGAIN: second}
        return {"runs": [run(name, [by[name]], percent=0, contrast="") for name in by]}

    ours, again = pages.rows(runs(2.04, 2.02), "text", "first")
    assert (ours[0], again[0]) == ("nothing contrastive", "stock twice")
    assert again[-1] == "1.02 (1.02 to 1.02)" and ours[-1] == "**1.01 (1.01 to 1.01)**"
    # Faster the second time says as much, and more noise does not allow more.
    assert pages.verdicts(runs(1.96, 2.04)) == ["2 aims kept, 0 not shown to be"]
    assert pages.verdicts(runs(4.0, 2.8))[0] == "0 aims kept, 2 not shown to be"
    assert [line.split(",")[0] for line in pages.verdicts(runs(2.02, 2.04))[1:]] == [
        "missed: text"
    ] * 2


def test_a_flood_is_told_apart() -> None:
    runs = [run(system, [value], load=150)
            for system, value in ((STOCK, 2.0), (OURS, 3.0), (CAPPED, 1.0))]  # fmt: skip
    rows = list(pages.flood({"runs": runs}))
    assert [row[1] for row in rows] == ["equal work", "vllm-cold", "capped"]
    assert rows[2][2:] == ["1.00 / 1.00 / 1.00"] * 3
    assert pages.verdicts({"runs": runs}) == ["0 aims kept, 0 not shown to be"]


def test_tokens_may_part_where_rounding_decides() -> None:
    likely = [[{"1": 0.0, "2": -5e-4, "3": -1.0}, {"1": 0.0}]]
    for got, wrong, ties in (
        ([1, 1], 0, 0), ([2, 9], 0, 1), ([3, 1], 1, 0), ([4, 1], 1, 0), ([1, 2], 1, 0)
    ):  # fmt: skip
        problems, turned = pages.parts([[1, 1]], likely, [got], 1e-3)
        assert (len(problems), turned) == (wrong, ties), got


def test_only_regular_requests_are_measured() -> None:
    mix = Mix("text", 30, "four")
    requests = traffic.equal_work(made(mix, 7))
    slow = [
        9.0 + index if request.kind == EQUAL_WORK else 1.0
        for index, request in enumerate(requests)
    ]  # fmt: skip
    got = {"first": slow, "last": [2 * each for each in slow], "sent": [0.001] * len(slow)}
    found = bench.figures(requests, got)
    assert found["first"] == [1000.0] * 7 and len(found["further"]) == 7
    groups = Counter(request.number for request in requests if request.kind == EQUAL_WORK)
    assert set(groups.values()) == {5}
    last = max(index for index, each in enumerate(requests) if each.kind == EQUAL_WORK)
    assert len(found["contrastive"]) == 3 and max(found["contrastive"]) == 1e3 * (9.0 + last)
    assert found["late"] == 1.0


# ---- runs ----------------------------------------------------------------------------------------


class Fake:
    """A process that answers at once: token i is i. ``wrong``: systems whose first differs."""

    wrong: frozenset[str] = frozenset()
    short: frozenset[str] = frozenset()
    asked: list[tuple[str, list[Any]]]

    def __init__(self, settings: Any, env: dict[str, str], log: Path, module: str) -> None:
        self.family, self.facts = settings["family"], {"cold": settings["cold"]}
        self.plugins = env["VLLM_PLUGINS"]

    def close(self) -> None: ...

    def ask(self, do: str, requests: list[Any], **how: Any) -> dict[str, Any]:
        self.asked.append((self.family, requests))
        tokens = [list(range(request["tokens"])) for request in requests]
        if self.family in self.wrong:
            tokens[0][0] = 99
        if self.family in self.short:
            tokens[0].pop()
        num = len(requests)
        likely = [[{str(token): 0.0} for token in row] for row in tokens]
        times = [float(index + 1) for index in range(num)]
        return {"tokens": tokens, "likely": likely, "first": [1.0] * num, "last": [2.0] * num,
                "sent": [0.0] * num, "done": times}  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    kind = type("Fakes", (Fake,), {"asked": []})
    monkeypatch.setattr(bench, "Worker", kind)
    return kind


PLAN = bench.Plan(regular=5, seconds=0.0, rounds=2, exact=9, loads=[80], shares=[30])


def found(tmp_path: Path, plan: bench.Plan = PLAN) -> bench.Findings:
    return bench.Bench(plan, tmp_path, TEXT, tmp_path, lambda _: None).run()


def test_all_systems_of_a_round_get_the_same(fake: type[Fake], tmp_path: Path) -> None:
    result = found(tmp_path)
    assert result.wrong == [] and len(result.notes) == 4
    points = Counter((run["workload"], run["contrast"], run["system"]) for run in result.runs)
    # A point more is the flood, with the same contrast.
    assert len(points) == 3 + 2 * 3 + 1 + 3 + 2
    assert {each for each, num in points.items() if num == 4} == {
        ("text", "four", STOCK), ("text", "four", OURS)
    }  # fmt: skip
    assert set(points.values()) == {2, 4} and points["text", "four", CAPPED] == 2
    by: dict[Any, set[int]] = {}
    for each in result.runs:
        times = bench.FLOOD_TIMES if each["load"] == bench.FLOOD else 1
        by.setdefault((each["workload"], each["contrast"], each["round"]), set()).add(
            len(each["first"]) / times
        )
    assert set(map(len, by.values())) == {1} and all(5 in each for each in by.values())
    # An engine has the cap only if there is one, and stock nothing of ours.
    cold = {name: facts["cold"] for name, facts in result.engines.items()}
    assert cold["text, bfloat16, stock"] is None
    assert cold["text, bfloat16, vllm-cold"] == {"enabled": False}
    assert cold["text, bfloat16, capped"] == {"enabled": False, "max_share": 0.25}


def test_nothing_is_shown_if_a_result_is_wrong(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "short", frozenset({"stock of adapters"}))
    assert "1 requests generated too few" in found(tmp_path).wrong[0]
    monkeypatch.setattr(fake, "short", frozenset())
    monkeypatch.setattr(fake, "wrong", frozenset({"vllm-cold of text"}))
    plan = bench.Plan(**{**vars(PLAN), "workloads": ["text"], "shares": [1]})
    (wrong,) = found(tmp_path, plan).wrong
    assert wrong == "text, float32: request 0, token 0: 99 for 0, inf nats apart"


@pytest.mark.parametrize("wrong", ["0", "100", "x"])
def test_what_is_no_percentage_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--shares", wrong])
    assert f"{wrong}" in capsys.readouterr().err
    assert bench.parse(["--quick", "--rounds", "1"]).plan.rounds == 1


# ---- engines that contrast nothing ---------------------------------------------------------------


def test_differences_from_an_engine_without_the_plugin() -> None:
    runs = [
        {"kind": kind, "system": system, "round": round_, "start": 9.0 + more, "plugins, ms": 3.0,
         "memory": 500.0 + 100 * more, "step": 2.0, "first": 30.0}
        for round_ in range(3)
        for kind, system in reversed(bench_rest.pairs())
        for more in [{"unused": 0.2, "asked": 0.4}.get(system, 0.0)]
    ]  # fmt: skip
    rows = list(bench_rest.rows({"runs": runs}))
    assert [tuple(row[:2]) for row in rows] == bench_rest.pairs()
    without, unused, _, asked = rows[:4]
    assert [len(row) for row in rows] == [len(bench_rest.HEAD)] * len(rows)
    assert without[3] == "" and unused[3] == "**+0.20 (+0.20 to +0.20)**"
    assert asked[3] == "+0.40 (+0.40 to +0.40)"  # which has no goal at start
    assert asked[8] == unused[8] == "**+0.000 (+0.000 to +0.000)**"
    late = [run | {"step": 2.5} if run["system"] == "asked" else run for run in runs]
    assert list(bench_rest.rows({"runs": late}))[3][8] == "+0.500 (+0.500 to +0.500)†"
    slow = [run | {"start": 9.5} if run["system"] == "unused" else run for run in runs]
    assert list(bench_rest.rows({"runs": slow}))[1][3].endswith("†")
    assert unused[6] == "**+20 (+20 to +20)**"
