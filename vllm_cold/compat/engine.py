# SPDX-License-Identifier: Apache-2.0
"""What each process has to know of an engine: the names of vllm-cold's classes in its
configuration, and what its runner and its model are.

The classes are named as text: they are loaded where they are used, not in every process.
"""

from collections.abc import Mapping
from typing import Any

from vllm_cold.compat import places
from vllm_cold.compat.hardware import is_on
from vllm_cold.compat.patching import problems
from vllm_cold.compat.runner import Runner, runner_of

SCHEDULER = "vllm_cold.scheduler.scheduler.ColdScheduler"
ASYNC_SCHEDULER = "vllm_cold.scheduler.scheduler.ColdAsyncScheduler"
PROCESSOR_V1 = "vllm_cold.worker.processor_v1:ColdLogitsProcessorV1"
PROCESSOR_V2 = "vllm_cold.worker.processor_v2:ColdLogitsProcessorV2"
# They extend classes of vLLM: a method that vLLM declares and they lack fails when one is made.
CLASSES = (
    "vllm_cold.scheduler.scheduler:ColdScheduler",
    "vllm_cold.scheduler.queue_view:View",
    PROCESSOR_V1,
)


def cold_setting(additional_config: object) -> object:
    """Return what an engine was given as ``additional_config["cold"]``; None for nothing."""
    return additional_config.get("cold") if isinstance(additional_config, dict) else None


def sequence_slots(config: Any) -> int:
    """Return how many sequences run at a time in the engine of a ``VllmConfig``."""
    scheduler = config.scheduler_config
    active: int | None = getattr(scheduler, "max_num_active_seqs", None)  # since 0.31
    return int(scheduler.max_num_seqs) if active is None else active


def slots_of_share(config: Any) -> int | None:
    """Return how many of these streams of contrastive requests may have, as the checked
    ``max_share`` says; None for no limit.
    """
    cold = cold_setting(config.additional_config)
    share = cold.get("max_share") if isinstance(cold, Mapping) else None
    # As if decimals were exact: 0.29 of 100 is 29.
    return None if share is None else int(share * sequence_slots(config) + 1e-9)


def may_contrast(config: Any) -> bool:
    """Whether the engine of a ``VllmConfig`` has LoRA, or was asked for contrastive decoding.
    Whether it can, ``frontend.support`` says.
    """
    try:
        if config.lora_config is not None and config.model_config.runner_type != "pooling":
            return True
        cold = cold_setting(config.additional_config)
    except AttributeError:  # vLLM has changed, and whoever looks further says so
        return True
    return not (cold is None or cold is False) or is_configured(config)


def is_configured(config: Any) -> bool:
    """Whether the engine of a ``VllmConfig`` is prepared for contrastive decoding: both halves, the
    scheduler and a logits processor.
    """
    return config.scheduler_config.scheduler_cls in (SCHEDULER, ASYNC_SCHEDULER) and any(
        processor in (PROCESSOR_V1, PROCESSOR_V2)
        for processor in config.model_config.logits_processors or ()
    )


def uses_v2_runner(config: Any) -> bool:
    """Whether the engine of a ``VllmConfig`` runs vLLM's V2 model runner."""
    return runner_of(config) is Runner.V2


def has_ssm(model: Any) -> bool:
    """Whether some layers of a model (``ModelConfig``) keep an SSM state, of fixed size, and not
    keys and values.
    """
    return bool(model.is_hybrid or model.is_attention_free)


def can_clear(v2: bool) -> bool:
    """Whether workers clear the blocks that the scheduler lists; ``v2``: of the V2 runner."""
    return is_on("cpu") and not (v2 and problems(places.rows(places.BLOCKS_V2)))
