# SPDX-License-Identifier: Apache-2.0
"""How the streams of a contrastive request are described on their way through vLLM.

``SamplingParams`` crosses process boundaries as vLLM's own struct, so everything that the
scheduler and the logits processors must know travels as plain data in ``extra_args[KEY]``:
written once at admission (the settings and the amateurs), completed in the scheduler (group, index
and slot), read by the logits processors. Plain Python without vLLM.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from vllm_cold.settings.table import ColdSettings, is_ours

KEY = "cold_stream"


class AmateurStream(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an amateur differs from its expert by.

    Attributes:
        weight: Of its difference from the expert; ``-beta`` for a contrast. None if the rule of
            the settings chooses it at each step.
        adapter: As vLLM-independent data (the keyword arguments of a LoRARequest), None for the
            base model.
        prompt: Its token ids; None for the expert's prompt.
        num_features: Of the media of its own prompt. They travel after the expert's, at offsets
            past the end of its prompt and of the amateurs' before it.
    """

    weight: float | None
    adapter: dict[str, Any] | None = None
    prompt: list[int] | None = None
    num_features: int = 0


class Stream(msgspec.Struct, frozen=True):
    """One stream of a contrastive request.

    Attributes:
        settings: The method's settings.
        amateurs: All of the request's, in order.
        group: Identifies the request's streams within one engine; empty until the scheduler made
            them.
        index: Which of them this is: 0 for the expert, i for the i-th amateur; None until the
            scheduler made them.
        method: What the request is counted under; workers need not know.
        rule_keeps_state: Whether the rule does.
        retires: Whether the rule may end amateurs.
        charges: Whether the rule charges for tokens.
        temperature: The request's; 1 if it is greedy.
        slot: Where workers keep the state of the group's rule; None for a rule without, and until
            the group runs.
        explain: Of how many tokens of each step the client is told scores and logits; 0 for none.
    """

    settings: ColdSettings
    amateurs: tuple[AmateurStream, ...]
    group: str = ""
    index: int | None = None
    method: str = ""
    rule_keeps_state: bool = False
    retires: bool = False
    charges: bool = False
    temperature: float = 1.0
    slot: int | None = None
    explain: int = 0

    def to_extra_args(self, extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return ``extra_args`` with this stream, without the request's own ``cold_*`` keys."""
        return {**without_cold(extra_args), KEY: msgspec.to_builtins(self)}


def set_slot(extra_args: dict[str, Any], slot: int) -> None:
    """Write the slot into the stream that ``to_extra_args`` put there."""
    extra_args[KEY]["slot"] = slot


def without_cold(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``extra_args`` without ``cold`` and ``cold_*``."""
    return {k: v for k, v in (extra_args or {}).items() if not is_ours(k)}


def is_contrastive(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether a request is a stream of a contrastive one."""
    return extra_args is not None and KEY in extra_args


def from_extra_args(extra_args: Mapping[str, Any] | None) -> Stream | None:
    """Return the stream that ``to_extra_args`` wrote, None for a regular request."""
    data = extra_args.get(KEY) if extra_args else None
    return None if data is None else msgspec.convert(data, Stream)
