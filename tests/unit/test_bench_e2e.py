# SPDX-License-Identifier: Apache-2.0
"""The end-to-end benchmark checks before it measures, and divides by the right numbers."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import bench_e2e as bench
from benchmarks.e2e import check, groups, jobs, oracle, pool, run, shapes, show, worker
from benchmarks.e2e import naive as loop
from benchmarks.e2e import speculation as spec
from tests import naive as reference

pytestmark = pytest.mark.unit

PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8]]
SHIPPED = run.ADAPTERS / run.TASK


def answer(rows: list[list[int]], seconds: float = 2.0) -> dict[str, Any]:
    """What a worker replies; the first token takes half the time."""
    return {
        "seconds": seconds,
        "first": [seconds / 2 for _ in rows],
        "last": [seconds for _ in rows],
        "tokens": rows,
        "blocks": 2 * len(rows),
    }


class FakeWorkers:
    """Workers that answer at once: token i is i, times are those of the system."""

    def __init__(self, seconds: dict[str, float] | None = None, wrong_after: int = 10**6) -> None:
        self.seconds, self.wrong_after = seconds or {}, wrong_after
        self.calls: list[tuple[str, str, int, int]] = []
        self.own: list[list[list[list[int]]]] = []
        self.family = ""

    def get(self, family: str) -> FakeWorkers:
        self.family = family
        return self

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert do == "run"
        mode, prompts, tokens = (arguments[name] for name in ("mode", "prompts", "tokens"))
        self.calls.append((self.family, mode, len(prompts), tokens))
        self.own.append(arguments["own"])
        rows = [list(range(tokens)) for _ in prompts]
        if len(self.calls) > self.wrong_after:
            rows[-1][0] = 99
        return answer(rows, self.seconds.get(f"{self.family} {mode}", 1.0))


def options(*arguments: str) -> Any:
    return bench.parse(arguments)


def measured(seconds: dict[str, float], *arguments: str, batch: int = 1) -> jobs.Jobs:
    chosen = options("--tokens", "4", *arguments)
    made = run.make_jobs(chosen.systems, PROMPTS, batch, chosen)
    workers: Any = FakeWorkers(seconds)
    assert run.measure(made, workers, random.Random(0), "t", lambda text: None) == []
    return made


def test_options() -> None:
    full = options()
    assert (full.batch, full.tokens, full.rounds, full.rank) == ([1, 8, 32], 48, 5, 16)
    assert full.dtype == ["float32", "bfloat16"] and full.systems == list(jobs.SYSTEMS)
    quick = options("--quick", "--tokens", "5", "--batch", "4", "2", "2", "--skip-naive")
    assert (quick.batch, quick.tokens, quick.rounds) == ([2, 4], 5, 1)
    assert "naive" not in quick.systems
    one = options("--one-engine")
    assert (one.batch, one.tokens, one.rounds, one.rank) == ([1, 8], 48, 5, 8)
    assert one.dtype == ["bfloat16"] and one.skip_growth and not full.skip_growth
    assert {jobs.SYSTEMS[key].family for key in one.systems} == {"plugin"}
    both = options("--one-engine", "--quick", "--dtype", "float32")
    assert (both.batch, both.tokens, both.rank, both.dtype) == ([1, 2], 8, 8, ["float32"])
    many = options("--groups")
    assert (many.batch, many.rank, many.length, many.skip_growth) == ([1, 8], 8, 256, True)
    assert many.systems == ["cold", "naive"]
    assert options("--groups", "--skip-naive").systems == ["cold"]
    assert options("--groups", "--quick").length == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "1"], "must be 2 or more"),
        (["--rank", "6"], "choose from"),
        (["--systems", "naive", "--skip-naive"], "leaves none"),
        (["--systems", "naive", "--one-engine"], "not allowed with"),
        (["--one-engine", "--groups"], "not allowed with"),
        (["--length", "64"], "--length 64: is for --groups"),
        (["--groups", "--length", "63"], "must be 64 or more"),
        (["--json", "/no/such/folder/x"], "a folder that exists"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(*arguments)
    assert message in capsys.readouterr().err


def test_environment() -> None:
    base = {"VLLM_PLUGINS": "x", "COLD_ENABLED": "0", "OMP_WAIT_POLICY": "active", "HOME": "/h"}
    for family in worker.FAMILIES:
        env = pool.environment(family, 2, base)
        assert env["HOME"] == "/h" and env["VLLM_CPU_KVCACHE_SPACE"] == "2"
        assert not {"COLD_ENABLED", "OMP_WAIT_POLICY"} & set(env)
        assert env.get("VLLM_PLUGINS") == (None if family.startswith("plugin") else "")
        assert "NUMBA_NUM_THREADS" not in env
        env = pool.environment(family, 2, {**base, "OMP_NUM_THREADS": "3"})
        assert env["NUMBA_NUM_THREADS"] == "3"
    systems = (*jobs.SYSTEMS.values(), jobs.BETA_ZERO, *groups.THREE)
    drafted = {spec.Draft("", 2).family, spec.wrong_drafts(2).family}
    assert {system.family for system in systems} | drafted == set(worker.FAMILIES)
    assert {system.mode for system in systems} | {"cold-base"} == set(jobs.MODES)


def test_kv_cache_size() -> None:
    config = {
        "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "num_hidden_layers": 30,
    }  # fmt: skip
    block = 128 * 2 * 30 * 3 * 64 * 4
    fits = 2**30 // block - 1
    assert run.kv_gib(config, 4, [(fits, 128), (1, 1)]) == 1
    assert run.kv_gib(config, 4, [(1, 1), (fits, 129)]) == 2
    assert run.kv_gib(config, 2, [(fits, 129)]) == 1


def test_widening_keeps_the_function(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run.widen(SHIPPED, tmp_path / "wide", 16)
    old, new = (
        (
            json.loads((folder / "adapter_config.json").read_text()),
            load_file(folder / "adapter_model.safetensors"),
        )
        for folder in (SHIPPED, tmp_path / "wide")
    )
    assert new[0]["r"] == 16 and new[0]["lora_alpha"] / 16 == old[0]["lora_alpha"] / old[0]["r"]
    assert new[1].keys() == old[1].keys()
    for name in [name for name in old[1] if ".layers.7." in name and ".lora_A." in name]:
        pair = name, name.replace(".lora_A.", ".lora_B.")
        (a, b), (wide_a, wide_b) = ([w[n].double() for n in pair] for w in (old[1], new[1]))
        assert wide_a.shape[0] == wide_b.shape[1] == 16
        assert torch.allclose(wide_b @ wide_a, b @ a, rtol=0, atol=1e-12)
        assert (wide_a.abs().sum(-1) > 0).all()  # no rank that could be left out
    for change, message in (({"r": 32}, "rank=16"), ({"use_rslora": True}, "use_rslora=True")):
        with pytest.raises(ValueError, match=message):
            run.widened({**old[0], **change}, 16)


def test_naive_scores_are_the_method() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(3, 5, 300)
    for streams in (2, 3):
        got = loop.scores(*logits[:streams])
        group = reference.Group(
            [1], "one", [reference.Amateur(-jobs.BETA)] * (streams - 1), jobs.ALPHA, 1
        )
        for row in range(5):
            want = reference.group_score(list(logits[:streams, row]), group)
            assert torch.equal(want == -torch.inf, got[row] == -torch.inf)
            finite = want > -torch.inf
            assert torch.allclose(got[row][finite].double(), want[finite], atol=1e-5)
    assert loop.scores(expert := logits[0]) is expert


def test_naive_groups_are_the_references(tiny: Path, naive: Any) -> None:
    """Prompts of all lengths, in one batch, whose streams differ too."""
    settings = {"model": str(tiny / "model"), "adapter": str(tiny / "one"), "dtype": "float32"}
    made = loop.Naive(settings)
    own = [[[9, 8, 7, 6, 5], [3]], [[5], [4, 4]], [[2, 3], [1, 1, 1]], [[7] * 6, [8]]]
    for mode, count in (("three", 2), ("three-base", 2), ("cold", 1), ("cold", 0)):
        how = jobs.MODES[mode]
        chosen = [texts[:count] for texts in own] if count else []
        got = made.run(mode, PROMPTS, 6, own=chosen)["tokens"]
        want = [
            naive.decode(
                reference.Group(
                    prompt,
                    "one" if how.adapter else None,
                    [
                        reference.Amateur(-jobs.BETA, prompt_ids=ids)
                        for ids in (chosen[i] if chosen else [None] * how.amateurs)
                    ],
                    jobs.ALPHA,
                    6,
                )
            )
            for i, prompt in enumerate(PROMPTS)
        ]
        reference.assert_same_tokens(got, want)
        # What was chosen is the best, and what was not is behind.
        for i, tokens in enumerate(got):
            streams = [PROMPTS[i], *(chosen[i] if chosen else ())]
            texts = [[*text, *tokens[:-1]] for text in streams]
            assert made.gap(mode, texts, tokens[-1:])["gap"] < 1e-4
            assert made.gap(mode, texts, [tokens[-1], (tokens[-1] + 1) % 50])["gap"] > 1e-3


def test_small_parts() -> None:
    assert run.lengthen([[1, 2], [3]], 2, 4) == [[1, 2, 3, 1], [3, 1, 2, 3]]
    with pytest.raises(ValueError, match="count=3: there are 2 prompts"):
        run.lengthen([[1, 2], [3]], 3, 4)
    assert check.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert check.first_difference([1, 2, 3], [1, 9, 9]) == 1
    assert check.agreement([[1, 2], [3, 4]], [[1, 9], [3, 4]]) == 0.75
    assert [show.short(x) for x in (0.0512, 0.9999, 1.234, 9.999, 99.99, 31234.5)] == [
        "0.051", "1.00", "1.23", "10.0", "100", "31234",
    ]  # fmt: skip
    times = worker.stamped(10.0, [[11.0, 13.0], [12.0, 14.0]])
    assert times == {"seconds": 4.0, "first": [1.0, 2.0], "last": [3.0, 4.0]}
    assert (worker.peak_memory() or 0) > 2**20  # in bytes


def test_a_job_keeps_medians() -> None:
    system = jobs.SYSTEMS["cold"]
    job = jobs.Job(system, "x", PROMPTS[:3], 3, 1, 3)
    job.record({"seconds": 9.0, "first": [1, 2, 6], "last": [3, 8, 9], "blocks": 12})
    assert (job.seconds, job.ttft, job.tpot) == ([9.0], [2], [1.5])  # steps of 1, 3 and 1.5
    assert show.blocks_text(job) == "4.00" and show.blocks_text(None) == "-"
    # One token has no time for each further one.
    single = jobs.Job(system, "x", PROMPTS[:1], 1, 1, 1)
    single.record(answer([[5]]))
    assert single.tpot == []


def test_repeated_runs_are_compared() -> None:
    job = jobs.Job(jobs.SYSTEMS["naive"], "x", PROMPTS[:2], 3, 1, 2)
    assert job.compare([[1, 2], [3, 4]], 2) == []
    assert job.compare([[1, 2, 5], [3, 4, 6]], 3) == []
    assert job.output == [[1, 2, 5], [3, 4, 6]]  # the longer one counts from now on
    assert "other tokens" in job.compare([[1, 2, 5], [3, 4, 7]], 3)[0]
    assert "did not generate 3" in job.compare([[1, 2], [3, 4]], 3)[0]
    assert "did not generate 3" in job.compare([[1, 2, 5]], 3)[0]


def test_rounds_and_batches() -> None:
    chosen = options("--tokens", "4", "--rounds", "3", "--batch", "2")
    made = run.make_jobs(chosen.systems, PROMPTS, 2, chosen)
    workers: Any = FakeWorkers()
    said: list[str] = []
    assert run.measure(made, workers, random.Random(0), "t", said.append) == []
    # Stock base has twice the batch in addition; naive warms up shortly and runs twice.
    assert workers.calls.count(("stock-base", "base", 4, 4)) == 4
    assert workers.calls.count(("stock-base", "base", 2, 4)) == 4
    assert workers.calls.count(("naive", "cold", 2, 4)) == 2
    assert workers.calls.count(("naive", "cold", 2, 2)) == 1
    assert workers.calls.count(("plugin", "cold", 2, 4)) == 4
    assert len(said) == len(workers.calls) and said[-1].endswith("of 3")
    timed = workers.calls[8:]
    assert timed[:8] != timed[8:16]  # in another order
    assert run.naive_rounds(32, 2) == 1 and run.naive_rounds(8, 2) == 2
    assert jobs.DOUBLED not in run.make_jobs(["stock-base"], PROMPTS, 2, chosen)
    wrong: Any = FakeWorkers(wrong_after=10)
    problems = run.measure(made, wrong, random.Random(0), "t", said.append)
    assert problems and all("other tokens" in problem for problem in problems)


def test_only_ties_may_differ() -> None:
    ran = measured({})
    cold, naive_job = ran["plugin CoLD"], ran["naive CoLD"]
    asked: list[Any] = []

    def gap(size: float) -> Any:
        return lambda *arguments: (asked.append(arguments), size)[1]

    problems, notes = check.check_batch("float32", 1, ran, gap(0.0))
    assert problems == [] and asked == [] and notes[0].count("100.0%") == 4
    cold.output = [[0, 1, 77, 3]]
    problems, notes = check.check_batch("float32", 1, ran, gap(5e-4))
    assert problems == [] and asked == [("cold", [[1, 2, 3, 0, 1]], [2, 77])]
    assert "5.0e-04 apart" in notes[-2] and "75.0%" in notes[-1]
    for size in (2e-3, float("inf")):
        problems, _ = check.check_batch("float32", 1, ran, gap(size))
        assert len(problems) == 1 and "part at token 3 of request 1" in problems[0]
    assert check.check_batch("bfloat16", 1, ran, gap(1.0))[0] == []
    assert naive_job.output == [[0, 1, 2, 3]]


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


def test_targets() -> None:
    found = {t.text: t for t in show.targets(1, measured(SECONDS))}
    verdicts = {text: (t.values[0], t.verdict) for text, t in found.items()}
    assert verdicts == {
        "plugin CoLD / stock adapter, seconds": (1.9 / 4, "met"),
        "plugin CoLD / stock base at batch 2, seconds": (1.9, "missed"),
        "plugin adapter / plugin base, seconds": (2.2 / 2.02, "met"),
        "plugin base / stock LoRA base, seconds": (2.02 / 2.0, "missed"),
        "plugin, no LoRA / stock base, seconds": (1.0, "met"),
        "plugin adapter / stock adapter, seconds": (2.2 / 4, "met"),
        "plugin CoLD / naive CoLD, tokens per second": (9.0 / 1.9, "missed"),
    }
    faster = {t.text: t.verdict for t in show.targets(8, measured(SECONDS, batch=1))}
    assert faster["plugin CoLD / naive CoLD, tokens per second"] == "met"  # 4 is enough at 8
    assert [t.verdict for t in show.targets(32, measured(SECONDS)) if t.at_least] == ["no target"]
    assert show.targets(1, measured(SECONDS, "--systems", "cold")) == []
    assert show.Target("", [1.004], 1.0).verdict == "met"  # as printed


def group_jobs(batch: int = 2) -> jobs.Jobs:
    prompts = [[10 * i + j for j in range(8)] for i in range(3 * batch)]
    chosen = options("--groups", "--tokens", "3")
    chosen.length = 4
    return groups.group_jobs(prompts, batch, chosen)


def test_groups_are_given_prompts_of_their_own() -> None:
    made = group_jobs()
    first, second = [0, 1, 2, 3], [10, 11, 12, 13]
    assert all(
        job.prompts == [first, second] for label, job in made.items() if job.system.mode != "base"
    )
    assert made["plugin CoLD"].own == [] and made["plugin CoLD"].texts(1) == [second]
    assert made["CoLD, own 0.25x"].own == [[[0]], [[10]]]
    assert [len(text) for text in made["CoLD, own 2x"].texts(0)] == [4, 8]
    assert [made[f"prefill, {share}"].prompts[1] for share in ("0.25x", "1x", "2x")] == [
        [10], second, [*range(10, 18)],
    ]  # fmt: skip
    assert {label for label, job in made.items() if job.tokens == 1} == {
        groups.prefill(share) for share in ("1x", *groups.SHARES)
    }
    # The base requests have the prompts of all streams.
    streams = [text for i in range(2) for text in made["CoLD, 3 streams"].texts(i)]
    assert sorted(streams) == made[groups.TRIPLED].prompts and len(streams) == 6
    assert made["base, 3 streams"].own == made["CoLD, 3 streams"].own
    workers: Any = FakeWorkers()
    run.measure({"": made["CoLD, 3 streams"]}, workers, random.Random(0), "t", lambda text: None)
    assert workers.own == [made["CoLD, 3 streams"].own] * 6
    pairs = groups.references(made)
    assert [job.label for _, job in pairs] == [
        label for label in made if not label.startswith("prefill")
    ]
    for twin, job in pairs:
        assert (twin.system.family, twin.rounds, job.rounds) == ("naive", 0, 5)
        assert (twin.system.mode, twin.prompts, twin.own) == (job.system.mode, job.prompts, job.own)


def test_the_gap_of_a_group_is_behind_its_own_texts() -> None:
    group = group_jobs()["CoLD, own 2x"]
    [(twin, _)] = groups.references({"": group})
    twin.output, group.output = [[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 9, 3]]
    asked: list[Any] = []
    check.check_equal("t", twin, group, lambda *arguments: (asked.append(arguments), 0.0)[1])
    assert asked == [("cold", [[10, 11, 12, 13, 1], [*range(10, 18), 1]], [2, 9])]


def test_targets_of_groups() -> None:
    made = group_jobs()
    seconds = {
        "plugin CoLD": 10.0, "prefill, 1x": 2.0, "prefill, 0.25x": 1.0, "prefill, 2x": 5.0,
        "CoLD, own 0.25x": 9.0, "CoLD, own 2x": 14.3, "3 x plugin base": 20.0,
        "CoLD, 3 streams": 22.5, "base, 3 streams": 22.0,
    }  # fmt: skip
    for label, job in made.items():
        job.seconds = [seconds[label]] * 2
    found = {t.text: (t.values, t.verdict) for t in show.targets(2, made)}
    assert found == {
        "CoLD, 3 streams / 3 x plugin base, seconds": ([1.125] * 2, "missed"),
        "base, 3 streams / 3 x plugin base, seconds": ([1.1] * 2, "met"),
        "CoLD, own 0.25x / plugin CoLD and prefill": ([1.0] * 2, "met"),
        "CoLD, own 2x / plugin CoLD and prefill": ([1.1] * 2, "missed"),
    }


def test_tables_fit(capsys: pytest.CaptureFixture[str]) -> None:
    slow = {name: 5 * seconds for name, seconds in SECONDS.items()}
    table = {(dtype, 1): measured(slow) for dtype in run.DTYPES}
    console = Console(width=bench.WIDTH)
    show.show_speeds(console, table)
    show.show_targets(console, table)
    grown = {1: table["float32", 1]}
    findings = jobs.Findings(table, grown, grown)
    many = {("bfloat16", 8): group_jobs()}
    for job in many["bfloat16", 8].values():
        job.seconds, job.ttft, job.tpot = [12.3456], [1.23456], [0.123456]
    show.show_speeds(console, many, groups.NOTE)
    show.show_targets(console, many, groups.PREFILL)
    findings.peaks, findings.gib = {"float32": {"naive": 3 * 2**29}}, {"float32": 1}
    show.show_memory(console, findings)
    show.show_growth(console, "float32", findings)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100 and "\u2026" not in printed
    row = next(line for line in printed.splitlines() if "plugin CoLD" in line)
    # Seconds, TTFT, TPOT, tokens per second (4 tokens), ratio.
    numbers = [cell for cell in row.split()[2:] if "(" not in cell]
    assert numbers == ["9.50", "4750", "1583", "0.42", "0.47"]
    assert "1.50" in printed and "2.00" in printed and "no target" not in printed


class FakePool(FakeWorkers):
    """Stands for ``pool.Workers``; a mode of the plugin's is wrong in its first token."""

    wrong = ""

    def __init__(self, settings: Any, gib: int, folder: Path, say: Any) -> None:
        super().__init__(SECONDS)
        adapter = json.loads((Path(settings["adapter"]) / "adapter_config.json").read_text())
        assert adapter["r"] == settings["rank"]
        self.running: dict[str, Any] = {}
        self.facts, self.idle, self.peak = {"threads": 2}, (10.0, 0.01), 2**30

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *error: object) -> None: ...

    def close(self) -> None: ...

    def get(self, family: str) -> FakePool:
        self.running[family] = self
        super().get(family)
        return self

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "gap":
            return {"gap": 1.0}
        reply = super().ask(do, **arguments)
        if (self.family, arguments["mode"]) == ("plugin", self.wrong):
            reply["tokens"][0][0] = 99
        return reply


@pytest.fixture
def faked(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine, and a model of which nothing but the tokenizer and the sizes are used."""
    from examples import smollm2

    monkeypatch.setattr(smollm2, "model_path", lambda: tiny / "model")
    monkeypatch.setattr(bench, "quiet", lambda: None)
    monkeypatch.setattr(run, "Workers", FakePool)


@pytest.mark.usefixtures("faked")
def test_speeds_beside_right_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "out.json").read_text())
    assert "Growth with prompt tokens" in printed
    assert "idle workers used at most 0.1% of a core" in printed
    assert "100.0% of plugin CoLD, beta 0 and plugin adapter" in printed
    runs = [(run["dtype"], run["batch"], run["system"]) for run in saved["runs"]]
    assert len(runs) == len(set(runs)) == 2 * 2 * 9
    assert len(saved["targets"]) == 2 * 2 * 7 and saved["peak bytes"]["bfloat16"]["naive"] == 2**30
    assert [run["adapters"] for run in saved["growth with adapters"]] == [1] * 3 + [2] * 3
    assert {run["prompt_tokens"][3] for run in saved["growth with prompts"]} == {64}


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("wrong", "more"),
    [("cold", ()), ("beta-0", ()), ("beta-0", ("--one-engine", "--dtype", "float32"))],
)
def test_no_speeds_beside_wrong_results(
    wrong: str,
    more: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FakePool, "wrong", wrong)
    status = bench.main(["--quick", *more, "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert status == 1 and "No speeds are shown" in printed
    assert "part at token 1 of request 1" in printed and "TTFT" not in printed
    assert list(json.loads((tmp_path / "out.json").read_text())) == ["problems"]


@pytest.mark.usefixtures("faked")
def test_one_engine_is_compared_with_its_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick", "--one-engine"]) == 0
    printed = capsys.readouterr().out
    assert "at rank 8" in printed and "the time ratio is to plugin adapter" in printed
    lines = printed.splitlines()
    assert not any(line.startswith("stock") for line in lines) and "Growth" not in printed
    row = next(line for line in printed.splitlines() if "plugin CoLD" in line)
    assert row.split()[-2] == "0.86"  # 1.9 / 2.2


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("wrong", ["", "three"])
def test_groups_are_held_to_the_naive_loop(
    wrong: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FakePool, "wrong", wrong)
    assert bench.main(["--quick", "--groups", "--json", str(tmp_path / "out.json")]) == bool(wrong)
    printed = capsys.readouterr().out
    if wrong:
        assert "CoLD, 3 streams and naive CoLD, 3 streams part at token 1" in printed
        assert "TTFT" not in printed
        return
    assert "100.0% of CoLD, own 2x and naive CoLD, own 2x" in printed
    assert "the time ratio is to plugin CoLD" in printed and "Memory" not in printed
    saved = json.loads((tmp_path / "out.json").read_text())
    runs = {(run["dtype"], run["batch"], run["system"]): run for run in saved["runs"]}
    assert len(saved["runs"]) == len(runs) == 2 * 2 * 9 and len(saved["targets"]) == 2 * 2 * 4
    longer = runs["bfloat16", 2, "CoLD, own 2x"]
    assert (longer["prompt_tokens"], longer["amateur_prompt_tokens"]) == ([64] * 2, [[128]] * 2)


# Speculation


def test_profiles(tmp_path: Path) -> None:
    measured = oracle.Profile(0.25, (0.4, 0.3, 0.1, 0.2), 2.0)
    assert (measured.k, measured.gain) == (3, pytest.approx(0.75 * 1.1))
    drawn = [measured.draw(bytes([i % 256, i // 256])) for i in range(20000)]
    some = [(right, count) for right, count in drawn if count]
    assert 1 - len(some) / len(drawn) == pytest.approx(0.25, abs=0.02)
    for right, share in enumerate(measured.accepted):
        assert sum(r == right for r, _ in some) / len(some) == pytest.approx(share, abs=0.02)
    assert sum(count for _, count in some) / len(some) == pytest.approx(2.0, abs=0.03)
    assert all(max(right, 1) <= count <= 3 for right, count in some)
    assert oracle.fixed(0.5, 2).accepted == (0.5, 0.25, 0.25)
    assert oracle.fixed(0.5, 2).gain == 0.75
    written = {"without_draft": 0.25, "accepted": [0.4, 0.3, 0.1, 0.2], "drafted": 2.0}
    path = tmp_path / "x.json"
    for content in (written, {"profiles": {"cold": {"a": written}}}):
        path.write_text(json.dumps(content))
        assert oracle.read(path, "a") == measured
    with pytest.raises(ValueError, match="has no 'b', only a"):
        oracle.read(path, "b")
    for wrong in ((1.0, (0.5, 0.5), 1), (0.0, (0.5, 0.4), 1), (0.0, (1.0,), 1)):
        with pytest.raises(ValueError, match="shares must be"):
            oracle.Profile(*wrong)


class _Config:
    """What the oracle reads of vLLM's configuration."""

    class model_config:
        max_model_len = 20

        @staticmethod
        def get_vocab_size() -> int:
            return 100

    class speculative_config:
        num_speculative_tokens = 3


def test_the_oracle_is_right_as_often_as_told() -> None:
    drafter = oracle.Oracle(_Config)
    texts = torch.zeros(2, 20, dtype=torch.int32).numpy()
    texts[0, :3], texts[1, :18] = [5, 6, 98], 7
    assert drafter.propose([[1], [1]], [3, 18], texts) == [[], []]
    for right, want in enumerate(([0, 1, 2], [99, 1, 2], [99, 0, 2], [99, 0, 1])):
        shares = tuple(float(j == right) for j in range(4))
        drafter.follow({"without_draft": 0.0, "accepted": shares, "drafted": 3})
        # None for a row without a token, and none behind the longest text.
        got = drafter.propose([[98], [7, 7]], [3, 18], texts)
        assert got == [want, [8, 9] if right > 1 else ([9, 10] if right == 0 else [8, 10])]
        assert drafter.propose([[98], []], [3, 18], texts)[1] == []
    with pytest.raises(ValueError, match="takes 3 drafts"):
        drafter.follow({"without_draft": 0.0, "accepted": [0.0] * 4 + [1.0], "drafted": 4})
    drafter.follow(None)
    assert drafter.draft(texts[0, :3]) == []


def test_shapes_count(tmp_path: Path) -> None:
    """In bfloat16, by far, and with the adapter too, which is not without effect."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    shape = shapes.TINY
    folder = shapes.write_model(shape, tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.randint(shape.vocab, (2, 64), generator=torch.Generator().manual_seed(0))
    ids[1] = shape.vocab - 1

    def logits(of: Any) -> Any:
        with torch.inference_mode():
            found = of(ids).logits.float()
        best = found.topk(2)
        assert torch.equal(best.indices[..., 0], (ids + 1) % shape.vocab)
        assert (best.values[..., 0] - best.values[..., 1]).min() > 5
        return found

    base = logits(model)
    adapter = shapes.write_adapter(shape, tmp_path / "adapter", 4)
    adapted = logits(PeftModel.from_pretrained(model, str(adapter)))
    assert (base - adapted).abs().mean() > 0.05
    known = spec.counting_up(shape.vocab)
    assert known([3, shape.vocab - 2], 3) == [shape.vocab - 1, 0, 1]


class _Step:
    """A step: what was scheduled of each request, the drafts among it, and what was sampled."""

    def __init__(self, **requests: tuple[int, list[int], list[int]]) -> None:
        self.num_scheduled_tokens = {name: n for name, (n, _, _) in requests.items()}
        self.total_num_scheduled_tokens = sum(self.num_scheduled_tokens.values())
        self.scheduled_spec_decode_tokens = {n: d for n, (_, d, _) in requests.items() if d}
        self.req_id_to_index = {name: i for i, name in enumerate(requests)}
        self.sampled_token_ids = [sampled for _, _, sampled in requests.values()]


def test_steps_behind_prefills_are_counted() -> None:
    class Scheduler:
        def update_from_output(self, *step: Any) -> int:
            return 7

    scheduler = Scheduler()
    with worker.counting(scheduler) as counts:
        for step in (
            _Step(a=(5, [], [])),  # a part of a prompt
            _Step(a=(3, [], [1]), b=(4, [], [1])),
            _Step(a=(3, [8, 9], [8, 2]), b=(1, [], [2])),
            _Step(a=(3, [8, 9], [8, 9, 2]), c=(6, [], [1])),
        ):
            assert scheduler.update_from_output(step, step) == 7
    assert counts.reply() == {
        "passes": 1, "rows": 4, "steps": 3, "emitted": 6, "drafted": 4, "accepted": 3,
    }  # fmt: skip
    scheduler.update_from_output(step, step)
    assert counts.passes == 1


def counting_load(known: bool = False, stops: list[int] | None = None) -> spec.Workload:
    what = spec.counting_up(1000) if known else None
    return spec.Workload("w", "adapter", "cold", PROMPTS, [], 4, stops, what)


def speculated(*outputs: list[list[int]], **more: Any) -> list[spec.Run]:
    """Greedy, greedy with drafts, CoLD, CoLD with drafts, as far as outputs are given."""
    ways = [(cold, d) for cold in (False, True) for d in (None, spec.Draft("k=2", 2))]
    runs = [counting_load(**more).run(2, cold, draft, 1) for cold, draft in ways]
    for made, output in zip(runs, outputs, strict=False):
        made.output = output
    return runs[: len(outputs)]


def test_tokens_may_not_depend_on_drafts() -> None:
    asked: list[Any] = []

    def gap(size: float) -> Any:
        return lambda *arguments: (asked.append(arguments), size)[1]

    same, other = [[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]
    runs = speculated(same, same, other, other)
    wrong, notes = spec.check("t", "float32", counting_load(), runs, gap(0.0))
    assert wrong == asked == [] and "greedy, k=2 100% (100%), CoLD, k=2 100% (100%)" in notes[0]
    runs = speculated(same, same, same, other)
    wrong, notes = spec.check("t", "float32", counting_load(), runs, gap(5e-4))
    assert wrong == [] and asked == [("cold", [[1, 2, 3, 1, 2]], [3, 9])]
    assert "5.0e-04 apart" in notes[0] and "CoLD, k=2 50% (67%)" in notes[1]
    wrong, _ = spec.check("t", "float32", counting_load(), runs, gap(2e-3))
    assert len(wrong) == 1 and "CoLD, k=2 and CoLD part at token 3 of request 1" in wrong[0]
    assert spec.check("t", "bfloat16", counting_load(), runs, gap(1.0))[0] == []
    wrong, _ = spec.check(
        "t", "float32", counting_load(), speculated(same, [[1, 2], [5, 6]]), gap(0)
    )
    assert wrong == ["t: greedy, k=2 has 2 tokens, greedy 4"]
    # Of a text that is known every token counts, in bfloat16 too.
    right, late = [[4, 5, 6, 7], [6, 7, 8, 9]], [[4, 5, 6, 7], [6, 7, 8, 8]]
    for outputs, count in (((right, right), 0), ((right, late), 1), ((late, late), 2)):
        runs = speculated(*outputs, known=True)
        wrong, _ = spec.check("t", "bfloat16", counting_load(known=True), runs, gap(0))
        assert len(wrong) == count


def test_a_speculated_run_keeps_milliseconds_per_token() -> None:
    (made,) = speculated([])
    rows = [[1, 2, 3, 4], [5, 6]]
    assert "did not generate 4" in made.compare(rows, 4)[0]  # nothing may end a request
    (made,) = speculated([], stops=[])
    assert made.compare([[1, 2], [5, 6]], 2) == made.compare(rows, 4) == []
    assert made.output == rows
    assert "other tokens" in made.compare([[1, 2, 3, 3], [5, 6]], 4)[0]
    made.rounding = True  # told, and compared with what it gave first
    first = made.output
    assert made.compare([[1, 2, 3, 3], [5, 6]], 4) == []
    assert made.parted == 1 and made.output == first
    assert "did not generate 1 to 4" in made.compare([[1, 2, 3, 4], []], 4)[0]
    counts = {"passes": 3, "rows": 9, "steps": 4, "emitted": 6, "drafted": 5, "accepted": 2}
    reply = {"seconds": 9.0, "first": [1.0, 1.0], "last": [4.0, 2.0], "tokens": rows,
             "blocks": 4, "counts": counts}  # fmt: skip
    made.record(reply)
    assert made.ms == [1000.0]  # 3 and 1 seconds, 3 and 1 tokens
    assert (made.rate("emitted"), made.rate("drafted"), made.acceptance) == (1.5, 1.25, 0.4)
    made.warm(reply, 4)
    assert made.planned == 4.0


def test_break_even() -> None:
    assert spec.break_even(0.9, 2) == (0.0, pytest.approx(0.0, abs=1e-9))
    needed, rate = spec.break_even(1.75, 2)
    assert (needed, rate) == (0.75, pytest.approx(0.5))  # 0.5 and 0.25
    assert spec.break_even(3.0, 2) == (2.0, None)
    table = spec.table(("a", "b"), [["x", "1"], ["longer", "22"]])
    assert table.splitlines() == [
        "| a      |   b |", "| ------ | --: |", "| x      |   1 |", "| longer |  22 |",
    ]  # fmt: skip


class FakeSpeculation:
    """Stands for ``pool.Workers`` of tiny shapes: all count up. Drafts make it twice as fast, CoLD
    half as fast again; a family may be wrong.
    """

    wrong = ""

    def __init__(self, settings: Any, gib: int, folder: Path, say: Any) -> None:
        assert (Path(settings["adapter"]) / "adapter_model.safetensors").exists()
        self.settings, self.running = settings, dict[str, Any]()
        self.facts, self.idle, self.family, self.k = {"threads": 2}, (10.0, 0.01), "", 0

    def __enter__(self) -> FakeSpeculation:
        return self

    def __exit__(self, *error: object) -> None: ...

    def get(self, family: str) -> FakeSpeculation:
        self.running[family] = self
        self.family = family
        return self

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        if do == "gap":
            return {"gap": 1.0}
        if do == "draft":
            assert given["k"] <= self.settings["own_options"][self.family]["speculative_config"][
                "num_speculative_tokens"
            ]  # fmt: skip
            self.k, self.profile = given["k"], given["profile"]
            return {}
        prompts, tokens = given["prompts"], given["tokens"]
        assert sum(map(len, prompts)) <= self.settings["options"]["max_num_batched_tokens"]
        rows = [[(ids[-1] + 1 + i) % 512 for i in range(tokens)] for ids in prompts]
        if self.family == self.wrong:
            rows[-1][1] += 1
        drafted = 0 if self.family == "plugin" else self.k
        ms = (3.0 if given["mode"].startswith("cold") else 2.0) / (2 if drafted else 1)
        steps, size = len(rows) * tokens, len(rows)
        counts = {"passes": tokens, "rows": size, "steps": steps, "emitted": steps,
                  "drafted": drafted * steps, "accepted": 0}  # fmt: skip
        return {
            "seconds": 1.0, "first": [0.5] * size, "tokens": rows, "blocks": size,
            "last": [0.5 + 1e-3 * ms * (tokens - 1)] * size, "counts": counts,
        }  # fmt: skip


@pytest.mark.parametrize("wrong", ["", "plugin", "plugin-ngram", "plugin-oracle"])
def test_speculation(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spec, "Workers", FakeSpeculation)
    monkeypatch.setattr(bench, "quiet", lambda: None)
    monkeypatch.setattr(FakeSpeculation, "wrong", wrong)
    file = tmp_path / "out.json"
    status = bench.main(["--speculation", "--quick", "--profile", "--json", str(file)])
    printed, saved = capsys.readouterr().out, json.loads(file.read_text())
    assert status == bool(wrong)
    if wrong:
        assert "did not give the tokens that follow" in printed
        assert "ms/token" not in printed and list(saved) == ["problems"]
        return
    # Two ways by two workloads, and one with the shape, without drafts and with one drafter.
    assert len(saved["runs"]) == 2 * 2 * (2 + 1) * 2
    assert [(row["rows"], row["ms"]) for row in saved["rows"]] == [
        (1, [pytest.approx(2)]), (2, [pytest.approx(2)]),
    ]  # fmt: skip
    costs = {(s["streams"], s["batch"], s["k"]): s["cost"] for s in saved["steps"]}
    assert costs == {
        (streams, batch, k): [pytest.approx(0.5 if k else 1.0)]
        for streams in (1, 2) for batch in (1, 2) for k in (0, 2)
    }  # fmt: skip
    line = next(x for x in printed.splitlines() if "CoLD, 70% right, k=2" in x and "|" in x)
    cells = [cell.split("(")[0].strip() for cell in line.strip("|").split("|")]
    assert cells == ["1", "CoLD, 70% right, k=2", "1.00", "2.00", "0%", "1.50", "0.75", "0.50"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "/no/such/file"], "is no file"),
        (["--tokens", "1"], "must be 2 or more"),
        (["--rates", "1.5"], "must be from 0 to 1"),
        (["--json", "/no/such/folder/x"], "a folder that exists"),
    ],
)
def test_bad_options_of_speculation(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        spec.parse(arguments)
    assert message in capsys.readouterr().err


def test_what_a_worker_died_of_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="family='no': must be one of stock-base"):
        pool.Worker({"family": "no"}, dict(os.environ), tmp_path / "log")
    lost = {**os.environ, "PYTHONPATH": "", "PYTHONHOME": "/no/such/python"}
    with pytest.raises(RuntimeError, match="the worker naive failed"):
        pool.Worker({"family": "naive"}, lost, tmp_path / "log")
