# SPDX-License-Identifier: Apache-2.0
"""``benchmarks.bench_shapes``: the shapes, what is run, tables and targets, without an engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_shapes as bench
from benchmarks.e2e import shape_runs, shapes
from benchmarks.e2e.shape_runs import Cell, Engine

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        (shapes.QWEN3_0_6B, 596_049_920 + 151_936 * 1024),  # published with a tied head
        (shapes.LLAMA_1B, 1_235_814_400 + 128_256 * 2048),
        # A layer of 6,738,415,616 parameters, which are 32 of them, a norm and 32,000 tokens.
        (shapes.LAYER_7B, (6_738_415_616 - 4096 - 64_000 * 4096) // 32 + 4096 + 1024 * 4096),
    ],
)
def test_shapes_are_those_of_the_models(shape: shapes.Shape, published: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = shapes.configuration(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert type(model).__name__ == config["architectures"][0]
    sizes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    made = {f"{name}.weight": (a, b) for name, a, b in shapes.linears(shape)}
    made |= {f"{name}.weight": (size,) for name, size in shapes.norms(shape)}
    head = (shape.vocab, shape.hidden)
    assert sizes == made | {"model.embed_tokens.weight": head, "lm_head.weight": head}
    assert sum(each.numel() for each in model.parameters()) == published
    assert shapes.parameters(shape) == published


def test_qwen3_counts(tmp_path: Path) -> None:
    """As transformers loads it: no weight is missing, none is left over."""
    from transformers import AutoModelForCausalLM

    shape = dataclasses.replace(shapes.TINY, qk_norm=True)
    folder = shapes.write_model(shape, tmp_path / "model")
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    ids = torch.randint(shape.vocab, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        best = model.eval()(ids).logits.float().topk(2)
    assert torch.equal(best.indices[..., 0], (ids + 1) % shape.vocab)
    assert (best.values[..., 0] - best.values[..., 1]).min() > 5


def test_engines_are_shared_where_they_can_be() -> None:
    plan = shape_runs.plan(bench.parse([]))
    qwen = "qwen3-0.6b"
    assert [*plan] == [
        Engine("llama-1b", 16, 1), Engine(qwen, 16, 1), Engine(qwen, 8, 1), Engine(qwen, 32, 1),
        Engine(qwen, 128, 1), Engine(qwen, 16, 16), Engine("layer-7b", 16, 1),
    ]  # fmt: skip
    both = ("adapter", "cold")
    assert plan[Engine(qwen, 16, 1)] == [
        Cell("main", 1), Cell("main", 8),
        *(Cell("prompts", 1, length, modes=both) for length in (128, 1024, 4096)),
    ]  # fmt: skip
    assert plan[Engine(qwen, 16, 16)] == [
        Cell("adapters", 16, adapters=count, modes=both) for count in (1, 4, 16)
    ]
    some = shape_runs.plan(bench.parse(["--parts", "ranks", "--shapes", "layer-7b"]))
    assert [*some] == [Engine("layer-7b", rank, 1) for rank in (8, 32, 128)]
    told = shape_runs.settings(
        Engine(qwen, 16, 1), plan[Engine(qwen, 16, 1)], bench.parse([]), Path("x")
    )
    assert told["max_model_len"] > 4096 + 24 and told["max_num_seqs"] == 16


class FakeWorkers:
    """Stands for ``pool.Workers`` of shapes that count up; a mode may be wrong."""

    wrong = ""
    ms = {"base": 10.0, "adapter": 10.7, "cold": 12.0}

    def __init__(self, settings: Any, gib: int, folder: Path, say: Any) -> None:
        assert (Path(settings["adapter"]) / "adapter_model.safetensors").exists()
        assert (Path(settings["model"]) / "model.safetensors").exists()
        self.settings, self.facts = settings, {"block size": 64}
        self.peak, self.idle = 3 * 2**29, (10.0, 0.1)

    def __enter__(self) -> FakeWorkers:
        return self

    def __exit__(self, *error: object) -> None: ...

    def get(self, family: str) -> FakeWorkers:
        assert family == "plugin"
        return self

    def ask(self, do: str, mode: str, prompts: Any, tokens: int, adapters: int) -> dict[str, Any]:
        assert do == "run" and adapters <= self.settings["max_loras"]
        rows = [[(ids[-1] + 1 + i) % 512 for i in range(tokens)] for ids in prompts]
        if mode == self.wrong:
            rows[-1][-1] += 1
        size, streams = len(rows), 2 if mode == "cold" else 1
        last = 0.5 * streams + 1e-3 * self.ms[mode] * (tokens - 1)
        return {
            "seconds": last, "first": [0.5 * streams] * size, "last": [last] * size,
            "tokens": rows, "blocks": size * streams, "counts": {},
        }  # fmt: skip


def cells(printed: str, title: str) -> list[list[str]]:
    """The rows of the table with this title, without spreads."""
    lines = printed.partition(f"### {title}")[2].splitlines()[4:]
    table = lines[: next((i for i, line in enumerate(lines) if not line), len(lines))]
    return [[cell.split(" (")[0].strip() for cell in line.strip("|").split("|")] for line in table]


@pytest.mark.parametrize("wrong", ["", "base", "adapter", "cold"])
def test_tables_and_targets(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shape_runs, "Workers", FakeWorkers)
    monkeypatch.setattr(bench, "quiet", lambda: None)
    monkeypatch.setattr(FakeWorkers, "wrong", wrong)
    file = tmp_path / "out.json"
    status = bench.main(["--quick", "--json", str(file)])
    printed, saved = capsys.readouterr().out, json.loads(file.read_text())
    assert status == bool(wrong)
    if wrong:
        assert "did not give the tokens that follow" in printed and "###" not in printed
        assert list(saved) == ["problems"]
        return
    rate = 2 * (shapes.parameters(shape_runs.SHAPES["tiny"]) - 512 * 64) / 10.0 / 1e6
    times = ["10.0", "10.7", "12.0", "1.07", "1.12"]
    assert ["tiny", "8", *times, f"{rate:.1f}"] in cells(printed, "Main")
    tiny = [row for row in cells(printed, "Targets") if row[0] == "tiny"]
    assert tiny == [
        ["tiny", "adapter / base", "1.07", "<= 1.08", "met"],
        ["tiny", "cold / adapter", "1.12", "<= 1.1", "missed"],
    ]
    # The engine of the part main adds its rank.
    assert cells(printed, "Growth with the rank: tiny-qwen3") == [
        [batch, rank, *times] for batch in ("1", "8") for rank in ("8", "16")
    ]
    assert cells(printed, "Growth with the adapters: tiny-qwen3, 2 requests") == [
        [count, "10.7", "12.0", "1.12", "1.00", "1.00"] for count in ("1", "2")
    ]
    assert cells(printed, "Growth with the prompt: tiny-qwen3") == [
        [length, "0.50", "1.00", "2.00", "10.7", "12.0", "1.12"] for length in ("128", "300")
    ]
    # 2 layers, keys and values of 2 heads of 32 numbers in 2 bytes: 32 KiB for 64 tokens.
    assert shape_runs.SHAPES["tiny"].kv_heads == 2
    assert ["tiny", "8", "38", "1.00", "2.00", "0.0", "0.1"] in cells(printed, "KV cache")
    assert [row[3] for row in cells(printed, "Memory")] == ["1.50"] * 4
    assert {run["part"] for run in saved["runs"]} == set(bench.PARTS)


@pytest.mark.parametrize("bad", [["--tokens", "1"], ["--shapes", "huge"], ["--json", "no/such/x"]])
def test_options_are_checked(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(bad)
    assert bad[0] in capsys.readouterr().err
