# SPDX-License-Identifier: Apache-2.0
"""The AscendC kernels, compiled by g++ against the strict stand-in for CANN (csrc/ascend/host)."""

import math
import re
import shutil
import subprocess
import sys

import pytest
import torch

from tests.ops import conformance
from tests.ops.ascend_host import ASCEND, SCORING, Host, compile_binding, compile_host
from tests.ops.conformance import bits
from vllm_cold.ops import contrastive_scores, scoring
from vllm_cold.ops.interface import OUT_OF_RANGE

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

F32, BF16, F16 = conformance.DTYPES
INF = math.inf


@pytest.fixture(scope="module")
def host():
    host = Host(compile_host(*SCORING))
    yield host
    host.close()


CORES = pytest.mark.parametrize("cores", (1, 48), ids=("whole", "segments"))


# --- The kernels ----------------------------------------------------------------------------------

# Vocabularies, numbers of groups, dtypes, core counts and layouts, each with each other's extremes.
# Consecutive seeds go through the kinds of rows, alpha, weights, caps and 2 to 4 streams.
CASES = (
    # seed, groups, vocabulary, dtype, layout, cores
    (0, 1, 1, F32, "padded", 40),
    (2, 12, 31, F32, "padded", 48),
    (26, 64, 64, F32, "every other row", 40),
    (3, 12, 4095, F32, "padded", 40),
    (27, 12, 4096, F16, "every other row", 20),
    (39, 12, 4097, F32, "contiguous", 48),
    (5, 7, 32001, F32, "padded", 40),
    (19, 2, 49152, F32, "contiguous", 20),
    (24, 1, 128256, BF16, "every other row", 40),
    (32, 2, 152064, BF16, "padded", 40),
    (10, 1, 256000, F16, "contiguous", 20),
)


@pytest.mark.parametrize(
    "seed, groups, vocab, dtype, layout, cores", CASES, ids=lambda value: str(value).split(".")[-1]
)
def test_conforms(host, seed, groups, vocab, dtype, layout, cores):
    host.cores = cores
    conformance.check_backend(host, conformance.make_case(seed, groups, vocab, dtype, layout))


@CORES
def test_as_many_streams_as_there_may_be(host, cores):
    host.cores = cores
    for vocab in (61, 17001):
        conformance.check_streams(host, vocab)


@CORES
@pytest.mark.parametrize("dtype", conformance.DTYPES, ids=str)
def test_groups_that_are_not_finite(host, dtype, cores):
    host.cores = cores
    for case in ((2, 72, 61), (3, 73, 1), (5, 13, 4097), (6, 1, 20_001), (13, 2, 17_001)):
        conformance.check_not_finite(host, *case, dtype)


def _run(host, case):
    """Scores and statistics."""
    num = len(case.rows)
    dense = torch.full((num, case.logits.shape[1]), math.nan)
    statistics = torch.full((num, 3), -7)
    host.scores(case.logits, case.groups, dense, statistics)
    return dense, statistics


@CORES
def test_weights_and_floors_that_are_not_finite_do_no_harm(host, cores):
    """They are computed from the same rows."""
    host.cores = cores
    case = conformance.make_case(0, 2, 17001, kinds=("normal",), streams=3)
    case.log_alpha.fill_(math.log(0.1))
    case.logits[case.rows[0, 0], 9000] = math.nan
    case.logits[case.rows[1, 2], 9000] = math.nan
    weights = torch.tensor(((math.nan, INF), (-INF, math.nan)))
    inputs = case.logits, case.rows, weights, case.log_alpha, torch.full((2,), math.nan)
    scores = torch.full((2, 17001), math.nan)
    statistics = torch.full((2, 3), -7)
    host.run(*inputs, scores, statistics)
    assert (scores < INF).all() and (scores[0] > -INF).all()
    valid = case.experts[1] >= case.experts[1].max() + case.log_alpha[1]
    assert torch.equal(scores[1][valid], case.experts[1][valid]), "a weight that is not 0"
    assert statistics[:, 0].tolist() == [17001, int(valid.sum())] and (statistics[:, 2] == 1).all()


OUTSIDE = ((0, -1), (0, None), (1, -2), (1, None), (2, -2), (2, 2**62))  # stream, row number


@CORES
@pytest.mark.parametrize("stream, row", OUTSIDE)
def test_a_row_number_out_of_range_concerns_its_group_alone(host, cores, stream, row):
    """It is told of, no token of the group is valid, and nothing besides the logits is accessed."""
    host.cores = cores
    check_out_of_range(host, stream, row, 1 if row is None else 3)


def check_out_of_range(backend, stream, row, num_groups):
    case = conformance.make_case(0, num_groups, 17001, streams=3)
    # For caps torch reads rows first, and sees it too.
    case.expert_top_k, case.max_expert_top_k = None, 0
    clean, clean_statistics = _run(backend, case)
    want, kept = case.logits.clone(), torch.arange(num_groups) != num_groups // 2
    want[case.expert_rows[kept]] = clean[kept]
    bad = num_groups // 2
    case.rows[bad, stream] = len(case.logits) if row is None else row
    dense, statistics = _run(backend, case)
    assert statistics[bad, 2] == OUT_OF_RANGE, "it is not told of"
    assert statistics[bad, 0] == 0 and (dense[bad] == -INF).all(), "a token is valid all the same"
    assert torch.equal(statistics[kept], clean_statistics[kept]), "another group is told of"
    assert torch.equal(dense[kept], clean[kept]), "another group has other scores"
    statistics.fill_(-7)
    backend.scores(case.logits, case.groups, None, statistics)
    assert torch.equal(bits(case.logits), bits(want)), "in place, something else was written"
    assert statistics[bad, 2] == OUT_OF_RANGE, "it is not told of in place"


def test_the_op_raises_for_a_row_number_out_of_range(host, monkeypatch):
    monkeypatch.setattr(scoring.backend_registry, "load", lambda name: host)
    case = conformance.make_case(0, 2, 100, streams=2)
    case.expert_top_k, case.max_expert_top_k = None, 0
    contrastive_scores(case.logits, case.groups)
    case.rows[1, 1] = len(case.logits)
    with pytest.raises(IndexError, match="must be from 0 to"):
        contrastive_scores(case.logits, case.groups)
    contrastive_scores(case.logits, case.groups, check=False)


def test_unified_buffer_is_as_documented(host):
    """The table in csrc/ascend/README.md."""
    host.ub.clear()
    for dtype in conformance.DTYPES:
        for host.cores in (1, 40):
            conformance.check_backend(host, conformance.make_case(0, 1, 20000, dtype))
    documented = (ASCEND / "README.md").read_text()
    sizes = {name: size for name, size in host.ub.items() if "_scores_" in name}
    assert len(sizes) == 3 and max(host.ub.values()) == max(sizes.values())
    for kernel, size in sizes.items():
        dtype = kernel.split("_", 2)[2]
        assert re.search(rf"\| scores \| [^|]*{dtype}[^|]* \|.*\| {size:,} \|", documented), kernel


# --- The backend's module -------------------------------------------------------------------------


def test_binding():
    """From the module through torch_binding.cpp to the kernels, on CPU tensors and with stubs for
    torch_npu. In a process of its own, whose ops these are.
    """
    program = f"""
import torch
from tests.ops import conformance
from vllm_cold.ops import scoring_ascend
torch.ops.load_library({str(compile_binding())!r})
for seed, groups, vocab, dtype, layout, _ in {[case for case in CASES if case[2] < 50000]}:
    conformance.check_backend(
        scoring_ascend.BACKEND, conformance.make_case(seed, groups, vocab, dtype, layout)
    )
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
