# SPDX-License-Identifier: Apache-2.0
"""Every method of vLLM that is wrapped, by when it is. Each file says of its own places why.

Modules are imported where they are asked for: vLLM loads the plugin in all processes, and most need
a few of them.
"""

from vllm_cold.vllm.patching import PatchPoint


def at_start() -> tuple[PatchPoint, ...]:
    """In every process, when vLLM loads the plugin."""
    from vllm_cold.cpu import cpu_platform
    from vllm_cold.npu import npu_platform
    from vllm_cold.vllm.frontend import cli, engine_config, intake

    lora = (*cpu_platform.patch_points(), *npu_platform.patch_points())
    return (*engine_config.PATCH_POINTS, *cli.PATCH_POINTS, *intake.PATCH_POINTS, *lora)


def later() -> tuple[PatchPoint, ...]:
    """In the processes of an engine that CoLD uses."""
    from vllm.platforms import current_platform

    from vllm_cold.vllm.frontend import intake, metrics, prompts, weights
    from vllm_cold.vllm.worker import amateur_tokens, outputs

    front_end = (*metrics.PATCH_POINTS, *intake.ASYNC, *prompts.PATCH_POINTS, *weights.PATCH_POINTS)
    places = (*outputs.PATCH_POINTS, *amateur_tokens.V1, *front_end)
    if not current_platform.is_cpu():
        return places
    from vllm_cold.cpu import lora_wrapper

    return (*places, *lora_wrapper.PATCH_POINTS)


def of_front_ends() -> tuple[PatchPoint, ...]:
    """In one kind of front end each."""
    from vllm_cold.vllm.frontend import serving

    return (*serving.online(), *serving.OFFLINE)


def dispensable() -> tuple[PatchPoint, ...]:
    """In a worker with the V2 runner or with states, and in front ends; where one is missing, CoLD
    does without it.
    """
    from vllm.platforms import current_platform

    from vllm_cold.vllm.frontend import aliases, media, metrics
    from vllm_cold.vllm.worker import block_zeroer, states

    of_workers = (block_zeroer.PATCH_POINT, *states.patch_points())
    places = (*of_workers, *aliases.patch_points(), *metrics.OFFLINE, *media.PATCH_POINTS)
    if not current_platform.is_cpu():
        return places
    from vllm_cold.cpu import moe_lora

    return (*places, *moe_lora.PATCH_POINTS)
