# SPDX-License-Identifier: Apache-2.0
"""The benchmark of contrasts with prompts, on the small model: methods are what they are called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.accuracy.prompts import engine
from benchmarks.accuracy.prompts.methods import GREEDY, PLAIN, fixed, preset
from benchmarks.accuracy.prompts.run import CELLS

pytestmark = pytest.mark.engine


def test_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "KV_CACHE", 256 << 20)
    monkeypatch.setattr(engine, "DTYPE", "float32")  # rounding does not depend on the batch
    llm, cell = engine.Engine("smollm2"), CELLS["false"]
    problems = cell.make("smollm2", "dev", 12)

    def answers(method: engine.Method) -> list[str]:
        return llm.run(method, cell, problems).texts

    greedy, contrast = answers(GREEDY), answers(preset("cad"))
    right = [
        sum(
            cell.score(text, problem)["right"]
            for text, problem in zip(texts, problems, strict=True)
        )
        for texts in (answers(PLAIN[0]), greedy, contrast)
    ]
    assert right[0] < right[1] < right[2]
    assert answers(fixed(0.0, 0.5)) == contrast
    assert answers(fixed(1.0, 0.5)) == greedy
    second = replace(fixed(0.0, 0.5), unasked=-0.5)
    assert answers(replace(second, unasked=0.0)) == contrast != answers(second)
