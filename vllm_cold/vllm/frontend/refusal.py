# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``SamplingParams.verify``, ``FlexibleArgumentParser.parse_known_args`` and
``EngineArgs.__post_init__``, where CoLD is unavailable and only there.

Why: who asks for CoLD must be told why it is not there, and must not get plain decoding, or
"unrecognized arguments", without a word. These places are none of those that CoLD itself needs, so
that a change of vLLM hardly ever takes both. Whichever of them is missing too is left out.
Since: 0.23 to 0.33. Can go: never; it is the net.
"""

import sys
from collections.abc import Callable
from typing import Any

from vllm_cold.method.arguments import parse_engine_defaults, parse_request_args
from vllm_cold.vllm.frontend.errors import refusals
from vllm_cold.vllm.patching import PatchPoint

_reason = ""


def install(reason: str) -> None:
    """Wrap what there is of the three; ``reason``: why CoLD is unavailable."""
    global _reason
    _reason = reason
    for place in PATCH_POINTS:
        if place.problem() is None:
            place.wrap()


def _make_verify(original: Callable[..., None]) -> Callable[..., None]:
    def verify(self: Any, *args: Any, **kwargs: Any) -> None:
        with refusals():
            if parse_request_args(self.extra_args).enabled:
                raise ValueError(f"CoLD is unavailable: {_reason}")
        original(self, *args, **kwargs)

    return verify


def _make_parse(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_known_args(self: Any, args: Any = None, *further: Any, **kwargs: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        for option, following in zip(given, [*given[1:], ""], strict=True):
            name, assigned, value = option.partition("=")
            name = name.replace("_", "-")
            chosen = name == "--sampler" and (value if assigned else following) == "cold"
            if chosen or name.startswith("--cold-"):
                self.error(f"argument {name}: CoLD is unavailable: {_reason}")
        return original(self, args, *further, **kwargs)

    return parse_known_args


def _make_post_init(original: Callable[..., None]) -> Callable[..., None]:
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        additional = self.additional_config
        cold = additional.get("cold") if isinstance(additional, dict) else None
        if parse_engine_defaults(cold).enabled:
            raise ValueError(
                f"CoLD is this engine's default sampler, but it is unavailable: {_reason}"
            )

    return __post_init__


PATCH_POINTS = (
    PatchPoint("vllm.sampling_params:SamplingParams.verify", _make_verify),
    PatchPoint(
        "vllm.utils.argparse_utils:FlexibleArgumentParser.parse_known_args",
        _make_parse,
        ("args",),
    ),
    PatchPoint("vllm.engine.arg_utils:EngineArgs.__post_init__", _make_post_init),
)
