# SPDX-License-Identifier: Apache-2.0
"""The cost model: bytes and operations by hand, its limits, what it is held against, its page."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cost_model import measured, tables
from benchmarks.cost_model.__main__ import main
from benchmarks.cost_model.machines import MACHINES, SHAPES
from benchmarks.cost_model.model import (
    GIB,
    RESERVE,
    UTILIZATION,
    Load,
    Machine,
    Shape,
    parts,
    requests,
    seconds,
    tokens_per_step,
)
from tests.docs.blocks import ROOT, block

pytestmark = pytest.mark.unit

PAGE = "docs/expect-on-gpus.md"
TINY = Shape("tiny", 8, 2, 4, 2, 2, 16, 32)
BYTES_ONLY = Machine("a byte a second", 1.0, {"bfloat16": math.inf, "float32": math.inf})
WORK_ONLY = Machine("an operation a second", math.inf, {"bfloat16": 1.0})
PAIRS = Load(batch=3, context=5, streams=2, rank=2)


def test_sizes_of_a_tiny_shape() -> None:
    assert TINY.matrices == 2 * (64 + 32 + 32 + 64 + 3 * 128)
    assert TINY.head == 256 and TINY.kv == 2 * 2 * 2 * 2
    assert TINY.parameters == 1152 + 2 * 256 + 5 * 8
    assert replace(TINY, tied=True).parameters == TINY.parameters - 256
    assert replace(TINY, qkv_bias=True).parameters == TINY.parameters + 2 * (8 + 4 + 4)
    assert TINY.lora(2) == 2 * 2 * (16 + 12 + 12 + 16 + 24 + 24 + 24)
    # A is whole where outputs are split, B where inputs are.
    assert TINY.lora(2, tp=2) == 2 * 2 * (12 + 10 + 10 + 12 + 16 + 16 + 16)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("SmolLM2-135M", 134_515_008),
        ("Llama-2-7B", 6_738_415_616),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Llama-3-8B", 8_030_261_248),
        ("Llama-2-70B", 68_976_648_192),
        ("Llama-3-70B", 70_553_706_496),
        ("Llama-3.2-1B, untied", 1_235_814_400 + 128256 * 2048),
    ],
)
def test_parameters_are_those_of_the_real_models(name: str, count: int) -> None:
    assert SHAPES[name].parameters == count


def test_bytes_of_a_step() -> None:
    assert parts(TINY, BYTES_ONLY, PAIRS, "bfloat16") == {
        "layers": 2 * 1152,
        "logits": 2 * 256,
        "attention": 3 * 2 * 5 * 16 * 2,  # a cache for each stream
        "sampling": 6 * 32 * 12,
        "overhead": 0,
        "LoRA": 2 * 512,
        "scoring": 3 * 32 * (2 * 4 + 4),  # csrc/scoring.md: in place, V (4 (A + 1) + 4)
    }
    two = parts(TINY, BYTES_ONLY, replace(PAIRS, adapters=2), "float32")
    assert two["LoRA"] == 2 * 4 * 512 and two["layers"] == 4 * 1152
    assert two["scoring"] == 1152 and two["sampling"] == 6 * 32 * 16


def test_drafts_multiply_operations_and_not_the_bytes_of_weights_and_caches() -> None:
    drafts = replace(PAIRS, drafts=4)
    few, many = (parts(TINY, BYTES_ONLY, load, "bfloat16") for load in (PAIRS, drafts))
    assert {part for part in few if many[part] == few[part]} == {
        *("layers", "logits", "attention", "LoRA", "overhead")
    }
    assert many["scoring"] == 5 * few["scoring"] and many["sampling"] == 5 * few["sampling"]
    few, many = (parts(TINY, WORK_ONLY, load, "bfloat16") for load in (PAIRS, drafts))
    assert few["layers"] == 2 * 6 * 1152 and few["logits"] == 2 * 6 * 256
    assert few["attention"] == 4 * 6 * 5 * 2 * 4 * 2
    assert few["LoRA"] == 2 * 3 * 512  # of the experts alone
    assert all(many[part] == 5 * few[part] for part in few)


def test_the_base_model_alone_has_neither_lora_nor_scoring() -> None:
    found = parts(TINY, BYTES_ONLY, Load(1, 1, adapters=0), "bfloat16")
    assert not {"LoRA", "scoring", "all-reduce"} & found.keys()


def test_overheads_are_added_where_they_belong() -> None:
    machine = replace(BYTES_ONLY, layer=10, lora=100, step=1000, pair=10000)
    without, found = (parts(TINY, each, PAIRS, "bfloat16") for each in (BYTES_ONLY, machine))
    more = {part: found[part] - without[part] for part in found if found[part] != without[part]}
    assert more == {"overhead": 1000 + 2 * 10, "LoRA": 2 * 100, "scoring": 10000}


def test_the_knee_is_round() -> None:
    machine = replace(BYTES_ONLY, rates={"bfloat16": 4 * 3 / 2})
    assert parts(TINY, machine, Load(8, 1), "bfloat16")["logits"] == pytest.approx(
        math.hypot(512, 2 * 8 * 256 / 6)
    )


def test_tensor_parallelism_splits_and_adds_up() -> None:
    machine = replace(BYTES_ONLY, links={4: ((3.0, 1.0), (100.0, 1e9))})
    found = parts(TINY, machine, PAIRS, "bfloat16", tp=4)
    assert found["layers"] == 2 * 1152 / 4 and found["logits"] == 2 * 256 / 4
    assert found["attention"] == 3 * 2 * 5 * 16 * 2 / 2  # two heads of keys: on two devices each
    assert found["sampling"] == 6 * 32 * 12  # every device has all logits
    reduce, logits = 2 * 3 / 4 * 6 * 8 * 2, 3 / 4 * 6 * 32 * 2
    assert found["all-reduce"] == pytest.approx(5 * min(3 + reduce, 100) + min(3 + logits, 100))


def test_tokens_per_step() -> None:
    assert tokens_per_step(4, 1) == 5 and tokens_per_step(4, 0) == 1
    assert tokens_per_step(2, 0.5) == 1.75


@pytest.mark.parametrize("setup", tables.setups(), ids=lambda setup: " ".join(setup.names))
def test_two_streams_cost_between_one_and_two(setup: tables.Setup) -> None:
    assert 1 < setup.ratio(1, 512) < 1.1
    assert 1.85 < setup.ratio(100_000, 512) < 2.1
    ratios = [setup.ratio(1, context) for context in (512, 8192, 32768, 10**9)]
    assert ratios == sorted(ratios) and ratios[-1] == pytest.approx(2, abs=0.01)
    if setup.tp == 1:  # with more, the way of adding up changes on the way
        ratios = [setup.ratio(batch, 2048) for batch in range(1, 513)]
        assert ratios == sorted(ratios)


@pytest.mark.parametrize("more", [{"batch": 9}, {"context": 2049}, {"drafts": 1}, {"rank": 32}])
def test_more_costs_more(more: dict[str, int]) -> None:
    load, shape = Load(8, 2048, 2), SHAPES["Qwen2.5-7B"]
    for machine in MACHINES.values():
        few, many = (
            seconds(shape, machine, each, "bfloat16") for each in (load, replace(load, **more))
        )
        assert few < many


def test_room_for_caches_by_hand() -> None:
    free = 1000  # bytes behind the weights and one adapter
    weights = 2 * (TINY.parameters + TINY.lora(2))
    machine = replace(BYTES_ONLY, memory=(RESERVE + weights + free) / UTILIZATION)
    one, two = (Load(1, 5, streams, rank=2) for streams in (1, 2))
    assert requests(TINY, machine, one, "bfloat16") == 1000 // (5 * 32)
    assert requests(TINY, machine, two, "bfloat16") == 1000 // (2 * 5 * 32)
    # The amateurs' prefix is not the expert's: each is there once.
    assert requests(TINY, machine, one, "bfloat16", prefix=4) == (1000 - 4 * 32) // 32
    assert requests(TINY, machine, two, "bfloat16", prefix=4) == (1000 - 2 * 4 * 32) // (2 * 32)
    assert requests(TINY, replace(machine, memory=GIB), one, "bfloat16") == 0


def test_a_border_is_the_first_batch_behind_it() -> None:
    setup = tables.setups()[0]
    batch = tables.border(setup, 2048, 1.25)
    assert batch is not None and batch > 2
    assert setup.ratio(batch, 2048) > 1.25 >= setup.ratio(batch - 1, 2048)
    assert tables.border(setup, 2048, 3) is None


def test_tables_without_rows_are_left_out() -> None:
    titles = {}
    for name in ("h100", "ascend"):
        shown = [tables.Setup(MACHINES[name], SHAPES["Qwen2.5-7B"])]
        titles[name] = [table.title for table in tables.expected(shown, (512,), (1,))]
    assert [t for t in titles["h100"] if t not in titles["ascend"]] == [
        "CoLD with drafts (a model)"
    ]


def test_a_fit_finds_the_constants_that_made_the_figures() -> None:
    run = measured.runs()[0]
    machine = replace(measured.fit(run), bandwidth=5e10, rates={"bfloat16": 4e11, "float32": 2e11})
    cells = [replace(c, milliseconds=measured.predicted(run, c, machine)) for c in run.cells]
    found = measured.fit(replace(run, cells=tuple(cells)))
    assert found.bandwidth == pytest.approx(5e10, rel=1e-4)
    assert found.rates == pytest.approx(machine.rates, rel=1e-4)


@pytest.mark.parametrize("run", measured.runs(), ids=lambda run: run.name)
def test_the_formulas_give_what_was_measured_on_a_cpu(run: measured.Run) -> None:
    machine = measured.fit(run)
    errors = measured.off(run, machine)
    assert len(errors) > len(run.cells) / 2, "most cells are predicted"
    assert measured.median_off(errors) < 0.1
    assert 1.5e10 < machine.bandwidth < 8.3e10  # benchmarks/measured: 38 to 83 GB/s


def test_measured_figures_are_those_of_the_docs() -> None:
    page = (ROOT / "benchmarks" / "measured" / "README.md").read_text()
    row = re.compile(r"^\| (\w+) \| (\d+) \| ([^|]+) \|[^|]+\|[^|]+\| ([\d.]+) ", re.M)
    there = {(m[1], int(m[2]), m[3]): float(m[4]) for m in row.finditer(page)}
    for cell in measured.runs()[0].cells:
        key = (cell.dtype, cell.load.batch, cell.name)
        if key not in there:
            key = (cell.dtype, cell.load.batch // 2, f"{cell.name}, 2x")
        assert there[key] == cell.milliseconds, key
    for run in measured.runs()[1:]:
        for cell in run.cells:
            assert re.search(rf"\b{cell.milliseconds:g}\b", page), cell


def test_the_page_shows_what_the_model_says() -> None:
    every = (ROOT / "benchmarks" / "cost_model" / "README.md").read_text()
    for table in tables.page():
        assert table.markdown in every, f"python -m benchmarks.cost_model --page: {table.title}"
    page = (ROOT / PAGE).read_text()
    assert "nothing of it was measured on a GPU" in page
    assert tables.page()[0].markdown in page
    text = re.sub(r"^\|.*\n", "", page, flags=re.M)
    assert len(text.split()) < 400


def config(folder: Path, **more: object) -> Path:
    """Of Qwen2.5 7B."""
    path = folder / "config.json"
    sizes = {
        **{"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28},
        **{"num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944},
        **{"vocab_size": 152064},
    }
    path.write_text(json.dumps(sizes | more))
    return path


def test_a_model_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path)
    assert replace(Shape.read(path), name="Qwen2.5-7B") == SHAPES["Qwen2.5-7B"]
    assert replace(Shape.read(tmp_path), name="Qwen2.5-7B") == SHAPES["Qwen2.5-7B"]
    command = shlex.split(block(PAGE, "model").replace("/path/to/config.json", str(path)))
    assert command[:3] == ["python", "-m", "benchmarks.cost_model"]
    assert main(command[3:]) == 0
    out = capsys.readouterr().out
    assert "nothing of this was measured on a GPU" in out
    assert {line.split(" | ")[0] for line in out.splitlines() if "qwen2" in line} == {
        "| 2 x H100 SXM 80 GB"
    }
    assert main([*command[3:], "--json", "--batch", "7", "--context", "512"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured on a GPU"] is False
    assert [(p["batch"], p["context"]) for p in found["points"]] == [(7, 512)]


def test_what_is_not_modelled_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, quantization_config={"quant_method": "awq"})
    assert main(["--model-config", str(path)]) == 1
    assert "quantised" in capsys.readouterr().err
    path = config(tmp_path, num_local_experts=8)
    assert main(["--model-config", str(path)]) == 1
    assert "mixture of experts" in capsys.readouterr().err
    path.write_text('{"model_type": "mamba", "hidden_size": 768}')
    assert main(["--model-config", str(path)]) == 1
    assert "'num_attention_heads' is missing" in capsys.readouterr().err
