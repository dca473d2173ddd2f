# SPDX-License-Identifier: Apache-2.0
"""What vLLM's processes get when they load the plugin, whatever they serve. These hooks load the
rest of the front end when they are used: when an engine is configured. Engine cores and workers
that have nothing to do with vllm-cold load none of it.
"""

from typing import Any

from vllm_cold.compat import engine
from vllm_cold.compat.patching import Original


def wrap_create_engine_config(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``EngineArgs.create_engine_config``."""
    from vllm_cold.frontend import engine_config

    # First: whether contrastive decoding is available decides what the configuration becomes.
    engine_config.prepare_front_end(args[0] if args else kwargs.get("usage_context"))
    config = original(self, *args, **kwargs)
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
    request = original(self, request_id, prompt, params, *args, **kwargs)
    if request.sampling_params is None:  # of a pooling model
        return request
    # ``ColdParams``, or a subclass of it: else nothing of ours need be loaded to know that.
    is_ours = any(kind.__module__.startswith("vllm_cold.") for kind in type(params).__mro__)
    if is_ours or params.extra_args or engine.is_configured(self.vllm_config):
        from vllm_cold.frontend import intake

        intake.admit_request(self, request, prompt, params)
    return request
