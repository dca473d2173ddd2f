# SPDX-License-Identifier: Apache-2.0
"""That mistakes in AscendC kernels are found: changes in ours that the stand-in for CANN, or the
comparison with the reference, has to see.
"""

import math
import re
import shutil

import pytest
import torch

from tests.ops import conformance
from tests.ops.ascend_host import ASCEND, QUICK, SCORING, Host, compile_host
from tests.ops.test_ascend import OUTSIDE, check_out_of_range

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.full,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

F32, BF16, _ = conformance.DTYPES


def run(program) -> None:
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


CHANGES = {
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
    "the mode of casts stays": (
        "AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(saturates_);",
        "(void)saturates_;",
        r"at the end 16-bit floats do not saturate",
    ),
}


def test_without_a_change_nothing_is_found():
    run(compile_host(*SCORING, flags=QUICK))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found(name):
    old, new, message = CHANGES[name]
    sources = {file: (ASCEND / file).read_text() for file in (SCORING[0], "kernel_common.h")}
    changed = {file: text.replace(old, new) for file, text in sources.items() if old in text}
    assert sum(text.count(old) for text in sources.values()) == 1, "it does not fit the source"
    program = compile_host(*SCORING, flags=QUICK, changed=changed)
    with pytest.raises(AssertionError) as found:
        run(program)
    assert re.search(message, str(found.value), re.DOTALL), str(found.value)[:500]
