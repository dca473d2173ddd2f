# SPDX-License-Identifier: Apache-2.0
"""What each process has to know of an engine: the names of vllm-cold's classes in its
configuration, and what its runner and its model are.

The classes are named as text: they are loaded where they are used, not in every process.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from vllm_cold.compat.runner import PROCESSORS, Runner, runner_of

SCHEDULER = "vllm_cold.scheduler.scheduler.ColdScheduler"
ASYNC_SCHEDULER = "vllm_cold.scheduler.scheduler.ColdAsyncScheduler"
EXTENSION = "vllm_cold.worker.extension.ColdWorkerExtension"
# Of an extension of workers that comes with an engine's own: its name follows, with ":" for each
# dot, as vLLM splits a name at the last dot.
CHAINED = "With:"
# They extend classes of vLLM, and may lack what vLLM declares.
CLASSES = (
    "vllm_cold.scheduler.scheduler:ColdScheduler",
    "vllm_cold.scheduler.queue_view:View",
)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What decides how vllm-cold works in an engine.

    Attributes:
        runner: Its model runner.
        has_drafts: Whether it has speculative decoding.
        has_connector: Whether it has a KV connector.
        has_ssm: Whether some layers of its model keep an SSM state.
    """

    runner: Runner
    has_drafts: bool
    has_connector: bool
    has_ssm: bool

    @classmethod
    def of(cls, config: Any) -> Self:
        """Return those of the engine of a ``VllmConfig``."""
        return cls(
            runner_of(config),
            config.speculative_config is not None,
            has_connector(config),
            has_ssm(config.model_config),
        )


class Slots(NamedTuple):
    """How many sequences run at a time in an engine, and how many of them contrastive requests may
    have: all but for a ``max_share``.
    """

    engine: int
    contrastive: int
    max_share: float | None


def cold_setting(additional_config: object) -> object:
    """Return what an engine was given as ``additional_config["cold"]``; None for nothing."""
    return additional_config.get("cold") if isinstance(additional_config, dict) else None


def slots_of(config: Any) -> Slots:
    """Return the sequence slots of the engine of a ``VllmConfig``; its ``max_share`` was checked
    (``settings.arguments``).
    """
    scheduler = config.scheduler_config
    active: int | None = getattr(scheduler, "max_num_active_seqs", None)  # since 0.31
    slots = int(scheduler.max_num_seqs) if active is None else active
    cold = cold_setting(config.additional_config)
    share = cold.get("max_share") if isinstance(cold, Mapping) else None
    # As if decimals were exact: 0.29 of 100 is 29.
    return Slots(slots, slots if share is None else int(share * slots + 1e-9), share)


def chained_extension(extension: str) -> str:
    """Return what ``worker_extension_cls`` is to be where it was ``extension``; "" for none."""
    module = EXTENSION.rpartition(".")[0] + "."
    if extension.startswith(module):
        return extension
    return module + CHAINED + extension.replace(".", ":") if extension else EXTENSION


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
        processor in PROCESSORS for processor in config.model_config.logits_processors or ()
    )


def has_connector(config: Any) -> bool:
    """Whether the engine of a ``VllmConfig`` has a KV connector."""
    transfer = config.kv_transfer_config
    return transfer is not None and transfer.kv_connector is not None


def has_ssm(model: Any) -> bool:
    """Whether some layers of a model (``ModelConfig``) keep an SSM state, of fixed size, and not
    keys and values.
    """
    return bool(model.is_hybrid or model.is_attention_free)
