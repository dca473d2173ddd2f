# SPDX-License-Identifier: Apache-2.0
"""How the two streams of a CoLD request are described on their way through vLLM.

``SamplingParams`` crosses process boundaries as vLLM's own struct, so everything that the
scheduler and the logits processors must know travels as plain data in ``extra_args[KEY]``:
written once at admission (the settings and the amateur), completed in the scheduler (pair and
role), read by the logits processors. Plain Python without vLLM.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from vllm_cold.method.settings import ColdSettings, is_ours

KEY = "cold_stream"

Role = Literal["expert", "amateur"]


class Stream(msgspec.Struct, frozen=True):
    """One stream of a CoLD request.

    Attributes:
        settings: The method's knobs.
        amateur: The amateur's adapter as vLLM-independent data (the keyword arguments of a
            LoRARequest), None for the base model.
        pair: Identifies the pair within one engine; empty until the scheduler made it.
        role: Which of the two streams this is; None until the scheduler made the pair.
    """

    settings: ColdSettings
    amateur: dict[str, Any] | None = None
    pair: str = ""
    role: Role | None = None

    def to_extra_args(self, extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
        """``extra_args`` without the request's own ``cold_*`` keys, with this stream added."""
        return {**without_cold(extra_args), KEY: msgspec.to_builtins(self)}


def without_cold(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """``extra_args`` without ``cold`` and ``cold_*``."""
    return {k: v for k, v in (extra_args or {}).items() if not is_ours(k)}


def from_extra_args(extra_args: Mapping[str, Any] | None) -> Stream | None:
    """The stream that ``to_extra_args`` wrote, None for a plain request."""
    data = extra_args.get(KEY) if extra_args else None
    return None if data is None else msgspec.convert(data, Stream)
