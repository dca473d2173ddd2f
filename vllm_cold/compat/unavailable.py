# SPDX-License-Identifier: Apache-2.0
"""Hooks of a process in which contrastive decoding is unavailable: whoever asks for it
is told why.
"""

from typing import Any

from vllm_cold.compat import active
from vllm_cold.compat.engine import cold_setting
from vllm_cold.compat.patching import Original
from vllm_cold.compat.vllm_errors import as_http_400
from vllm_cold.settings.arguments import parse_engine_defaults, parse_request_args


def wrap_verify(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap ``SamplingParams.verify``."""
    with as_http_400():
        if parse_request_args(self.extra_args).enabled:
            raise ValueError(f"Contrastive decoding is unavailable: {active.unavailable}")
    original(self, *args, **kwargs)


def wrap_post_init(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap ``EngineArgs.__post_init__``."""
    original(self, *args, **kwargs)
    if parse_engine_defaults(cold_setting(self.additional_config)).enabled:
        raise ValueError(
            "Contrastive decoding is this engine's default sampler, but it is unavailable: "
            f"{active.unavailable}"
        )
