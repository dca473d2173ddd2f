# SPDX-License-Identifier: Apache-2.0
"""The benchmark of contrasts with prompts, on the small model: methods are what they are called."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.accuracy.prompts import engine
from benchmarks.accuracy.prompts.methods import GREEDY, PLAIN, UNASKED, Method, fixed, preset
from benchmarks.accuracy.prompts.run import CELLS
from vllm_cold.vllm.frontend.config import engine_defaults

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
    by_hand = Method("by hand", {"alpha": 0.3, "beta": 0.25}, unasked=-0.25)
    assert answers(UNASKED[-1]) == answers(by_hand) != greedy, "what was measured is the preset"
    cold = Method("cold", {"alpha": 0.0, "beta": 0.5}, sampling={"temperature": 1.0})
    drawn = replace(GREEDY, sampling=cold.sampling)
    assert len({tuple(greedy), tuple(answers(drawn)), tuple(answers(cold))}) == 3
    # Cold enough, all votes are greedy decoding's answer.
    assert answers(replace(GREEDY, sampling={"temperature": 1e-4}, votes=3)) == greedy


def test_the_most_frequent_answer_counts() -> None:
    said = [SimpleNamespace(text=text) for text in ("Bonn", "Berlin.", "bonn ", "Rome", " berlin")]
    assert engine._voted(said) is said[0], "the first of two as frequent ones"
    assert engine._voted(said[1:]) is said[1]


def test_amateurs_of_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "KV_CACHE", 256 << 20)
    monkeypatch.setattr(engine, "DTYPE", "float32")
    llm, cell = engine.Engine("smollm2", adapters=True), CELLS["orders"]
    problems = cell.make("smollm2", "dev", 4)
    strong = Method("strong", {"alpha": 0.0, "beta": 3.0})
    found = {
        kind: llm.run(replace(strong, amateur=kind), cell, problems).texts
        for kind in ("without", "base without", "base")
    }
    found["greedy"] = llm.run(GREEDY, cell, problems).texts
    assert not engine_defaults(llm._llm.llm_engine.vllm_config).enabled, "greedy is no contrast"
    found["bare"] = llm.run(GREEDY, replace(cell, adapter=None), problems).texts
    assert len({tuple(texts) for texts in found.values()}) == 5
    with pytest.raises(FileNotFoundError, match=r"nowhere: no adapter is there; python -m"):
        llm.run(GREEDY, replace(cell, adapter="nowhere"), problems)
