# SPDX-License-Identifier: Apache-2.0
"""The backends that run on CPUs against the reference; Triton and AscendC have their own files."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.conformance import (
    DTYPES,
    INF,
    KINDS,
    LAYOUTS,
    NOT_FINITE_CASES,
    NUM_GROUPS,
    VOCABS,
    bits,
    check_backend,
    check_dense,
    check_not_finite,
    check_streams,
    check_topk,
    make_case,
    statistics_of,
)
from vllm_cold.ops import (
    Groups,
    backend_registry,
    contrastive_scores,
    contrastive_topk,
    cpu_library,
    scoring,
    scoring_cpu,
)
from vllm_cold.ops.interface import NOT_FINITE as NOT_FINITE_ERROR

pytestmark = pytest.mark.unit


class CpuWith:
    """The C++ backend with an instruction set below the best."""

    def __init__(self, isa: str) -> None:
        self._isa = cpu_library.ISAS.index(isa)

    def scores(self, *args: Any) -> None:
        with mock.patch.object(cpu_library, "best_isa", lambda: self._isa):
            scoring_cpu.BACKEND.scores(*args)


def backends() -> dict[str, Any]:
    found: dict[str, Any] = {"torch": "torch"}
    if scoring_cpu.BACKEND.missing(torch.device("cpu")) is None:  # else test_registry.py says so
        isas = cpu_library.ISAS[: min(cpu_library.best_isa(), 2)]
        found |= {"cpu": "cpu", **{f"cpu {isa}": CpuWith(isa) for isa in isas}}
    return found


BACKENDS = backends()
NAMES = [name for name in BACKENDS if " " not in name]
by_name = pytest.mark.parametrize("backend", NAMES)


def grid() -> list[Any]:
    """Every vocabulary with every number of groups, the dtypes in turn."""
    cases = []
    for (i, vocab), (j, num_groups) in itertools.product(
        enumerate(VOCABS), enumerate(NUM_GROUPS[1:])
    ):
        marks = [pytest.mark.slow] if num_groups == 64 and vocab >= 32001 else []
        if vocab * num_groups > 300_000:
            marks.append(pytest.mark.full)
        cases.append(pytest.param(vocab, num_groups, DTYPES[(i + j) % 3], marks=marks))
    return cases


@pytest.mark.parametrize(("vocab", "num_groups", "dtype"), grid())
def test_equals_the_reference(vocab: int, num_groups: int, dtype: torch.dtype) -> None:
    seed = VOCABS.index(vocab) * 11 + NUM_GROUPS.index(num_groups) * 5 + DTYPES.index(dtype)
    case = make_case(seed, num_groups, vocab, dtype, LAYOUTS[seed % 3])
    for backend in BACKENDS.values():
        check_backend(backend, case)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_groups=st.integers(1, 5),
    vocab=st.integers(1, 300) | st.integers(1, 20_000),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS[:3]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
)
def test_random_cases(
    seed: int,
    num_groups: int,
    vocab: int,
    dtype: torch.dtype,
    layout: str,
    kinds: list[str],
) -> None:
    case = make_case(seed, num_groups, vocab, dtype, layout, kinds)
    for backend in BACKENDS.values():
        check_backend(backend, case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_many_amateurs_as_there_may_be(backend: str) -> None:
    for dtype in DTYPES:
        check_streams(BACKENDS[backend], 5001, dtype)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads", [1, 3, 8], indirect=True)
def test_any_number_of_threads() -> None:
    """Groups that share out evenly, the rest in segments, and nothing but segments."""
    for num_groups in (1, 2, 3, 4, 7, 9):
        for i, vocab in enumerate((1, 64, 4097, 49152)):
            dtype = DTYPES[(num_groups + i) % 3]
            check_backend("cpu", make_case(num_groups, num_groups, vocab, dtype))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads", [1, 3], indirect=True)
def test_what_is_not_finite_stays_in_its_group() -> None:
    for name, backend in BACKENDS.items():
        for seed, num_groups, vocab in NOT_FINITE_CASES:
            if torch.get_num_threads() == 1 or ("cpu" in name and num_groups * vocab > 2 * 8192):
                dtypes = DTYPES if vocab < 20_000 else DTYPES[seed % 3 :][:1]
                for dtype in dtypes:
                    check_not_finite(backend, seed, num_groups, vocab, dtype)


@pytest.mark.parametrize("offset", [0, 1, 16])
def test_many_scores_to_any_address(offset: int) -> None:
    """Past a million, they are written past the caches where the address allows it."""
    case = make_case(2, 9, 128_000, kinds=["normal", "ties"])
    memory = torch.full((9 * 128_000 + 32,), math.nan)
    out = memory[offset : offset + 9 * 128_000].view(9, 128_000)
    backend_registry.load("cpu").scores(case.logits, case.groups, out, None)
    check_dense(case, out)
    assert int(memory.isnan().sum()) == 32


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_groups=st.integers(1, 4),
    vocab=st.integers(1, 1000) | st.sampled_from([127, 128, 129, 32001, 151936]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    k=st.integers(1, 64),
)
def test_the_best_are_the_best_of_all_scores(
    seed: int, num_groups: int, vocab: int, kinds: list[str], k: int
) -> None:
    """Of any backend's scores, exactly; here of the one in use."""
    case = make_case(seed, num_groups, vocab, kinds=kinds)
    dense = contrastive_scores(case.logits, case.groups)
    check_topk(k, *contrastive_topk(case.logits, case.groups, k=k), dense)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[:2])
@by_name
def test_through_the_op(backend: str, dtype: torch.dtype, layout: str) -> None:
    """The public functions: every layout, outputs given or not, in place."""
    for num_groups in (7, 0):
        case = make_case(3, num_groups, 333, dtype, layout)
        logits, groups, before = case.logits, case.groups, case.base.clone()
        dense = contrastive_scores(logits, groups, backend=backend)
        check_dense(case, dense)
        want, counted = statistics_of(case.experts, dense), torch.full((num_groups, 3), -7)
        options: dict[str, Any] = {"statistics": counted, "backend": backend}
        assert torch.equal(contrastive_scores(logits, groups, **options), dense)
        assert torch.equal(counted, want)
        scores, ids = contrastive_topk(logits, groups, k=9, backend=backend)
        check_topk(9, scores, ids, dense)
        assert torch.equal(bits(case.base), bits(before))
        if dtype == torch.float32 and layout != "transposed":
            counted.fill_(-7)
            assert contrastive_scores(logits, groups, inplace=True, **options) is logits
            assert torch.equal(logits[case.expert_rows], dense) and torch.equal(counted, want)
            logits[case.expert_rows] = case.experts
            assert torch.equal(bits(case.base), bits(before))


@pytest.mark.parametrize("stream", [0, 1, 2])
@by_name
def test_what_is_not_finite_is_an_error_where_it_is_checked(backend: str, stream: int) -> None:
    """It is, unless the caller says otherwise."""
    for layout, value in itertools.product(LAYOUTS, (math.nan, INF)):
        case = make_case(1, 3, 333, layout=layout, streams=3)
        calls = [
            (contrastive_scores, {"inplace": False}),
            (contrastive_scores, {"statistics": torch.full((3, 3), -7)}),
            (contrastive_topk, {"k": 5}),
            (contrastive_scores, {"inplace": layout != "transposed"}),
        ]
        case.logits[case.rows[1, stream], 77] = value
        before = case.base.clone()
        for op, options in calls:
            with pytest.raises(RuntimeError, match="hold NaN or .inf"):
                op(case.logits, case.groups, backend=backend, **options)
            case.base.copy_(before)
            op(case.logits, case.groups, backend=backend, check=False, **options)
            case.base.copy_(before)
        assert calls[1][1]["statistics"][:, 2].tolist() == [0, 1, 0]


def test_on_a_gpu_the_check_waits_for_nothing() -> None:
    finite = mock.MagicMock(device=torch.device("cuda"))
    finite.all().__bool__.side_effect = AssertionError("a host sync")
    with mock.patch.object(torch, "_assert_async") as asserted:
        scoring._assert_finite(finite)
    asserted.assert_called_once_with(finite.all(), NOT_FINITE_ERROR)


@pytest.mark.parametrize(("stream", "row"), [(0, -1), (0, 6), (1, -2), (2, -2), (2, 6), (2, 2**40)])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_row_outside_is_an_error(backend: str, row: int, stream: int) -> None:
    case = make_case(0, 1, 40, streams=3)
    assert len(case.logits) == 6
    case.rows[0, stream] = row
    with pytest.raises(IndexError):
        contrastive_scores(case.logits, case.groups, backend=backend)


def test_groups_may_share_rows_when_not_in_place() -> None:
    """And one group may have an amateur twice, or its expert as one."""
    case = make_case(1, 3, 100, kinds=["normal"], streams=3)
    case.rows[1] = case.rows[0]
    case.rows[2, 1] = case.rows[0, 2]
    case.rows[2, 2] = case.rows[2, 0]
    for backend in ("torch", "cpu"):
        check_dense(case, contrastive_scores(case.logits, case.groups, backend=backend))


@by_name
@pytest.mark.parametrize("cap", [0, 1, 2])
def test_a_tile_that_just_reaches_the_threshold(cap: int, backend: str) -> None:
    """A token at the threshold exactly is valid, alone in its part of the vocabulary, and counts
    for the cap.
    """
    logits = torch.full((2, 5000), -9.0)
    logits[0, 10], logits[0, 4500] = 2.0, 1.0
    caps = (torch.tensor([cap]), cap) if cap else (None, 0)
    pair = torch.tensor([[0, 1]]), torch.tensor([[-0.5]]), torch.tensor([-1.0])
    got = contrastive_scores(logits, Groups(*pair, *caps), backend=backend)
    assert (got[0] > -INF).nonzero().flatten().tolist() == ([10] if cap == 1 else [10, 4500])


def test_the_checks_bite() -> None:
    """A comparison that never fails proves nothing."""
    case = make_case(2, 5, 500, kinds=["normal"])
    right = contrastive_scores(case.logits, case.groups)
    swapped = dataclasses.replace(case, weights=case.weights.flip(1))
    with pytest.raises(AssertionError, match="wrong scores"):
        check_dense(swapped, right)
    token, no_candidate = int(right[0].argmax()), int(case.experts[0].argmin())
    # A hundred-thousandth, where the terms are about 10.
    slightly = float(right[0, token]) + 1e-5
    for at, broken in ((token, math.nan), (token, -INF), (token, slightly), (no_candidate, 0.0)):
        wrong = right.clone()
        wrong[0, at] = broken
        with pytest.raises(AssertionError):
            check_dense(case, wrong)
    scores, ids = contrastive_topk(case.logits, case.groups, k=5)
    for bad_scores, bad_ids in ((scores, ids.flip(1)), (scores.flip(1), ids)):
        with pytest.raises(AssertionError, match="not the"):
            check_topk(5, bad_scores, bad_ids, right)
