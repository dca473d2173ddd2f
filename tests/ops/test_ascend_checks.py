# SPDX-License-Identifier: Apache-2.0
"""That the stand-in for CANN, and the comparisons, find mistakes in AscendC kernels.

Three tables: changes of our kernel that have to be found, each by the check it is there for; small
kernels for mistakes that no such change makes (csrc/ascend/host/broken.cpp); and types that do not
compile. The numbers are those of the checks in csrc/ascend/README.md.
"""

import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.ops import conformance
from tests.ops.ascend_host import (
    ASCEND,
    FILES,
    KERNEL,
    QUICK,
    RUNNER,
    CheckFailed,
    Host,
    compile_host,
)
from tests.ops.mistakes import of_every_run
from tests.ops.test_ascend import OUTSIDE, check_out_of_range

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

F32, BF16, F16 = conformance.DTYPES


@dataclass
class Change:
    """A mistake: ``old``, which stands in the kernel's source once, becomes ``new``."""

    check: int
    old: str
    new: str
    message: str  # a pattern
    cores: int = 40  # more than one segment a row; 1: a row is one segment
    dtype: torch.dtype = F32
    vocab: int = 20001
    groups: int = 1
    streams: int | None = 2  # None: 3 and 2
    kinds: tuple[str, ...] = ("normal",)
    cap: int = 0
    not_finite: bool = False  # whether it shows only where a row holds NaN or +inf
    outside: bool = False  # whether it shows only where a row number is out of range
    together: bool = False  # whether blocks may wait for each other
    where: str = "kernel"  # or "header", contrastive_scoring.h, or "common", kernel_common.h


BARRIER = "PipeBarrier<PIPE_V>();"

CHANGES = {
    # 1. Order between pipes.
    "V reads what V wrote": Change(
        1,
        f"AscendC::Sub(amateur, expert, amateur, count);\n            {BARRIER}",
        "AscendC::Sub(amateur, expert, amateur, count);",
        r"Maxs on V: read after write by V without PipeBarrier<PIPE_V>",
    ),
    "V reads a mask that V wrote": Change(
        1,
        f"AscendC::Compares(mask, tile, value, mode, kTile);\n        {BARRIER}",
        "AscendC::Compares(mask, tile, value, mode, kTile);",
        r"And on V: read after write by V without PipeBarrier",
    ),
    "V writes what V reads": Change(
        1,
        f"AscendC::And(below, mask, mask, words);  // a copy\n        {BARRIER}",
        "AscendC::And(below, mask, mask, words);",
        r"Compares on V: write after read by V without PipeBarrier",
    ),
    "V writes what V wrote": Change(
        1,
        "AscendC::Duplicate(wide, kNegInf, static_cast<int32_t>(kTile));\n"
        f"                {BARRIER}",
        "AscendC::Duplicate(wide, kNegInf, static_cast<int32_t>(kTile));",
        r"Cast on V: write after write by V without PipeBarrier",
        dtype=BF16,
    ),
    "sorting without a barrier": Change(
        1,
        f"ids.ReinterpretCast<uint32_t>(), kTile / 32);\n        {BARRIER}",
        "ids.ReinterpretCast<uint32_t>(), kTile / 32);",
        r"MrgSort on V: read after write by V",
    ),
    "V reads what MTE2 loads": Change(
        1,
        "            in_.EnQue(in);\n            in = in_.DeQue<float>();\n",
        "",
        r"MrgSort on V: read after write by MTE2 without a queue or flag MTE2_V",
    ),
    "MTE3 stores what V writes": Change(
        1,
        "        slots_.EnQue(slot);\n        slot = slots_.DeQue<float>();\n",
        "",
        r"DataCopyPad on MTE3: read after write by V without a queue or flag V_MTE3",
    ),
    "S reads what V writes": Change(
        1,
        "    Sync<HardEvent::V_S>();\n    const T value",
        "    const T value",
        r"GetValue on S: read after write by V without a queue or flag V_S",
    ),
    "V writes what S reads": Change(
        1,
        "    Sync<HardEvent::S_V>();\n    return value",
        "    return value",
        r"ReduceMax on V: write after read by S without a queue or flag S_V",
        cores=1,
    ),
    "a flag that is not set": Change(
        1,
        "    AscendC::SetFlag<event>(id);\n",
        "",
        r"WaitFlag: the flag was never set: the pipe waits for ever",
        where="common",
    ),
    "a flag that is not waited for": Change(
        1,
        "    AscendC::WaitFlag<event>(id);\n",
        "",
        r"without a queue or flag V_S",
        where="common",
    ),
    "two stores to one place": Change(
        1,
        "row[scorer_.Position()], tile, DataCopyExtParams(1, bytes, 0, 0, 0));\n",
        "row[scorer_.Position()], tile, DataCopyExtParams(1, bytes, 0, 0, 0));\n"
        "            AscendC::DataCopyPad(\n"
        "                row[scorer_.Position()], tile, DataCopyExtParams(1, bytes, 0, 0, 0));\n",
        r"global memory, write after write by MTE3 without PipeBarrier<PIPE_MTE3>",
    ),
    # 2. What nobody wrote.
    "padding is read (16 bits)": Change(
        2,
        "AscendC::RoundMode::CAST_NONE, n);",
        "AscendC::RoundMode::CAST_NONE, kTile);",
        r"Cast: reads bytes that nobody wrote",
        dtype=BF16,
    ),
    "padding is read (32 bits)": Change(
        2,
        "DataCopyPadExtParams<T>(true, 0,",
        "DataCopyPadExtParams<T>(false, 0,",
        r"Compares: reads bytes that nobody wrote",
    ),
    "the tail is not filled": Change(
        2,
        "            if (padded < kTile) {",
        "            if (false) {",
        r"Compares: reads bytes that nobody wrote",
    ),
    "fresh UB is read": Change(
        2, "        guard_->Reset();\n", "", r"And: reads bytes that nobody wrote"
    ),
    # 3. Queues.
    "no EnQue": Change(
        3, "        raw_.EnQue(tile);\n", "", r"DeQue: the queue is empty: it waits for ever"
    ),
    "no DeQue": Change(
        3,
        "        tile = tiles_.DeQue<float>();\n",
        "",
        r"DataCopyPad: the tensor is in its queue",
    ),
    "no FreeTensor": Change(
        3,
        "            ReleaseAmateur();\n",
        "",
        r"AllocTensor: no free buffer in the queue",
        cores=1,
    ),
    "a leak": Change(
        3,
        "            ReleaseAmateur();\n",
        "",
        r"at the end a queue's tensor is still dequeued",
        vocab=100,
    ),
    "freed twice": Change(
        3,
        "        expert_.Release();\n",
        "        expert_.Release();\n        expert_.Release();\n",
        r"FreeTensor: the tensor was freed",
    ),
    "freed too early": Change(
        3,
        "        AscendC::DataCopyPad(out_[item * kSlotFloats], slot, params);\n"
        "        slots_.FreeTensor(slot);\n",
        "        slots_.FreeTensor(slot);\n"
        "        AscendC::DataCopyPad(out_[item * kSlotFloats], slot, params);\n",
        r"DataCopyPad: the tensor was freed",
    ),
    "used after EnQue": Change(
        3,
        "            scorer_.Score(scores, expert);\n",
        "            tiles_.EnQue(scores);\n            scorer_.Score(scores, expert);\n",
        r"Maxs: the tensor is in its queue",
    ),
    "not so deep": Change(
        3,
        "    TQue<TPosition::VECIN, kKeptTiles> raw_;",
        "    TQue<TPosition::VECIN, 1> raw_;",
        r"EnQue: more than the queue's depth, 1",
        cores=1,
    ),
    "freed to another queue": Change(
        3,
        "        scores_.FreeTensor(scores);\n        ids_.FreeTensor(ids);",
        "        ids_.FreeTensor(scores);\n        scores_.FreeTensor(ids);",
        r"FreeTensor: a tensor of another queue",
    ),
    # 4. Space.
    "too much UB": Change(
        4, "kTile = 4096;", "kTile = 8192;", r"InitBuffer: \d+ bytes of UB; 188416", where="header"
    ),
    "a buffer too small": Change(
        4,
        "pipe->InitBuffer(list_, 2 * kMerged * sizeof(float));",
        "pipe->InitBuffer(list_, kMerged * sizeof(float));",
        r"beyond the tensor",
    ),
    "no buffer": Change(
        4,
        "        pipe->InitBuffer(reduce_, kTile / 64 * 2 * sizeof(float) + kRepeatBytes);\n",
        "",
        r"Get: a TBuf without InitBuffer",
    ),
    "a queue without buffers": Change(
        4,
        "            pipe->InitBuffer(slots_, 1, kMaxSegments * kSlotBytes);\n",
        "",
        r"AllocTensor: no free buffer",
    ),
    "too little scratch": Change(
        4,
        "pipe->InitBuffer(reduce_, kTile / 64 * 2 * sizeof(float) + kRepeatBytes);",
        "pipe->InitBuffer(reduce_, kTile / 64 * sizeof(float));",
        r"an instruction on 128 elements from 0 is beyond the tensor's 64",
    ),
    "too little scratch for an index": Change(
        4,
        "pipe->InitBuffer(reduce_, kTile / 64 * 2 * sizeof(float) + kRepeatBytes);",
        "pipe->InitBuffer(reduce_, kTile / 64 * 2 * sizeof(float));",
        r"an instruction on 144 elements from 0 is beyond the tensor's 128",
    ),
    # 5. Alignment and limits.
    "UB that is not aligned": Change(
        5,
        "        AscendC::DataCopyPad(tile, row[start], params, padding);",
        "        AscendC::DataCopyPad(tile[1], row[start], params, padding);",
        r"DataCopyPad: UB address \d+ is not aligned to 32 bytes",
        vocab=100,
    ),
    "too much padding": Change(
        5,
        "static_cast<uint8_t>(right), kNegInf);",
        "static_cast<uint8_t>(right + 8), kNegInf);",
        r"DataCopyPad: more than 32 bytes of padding",
        vocab=101,
    ),
    "a comparison of too few": Change(
        5,
        "AscendC::Compares(mask, tile, value, mode, kTile);",
        "AscendC::Compares(mask, tile, value, mode, kTile - 32);",
        r"Compares: 4064 elements are not a multiple of 256 bytes",
    ),
    "too many repeats": Change(
        5,
        "ids.ReinterpretCast<uint32_t>(), kTile / 32);",
        "ids.ReinterpretCast<uint32_t>(), kTile / 16);",
        r"Sort32: repeatTime 256 is not from 1 to 255",
    ),
    "a sort that is not aligned": Change(
        5,
        "pipe->InitBuffer(scalar_, kRepeatBytes);",
        "pipe->InitBuffer(scalar_, kBlockBytes);",
        r"Sort32: UB address \d+ is not aligned to (128|256) bytes",
    ),
    "a list too long": Change(
        5,
        "const uint16_t lengths[4] = {kMaxTop, kMaxTop, kMaxTop, 0};",
        "const uint16_t lengths[4] = {kMaxTop, 4096, kMaxTop, 0};",
        r"MrgSort: a list of 4096 entries",
    ),
    "a merge onto itself": Change(
        5, "        turn_ = 1 - turn_;\n", "", r"MrgSort: source and destination overlap"
    ),
    "lists apart from each other": Change(
        5,
        "from[2 * step], from[3 * step]",
        "from[3 * step], from[2 * step]",
        r"MrgSort: repeats need four lists of one length, side by side",
    ),
    "lists that are not the first": Change(
        5, "false, 0b0111, 1)", "false, 0b0101, 1)", r"MrgSort: validBit 5 is not 3, 7 or 15"
    ),
    "the wrong mode": Change(
        5,
        "AscendC::SELMODE::VSEL_TENSOR_SCALAR_MODE",
        "AscendC::SELMODE::VSEL_TENSOR_TENSOR_MODE",
        r"Select: a scalar takes VSEL_TENSOR_SCALAR_MODE",
    ),
    "the wrong rounding": Change(
        5, "CAST_NONE, n);", "CAST_RINT, n);", r"Cast: widening takes CAST_NONE only", dtype=F16
    ),
    "a store from VECCALC": Change(
        5,
        "        AscendC::DataCopyPad(out[item * kListFloats], list, params);",
        "        AscendC::DataCopyPad(out[item * kListFloats], best_.List(), params);",
        r"DataCopyPad: between global memory and VECIN or VECOUT only",
    ),
    "an event that is none": Change(
        5,
        "static_cast<int32_t>(GetTPipePtr()->FetchEventID(event));",
        "static_cast<int32_t>(GetTPipePtr()->FetchEventID(event)) + 8;",
        r"SetFlag: event id 8 is not from 0 to 7",
        where="common",
    ),
    # 6. Global memory.
    "an input is written to": Change(
        6,
        "        if (out != nullptr) {\n            to",
        "        if (false) {\n            to",
        r"writes to logits, which is read-only",
    ),
    "beyond the tensor": Change(
        6,
        "const DataCopyExtParams params(1, n * static_cast<uint32_t>(sizeof(T)), 0, 0, 0);",
        "const DataCopyExtParams params(1, n * static_cast<uint32_t>(sizeof(T)) + 4, 0, 0, 0);",
        r"DataCopyPad: beyond the GlobalTensor's|beyond the tensor's",
    ),
    "beside the row": Change(
        6,
        "reinterpret_cast<__gm__ T*>(base) + number * stride, vocab",
        "reinterpret_cast<__gm__ T*>(base) + number * stride + 1, vocab",
        r"DataCopyPad: outside of every registered range",
    ),
    "in the guard zone": Change(
        6,
        "    kernel.Run(lists, groups, segments, k, outScores, outIds);",
        "    kernel.Run(lists, groups, segments, k, outScores, outIds);\n    outScores[-1] = 0;",
        r"the guard zone of out_scores was written to",
    ),
    "segments overlap": Change(
        6,
        "return Least(vocab - Begin(item), segmentLength) + Begin(item);",
        "return Least(vocab - Begin(item), segmentLength + 8) + Begin(item);",
        r"two blocks write byte \d+ of out",
    ),
    "a launch is missing": Change(
        6,
        "(c).outStride, (c).counts, (c).statistics)         \\\n"
        "        if ((c).plan.segments > 1) {",
        "(c).outStride, (c).counts, (c).statistics) \\\n        if (false) {",
        r"reads maxima where nobody wrote",
    ),
    # 7. The order of blocks, and traffic.
    "blocks share a counter": Change(
        7,
        "            const bool valid = score >= -kLargest;",
        "            static uint32_t calls = 0;\n"
        "            const bool valid = score >= -kLargest && ++calls % 7 != 0;",
        r"the result depends on the order of the blocks",
        groups=3,
    ),
    "a number is read twice": Change(
        7,
        "    return value.GetValue(0);",
        "    (void)value.GetValue(0);\n    return value.GetValue(0);",
        r"not those of the traffic model.*rows",
    ),
    "a load waits for the amateurs' numbers": Change(
        7,
        "        if (together || work.segments == 1) {\n"
        "            maximum_.Start(expertRow_, begin_, end_);\n"
        "        } else {\n"
        "            Load(expert_, expertRow_, begin_);\n"
        "            LoadSlots(group);\n"
        "        }\n"
        "        FindAmateurs(group);\n",
        "        FindAmateurs(group);\n"
        "        if (together || work.segments == 1) {\n"
        "            maximum_.Start(expertRow_, begin_, end_);\n"
        "        } else {\n"
        "            Load(expert_, expertRow_, begin_);\n"
        "            LoadSlots(group);\n"
        "        }\n",
        r"a load waits for numbers that it can do without",
    ),
    "a load waits for a weight": Change(
        7,
        "            if (amateurs_ == 0) {\n"
        "                LoadAmateur(0, start_);\n"
        "            }\n"
        "            const float weight = Setting<float>(groups_.weights, group * places + i);\n",
        "            const float weight = Setting<float>(groups_.weights, group * places + i);\n"
        "            if (amateurs_ == 0) {\n"
        "                LoadAmateur(0, start_);\n"
        "            }\n",
        r"a load waits for numbers that it can do without",
        cores=1,
    ),
    "a tile is read twice": Change(
        7,
        "        reader_->Load(row, begin, Least(kTile, end - begin));",
        "        reader_->Load(row, begin, Least(kTile, end - begin));\n"
        "        reader_->Take(kTile);\n        reader_->Release();\n"
        "        reader_->Load(row, begin, Least(kTile, end - begin));",
        r"not those of the traffic model.*logits",
    ),
    # 8. Results.
    "-inf of the amateur counts": Change(
        8,
        "            Finite(amateur, amateur);\n",
        "",
        r"wrong scores.*both -inf",
        kinds=("both -inf",),
    ),
    "scores do not saturate": Change(
        8,
        "            Saturate(scores);\n",
        "",
        r"a score is infinite",
        kinds=("huge",),
    ),
    "ties to the higher id": Change(
        8,
        "MrgSortSrcList<float>(list, other, other[kTile], list)",
        "MrgSortSrcList<float>(other, other[kTile], list, list)",
        r"ties not to the lower id",
        cores=1,
        kinds=("ties",),
    ),
    "-0.0 below 0.0": Change(
        8,
        "        AscendC::Adds(scores, scores, 0.0f, static_cast<int32_t>(kTile));\n",
        "",
        r"ties not to the lower id|not the best",
        kinds=("zeros",),
    ),
    "a list is forgotten": Change(
        8,
        "next < segments; next += 3",
        "next + 1 < segments; next += 3",
        r"not so many are valid|not the best",  # of five
    ),
    "ids of another tile": Change(
        8, "            firstId_ = start;\n", "", r"the dense scores|out of bounds", cores=1
    ),
    "an id where nothing is valid": Change(
        8,
        "? bits.GetValue(2 * i + 1) : -1)",
        "? bits.GetValue(2 * i + 1) : 7)",
        r"\A\Z",  # the comparison asserts it without a word
        kinds=("one left",),
    ),
    "the floor is forgotten": Change(
        8,
        "threshold = floor > threshold ? floor : threshold;",
        "(void)floor;",
        r"not the same tokens are valid",
        cap=3,
    ),
    "a tie with the maximum is lost": Change(
        8,
        "scratch_.Compare(expert, threshold_, AscendC::CMPMODE::GE);",
        "scratch_.Compare(expert, threshold_, AscendC::CMPMODE::GT);",
        r"not the same tokens are valid",
        cap=1,
    ),
    "alpha is forgotten": Change(
        8,
        "float threshold = largest + logAlpha;",
        "float threshold = largest + 0.0f * logAlpha;",
        r"not the same tokens are valid",
    ),
    "the launch that adds up is missing": Change(
        8,
        "    if (call.plan.segments > 1 && !call.plan.together && call.statistics != nullptr) {",
        "    if (false) {",
        r"traffic.*contrastive_total",
    ),
    "a segment is not counted": Change(
        8,
        "        count.valid += static_cast<uint32_t>(words.GetValue(1));\n",
        "",
        r"wrong statistics",
        kinds=("tiny",),
    ),
    "a tile is not counted": Change(
        8,
        "        AscendC::Add(lanes, lanes, spare, count);\n",
        "        AscendC::Adds(lanes, spare, 0.0f, count);\n",
        r"wrong statistics",
        kinds=("tiny",),
        cores=1,
    ),
    "the last tile with the best counts": Change(
        8,
        "        if (largest > best) {",
        "        if (largest >= best) {",
        r"wrong statistics",
        groups=12,
        kinds=("overflow",),
        cores=1,
    ),
    "the last segment with the best counts": Change(
        8,
        "        if (value > best) {",
        "        if (value >= best) {",
        r"wrong statistics",
        groups=12,
        kinds=("overflow",),
    ),
    "-0.0 is not the best": Change(
        8,
        "AscendC::Adds(spare, tile, 0.0f, static_cast<int32_t>(kTile));",
        "AscendC::Maxs(spare, tile, kNegInf, static_cast<int32_t>(kTile));",
        r"wrong statistics",
        groups=6,
        kinds=("zeros",),
    ),
    # 8, with several amateurs.
    "only the first amateur counts": Change(
        8,
        "for (uint32_t i = 0; i < amateurs_; ++i) {",
        "for (uint32_t i = 0; i < Least(amateurs_, 1); ++i) {",
        r"traffic.*logits|AllocTensor: no free buffer|still (en|de)queued",
        streams=4,
    ),
    "every amateur has the first one's weight": Change(
        8, "-weights_[i]", "-weights_[0]", r"wrong scores", streams=4
    ),
    "a weight counts the other way": Change(8, "-weights_[i]", "weights_[i]", r"wrong scores"),
    "the next tile is another amateur's": Change(
        8,
        "LoadAmateur(0, start_ + kTile);",
        "LoadAmateur(amateurs_ - 1, start_ + kTile);",
        r"wrong scores",
        streams=4,
        cores=1,
    ),
    "an amateur's tile is of another place": Change(
        8,
        "LoadAmateur(amateur + 1, start_);",
        "LoadAmateur(amateur + 1, begin_);",
        r"wrong scores|traffic.*logits",
        streams=4,
        cores=1,
    ),
    "a group takes its neighbour's weights": Change(
        8,
        "Setting<float>(groups_.weights, group * places + i)",
        "Setting<float>(groups_.weights, i)",
        r"wrong scores|another group's amateurs",
        groups=3,
        streams=4,
    ),
    "a group takes its neighbour's amateurs": Change(
        8,
        "Setting<int64_t>(groups_.rows, group * (places + 1) + 1 + i)",
        "Setting<int64_t>(groups_.rows, 1 + i)",
        r"wrong scores|traffic.*weights",
        groups=3,
        streams=4,
    ),
    "no amateur is none": Change(
        8,
        "            if (number == kNoRow) {",
        "            if (false) {",
        r"not the same tokens are valid",
        groups=3,
        streams=None,
    ),
    # 9. Groups that are not finite.
    "the maximum does not tell": Change(
        9,
        "return good ? largest : kInf;",
        "(void)good;\n        return largest;",
        r"other candidates|a score is NaN or \+inf",
        not_finite=True,
    ),
    "NaN of the expert stays": Change(
        9,
        "        if (!expertGood_) {\n            scratch_.Choose(",
        "        if (false) {\n            scratch_.Choose(",
        r"other candidates|a score is NaN or \+inf",
        not_finite=True,
    ),
    "NaN of the amateur stays": Change(
        9,
        "            Finite(amateur, amateur);\n",
        "            guard_.WatchFinite(amateur);\n",
        r"a score is NaN or \+inf",
        not_finite=True,
    ),
    "alpha counts all the same": Change(
        9,
        "return expertGood_ && threshold > -kLargest",
        "return threshold > -kLargest",
        r"other candidates",
        not_finite=True,
    ),
    "the expert's row is not told of": Change(
        9,
        "        return !(expertGood_ && amateursGood);",
        "        return !amateursGood;",
        r"other groups are said to be not finite",
        not_finite=True,
    ),
    "the amateurs' rows are not told of": Change(
        9,
        "        return !(expertGood_ && amateursGood);",
        "        (void)amateursGood;\n        return !expertGood_;",
        r"other groups are said to be not finite",
        not_finite=True,
        cores=1,
    ),
    "a segment is not told of": Change(
        9,
        "        count.fault = fault > count.fault ? fault : count.fault;\n",
        "        (void)fault;\n",
        r"other groups are said to be not finite",
        not_finite=True,
    ),
    "a lane is not watched": Change(
        9,
        "n >= kBlockBytes / sizeof(uint16_t); n /= 2",
        "n > kBlockBytes / sizeof(uint16_t); n /= 2",
        r"other groups are said to be not finite|other candidates|a score is NaN or \+inf",
        not_finite=True,
    ),
    "an amateur is left as it is": Change(
        9,
        "if (notFinite && out == nullptr) {",
        "if (false && notFinite && out == nullptr) {",
        r"traffic.*logits",
        not_finite=True,
    ),
    "an amateur keeps its NaN": Change(
        9,
        "scorer_.Finite(mended, found);",
        "AscendC::Adds(mended, found, 0.0f, static_cast<int32_t>(kTile));",
        r"an amateur cannot be sampled from",
        not_finite=True,
    ),
    "another amateur is written over": Change(
        9,
        "Store(scorer_.AmateurRow(i), mended);",
        "Store(scorer_.AmateurRow(0), mended);",
        r"write after write|an amateur cannot be sampled from|more than that was written",
        not_finite=True,
    ),
    "a cast makes NaN 0": Change(
        9,
        "AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(false);",
        "AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(true);",
        r"both -inf|other candidates|other groups are said to be not finite|wrong|valid",
        dtype=BF16,
        not_finite=True,
        where="common",
    ),
    "what casts do stays changed": Change(
        9,
        "AscendC::SetSaturationFlag<AscendC::SaturationMode::FLOAT>(saturates_);",
        "(void)saturates_;",
        r"at the end 16-bit floats do not saturate",
        dtype=F16,
        where="common",
    ),
    # 10. Row numbers out of range.
    "a row that is not there": Change(
        10,
        "number < static_cast<int64_t>(rows);",
        "number <= static_cast<int64_t>(rows);",
        r"outside of every registered range",
        outside=True,
    ),
    "any negative number is no amateur": Change(
        10, "if (number == kNoRow) {", "if (number < 0) {", r"it is not told of", outside=True
    ),
    "a group without an expert is not told of": Change(
        10, "inRange_ = hasExpert_;", "inRange_ = true;", r"it is not told of", outside=True
    ),
    "its amateurs are not told of": Change(
        10, "                inRange_ = false;\n", "", r"it is not told of", outside=True
    ),
    "tokens are valid all the same": Change(
        10,
        "return kInf;  // which",
        "return -kLargest;  // which",
        r"a token is valid all the same",
        outside=True,
    ),
    "nothing is left to sample from": Change(
        10,
        "out != nullptr || scorer_.InRange();",
        "out != nullptr || scorer_.HasExpert();",
        r"in place, something else was written|traffic.*logits",
        outside=True,
    ),
    "scores of a group without an expert are left out": Change(
        10,
        "            } else if (out != nullptr) {",
        "            } else if (false) {",
        r"traffic.*out",
        outside=True,
    ),
    "a group without an expert is written somewhere": Change(
        10,
        "            } else if (out != nullptr) {",
        "            } else {",
        r"GlobalTensor without SetGlobalBuffer|in place, something else|another block|traffic",
        outside=True,
    ),
    # 11. Blocks that wait for each other.
    "blocks do not wait for the maxima": Change(
        11,
        "            writer_.Write(largest, item);\n            AscendC::SyncAll();\n",
        "            writer_.Write(largest, item);\n",
        r"reads what another block writes, byte \d+ of maxima|reads maxima where nobody wrote",
        together=True,
    ),
    "blocks do not wait for the counts": Change(
        11,
        "                AscendC::SyncAll();\n                SumUp(",
        "                SumUp(",
        r"reads what another block writes, byte \d+ of counts|reads counts where nobody wrote",
        together=True,
    ),
    "a block without an expert does not come": Change(
        11,
        "            Meet(item, kNegInf);\n",
        "",
        r"SyncAll: a block ended without it",
        outside=True,
        together=True,
    ),
    "a kernel that waits is of the wrong type": Change(
        11,
        "KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);                              \\\n"
        "        vllm_cold::Groups<T> inputs",
        "KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_AIV_ONLY);                                 \\\n"
        "        vllm_cold::Groups<T> inputs",
        r"SyncAll: the kernel's type is KERNEL_TYPE_AIV_ONLY",
        together=True,
    ),
    "another tile is kept": Change(
        11,
        "kept_[number] = tile_;",
        "kept_[0 * number] = tile_;",
        r"beyond the tensor|tensor of no buffer",
        cores=3,
        together=True,
    ),
    "a segment is longer than what is kept": Change(
        11,
        "length <= uint64_t{kKeptTiles} * kTile;",
        "length <= uint64_t{3} * kTile;",
        r"beyond the tensor",
        cores=2,
        together=True,
        where="header",
    ),
    "the launch that adds up is there all the same": Change(
        11,
        "call.plan.segments > 1 && !call.plan.together && call.statistics",
        "call.plan.segments > 1 && call.statistics",
        r"traffic.*contrastive_total",
        together=True,
    ),
    "the first block adds up for all": Change(
        11,
        "if (item % work.segments == 0) {",
        "if (item == 0) {",
        r"traffic.*statistics|wrong statistics",
        groups=3,
        together=True,
    ),
    "a kept tile is loaded again": Change(
        11,
        "            expert = expert_.TakeKept((start_ - begin_) / kTile, Count());\n",
        "            expert = expert_.TakeKept((start_ - begin_) / kTile, Count());\n"
        "            expert_.Release();\n"
        "            Load(expert_, expertRow_, start_);\n"
        "            expert = expert_.Take(Count());\n",
        r"traffic.*logits",
        together=True,
    ),
}


def _run(change: Change, program: Path) -> None:
    host = Host(program, change.cores)
    host.together = change.together
    try:
        case = conformance.make_case(
            1, change.groups, change.vocab, change.dtype, kinds=change.kinds,
            streams=change.streams,
        )  # fmt: skip
        case.log_alpha.fill_(math.log(1e-6))
        signs = torch.tensor((-1.0, 0.25, -0.0625))[: case.weights.shape[1]]
        weights = 10 * signs / (1 + torch.arange(change.groups)).unsqueeze(1)
        case.weights = torch.where(case.present, weights, 0.0)
        case.expert_top_k = torch.full((change.groups,), change.cap) if change.cap else None
        case.max_expert_top_k = change.cap
        case.adaptive = None  # the kernels see a weight in any case
        conformance.check_backend(host, case, ks=(64,))
        if change.not_finite:
            for seed, num_groups, vocab in ((0, 72, 61), (4, 12, 4097), (6, 1, 20_300)):
                conformance.check_not_finite(host, seed, num_groups, vocab, change.dtype, ks=(5,))
        if change.outside:
            for stream, row in OUTSIDE:
                check_out_of_range(host, stream, row, 3)
    except (IndexError, RuntimeError) as error:
        raise AssertionError(f"a comparison did not even run: {error}") from error
    finally:
        host.close()


def test_without_a_change_nothing_is_found():
    program = compile_host(KERNEL, RUNNER, flags=QUICK)
    inputs = (
        "cores", "dtype", "vocab", "groups", "streams", "kinds", "cap", "not_finite", "outside",
        "together",
    )  # fmt: skip
    forms = {tuple(getattr(change, name) for name in inputs): change for change in CHANGES.values()}
    for change in forms.values():
        _run(change, program)


@pytest.mark.parametrize("name", of_every_run(CHANGES))
def test_a_change_is_found(name):
    change = CHANGES[name]
    source = (ASCEND / FILES[change.where]).read_text()
    assert source.count(change.old) == 1, "the table does not fit the source"
    text = {change.where: source.replace(change.old, change.new)}
    program = compile_host(KERNEL, RUNNER, flags=QUICK, **text)
    with pytest.raises(AssertionError) as found:
        _run(change, program)
    assert re.search(change.message, str(found.value), re.DOTALL), str(found.value)[:500]


BROKEN = {
    # 1. Order between pipes.
    "MTE2 to V": r"Add on V: read after write by MTE2 without a queue or flag MTE2_V",
    "V to MTE3": r"DataCopyPad on MTE3: read after write by V without a queue or flag V_MTE3",
    "MTE3 to V": r"Add on V: write after read by MTE3 without a queue or flag MTE3_V",
    "V to MTE2": r"DataCopyPad on MTE2: write after (read by V|write by MTE2) without",
    "two loads to one place": r"write after write by MTE2 without PipeBarrier<PIPE_MTE2>",
    "scalar to MTE3": r"DataCopyPad on MTE3: read after write by S without.*S_MTE3",
    "scalar to V": r"Muls on V: read after write by S without a queue or flag S_V",
    "flag to another pipe": r"Muls on V: read after write by MTE2",
    "flag never waited for": r"at the end a flag is set that nobody waited for",
    "flag set twice": r"SetFlag: the flag is set already",
    "flag set again too soon": r"SetFlag: the wait for the same flag before may not be over",
    "store over a load": r"global memory, read after write by MTE3 without.*MTE3_MTE2",
    # 3. Queues.
    "9 buffers of one position's queues": r"InitBuffer: 9 buffers of the queues of one position",
    "enqueued twice": r"EnQue: the tensor is enqueued, not allocated",
    "freed before it was dequeued": r"FreeTensor: the tensor is allocated, not dequeued",
    # 4. Space.
    "65 buffers": r"InitBuffer: more than 64 buffers",
    "1 byte more than UB": r"InitBuffer: 188448 bytes of UB; 188416 are usable",
    "outside": r"beyond the GlobalTensor's",
    # 5. Alignment and limits.
    "overlap in part": r"Adds: source and destination overlap in part",
    # 6. Global memory.
    "one block needs another": r"reads what another block writes",
    "another memory": r"outside of every registered range",
    # 9. Blocks that wait for each other.
    "a block does not come": r"SyncAll: a block ended without it: others wait for ever",
    "nobody waits": r"DataCopyPad: reads what another block writes|writes what another block reads",
    "a number past the data cache": r"GetValue: byte \d+ of out is another block's",
    "more blocks than cores": r"41 blocks wait for each other on 40 cores",
    "waiting in a kernel of the wrong type": r"SyncAll: the kernel's type is ,",
    "waiting one after the other": r"SyncAll: the blocks of this launch may run one after",
}


def test_small_broken_kernels_are_found():
    program = compile_host("host/broken.cpp", flags=QUICK)
    listed = subprocess.run([program], capture_output=True, text=True).stdout.splitlines()
    assert set(listed) == {"good", "good together", *BROKEN}
    for name, message in {"good": r"\A\Z", "good together": r"\A\Z", **BROKEN}.items():
        found = subprocess.run([program, name], capture_output=True, text=True, check=True).stdout
        assert re.search(message, found), f"{name}: {found}"


# 2. Wrong dtypes do not compile.
WRONG_TYPES = (
    "Add: not for this dtype",
    "Max: not for this dtype",
    "Muls: not for this dtype",
    "And: not for this dtype",
    "Compares: not for this dtype",
    "Select: not for this dtype",
    "ReduceMax: not for this dtype",
    "Cast: the stand-in widens half and bfloat16_t to float",
    "CreateVecIndex: not for this dtype",
    "Sort32: not for this dtype",
    "Duplicate: not for this dtype",
    "no matching function for call to .Add\\(",
    "PipeBarrier does not take PIPE_S",
    r"expected unqualified-id before .=.",  # half is a keyword
)


def test_wrong_types_do_not_compile():
    with pytest.raises(CheckFailed) as found:
        compile_host("host/wrong_types.cpp", flags=QUICK)
    for message in WRONG_TYPES:
        assert re.search(message, str(found.value)), message


def test_sanitizers_watch():
    """What the stand-in cannot see: a plain pointer beyond the end of what it points to."""
    source = (ASCEND / KERNEL).read_text()
    at = "    kernel.Run(lists, groups, segments, k, outScores, outIds);"
    broken = source.replace(at, at + "\n    outScores[1 << 20] = 0;")
    assert broken != source
    change = Change(0, "", "", "")
    with pytest.raises(CheckFailed, match="AddressSanitizer"):
        _run(change, compile_host(KERNEL, RUNNER, kernel=broken))
