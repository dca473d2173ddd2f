# SPDX-License-Identifier: Apache-2.0
"""Behind the samplers of both runners, whoever has amateurs tells them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.front_end import Front
from tests.places import add
from vllm_cold import places
from vllm_cold.patching import PatchPoint
from vllm_cold.vllm.frontend import config
from vllm_cold.vllm.worker import amateur_tokens

pytestmark = pytest.mark.unit


class Told:
    """A logits processor with amateurs, or any other."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def tell_amateurs(self, *arguments: Any) -> None:
        self.calls.append(arguments)


def metadata(*processors: Any) -> Any:
    return SimpleNamespace(logitsprocs=SimpleNamespace(non_argmax_invariant=list(processors)))


def test_samplers_of_platforms_are_wrapped_where_that_can_be_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that bring a method of their own, at any depth; the others have the base's."""
    from vllm.v1.sample import sampler

    class Base:
        def forward(self, logits: Any, sampling_metadata: Any) -> str:
            return "base"

    class Inheriting(Base):
        pass

    class Own(Inheriting):
        def forward(self, logits: Any, sampling_metadata: Any) -> Any:
            return SimpleNamespace(sampled_token_ids="own")

    class Other(Base):
        def forward(self, rows: Any) -> str:  # type: ignore[override]
            return "other"

    monkeypatch.setattr(sampler, "Sampler", Base)
    for kind in (Inheriting, Own, Other):
        kind.__qualname__ = kind.__name__
        monkeypatch.setattr(sampler, kind.__name__, kind, raising=False)
        kind.__module__ = sampler.__name__
    before = Other.forward
    amateur_tokens.wrap_built_on_v1()
    ours = Told()
    assert Own().forward(None, metadata(ours)).sampled_token_ids == "own"
    assert ours.calls == [("own",)]
    assert "forward" not in vars(Inheriting) and Other.forward is before


def test_engines_of_the_v2_runner_miss_its_sampler(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others do not."""
    engine = Front(tiny / "model").config
    lost = PatchPoint("vllm.v1.worker.gpu.sample.sampler:Sampler.call", "")
    add(monkeypatch, places.V2, lost)
    assert config.unsupported(engine) is None
    monkeypatch.setattr(config, "uses_v2_runner", lambda config: True)
    said = config.unsupported(engine)
    assert said is not None and "V2 model runner has changed" in said
    assert "vllm.v1.worker.gpu.sample.sampler.Sampler.call is gone" in said
