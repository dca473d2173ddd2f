# SPDX-License-Identifier: Apache-2.0
"""What vLLM's processes get when they load the plugin, whatever they serve. These hooks load the
rest of the front end when an engine or a request may want a contrast, by what it says itself.
Engine cores and workers that have nothing to do with vllm-cold load none of it.
"""

from collections.abc import Mapping
from typing import Any

from vllm_cold.compat import availability, engine, places
from vllm_cold.compat.patching import Original

# What further kinds of front ends need, by the names of vLLM's UsageContext.
_TIMES = {
    "OPENAI_API_SERVER": places.ONLINE,
    "OPENAI_BATCH_RUNNER": places.ONLINE,
    "LLM_CLASS": places.OFFLINE,
}


def wrap_create_engine_config(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``EngineArgs.create_engine_config``."""
    # First: whether contrastive decoding is available decides what the configuration becomes.
    context = args[0] if args else kwargs.get("usage_context")
    if context is not None and (when := _TIMES.get(context.name)) is not None:
        availability.install(when)
    config = original(self, *args, **kwargs)
    if engine.may_contrast(config):
        from vllm_cold.frontend import engine_config

        engine_config.prepare_engine(config)
    return config


def wrap_add_cli_args(original: Original, parser: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``EngineArgs.add_cli_args``."""
    from vllm_cold.frontend import cli

    return cli.add_options(original(parser, *args, **kwargs))


def wrap_from_cli_args(
    original: Original, cls: type[Any], args: Any, *further: Any, **kwargs: Any
) -> Any:
    """Wrap ``EngineArgs.from_cli_args``."""
    from vllm_cold.frontend import cli

    cli.add_middleware(args)
    return cli.with_defaults(original(cls, args, *further, **kwargs), args)


def wrap_process_inputs(
    original: Original,
    self: Any,
    request_id: str,
    prompt: Any,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wrap ``InputProcessor.process_inputs``."""
    asks = are_ours(params) or has_our_keys(getattr(params, "extra_args", None))  # pooling has none
    asks = asks or engine.is_configured(self.vllm_config)
    # If the rest does not fit this vLLM, vLLM's check of the parameters refuses it from now on.
    is_available = asks and availability.verify() is None
    request = original(self, request_id, prompt, params, *args, **kwargs)
    if is_available and request.sampling_params is not None:
        from vllm_cold.frontend import intake

        intake.admit_request(self, request, prompt, params)
    return request


def are_ours(params: Any) -> bool:
    """Whether a request's parameters are ``ColdParams``, or of a subclass of it."""
    return any(kind.__module__.startswith("vllm_cold.") for kind in type(params).__mro__)


def has_our_keys(arguments: Mapping[str, Any] | None) -> bool:
    """Whether some of these flat arguments, or of a body's further fields, are ours."""
    if not (like_ours := [key for key in arguments or () if str(key)[:4].lower() == "cold"]):
        return False
    from vllm_cold.settings.table import is_known, is_ours

    return any(is_ours(key) or is_known(key) for key in like_ours)
