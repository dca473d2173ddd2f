# SPDX-License-Identifier: Apache-2.0
"""The AscendC kernels, compiled by g++ against the strict stand-in for CANN (csrc/ascend/host).

That they are right, here; and in test_ascend_checks.py that the stand-in's checks bite.
"""

import itertools
import math
import re
import shutil
import subprocess
import sys
from random import Random
from types import SimpleNamespace

import pytest
import torch

from tests.ops import ascend_host, conformance
from tests.ops.ascend_host import ASCEND, SCORING, Host, compile_host
from vllm_cold.ops import contrastive_scores, scoring, scoring_ascend
from vllm_cold.ops.interface import MAX_STREAMS, OUT_OF_RANGE

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
    (1, 2, 1, BF16, "contiguous", 1),
    (2, 12, 31, F32, "padded", 48),
    (14, 12, 31, F16, "contiguous", 20),
    (26, 64, 64, F32, "every other row", 40),
    (30, 64, 64, BF16, "padded", 48),
    (3, 12, 4095, F32, "padded", 40),
    (15, 7, 4095, BF16, "contiguous", 1),
    (27, 12, 4096, F16, "every other row", 20),
    (39, 12, 4097, F32, "contiguous", 48),
    (51, 12, 4097, BF16, "padded", 40),
    (5, 7, 32001, F32, "padded", 40),
    (12, 7, 32001, BF16, "padded", 48),
    (19, 2, 49152, F32, "contiguous", 20),
    (21, 2, 49152, F16, "padded", 1),
    (24, 1, 128256, BF16, "every other row", 40),
    (31, 1, 151936, F32, "contiguous", 48),
    (32, 2, 152064, BF16, "padded", 40),
    (9, 1, 256000, F32, "padded", 40),
    (10, 1, 256000, F16, "contiguous", 20),
)


@pytest.mark.parametrize(
    "seed, groups, vocab, dtype, layout, cores", CASES, ids=lambda value: str(value).split(".")[-1]
)
def test_conforms(host, seed, groups, vocab, dtype, layout, cores):
    host.cores = cores
    conformance.check_backend(host, conformance.make_case(seed, groups, vocab, dtype, layout))


def test_random_shapes(host):
    random = Random(0)
    for seed in range(40):
        host.cores = random.randint(1, 96)
        case = conformance.make_case(
            seed,
            random.randint(1, 9),
            random.choice((random.randint(1, 300), random.randint(1, 12000))),
            random.choice(conformance.DTYPES),
            random.choice(conformance.LAYOUTS[:3]),
        )
        conformance.check_backend(host, case)


@pytest.mark.parametrize("cores", (1, 40))
def test_adaptive_weights_by_definition(host, cores):
    host.cores = cores
    conformance.check_adaptive(host)


def test_many_groups(host):
    """More groups than cores: blocks take them in turn."""
    host.cores = 3
    case = conformance.make_case(60, 64, 4097, F32, kinds=("normal", "ties", "both -inf"))
    conformance.check_backend(host, case)


@pytest.mark.parametrize("vocab", (61, 17001))
def test_as_many_streams_as_there_may_be(host, vocab):
    host.cores = 40
    case = conformance.make_case(0, 2, vocab, streams=MAX_STREAMS)
    case.rows[1, 20:], case.weights[1, 19:] = -1, 0.0  # the second group has fewer
    case.set(adaptive=False)
    conformance.check_backend(host, case)


@CORES
def test_amateurs_are_added_in_order(host, cores):
    """To the bit, also where a sum saturates before the next amateur brings it back."""
    host.cores = cores
    case = conformance.make_case(0, 3, 17001, kinds=("normal", "overflow"), streams=4)
    case.set(adaptive=False)
    case.log_alpha.fill_(-INF)
    case.weights.copy_(torch.tensor(((-0.7, 0.3, 1.9), (2.0, -1.0, 0.1), (-0.7, 0.3, 1.9))))
    case.expert_top_k, case.max_expert_top_k = None, 0
    want = case.experts.clone()
    largest = torch.finfo(F32).max
    for amateur, weight in zip(case.amateurs, case.weights.unbind(1), strict=True):
        difference = (case.experts - amateur).clamp(-largest, largest)
        want = (want + difference * -weight.unsqueeze(1)).clamp(-largest, largest)
    got = torch.full_like(want, math.nan)
    host.scores(case.logits, case.groups, got, None)
    assert torch.equal(got, want)


@CORES
def test_a_group_without_amateurs_keeps_its_logits(host, cores):
    host.cores = cores
    case = conformance.make_case(1, 2, 17001, kinds=("normal", "expert -inf"), streams=3)
    case.rows[0, 1:], case.weights[0] = -1, 0.0
    case.set(adaptive=False)
    conformance.check_backend(host, case)
    case.logits[case.expert_rows[0], 9000] = math.nan  # and none is written to, in place
    statistics = torch.full((2, 3), -7)
    host.scores(case.logits, case.groups, None, statistics)
    assert statistics[:, 2].tolist() == [1, 0]
    got = case.logits[case.expert_rows[0]]
    want = torch.where(case.experts[0].isnan(), 0.0, case.experts[0])
    want[9000] = 0.0
    assert torch.equal(got, want)


def test_huge_and_tiny_magnitudes(host):
    """Also where the difference, or a weight times it, leaves float32."""
    host.cores = 40
    case = conformance.make_case(0, 6, 8193, F32, kinds=("huge", "tiny"), streams=3)
    noise = torch.randn(3, 8193, generator=torch.Generator().manual_seed(0))
    largest = noise.sign() * 3.4e38 * (1 - noise.abs().clamp(max=0.98) / 2)
    case.logits[case.rows[0]] = largest
    case.logits[case.rows[2]] = largest.flip(1)
    case.log_alpha.fill_(-3e38)
    case.weights[:, 0] = torch.tensor((0.0, -0.5, -10.0, -10.0, 10.0, 0.0))
    case.weights[:, 1] = torch.tensor((10.0, 0.5, 10.0, -10.0, -10.0, 0.0))
    conformance.check_backend(host, case)


def test_one_row_in_many_groups(host):
    """One amateur may serve many experts, and a row may be its own amateur."""
    host.cores = 40
    case = conformance.make_case(4, 7, 9001, F32, kinds=("normal",), streams=3)
    case.rows[:, 1] = case.rows[0, 1]
    case.rows[1, 1:] = case.rows[1, 0]
    scores = torch.full((7, 9001), math.nan)
    host.scores(case.logits, case.groups, scores, None)
    conformance.check_dense(case, scores)
    assert torch.equal(scores[1][scores[1] > -INF], case.experts[1][scores[1] > -INF])


@CORES
@pytest.mark.parametrize("dtype", conformance.DTYPES, ids=str)
def test_groups_that_are_not_finite(host, dtype, cores):
    host.cores = cores
    for case in conformance.NOT_FINITE_CASES[:-1]:  # the last one is the same, but long
        conformance.check_not_finite(host, *case, dtype)


@pytest.mark.parametrize("dtype, cores", ((F32, 48), (F16, 1), (BF16, 48)), ids=str)
def test_every_place_of_a_value_that_is_not_finite(host, dtype, cores):
    """Also at the borders of tiles and segments. Every other group has one, or one a row."""
    host.cores = cores
    vocab = 17001  # three segments, five tiles, a tail
    places = (0, 4095, 4096, 5887, 5888, 8192, 11775, 11776, vocab - 1)
    faults = list(itertools.product(([0], [1], [2], [0, 1, 2]), places))
    values = itertools.cycle((math.nan, INF, -math.nan))
    for seed in range(0, len(faults), 8):
        case = conformance.make_case(seed, 16, vocab, dtype, streams=3)
        clean, clean_statistics = _run(host, case)
        valid, fault = clean > -INF, torch.arange(16) % 2 > 0
        ills = list(zip(range(1, 16, 2), faults[seed:], values, strict=False))
        for group, (streams, place), value in ills:
            case.logits[case.rows[group, streams], place] = value
            if 0 in streams:
                valid[group] = case.logits[case.rows[group, 0]] != -INF
        fault[2 * len(ills) :] = False
        dense, statistics = _run(host, case)
        assert torch.equal(statistics[:, 2] > 0, fault), "not found, or found where there is none"
        assert torch.equal(statistics[:, 0], valid.sum(1))
        assert torch.equal(dense > -INF, valid) and (dense < INF).all()
        healthy = ~fault
        assert torch.equal(statistics[healthy], clean_statistics[healthy])
        assert dense[healthy].numpy().tobytes() == clean[healthy].numpy().tobytes()


def _run(host, case):
    """Scores and statistics."""
    num = len(case.rows)
    dense = torch.full((num, case.logits.shape[1]), math.nan)
    statistics = torch.full((num, 3), -7)
    host.scores(case.logits, case.groups, dense, statistics)
    return dense, statistics


@CORES
def test_weights_and_floors_that_are_not_finite_do_no_harm(host, cores):
    """Torch computes them from the same rows."""
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
    """It is told of, no token of the group is valid, and nothing beside the logits is touched."""
    host.cores = cores
    check_out_of_range(host, stream, row, 1 if row is None else 3)


def check_out_of_range(backend, stream, row, num_groups):
    case = conformance.make_case(0, num_groups, 17001, streams=3)
    case.set(adaptive=False)  # torch reads rows first for such, and for caps, and sees it too
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
    assert torch.equal(case.logits, want), "in place, something else was written"
    assert statistics[bad, 2] == OUT_OF_RANGE, "it is not told of in place"


def test_the_op_raises_for_a_row_number_out_of_range(host, monkeypatch):
    monkeypatch.setattr(scoring.registry, "load", lambda name: host)
    case = conformance.make_case(0, 2, 100, streams=2)
    case.set(adaptive=False)
    case.expert_top_k, case.max_expert_top_k = None, 0
    contrastive_scores(case.logits, case.groups)
    case.rows[1, 1] = len(case.logits)
    with pytest.raises(IndexError, match="must be from 0 to"):
        contrastive_scores(case.logits, case.groups)
    contrastive_scores(case.logits, case.groups, check=False)


def test_output_stride(host):
    host.cores = 40
    case = conformance.make_case(0, 3, 20001, BF16)
    wide = torch.full((3, 20003), 7.0)
    host.scores(case.logits, case.groups, wide[:, :20001], None)
    conformance.check_dense(case, wide[:, :20001])


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


# --- How a call is cut up -------------------------------------------------------------------------


def test_plan(host):
    for groups, vocab, cores in itertools.product(
        (1, 2, 3, 7, 20, 39, 40, 41, 64, 1000),
        (*conformance.VOCABS, 255, 257, 8191, 8192, 8193, 16385, 2**31 - 1),
        (1, 2, 20, 24, 40, 48, 50, 96),
    ):
        host.cores = cores
        segments, length, blocks, totals, maxima = host.plan(groups, vocab)
        assert (segments, length) == ascend_host.plan(groups, vocab, cores)
        assert 1 <= segments <= 64 and length % 256 == 0
        # They cover the row, and none is empty; no plan has a shorter longest one, in tiles.
        assert (segments - 1) * length < vocab <= segments * length
        assert segments == 1 or (groups * segments <= cores and vocab > 8192)
        if vocab > 8192:
            most = max(1, min(64, cores // groups))
            assert math.ceil(length / 4096) == math.ceil(vocab / most / 4096)
        assert blocks == min(cores, groups * segments) and totals == min(cores, groups)
        assert maxima == (segments > 1) * groups * segments * 32


# --- The backend's module -------------------------------------------------------------------------


def test_missing_says_what_to_do(monkeypatch, tmp_path):
    assert "choose another backend" in scoring_ascend.BACKEND.missing(torch.device("cpu"))
    monkeypatch.setattr(scoring_ascend, "_PATH", tmp_path / "libvllm_cold_ascend.so")
    device = SimpleNamespace(type="npu")  # torch knows no such device without torch_npu
    find_spec = scoring_ascend.importlib.util.find_spec
    monkeypatch.setattr(
        scoring_ascend.importlib.util,
        "find_spec",
        lambda name: None if name == "torch_npu" else find_spec(name),
    )
    assert "torch_npu" in scoring_ascend.BACKEND.missing(device)
    monkeypatch.setattr(scoring_ascend.importlib.util, "find_spec", lambda name: object())
    assert "SOC_VERSION" in scoring_ascend.BACKEND.missing(device)
    scoring_ascend._PATH.write_bytes(b"no library")
    assert "does not load" in scoring_ascend.BACKEND.missing(device)
    monkeypatch.setattr(scoring_ascend, "_load", lambda: None)
    assert scoring_ascend.BACKEND.missing(device) is None


def test_module_calls_the_ops_as_they_are_declared(host, monkeypatch):
    """The schemas are read from torch_binding.cpp and served by the host's kernels."""
    binding = (ASCEND / "torch_binding.cpp").read_text()
    declared = re.findall(r"m\.def\((.*?)\);", binding, re.DOTALL)
    (schema,) = ["".join(re.findall(r'"(.*?)"', text)) for text in declared]
    library = torch.library.Library("vllm_cold", "FRAGMENT")
    library.define(schema)
    library.impl("ascend_scores", host.run, "CPU")
    monkeypatch.setattr(scoring_ascend, "_load", lambda: None)
    host.cores = 40
    conformance.check_backend(scoring_ascend.BACKEND, conformance.make_case(0, 12, 10000))
    library._destroy()


def binding():
    return ascend_host.compile_binding("torch_binding.cpp", SCORING[0])


def test_binding():
    """From the module through torch_binding.cpp to the kernels, on CPU tensors and with stubs for
    torch_npu. In a process of its own, whose ops these are.
    """
    program = f"""
import torch
from tests.ops import conformance
from vllm_cold.ops import scoring_ascend
torch.ops.load_library({str(binding())!r})
scoring_ascend._load = lambda: None
for seed, groups, vocab, dtype, layout, _ in {[case for case in CASES if case[2] < 50000]}:
    conformance.check_backend(
        scoring_ascend.BACKEND, conformance.make_case(seed, groups, vocab, dtype, layout)
    )
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("streams", (1, MAX_STREAMS + 1))
def test_binding_refuses_more_streams_than_the_kernels_hold(streams):
    program = f"""
import torch
torch.ops.load_library({str(binding())!r})
logits, out = torch.zeros(40, 8), torch.zeros(1, 8)
rows, weights = torch.arange({streams}).unsqueeze(0), torch.zeros(1, {streams} - 1)
torch.ops.vllm_cold.ascend_scores(logits, rows, weights, torch.zeros(1), None, out, None)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "a group has 2 to 33 streams" in result.stderr, result.stderr


# --- The build ------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_cmake_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("SOC_VERSION", raising=False)

    def configure(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        command = [
            "cmake",
            "-S",
            str(ASCEND),
            "-B",
            str(tmp_path / "build"),
            "-G",
            "Unix Makefiles",
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode != 0
        return " ".join(result.stderr.split())

    assert "source CANN's set_env.sh" in configure()
    home = {"ASCEND_HOME_PATH": str(tmp_path)}
    assert "export SOC_VERSION=ascend910b1" in configure(**home)
    assert "for Atlas A2 and A3" in configure(**home, SOC_VERSION="Ascend310P3")
    assert "install the CANN toolkit" in configure(**home, SOC_VERSION="Ascend910B1")
    version = tmp_path / "include" / "version" / "asc_devkit_version.h"
    version.parent.mkdir(parents=True)
    for major, minor, message in ((9, 0, "need CANN 9.1 or later, not 9.0"), (9, 1, "install the")):
        version.write_text(f"#define ASC_DEVKIT_MAJOR {major}\n#define ASC_DEVKIT_MINOR {minor}\n")
        assert message in configure()
