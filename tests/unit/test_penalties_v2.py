# SPDX-License-Identifier: Apache-2.0
"""Where vllm-cold stands among the V2 sampler's processors."""

import pytest

from vllm_cold.worker.penalties_v2 import in_order

pytestmark = pytest.mark.unit


class LogitBiasState: ...


class PenaltiesState: ...


class BadWordsState: ...


class Other: ...


class Cold:
    def tell_amateurs(self) -> None: ...


def test_scores_stand_between_bad_words_and_penalties() -> None:
    bias, penalties, words = LogitBiasState(), PenaltiesState(), BadWordsState()
    other, cold = Other(), Cold()
    found = in_order([bias, penalties, words, other, cold])
    assert found == [bias, words, cold, penalties, other]


def test_without_cold_nothing_is_moved() -> None:
    processors = [LogitBiasState(), PenaltiesState(), BadWordsState(), Other()]
    assert in_order(processors) is processors


@pytest.mark.parametrize("missing", [PenaltiesState, BadWordsState])
def test_a_sampler_that_is_not_known_is_refused(missing: type) -> None:
    processors = [p for p in (PenaltiesState(), BadWordsState()) if type(p) is not missing]
    with pytest.raises(RuntimeError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        in_order([*processors, Cold()])
