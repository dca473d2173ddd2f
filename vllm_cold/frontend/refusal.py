# SPDX-License-Identifier: Apache-2.0
"""What tells whoever asks for contrastive decoding why it is unavailable."""

import sys
from collections.abc import Callable
from typing import Any

from vllm_cold.compat import active
from vllm_cold.frontend.vllm_errors import refusals
from vllm_cold.settings.arguments import parse_engine_defaults, parse_request_args


def wrap_verify(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``SamplingParams.verify``."""

    def verify(self: Any, *args: Any, **kwargs: Any) -> None:
        with refusals():
            if parse_request_args(self.extra_args).enabled:
                raise ValueError(f"Contrastive decoding is unavailable: {active.unavailable}")
        original(self, *args, **kwargs)

    return verify


def wrap_parse_known_args(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``FlexibleArgumentParser.parse_known_args``."""

    def parse_known_args(self: Any, args: Any = None, *further: Any, **kwargs: Any) -> Any:
        command = list(sys.argv[1:] if args is None else args)
        for option, following in zip(command, [*command[1:], ""], strict=True):
            name, assigned, value = option.partition("=")
            name = name.replace("_", "-")
            chosen = name == "--sampler" and (value if assigned else following) == "cold"
            if chosen or name.startswith("--cold-"):
                self.error(
                    f"argument {name}: contrastive decoding is unavailable: {active.unavailable}"
                )
        return original(self, args, *further, **kwargs)

    return parse_known_args


def wrap_post_init(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``EngineArgs.__post_init__``."""

    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        additional = self.additional_config
        cold = additional.get("cold") if isinstance(additional, dict) else None
        if parse_engine_defaults(cold).enabled:
            raise ValueError(
                "Contrastive decoding is this engine's default sampler, but it is unavailable: "
                f"{active.unavailable}"
            )

    return __post_init__
