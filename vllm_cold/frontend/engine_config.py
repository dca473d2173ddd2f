# SPDX-License-Identifier: Apache-2.0
"""Prepares engines for contrastive decoding when their configuration is final: those with LoRA, and
those that ask for it. Others, and engines in which vllm-cold cannot work, are left as they are.
"""

import logging

from vllm.config import VllmConfig

from vllm_cold.compat import active, availability, places, tiers, versions
from vllm_cold.compat.engine import (
    ASYNC_SCHEDULER,
    SCHEDULER,
    chained_extension,
    is_configured,
    slots_of,
)
from vllm_cold.compat.runner import Runner, runner_of
from vllm_cold.errors import site
from vllm_cold.frontend import ascend
from vllm_cold.frontend.support import engine_defaults, unsupported
from vllm_cold.rules import registry
from vllm_cold.settings.arguments import ColdArgs, load_rules
from vllm_cold.settings.source_readers import read_without

logger = logging.getLogger("vllm." + __name__)


def prepare_engine(config: VllmConfig) -> None:
    """Prepare an engine, and its front end, if it is to have contrastive decoding; log what that
    means.

    Raises:
        ValueError: see ``configure``.
    """
    configure(config)
    if not is_configured(config):
        return
    availability.install(places.FRONT_END)
    load_rules(config.additional_config)
    _say(defaults := engine_defaults(config))
    if (slots := slots_of(config)).max_share is not None:
        text = "Contrastive requests have at most %d of %d sequence slots at a time (max_share=%s)."
        logger.info(text, slots.contrastive, slots.engine, slots.max_share)
    _warn(defaults)
    ascend.warn(config)
    tiers.warn_of_engine(config)


def _say(defaults: ColdArgs) -> None:
    if defaults.enabled:
        values = ", ".join(f"{k}={v}" for k, v in defaults.settings()[0].as_dict().items())
        which = "requests that name an adapter"
        if (without := defaults.values.get("without")) is not None:
            which = f"chats (against the same without {without}), not for completions"
        elif (images := defaults.preset.images) is not None:
            which = f"prompts with images (against the same with {images}), not for others"
        what = f"the default for {which}, with {values}"
    else:
        what = "used for requests that ask for it (ColdParams, cold_* in vllm_xargs)"
    logger.info(
        "Contrastive decoding is %s. vLLM's warning about a custom scheduler class is expected: "
        "vllm-cold's extends the class that vLLM would use.",
        what,
    )


def _warn(defaults: ColdArgs) -> None:
    """Say what a default does that leaves out a chat's texts, and not its instructions alone.
    System prompts count as instructions, unless the preset is for texts.
    """
    without, preset = defaults.values.get("without"), defaults.preset
    if not defaults.enabled or without is None:
        return
    roles = set(read_without("without", without).items)
    if roles <= {"system", "developer"} and not preset.of_texts:
        return
    does = "is followed whether it answers or not: where it does not"
    rows = 'that say "answers": false'
    rule = defaults.settings()[0].rule
    if rule is not None and registry.get(rule).mixes:
        does = "is followed less: where it contradicts what the model remembers"
        rows = "of such texts"
    logger.warning(
        "vllm-cold: with this default a chat's text (%s) %s, mostly fewer answers are right than "
        "without a contrast (%s). Measure it on your data: vllm-cold tune, with rows %s.",
        without,
        does,
        site("accuracy.html"),
        rows,
    )


def configure(config: VllmConfig) -> None:
    """Prepare an engine for contrastive decoding if it can do it.

    Raises:
        ValueError: if the engine's defaults ask for contrastive decoding and it cannot; says why.
    """
    defaults = engine_defaults(config)
    if is_configured(config):
        return
    try:
        problem = unsupported(config) or availability.verify()
    except (AttributeError, ImportError) as error:  # the configuration is another one
        availability.give_up(f"{type(error).__name__}: {error}")
        problem = active.unavailable
    if problem is not None:
        if defaults.enabled:
            raise ValueError(
                f"Contrastive decoding is this engine's default sampler, but {problem}"
            )
        return
    scheduler, models = config.scheduler_config, config.model_config
    runner = runner_of(
        config
    )  # asked first: before 0.31 an engine with processors falls back to V1
    models.logits_processors = [*(models.logits_processors or ()), runner.processor]
    if runner is Runner.V2 and not versions.is_before("0.33"):
        workers = config.parallel_config
        workers.worker_extension_cls = chained_extension(workers.worker_extension_cls)
    # async_scheduling is resolved by now; a scheduler of the wrong kind breaks placeholders.
    scheduler.scheduler_cls = ASYNC_SCHEDULER if scheduler.async_scheduling else SCHEDULER
