# SPDX-License-Identifier: Apache-2.0
"""Which engines are refused, by their configuration alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_cold.bindings.engine_config import configure, unsupported

pytestmark = pytest.mark.unit


def config(**model: Any) -> Any:
    """As much of a VllmConfig as is looked at."""
    fields = {
        "runner_type": "generate",
        "is_encoder_decoder": False,
        "is_hybrid": False,
        "logits_processors": None,
        **model,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(**fields),
        scheduler_config=SimpleNamespace(
            scheduler_cls=None,
            max_num_seqs=8,
            max_num_batched_tokens=64,
            async_scheduling=True,
            enable_chunked_prefill=True,
        ),
        lora_config=SimpleNamespace(max_lora_rank=8, max_loras=2),
        parallel_config=SimpleNamespace(),
        speculative_config=None,
        kv_transfer_config=None,
        additional_config={},
        use_v2_model_runner=False,
    )


def test_an_ordinary_engine_is_prepared() -> None:
    engine = config()
    assert unsupported(engine) is None
    configure(engine)
    assert "ColdAsyncScheduler" in engine.scheduler_config.scheduler_cls
    assert len(engine.model_config.logits_processors) == 1
    configure(engine)
    assert len(engine.model_config.logits_processors) == 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"runner_type": "pooling"}, "pooling model"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"is_hybrid": True}, "state-space"),
        ({"enable_trace_replay": True}, "enable_trace_replay is on"),
    ],
)
def test_models_that_cannot(model: dict[str, Any], reason: str) -> None:
    engine = config(**model)
    configure(engine)
    assert engine.scheduler_config.scheduler_cls is None
    assert engine.model_config.logits_processors is None
    engine.additional_config = {"cold": True}
    with pytest.raises(ValueError, match=reason):
        configure(engine)


def test_options_that_cannot() -> None:
    engine = config()
    engine.kv_transfer_config = object()
    assert "KV connector" in str(unsupported(engine))
    engine = config()
    engine.parallel_config.enable_batch_sharded_sampling = True
    assert "batch-sharded" in str(unsupported(engine))
    engine = config()
    engine.additional_config = {"enable_reduce_sample": True}
    assert "enable_reduce_sample" in str(unsupported(engine))


def test_an_amateur_that_cannot_be_loaded(tmp_path: Any) -> None:
    """A worker that cannot load an adapter takes the engine down, so admission looks first."""
    from vllm.lora.request import LoRARequest

    from vllm_cold.bindings.admission import decide
    from vllm_cold.params import ColdParams
    from vllm_cold.settings import RequestArgs

    engine = config()
    configure(engine)
    expert = LoRARequest("one", 1, "/one")

    def admit(path: str) -> Any:
        params = ColdParams(amateur=LoRARequest("two", 2, path))
        return decide(engine, RequestArgs(), expert, {}, params)

    for path in (str(tmp_path), str(tmp_path / "nowhere"), "~/nowhere", "no/such-folder"):
        with pytest.raises(ValueError, match="amateur='two': no adapter_config.json"):
            admit(path)
    (tmp_path / "adapter_config.json").write_text('{"r": 64}')
    with pytest.raises(ValueError, match="rank 64 is above the engine's max_lora_rank=8"):
        admit(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    assert admit(str(tmp_path)) is not None
