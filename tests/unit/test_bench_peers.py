# SPDX-License-Identifier: Apache-2.0
"""The comparison with other programs: the files they get, what they choose, and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bench_peers as bench
from benchmarks.e2e import naive
from benchmarks.peers import environment, llama, run, show, weights, worker
from benchmarks.rounds import show_if_right

pytestmark = pytest.mark.unit

PROMPTS = [[1, 2, 3], [4, 5]]


def options(*arguments: str) -> Any:
    return bench.parse(arguments)


def made(dtype: str, batch: int, *arguments: str, missing: Any = ()) -> dict[str, Any]:
    return run.make_jobs(dtype, PROMPTS, batch, options("--tokens", "3", *arguments), missing)


def rotated(x: Any, position: int, interleaved: bool) -> Any:
    """Rotate [heads, D] by halves, as transformers does, or by neighbours, as llama.cpp does."""
    half = x.shape[-1] // 2
    angle = position * 100.0 ** (-np.arange(half) / half)
    a, b = (x[:, 0::2], x[:, 1::2]) if interleaved else (x[:, :half], x[:, half:])
    turned = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return np.stack(turned, -1).reshape(x.shape) if interleaved else np.concatenate(turned, -1)


def test_permuted_rows_give_the_same_attention() -> None:
    rng = np.random.default_rng(0)
    heads, size, inputs = 3, 8, 5
    q, k = rng.normal(size=(2, heads * size, inputs))
    x, y = rng.normal(size=(2, inputs))

    def score(interleaved: bool, order: Any) -> Any:
        left, right = (
            rotated((order(w) @ v).reshape(heads, size), position, interleaved)
            for w, v, position in ((q, x, 7), (k, y, 4))
        )
        return (left * right).sum(-1)

    want = score(False, lambda w: w)
    assert np.allclose(score(True, lambda w: weights.permuted(w, heads)), want)
    assert not np.allclose(score(True, lambda w: w), want)


def tensors(path: Path) -> tuple[dict[str, Any], Any]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return {tensor.name: tensor for tensor in reader.tensors}, reader


def test_the_files_of_a_model(tiny: Path, tmp_path: Path) -> None:
    from gguf.quants import dequantize

    source = weights.read(tiny / "model" / "model.safetensors")
    config = json.loads((tiny / "model" / "config.json").read_text())
    for dtype, error in (("float32", 0.0), ("bfloat16", 2**-8), ("q8_0", 0.02)):
        weights.write_model(tiny / "model", tmp_path / dtype, dtype)
        found, reader = tensors(tmp_path / dtype)
        assert len(found) == len(source)
        down = found["blk.1.ffn_down.weight"]
        assert down.tensor_type.name == weights.KINDS[dtype]
        want = source["model.layers.1.mlp.down_proj.weight"]
        got = dequantize(down.data, down.tensor_type)
        assert np.abs(got - want).max() <= error * np.abs(want).max()
        assert found["output_norm.weight"].tensor_type.name == "F32"
        assert (
            reader.get_field("llama.attention.head_count_kv").contents()
            == (config["num_key_value_heads"])
        )
    q = source["model.layers.0.self_attn.q_proj.weight"]
    found, _ = tensors(tmp_path / "float32")
    assert np.array_equal(
        found["blk.0.attn_q.weight"].data, weights.permuted(q, config["num_attention_heads"])
    )
    assert weights.count(tiny / "model" / "model.safetensors") == sum(
        each.size for each in source.values()
    )


def test_the_file_of_an_adapter(tiny: Path, tmp_path: Path) -> None:
    weights.write_adapter(tiny / "one", tiny / "model", tmp_path / "lora")
    source = weights.read(tiny / "one" / "adapter_model.safetensors")
    config = json.loads((tiny / "model" / "config.json").read_text())
    found, reader = tensors(tmp_path / "lora")
    assert len(found) == len(source)
    name = "base_model.model.model.layers.0.self_attn.k_proj.lora_{}.weight"
    a, b = (found[f"blk.0.attn_k.weight.lora_{part}"].data for part in "ab")
    assert np.array_equal(a, source[name.format("A")])  # by ranks: nothing to permute
    assert np.array_equal(
        b, weights.permuted(source[name.format("B")], config["num_key_value_heads"])
    )
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora")):
        assert reader.get_field(key).contents() == value
    assert reader.get_field("adapter.lora.alpha").contents() == 16
    with pytest.raises(ValueError, match="router: is no weight of a Llama model"):
        weights.gguf_tensors({"router": np.ones((2, 2), np.float32)}, config)


def test_contrast_is_the_method() -> None:
    torch.manual_seed(0)
    expert, amateur = 3 * torch.randn(2, 40, 300)
    want = naive.scores(expert, amateur, beta=0.5).argmax(-1).tolist()
    assert llama.contrast(expert.numpy(), amateur.numpy(), 0.5) == want
    assert want != expert.argmax(-1).tolist()


class FakeApi:
    """llama.cpp's functions; the logits say how often the sequence's last token was read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int, int, int]] = []
        self.GGML_TYPE_F32 = 0
        self.params = SimpleNamespace()

    def __getattr__(self, name: str) -> Any:
        return lambda *args: 1

    def llama_context_default_params(self) -> Any:
        return self.params

    def llama_vocab_n_tokens(self, vocabulary: Any) -> int:
        return 4

    def llama_batch_init(self, tokens: int, *rest: int) -> Any:
        names = ("token", "pos", "n_seq_id", "logits")
        return SimpleNamespace(
            **{name: [0] * tokens for name in names}, seq_id=[[0] for _ in range(tokens)]
        )

    def llama_decode(self, context: Any, data: Any) -> int:
        self.read = [
            (data.token[i], data.pos[i], data.seq_id[i][0], int(data.logits[i]))
            for i in range(data.n_tokens)
        ]
        return 0

    def llama_get_logits(self, context: Any) -> Any:
        import ctypes

        return ctypes.cast((ctypes.c_float * 8)(*range(8)), ctypes.POINTER(ctypes.c_float))


def test_a_llama_batch_has_a_sequence_for_each_request() -> None:
    api = FakeApi()
    settings = {"context": 256, "dtype": "float32"}
    context = llama.Context(api, "model", None, 2, settings)
    assert (api.params.n_ctx, api.params.n_seq_max, api.params.type_k) == (512, 2, 0)
    logits = context.start(PROMPTS)
    assert api.read == [(1, 0, 0, 0), (2, 1, 0, 0), (3, 2, 0, 1), (4, 0, 1, 0), (5, 1, 1, 1)]
    assert logits.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    context.read([[6], [7]])
    assert api.read == [(6, 3, 0, 1), (7, 2, 1, 1)]
    context.start(PROMPTS)
    assert api.read[0] == (1, 0, 0, 0)


def test_jobs() -> None:
    single = made("float32", 1)
    assert [job.system.key for job in single.values()] == [
        "plugin-adapter", "stock-adapter", "naive-adapter", "llama-adapter", "openvino-adapter",
        "plugin-cold", "naive-cold", "llama-cold", "memory",
    ]  # fmt: skip
    assert {job.system.key for job in made("bfloat16", 2).values()} == {
        *(job.system.key for job in single.values() if job.system is not run.MEMORY),
        "llama-q8-adapter",
        "llama-q8-cold",
    }
    loop = single["transformers loop, CoLD"]
    assert (loop.rounds, loop.warm_up) == (2, 2)
    # The reference runs in any case.
    few = made("float32", 2, "--systems", "llama")
    assert [(job.system.key, job.rounds) for job in few.values()] == [
        ("naive-adapter", 0), ("llama-adapter", 3), ("naive-cold", 0), ("llama-cold", 3),
    ]  # fmt: skip
    some = made("float32", 2, missing={"llama in float32": "why"})
    assert not any(job.system.family == "llama" for job in some.values())
    labels = {job.label for job in (*single.values(), *made("bfloat16", 2).values())}
    absent = {name for pair in run.equal(True) + run.equal(False) for name in pair} - labels
    assert absent == {run.label(program, "cold") for program in run.NO_COLD}


def found(dtype: str, *arguments: str) -> run.Found:
    """Each system takes a second, llama.cpp three; its last token is another one."""
    jobs = made(dtype, 1, *arguments)
    for job in jobs.values():
        other = job.system.family.startswith("llama")
        job.output = [[1, 2, 9 if other else 3]]
        seconds = 3.0 if other else 1.0
        for _ in range(job.rounds):
            times = {"seconds": seconds, "first": [seconds / 2], "last": [seconds]}
            job.record({**times, "blocks": 0, "tokens": job.output})
    size = {"float32": 4e9, "bfloat16": 2e9, "q8_0": 1e9}
    return run.Found(table={f"{dtype}, batch 1": jobs}, size=size)


def test_tables() -> None:
    result = found("bfloat16", "--systems", "plugin", "llama", "llama-q8")
    cells = {row[0]: row for row in show.rows("bfloat16, batch 1", result)}
    assert cells["llama.cpp, CoLD"][1:] == [
        "67%", "3.00 (3.00-3.00)", "1500 (1500-1500)", "750 (750-750)", "1.00",
        "3.00 (3.00-3.00)", "3.00 (3.00-3.00)",
    ]  # fmt: skip
    # Half the bytes, so half the floor.
    assert cells["llama.cpp, Q8_0, adapter"][-1] == "6.00 (6.00-6.00)"
    assert cells["this package, adapter"][-2:] == ["1.00 (1.00-1.00)"] * 2
    assert "reading the weights once, 8 GB/s" in cells
    assert not any(name.startswith("transformers") for name in cells)  # it was not timed
    page = show.pages(result)
    assert "### bfloat16, batch 1" in page and "x floor" in page and "No CoLD in stock" in page
    assert {each["system"] for each in result.content()["runs"]} >= {"llama.cpp, Q8_0, CoLD"}
    assert run.Found(wrong=["x"]).content() == {"problems": ["x"]}


def test_no_speed_beside_a_wrong_token(capsys: pytest.CaptureFixture[str]) -> None:
    result = found("float32", "--systems", "plugin", "llama")
    [jobs] = result.table.values()
    wrong, notes = run.check_cell("t", True, jobs, lambda *_: 1.0, run.equal(True))
    near, ties = run.check_cell("t", True, jobs, lambda *_: 0.01, run.equal(True), run.PEERS_TIE)
    assert near == [] and len(ties) == 3 and "1.0e-02 apart" in ties[0]
    assert not run.check_cell("t", True, jobs, lambda *_: 1.0, run.equal(False))[0]
    assert len(wrong) == 2 and all("llama.cpp" in each for each in wrong)
    assert "66.7% of llama.cpp, CoLD" in notes[0]
    assert show_if_right(wrong, lambda: print(show.pages(result))) == 1
    assert "time ratio" not in capsys.readouterr().out


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = environment.wanted(environment.REQUIREMENTS.read_text())
    assert all("==" in each for each in packages) and len(packages) > 2
    ran: list[Any] = []

    def fake(command: list[Any], **kwargs: Any) -> Any:
        ran.append(command)
        bad = command[-1] == packages[0] and len(ran) < 3
        if "venv" in command:
            purelib = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
            (tmp_path / purelib).mkdir(parents=True)
            (tmp_path / "bin").mkdir()
            (tmp_path / "bin" / "python").touch()
        return SimpleNamespace(returncode=int(bad), stdout="a\nERROR: no compiler\nb\n")

    monkeypatch.setattr(subprocess, "run", fake)
    failed = environment.prepare(lambda text: None, tmp_path)
    assert failed == {packages[0]: "ERROR: no compiler"}
    assert [command[-1] for command in ran[1:]] == packages
    ran.append("later")
    assert environment.prepare(lambda text: None, tmp_path) == {}  # tried again
    ran.clear()
    assert environment.prepare(lambda text: None, tmp_path) == {} and ran == []


def test_the_memory_is_read_for_each_token() -> None:
    memory = worker.make({"family": "memory", "bytes": 4096})
    assert memory.facts()["bytes"] == 4096
    reply = memory.run("adapter", PROMPTS[:1], 5)
    assert reply["tokens"] == [[0] * 5] and 0 < reply["first"][0] < reply["last"][0]
