# SPDX-License-Identifier: Apache-2.0
"""What a worker does for models with state-space layers. ``tests/engine/test_states.py`` has the
same with engines.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.vllm import versions
from vllm_cold.vllm.worker import states

pytestmark = pytest.mark.unit


def test_which_models_have_states() -> None:
    assert states.has_states(SimpleNamespace(is_hybrid=True))
    assert states.has_states(SimpleNamespace(is_hybrid=False, is_attention_free=True))
    assert not states.has_states(SimpleNamespace(is_hybrid=False))


@dataclass(frozen=True)
class Spec:
    """As much of a layer's as the cure looks at."""

    num_prefill_checkpoint_blocks: int
    prefill_checkpoint_alignment: int | None
    block_size: int = 32


def test_a_layer_on_cpu_declares_no_checkpoint() -> None:
    (place,) = states.PATCH_POINTS
    own: list[Any] = [Spec(1, 1), Spec(0, None), object(), None]
    spec_of = place.make(lambda layer, config: own[config])
    assert spec_of(None, 0) == Spec(0, None)
    for index in (1, 2, 3):
        assert spec_of(None, index) is own[index]


def test_it_is_cured_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    for version, places in (("0.31.2", 0), ("0.32.0", 1), ("0.33.0", 1)):
        monkeypatch.setattr(versions, "vllm_version", lambda version=version: version)
        assert len(states.patch_points()) == places
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    assert not states.patch_points()
