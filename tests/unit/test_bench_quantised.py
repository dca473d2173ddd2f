# SPDX-License-Identifier: Apache-2.0
"""What ``benchmarks.quantised.check`` takes for rounding, and what for wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.e2e.jobs import ALPHA, BETA, Job, System
from benchmarks.quantised import check, judge
from benchmarks.quantised.check import PLAIN, Found
from benchmarks.quantised.judge import ROOM, Verdict, compare, distances, too_far, too_often
from benchmarks.quantised.reference import dress, fake_int8

EVEN = Verdict(0.96, 1.4, 0.97, 1.0, further=14, nearer=10)


def test_distances_of_a_greedy_token() -> None:
    expert = torch.tensor([[3.0, 1.0, 2.5]] * 3, dtype=torch.double)
    strict, generous = distances(expert, [], torch.tensor([0, 1, 2]), 0.5)
    assert strict.tolist() == generous.tolist() == [0.0, 2.0, 0.5]


def test_distances_of_a_contrast() -> None:
    """Behind the best score among the candidates, or as far outside of them as it is."""
    expert = torch.tensor([[3.0, 2.5, 3.0 + math.log(ALPHA) - 0.25]] * 3, dtype=torch.double)
    amateur = torch.tensor([[3.0, 1.5, -9.0]] * 3, dtype=torch.double)
    scores = expert + BETA * (expert - amateur)
    strict, _ = distances(expert, [amateur], torch.tensor([0, 1, 2]), 0.0)
    best = scores[0, :2].max()
    assert strict.tolist() == pytest.approx([*(best - scores[0, :2]).clamp(min=0).tolist(), 0.25])


def test_a_candidate_near_the_bar_may_be_none() -> None:
    bar = 3.0 + math.log(ALPHA)
    expert = torch.tensor([[3.0, bar + 0.1]], dtype=torch.double)
    amateur = torch.tensor([[3.0, -9.0]], dtype=torch.double)
    strict, generous = distances(expert, [amateur], torch.tensor([0]), 0.2)
    assert strict.item() > 1
    assert generous.item() == 0.0


def test_tokens_are_compared_one_by_one() -> None:
    own = [(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.75])), (torch.zeros(2), torch.zeros(2))]
    rounded = [(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.0])), own[1]]
    assert compare(own, rounded) == Verdict(0.75, 0.75, 0.75, 0.5, further=1, nearer=1)


def test_what_rounding_does_too_is_right() -> None:
    verdicts = {"a": EVEN, "b": replace(EVEN, behind=ROOM * 1.0)}
    assert too_far(verdicts, 0.5) + too_often(verdicts) == []
    alone = {"a": Verdict(1.0, 0.5, 1.0, 0.0, further=1, nearer=0)}
    assert too_far(alone, 0.5) + too_often(alone) == []


@pytest.mark.parametrize("behind", [ROOM + 0.01, math.nan])
def test_a_token_that_is_far_off_is_wrong(behind: float) -> None:
    (problem,) = too_far({"a": EVEN, "b": replace(EVEN, behind=behind)}, 0.5)
    assert problem.startswith(f"b: a token is {behind:.2f} logits behind")
    assert "rounding explains 2.00" in problem


def test_many_tokens_that_are_further_off_are_wrong() -> None:
    """In each batch alone they might be chance."""
    mostly = replace(EVEN, further=18, nearer=3)
    assert too_often({"a": mostly}) == []
    (problem,) = too_often({"a": mostly, "b": mostly})
    assert problem.startswith("a, b: of 42 tokens")
    assert "36 are further (p = 0.005)" in problem


def test_more_texts_do_not_make_a_sound_engine_wrong() -> None:
    assert too_often({"a": replace(EVEN, further=640, nearer=360)}) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dressed_layer_rounds_once(dtype: torch.dtype, tmp_path: Path) -> None:
    """Its product is of the checkpoint's very numbers, and only what it gives is rounded."""
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (8, 16), dtype=torch.int8)
    scale = torch.rand(8, 1) / 100
    save_file({"layer.weight": weight, "layer.weight_scale": scale}, tmp_path / "a.safetensors")
    inputs = {"type": "int", "symmetric": True, "dynamic": True}
    group = {"targets": ["Linear"], "input_activations": inputs}
    method = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    config = json.dumps({"quantization_config": method})
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    model = torch.nn.Module()
    model.dtype, model.layer = dtype, torch.nn.Linear(16, 8).to(dtype)
    bias = model.layer.bias.detach().float()
    dress(model, tmp_path)
    x = torch.randn(3, 16).to(dtype)
    right = fake_int8(x.float()) @ (weight.float() * scale).t() + bias
    result = model.layer(x)
    assert result.dtype == dtype
    assert (result - right.to(dtype)).abs().max() <= (1e-5 if dtype == torch.float32 else 0)


def test_rounding_in_float32_is_small_and_the_same_again() -> None:
    x = torch.randn(1, 5, 64)
    off = judge._off_by_rounding(None, None, x)
    assert torch.equal(off, judge._off_by_rounding(None, None, x))
    assert 0 < (off / x - 1).abs().max() < 1e-6


class Judge(judge.Reference):
    """With these verdicts, by label and batch."""

    def __init__(self, verdicts: dict[tuple[str, int], Verdict]) -> None:
        self.verdicts = verdicts

    def judge(self, job: Job, tie: float) -> Verdict:
        return self.verdicts[job.label, len(job.prompts)]


@pytest.mark.parametrize("nearer", [1, 3])
def test_each_text_counts_once_and_the_other_model_is_told_apart(nearer: int) -> None:
    """Eleven further and one nearer are chance; the smaller batch has them once more."""
    found = Found()
    for batch in (1, 8):
        for name in (PLAIN, "w8a8"):
            label = f"{name}, cold"
            system = System(label, label, name, "cold")
            found.jobs[batch, name, "cold"] = Job(system, label, [[1]] * batch, 4, 0, 4)
    apart = replace(EVEN, further=11, nearer=nearer)
    verdicts = {("w8a8, cold", batch): apart for batch in (1, 8)}
    verdicts[f"{PLAIN}, cold", 8] = replace(EVEN, behind=9.0 if nearer == 1 else 0.1)
    check.judge(found, "w8a8", Judge(verdicts), check.parse(["w8a8"]))
    assert found.wrong == []
    assert found.alike == ([] if nearer == 1 else ["w8a8"])
    far = {**verdicts, ("w8a8, cold", 1): replace(apart, behind=9.0)}
    check.judge(found, "w8a8", Judge(far), check.parse(["w8a8"]))
    (problem,) = found.wrong
    assert problem.startswith("w8a8, cold, batch 1: a token is 9.00 logits behind")
