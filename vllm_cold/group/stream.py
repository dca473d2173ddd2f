# SPDX-License-Identifier: Apache-2.0
"""How the two streams of a CoLD request are described on their way through vLLM.

``SamplingParams`` crosses process boundaries as vLLM's own struct, so everything that the
scheduler and the logits processors must know travels as plain data in ``extra_args[KEY]``:
written once at admission (the settings and the amateur), completed in the scheduler (pair and
role), read by the logits processors. Plain Python without vLLM.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vllm_cold.method.settings import is_ours

KEY = "cold_stream"

Role = Literal["expert", "amateur"]


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of a CoLD request.

    Attributes:
        alpha: Plausibility threshold in (0, 1].
        beta: Contrast strength, >= 0; if adaptive, the most that it reaches.
        expert_top_k: Cap on the candidates; 0 means none.
        amateur: The amateur's adapter as vLLM-independent data (the keyword arguments of a
            LoRARequest), None for the base model.
        pair: Identifies the pair within one engine; empty until the scheduler made it.
        role: Which of the two streams this is; None until the scheduler made the pair.
        adaptive: Whether beta is chosen at each step.
    """

    alpha: float
    beta: float
    expert_top_k: int = 0
    amateur: dict[str, Any] | None = None
    pair: str = ""
    role: Role | None = None
    adaptive: bool = False

    def to_extra_args(self, extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
        """``extra_args`` without the request's own ``cold_*`` keys, with this stream added."""
        return {**without_cold(extra_args), KEY: asdict(self)}


def without_cold(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """``extra_args`` without ``cold`` and ``cold_*``."""
    return {k: v for k, v in (extra_args or {}).items() if not is_ours(k)}


def from_extra_args(extra_args: Mapping[str, Any] | None) -> Stream | None:
    """The stream that ``to_extra_args`` wrote, None for a plain request."""
    data = extra_args.get(KEY) if extra_args else None
    return None if data is None else Stream(**data)
