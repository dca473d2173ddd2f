# SPDX-License-Identifier: Apache-2.0
"""A base model with int8 weights and inputs: the engine's tokens equal those of the same checkpoint
in transformers and peft. (vLLM's kernels for 4 bits have no float32, in which rounding is small
enough for this; ``benchmarks.quantised.check`` compares them.)
"""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quantised.make import SCHEMES, write
from benchmarks.quantised.reference import dress
from tests.engine.streams import decode, short_groups
from tests.naive import NaiveCold, assert_same_tokens

pytestmark = pytest.mark.engine

GROUPS = short_groups(36)
# Inputs that are rounded to int8 jump by a step where the float before differs in its last bits.
TOLERANCE = 1e-3


def test_tokens_equal_the_reference(tiny: Path, make_llm: Any, tmp_path: Path) -> None:
    """Base, adapters and groups of streams in one batch, with two steps under way."""
    folder = write(tiny / "model", tmp_path / "model", {"Linear": SCHEMES["w8a8"]})
    naive = NaiveCold(tiny / "model", {name: tiny / name for name in ("one", "two")})
    plain = naive.generate_many(GROUPS)
    dress(naive._model, folder)
    traces = naive.generate_many(GROUPS)
    unlike = [a.tokens != b.tokens for a, b in zip(plain, traces, strict=True)]
    assert sum(unlike) > len(unlike) / 2, "the quantisation makes no difference"
    llm = make_llm(model=str(folder), max_loras=2, max_num_batched_tokens=64, async_scheduling=True)
    assert_same_tokens(decode(llm, tiny, GROUPS), traces, TOLERANCE)
