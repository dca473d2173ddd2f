# SPDX-License-Identifier: Apache-2.0
"""As much of an engine's configuration as decides whether vllm-cold can be in it."""

from types import SimpleNamespace
from typing import Any

from vllm_cold.compat import versions


def config(**model: Any) -> Any:
    """As much of a VllmConfig as is looked at."""
    fields = {
        "runner_type": "generate",
        "is_encoder_decoder": False,
        "is_hybrid": False,
        "is_attention_free": False,
        "hf_text_config": None,
        "logits_processors": None,
        "max_model_len": 64,
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
        lora_config=SimpleNamespace(max_lora_rank=8, max_loras=2, fully_sharded_loras=False),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            tensor_parallel_size=1,
            decode_context_parallel_size=1,
            worker_extension_cls="",
        ),
        speculative_config=None,
        kv_transfer_config=None,
        additional_config={},
        **({"use_v2_model_runner": False} if versions.is_before("0.34") else {}),
    )
