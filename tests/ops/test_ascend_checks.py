# SPDX-License-Identifier: Apache-2.0
"""That mistakes in AscendC kernels are found: changes in ours that the stand-in for CANN, or the
comparison with the reference, has to see.
"""

import math
import re
import shutil

import pytest
import torch

from tests.ops import conformance, lora_cases
from tests.ops.ascend_host import ASCEND, LORA, QUICK, SCORING, Host, LoraHost, compile_host
from tests.ops.test_ascend import OUTSIDE, check_out_of_range

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

F32, BF16, F16 = conformance.DTYPES


def changed(units: tuple[str, str], old: str, new: str, where: str | None = None):
    """The program with ``old``, which stands once in the kernels' source, made ``new``."""
    name = where or units[0]
    source = (ASCEND / name).read_text()
    assert source.count(old) == 1, "the table does not fit the source"
    return compile_host(*units, flags=QUICK, changed={name: source.replace(old, new)})


def run_scoring(program) -> None:
    """Few cases, in which each change below shows."""
    for cores in (1, 40):
        host = Host(program, cores)
        try:
            for dtype, kinds in ((F32, ("normal", "both -inf", "huge")), (BF16, ("overflow",))):
                case = conformance.make_case(1, 3, 20001, dtype, kinds=kinds, streams=3)
                case.log_alpha.fill_(math.log(1e-6))
                case.weights = torch.tensor(((-1.0, 0.25), (2.0, -0.5), (-0.1, 10.0)))
                case.expert_top_k, case.max_expert_top_k = torch.tensor((0, 0, 3)), 3
                conformance.check_backend(host, case)
            for seed, num_groups, vocab in ((0, 72, 61), (6, 1, 20_300)):
                conformance.check_not_finite(host, seed, num_groups, vocab)
            for stream, row in OUTSIDE[1:4]:
                check_out_of_range(host, stream, row, 3)
        finally:
            host.close()


SCORING_CHANGES = {
    "a barrier is missing": (
        "AscendC::Sub(amateur, expert, amateur, count);\n            PipeBarrier<PIPE_V>();",
        "AscendC::Sub(amateur, expert, amateur, count);",
        r"Maxs on V: read after write by V without PipeBarrier<PIPE_V>",
    ),
    "the tail is not filled": (
        "            if (padded < kTile) {",
        "            if (false) {",
        r"Compares: reads bytes that nobody wrote",
    ),
    "segments overlap": (
        "return Least(vocab - Begin(item), segmentLength) + Begin(item);",
        "return Least(vocab - Begin(item), segmentLength + 8) + Begin(item);",
        r"two blocks write byte \d+ of out",
    ),
    "a weight counts the other way": ("-weights_[i]", "weights_[i]", r"wrong scores"),
    "scores are mended like an amateur's logits": (
        " && !scorer_.Masked(group)",
        "",
        r"DataCopyPad: global memory, read after write by MTE3 without a queue or flag MTE3_MTE2",
    ),
    "a segment is not counted": (
        "        count.valid += static_cast<uint32_t>(words.GetValue(1));\n",
        "",
        r"wrong statistics",
    ),
    "a row that is not there": (
        "number < static_cast<int64_t>(rows);",
        "number <= static_cast<int64_t>(rows);",
        r"outside of every registered range",
    ),
}


def run_lora(program) -> None:
    """As ``run_scoring``."""
    for indices, rank, dtype in (
        ((0, -1, 1, 0, 0) * 4, 16, F32),
        ((0, -1) * 140, 5, F16),  # more rows than a window
        ((0, 5000), 100, BF16),
    ):
        host = LoraHost(program, 7)
        case = lora_cases.make_case(1, list(indices), rank, 9000, (130, 33), dtype, adapters=2)
        try:
            case.check(host.run(case))
            case.x[0, 0] = math.nan
            assert host.run(case)[0].isnan().all(), "NaN became a number"
        finally:
            host.close()


WRONG = r"\d+ wrong, first at"
LORA_CHANGES = {
    "indices loaded over those in use": (
        "            Sync<HardEvent::S_MTE2>();\n",
        "",
        r"DataCopyPad on MTE2: write after read by S without a queue or flag S_MTE2",
    ),
    "ranks are not filled up": (
        "zeros.isPad = true;",
        "zeros.isPad = false;",
        r"Cast: reads bytes that nobody wrote",
    ),
    "two blocks do the same": (
        "                next.item += blocks;",
        "                next.item += 1;",
        r"two blocks write byte",
    ),
    "members change places": (
        "return groups_.Row(step.group, i) * yStride_",
        "return groups_.Row(step.group, groups_.Size(step.group) - 1 - i) * yStride_",
        WRONG,
    ),
    "the mode of casts stays": (
        "AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(saturates_);",
        "(void)saturates_;",
        r"at the end 16-bit floats do not saturate",
    ),
}
RUNS = {"scoring": (SCORING, SCORING_CHANGES, run_scoring), "lora": (LORA, LORA_CHANGES, run_lora)}
CASES = [(kernel, name) for kernel, (_, table, _) in RUNS.items() for name in table]


@pytest.mark.parametrize("kernel", RUNS)
def test_without_a_change_nothing_is_found(kernel):
    units, _, run = RUNS[kernel]
    run(compile_host(*units, flags=QUICK))


@pytest.mark.parametrize("kernel, name", CASES)
def test_a_change_is_found(kernel, name):
    units, table, run = RUNS[kernel]
    old, new, message = table[name]
    where = "kernel_common.h" if "Saturation" in old else None
    program = changed(units, old, new, where)
    with pytest.raises(AssertionError) as found:
        run(program)
    assert re.search(message, str(found.value), re.DOTALL), str(found.value)[:500]
