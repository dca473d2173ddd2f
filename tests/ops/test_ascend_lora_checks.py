# SPDX-License-Identifier: Apache-2.0
"""That mistakes in the AscendC LoRA kernels are found: a table of changes, each found by the check
it is there for; small kernels (csrc/ascend/host/broken_repeats.cpp) for what the stand-in checks of
the instructions that only these kernels use; and types that do not compile. The numbers are those
of the checks in csrc/ascend/README.md.
"""

import math
import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest
import torch

from tests.ops import ascend_host
from tests.ops.ascend_host import ASCEND, QUICK, CheckFailed, compile_host
from tests.ops.lora_host import FILES, KERNEL, LoraHost, compile_lora, make_case
from tests.ops.mistakes import of_every_run

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
MIXED = (0, -1, 1, 0, 0) * 4
LONG = (0, -1) * 140  # more rows than a window


@dataclass
class Change:
    """A mistake: ``old``, which stands in the kernels' source once, becomes ``new``."""

    check: int
    old: str
    new: str
    message: str  # a pattern
    indices: tuple[int, ...] = MIXED
    rank: int = 16
    length: int = 1100
    widths: tuple[int, ...] = (130, 33)
    dtype: torch.dtype = F32
    cores: int = 7
    where: str = "kernel"  # or "header", lora.h, or "common", kernel_common.h
    not_finite: bool = False  # whether it shows only where a row holds NaN


BARRIER = "PipeBarrier<PIPE_V>();\n"
WRONG = r"\d+ wrong, first at"

CHANGES = {
    # 1. Order between pipes.
    "sums of products that are not there yet": Change(
        1,
        f"x, static_cast<int32_t>(n));\n            }}\n            {BARRIER}",
        "x, static_cast<int32_t>(n));\n            }\n",
        r"ReduceRepeat on V: read after write by V without PipeBarrier<PIPE_V>",
    ),
    "sums of sums that are not there yet": Change(
        1,
        f"products, kRepeat, repeats, 1, 1, 8);\n            {BARRIER}",
        "products, kRepeat, repeats, 1, 1, 8);\n",
        r"ReduceRepeat on V: read after write by V without PipeBarrier<PIPE_V>",
    ),
    "products over those of the row before": Change(
        1,
        f"at == 0 ? to : further[(at / kRepeat - 1) * kFurther], products[at],\n"
        "                static_cast<int32_t>(Least(kRepeat, pitch_ - at)), "
        f"static_cast<int32_t>(n), 1, 1,\n                stride);\n        }}\n        {BARRIER}",
        "at == 0 ? to : further[(at / kRepeat - 1) * kFurther], products[at],\n"
        "                static_cast<int32_t>(Least(kRepeat, pitch_ - at)), "
        "static_cast<int32_t>(n), 1, 1,\n                stride);\n        }\n",
        r"Mul on V: write after read by V without PipeBarrier",
        rank=40,
    ),
    "factors that are not there yet": Change(
        1,
        f"parts, scale_, ranks);\n            }}\n            {BARRIER}",
        "parts, scale_, ranks);\n            }\n",
        r"Mul on V: read after write by V without PipeBarrier",
        indices=(0, -1, 1),  # no other row's barrier in between,
        widths=(128,),  # and no outputs to fill up
    ),
    "pairs of sums that are not there yet": Change(
        1,
        f"pitch_ == 8 ? to : eights, products, kRepeat, repeats, 1, 1, 8);\n        {BARRIER}",
        "pitch_ == 8 ? to : eights, products, kRepeat, repeats, 1, 1, 8);\n",
        r"ReducePairElem on V: read after write by V without PipeBarrier",
    ),
    "S reads indices that are not loaded": Change(
        1,
        "        Sync<HardEvent::MTE2_S>();\n",
        "",
        r"GetValue on S: read after write by MTE2 without a queue or flag MTE2_S",
    ),
    "S reads what V writes": Change(
        1,
        "        Sync<HardEvent::V_S>();\n",
        "",
        r"GetValue on S: read after write by V without a queue or flag V_S",
    ),
    "indices loaded over those in use": Change(
        1,
        "            Sync<HardEvent::S_MTE2>();\n",
        "",
        r"DataCopyPad on MTE2: write after read by S without a queue or flag S_MTE2",
        indices=LONG,
    ),
    "V writes over what S uses": Change(
        1,
        "            Sync<HardEvent::S_V>();\n",
        "",
        r"Duplicate on V: write after (read|write) by S without a queue or flag S_V",
        indices=LONG,
    ),
    "sums stored too early": Change(
        1,
        "        out_.EnQue(out);\n        out = out_.template DeQue<float>();\n",
        "",
        r"DataCopyPad on MTE3: read after write by V without a queue or flag V_MTE3",
    ),
    "y stored too early": Change(
        1,
        "        yOut_.EnQue(out);\n        out = yOut_.template DeQue<T>();\n",
        "",
        r"DataCopyPad on MTE3: read after write by V without a queue or flag V_MTE3",
    ),
    # 2. What nobody wrote.
    "a tail's products are not 0": Change(
        2,
        "        if (n < kLoraTile) {  // what",
        "        if (false) {  // what",
        r"ReduceRepeat: reads bytes that nobody wrote",
        length=1000,
    ),
    "more than a tail is widened": Change(
        2,
        "        if (n == kLoraTile) {",
        "        if (true) {",
        r"Cast: reads bytes that nobody wrote",
        dtype=BF16,
    ),
    "outputs are not filled up": Change(
        2,
        "            if (n < whole) {",
        "            if (false) {",
        r"Mul: reads bytes that nobody",
    ),
    "ranks are not filled up": Change(
        2,
        "zeros.isPad = true;",
        "zeros.isPad = false;",
        r"Cast: reads bytes that nobody wrote",
        rank=5,
        dtype=F16,
    ),
    "factors are not filled up": Change(
        2,
        "        AscendC::Duplicate(factors_.Get<float>(), 0.0f, all);  // behind",
        "        (void)all;  // behind",
        r"Mul: reads bytes that nobody wrote",
        rank=5,
        dtype=F16,
    ),
    "the workspace is not filled up": Change(
        2,
        "last ? call_.rankPitch - step.firstRank : step.ranks",
        "last ? step.ranks : step.ranks",
        r"DataCopyPad: reads sums where nobody wrote",
        rank=5,
    ),
    "sums begin with anything": Change(
        2,
        "        if (step.start == step.begin) {",
        "        if (step.start == step.end) {",
        r"Add: reads bytes that nobody wrote",
    ),
    # 3. Queues.
    "parts are not freed": Change(
        3,
        "            parts_.FreeTensor(parts);\n",
        "",
        r"AllocTensor: no free buffer in the queue",
    ),
    "not so deep": Change(
        3,
        "    TQue<TPosition::VECIN, 2> yIn_;",
        "    TQue<TPosition::VECIN, 1> yIn_;",
        r"EnQue: more than the queue's depth, 1",
    ),
    "freed twice": Change(
        3,
        "        yIn_.FreeTensor(y);\n",
        "        yIn_.FreeTensor(y);\n        yIn_.FreeTensor(y);\n",
        r"FreeTensor: the tensor (was freed|is free)",
    ),
    # 4. Space.
    "too large a window": Change(
        4, "kLoraWindow = 256;", "kLoraWindow = 1024;", r"bytes of UB; 188416 are", where="header"
    ),
    "a buffer too small": Change(
        4,
        "partial_, kLoraRanks * kTileRepeats * sizeof(float)",
        "partial_, kLoraRanks * sizeof(float)",
        r"beyond the tensor",
    ),
    "tiles in the wrong distance": Change(
        4,
        " / kBlockBytes -\n                             CeilDiv(bytes, kBlockBytes);",
        " / kBlockBytes;",
        r"write after write by MTE2|beyond the tensor",
    ),
    # 5. Alignment and limits.
    "too many repeats": Change(
        5,
        "Least(kTile / pitch_, kMaxRepeats) / 8 * 8",
        "kTile / pitch_ / 8 * 8",
        r"ReduceRepeat: \d+ repeats are not from 1 to 255",
        rank=24,
        dtype=F16,
        widths=(500,),
        cores=1,
    ),
    "fewer outputs than a repeat leaves": Change(
        5, "kFewOutputs = 32;", "kFewOutputs = 8;", r"ReducePairElem: 0 repeats", widths=(8,)
    ),
    "sums of more values than there are": Change(
        5,
        "partial, products, kRepeat, repeats, 1, 1, 8);\n",
        "partial, products, 2 * kRepeat, repeats, 1, 1, 8);\n",
        r"ReduceRepeat: a mask of 128 is not from 1 to 64",
    ),
    "unaligned ranks": Change(
        5,
        "pitch_ = dense_ ? call.rank : CeilDiv(call.rank, unit) * unit;",
        "pitch_ = dense_ ? call.rank : CeilDiv(call.rank, unit) * call.rank;",
        r"Mul: a repeat writes where another one does",
        rank=5,
    ),
    "rounding as for widening": Change(
        5,
        "AscendC::RoundMode::CAST_RINT",
        "AscendC::RoundMode::CAST_NONE",
        r"Cast: the stand-in rounds to the nearest",
        dtype=F16,
    ),
    # 6. Global memory.
    "another adapter's A": Change(
        6,
        "groups_.Adapter(step.group)) * call_.rank + step.firstRank",
        "0 * groups_.Adapter(step.group)) * call_.rank + step.firstRank",
        r"outside of every registered range",
        indices=(1, -1, 1),
    ),
    "another adapter's B": Change(
        6,
        "groups_.Adapter(step.group)) * widths_",
        "0 * groups_.Adapter(step.group)) * widths_",
        r"outside of every registered range",
        indices=(1, -1, 1),
    ),
    "rows of another window": Change(
        6,
        "kLoraGroup + size, first + row);",
        "kLoraGroup + size, row);",
        r"outside of every registered range|reads sums where nobody wrote|" + WRONG,
        indices=(*[-1] * 256, 0),
    ),
    "base rows have an adapter": Change(
        6, "if (adapter < 0 || adapter >=", "if (adapter >=", r"beyond the tensor"
    ),
    "numbers that are no adapter's": Change(
        6,
        "if (adapter < 0 || adapter >= static_cast<int64_t>(adapters_)) {",
        "if (adapter < 0) {",
        r"beyond the tensor",
        indices=(0, 5000),
    ),
    "two blocks do the same": Change(
        6,
        "                next.item += blocks;",
        "                next.item += 1;",
        r"two blocks write byte",
    ),
    "all blocks begin with a window's first piece": Change(
        6,
        "turn = (turn + blocks - items % blocks) % blocks;",
        "turn = 0 * items;",
        r"two blocks write byte",
        indices=LONG,
    ),
    "y's columns begin anew": Change(
        6,
        "        step.column += step.first;\n",
        "",
        r"two blocks write byte|reads what another block writes",
        cores=40,
    ),
    "more of x than there is": Change(
        6,
        "        step.end = Least(partLength_, length_ - step.begin) + step.begin;",
        "        step.end = partLength_ + step.begin;",
        r"outside of every registered range",
        indices=(-1, 0),
    ),
    # 7. Bytes moved, and results.
    "no row shares a read": Change(
        7, "if (size == kLoraGroup) {", "if (true) {", r"bytes \(read, written\) are not those"
    ),
    "x is read twice": Change(
        7,
        "                 groups_.Row(step.group, i) * xStride_ + step.start, n);\n",
        "                 groups_.Row(step.group, i) * xStride_ + step.start, n);\n"
        "            PipeBarrier<PIPE_MTE2>();\n"
        "            Load(tile[(kLoraRanks + i) * kLoraTile], x_,\n"
        "                 groups_.Row(step.group, i) * xStride_ + step.start, n);\n",
        r"bytes \(read, written\) are not those",
    ),
    "no scale": Change(7, "parts, scale_, ranks", "parts, 1.0f, ranks", WRONG),
    "a part is left out": Change(
        7, "part = 1; part < call_.parts", "part = 2; part < call_.parts", WRONG, length=3000
    ),
    "a tile is left out": Change(
        7,
        "            AscendC::Add(soFar, soFar, sums, count);\n",
        "            (void)count;\n",
        WRONG,
        length=9000,
    ),
    "the first of a repeat's outputs alone": Change(
        7, "tree_ ? kRepeat / pitch_ : 1;", "tree_ ? 1 : 1;", WRONG
    ),
    "the first of an output's sums alone": Change(
        7,
        "for (uint32_t at = kRepeat; at < pitch_; at += kRepeat) {",
        "for (uint32_t at = pitch_; at < pitch_; at += kRepeat) {",
        WRONG,
        rank=100,
    ),
    "eights are not paired": Change(
        7, "        if (pitch_ == 32) {", "        if (pitch_ == 33) {", WRONG + "|nobody", rank=32
    ),
    "y is not added to": Change(
        7, "AscendC::Add(out, y, sums, count);", "AscendC::Adds(out, sums, 0.0f, count);", WRONG
    ),
    "members change places": Change(
        7,
        "return groups_.Row(step.group, i) * yStride_",
        "return groups_.Row(step.group, groups_.Size(step.group) - 1 - i) * yStride_",
        WRONG,
    ),
    # 8. Casts.
    "NaN is saturated": Change(
        8,
        "AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(false);",
        "",
        r"NaN became",
        dtype=F16,
        not_finite=True,
        where="common",
    ),
    "the mode of casts stays": Change(
        8,
        "AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(saturates_);",
        "",
        r"at the end 16-bit floats do not saturate",
        dtype=BF16,
        where="common",
    ),
}


def _run(change: Change, program) -> None:
    host = LoraHost(program, change.cores)
    adapters = 2
    case = make_case(
        1, list(change.indices), change.rank, change.length, change.widths, change.dtype, adapters
    )
    try:
        if change.not_finite:
            row = change.indices.index(0)
            case.x[row, 0] = math.nan
            assert host.run(case)[row].isnan().all(), "NaN became a number"
            case.x[row, 0] = 0.0
        case.check(host.run(case))
    finally:
        host.close()


def test_without_a_change_nothing_is_found():
    program = compile_lora(QUICK)
    inputs = ("indices", "rank", "length", "widths", "dtype", "cores", "not_finite")
    forms = {tuple(getattr(change, name) for name in inputs): change for change in CHANGES.values()}
    for change in forms.values():
        _run(change, program)


@pytest.mark.parametrize("name", of_every_run(CHANGES))
def test_a_change_is_found(name):
    change = CHANGES[name]
    source = (ASCEND / FILES[change.where]).read_text()
    assert source.count(change.old) == 1, "the table does not fit the source"
    text = {change.where: source.replace(change.old, change.new)}
    program = compile_lora(QUICK, **text)
    with pytest.raises(AssertionError) as found:
        _run(change, program)
    assert re.search(change.message, str(found.value), re.DOTALL), str(found.value)[:500]


def test_sanitizers_watch():
    """What the stand-in cannot see: a plain pointer beyond the end of what it points to."""
    source = (ASCEND / KERNEL).read_text()
    at = "    kernel.Run(call, y, yStride, widths, outputs, scale);"
    broken = source.replace(at, at + " y[1 << 20] = 0;")
    assert broken != source
    with pytest.raises(CheckFailed, match="AddressSanitizer"):
        _run(Change(0, "", "", ""), compile_lora(kernel=broken))


BROKEN = {
    # 1. Order between pipes: an instruction's repeats count, and what lies between them does not.
    "reads a repeat that is not there yet": r"Mul on V: read after write by V without",
    "reads between repeats": r"\A\Z",
    "reads what an instruction leaves": r"Muls on V: read after write by V without",
    # 2. What nobody wrote.
    "padding of a block": r"Muls: reads bytes that nobody wrote",
    "place between blocks": r"Muls: reads bytes that nobody wrote",
    "lane beyond the mask": r"Muls: reads bytes that nobody wrote",
    # 5. Alignment and limits.
    "mask of 0": r"Mul: a mask of 0 is not from 1 to 64",
    "mask of 65": r"ReduceRepeat: a mask of 65 is not from 1 to 64",
    "no repeat": r"ReduceDataBlock: 0 repeats are not from 1 to 255",
    "256 repeats": r"ReducePairElem: 256 repeats are not from 1 to 255",
    "repeats over each other": r"Mul: a repeat writes where another one does",
    "repeats over their source": r"Mul: source and destination overlap",
    "sums over their source": r"ReduceRepeat: source and destination overlap",
    "sums at 4 bytes": r"\A\Z",
    "sums at 3 bytes": r"not aligned|UB address",
    "pairs at 4 bytes": r"ReducePairElem: UB address \d+ is not aligned to 32 bytes",
    "eights of 4 bytes": r"ReduceDataBlock: UB address \d+ is not aligned to 32 bytes",
    "4096 blocks": r"DataCopyPad: 4096 blocks are not from 1 to 4095",
    "half an element between blocks": r"DataCopyPad: the stand-in skips whole elements",
    "blocks beyond the tensor": r"beyond the tensor",
    "blocks beyond global memory": r"beyond the GlobalTensor's",
    "stored blocks": r"DataCopyPad: the stand-in stores one block at a time",
    "rounding without saying how": r"Cast: the stand-in rounds to the nearest",
    # What they compute.
    "sums": r"\A\Z",
    "rounding": r"\A\Z",
}


def test_small_broken_kernels_are_found():
    program = compile_host("host/broken_repeats.cpp", flags=QUICK)
    listed = subprocess.run([program], capture_output=True, text=True).stdout.splitlines()
    assert set(listed) == BROKEN.keys()
    for name, message in BROKEN.items():
        found = subprocess.run([program, name], capture_output=True, text=True, check=True).stdout
        assert re.search(message, found), f"{name}: {found}"


WRONG_TYPES = {
    "void A(LocalTensor<half> x) { Mul(x, x, x, 64ul, uint8_t{1}, BinaryRepeatParams()); }":
        "Mul with repeats: not for this dtype",
    "void A(LocalTensor<bfloat16_t> x) { Mul(x, x, x, 64); }": "Mul: not for this dtype",
    "void A(LocalTensor<int32_t> x) { ReduceRepeat<ReduceType::SUM>(x, x, 64, 1, 1, 1, 8); }":
        "ReduceRepeat: not for this dtype",
    "void A(LocalTensor<half> x) { ReduceDataBlock<ReduceType::SUM>(x, x, 64, 1, 1, 1, 8); }":
        "ReduceDataBlock: not for this dtype",
    "void A(LocalTensor<int32_t> x) { ReducePairElem<ReduceType::SUM>(x, x, 64, 1, 1, 1, 8); }":
        "ReducePairElem: not for this dtype",
    "void A(LocalTensor<half> x, LocalTensor<int32_t> y) { Cast(x, y, RoundMode::CAST_RINT, 1); }":
        "Cast: the stand-in widens",
}  # fmt: skip


def test_wrong_types_do_not_compile():
    files = {
        str(path.relative_to(ASCEND)): path.read_text() for path in sorted(ASCEND.glob("host/*.h"))
    }
    source = '#include "kernel_operator.h"\nusing namespace AscendC;\n'
    for number, function in enumerate(WRONG_TYPES):
        source += function.replace("void A", f"void A{number}") + "\n"
    with pytest.raises(CheckFailed) as found:
        ascend_host._compile("wrong.cpp", files | {"wrong.cpp": source}, QUICK)
    for message in WRONG_TYPES.values():
        assert message in str(found.value), message
