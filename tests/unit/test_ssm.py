# SPDX-License-Identifier: Apache-2.0
"""What a worker does for models with state-space layers. ``tests/engine/test_ssm.py`` has the
same with engines.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.places import wrapped
from vllm_cold.compat import engine, places
from vllm_cold.compat.patching import bind

pytestmark = pytest.mark.unit


def test_which_models_have_states() -> None:
    assert engine.has_ssm(SimpleNamespace(is_hybrid=True))
    assert engine.has_ssm(SimpleNamespace(is_hybrid=False, is_attention_free=True))
    assert not engine.has_ssm(SimpleNamespace(is_hybrid=False, is_attention_free=False))


@dataclass(frozen=True)
class Spec:
    """As much of a layer's as the workaround looks at."""

    num_prefill_checkpoint_blocks: int
    prefill_checkpoint_alignment: int | None
    block_size: int = 32


def test_a_layer_on_cpu_declares_no_checkpoint() -> None:
    place = wrapped("MambaMixer2.get_kv_cache_spec")
    own: list[Any] = [Spec(1, 1), Spec(0, None), object(), None]
    spec_of = bind(place.load_hook(), lambda layer, config: own[config])
    assert spec_of(None, 0) == Spec(0, None)
    for index in (1, 2, 3):
        assert spec_of(None, index) is own[index]


def test_rotary_embeddings_get_flat_heads() -> None:
    """Whether the kernel writes in place or not, with keys or without."""
    place = wrapped("RotaryEmbedding.forward_cpu")

    def kernel(layer: Any, positions: Any, query: Tensor, key: Tensor | None) -> Any:
        assert query.dim() == 2 and (key is None or key.dim() == 2)
        return query.mul_(2), None if key is None else key + 1

    turn = bind(place.load_hook(), kernel)
    query, key = torch.ones(3, 4, 8), torch.ones(3, 2, 8)
    turned, keys = turn(None, None, query.clone(), key)
    assert torch.equal(turned, 2 * query) and torch.equal(keys, key + 1)
    turned, keys = turn(None, None, query[:, :2], key=None)
    assert turned.shape == (3, 2, 8) and keys is None
    turned, _ = turn(None, None, torch.ones(3, 32), torch.ones(3, 16))
    assert turned.shape == (3, 32)


def test_they_are_worked_around_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    assert len(places.rows(places.SSM)) == 2
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    assert not places.rows(places.SSM)
