# SPDX-License-Identifier: Apache-2.0
"""Behind the samplers of both runners, whoever has amateurs tells them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.front_end import Front
from tests.places import add
from vllm_cold import places
from vllm_cold.patching import Dependency
from vllm_cold.vllm.frontend import config

pytestmark = pytest.mark.unit


def test_engines_of_the_v2_runner_miss_its_sampler(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others do not."""
    engine = Front(tiny / "model").config
    lost = Dependency("vllm.v1.worker.gpu.sample.sampler:Sampler.call", "")
    add(monkeypatch, places.V2, lost)
    assert config.unsupported(engine) is None
    monkeypatch.setattr(config, "uses_v2_runner", lambda config: True)
    said = config.unsupported(engine)
    assert said is not None and "it has the V2 model runner" in said
    assert "vllm.v1.worker.gpu.sample.sampler.Sampler.call is gone" in said
