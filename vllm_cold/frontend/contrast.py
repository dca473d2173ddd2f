# SPDX-License-Identifier: Apache-2.0
"""The contrast that a request asks for (``RequestedContrast``), and what ``admission`` makes of it
and of the prompt (``ResolvedContrast``), which the scheduler gets as a ``Stream``.
"""

from dataclasses import dataclass, replace
from typing import Any

from msgspec.structs import asdict
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest

from vllm_cold.frontend.prompts import Prompt, PromptSource
from vllm_cold.params import ColdParams
from vllm_cold.rules import registry
from vllm_cold.settings.amateurs import AmateurSpec, ContrastSpec
from vllm_cold.settings.presets import PRESETS
from vllm_cold.settings.sources import CannotLeaveOut
from vllm_cold.wire.stream import AmateurStream, Stream

_SHOWN = 100  # characters of what an amateur reads: a client decides how long that is


@dataclass(frozen=True, slots=True)
class RequestedContrast(ContrastSpec):
    """What a request asks for, or its engine's default for it.

    Attributes:
        expert: Its own adapter.
        preset: The name of the method that was asked for, None if none was.
        optional: Whether what is left out is a default's choice, so that a request whose
            conversation has no such thing is decoded without a contrast.
        explicit: Whether the request itself asks, and so is told what else is in the way.
        unlimited: Whether nobody said how many tokens the request gets.
        explain: Of how many tokens of each step the client is told; 0 for none.
    """

    expert: LoRARequest | None = None
    preset: str | None = None
    optional: bool = False
    explicit: bool = True
    unlimited: bool = False
    explain: int = 0

    @classmethod
    def of_params(cls, params: ColdParams, expert: LoRARequest | None) -> "RequestedContrast":
        """Return what ``ColdParams`` ask for."""
        settings, weights = params.combine()
        named = "amateur" if params.amateurs is None else "amateurs[{}]"
        amateurs: list[AmateurSpec] = []
        for i, spec in enumerate(params.contrast()):
            # A prompt that several read is one object, and made once.
            known = (a.source for a in amateurs if a.source == spec.source)
            field, lora = named.format(i), spec.adapter(expert)
            source = next(known, spec.source)
            amateurs.append(AmateurSpec(field, field, source=source, weight=spec.weight, lora=lora))
        explain = int(params.explain)
        return cls(settings, tuple(amateurs), weights, expert, params.method, explain=explain)

    @property
    def by_default(self) -> bool:
        """Whether only a default asks: the request is served without a contrast where one is not
        possible. A limit is not lost so.
        """
        limits = registry.is_of_scores(self.settings.rule)
        return self.optional and not self.explicit and not limits

    def applies(self, source: PromptSource) -> bool:
        """Whether a prompt has what a default leaves out. True for a request that says itself what
        is left out, and for a completion with a preset: it is refused later where the prompt has no
        such thing.
        """
        if not self.optional:
            return True
        try:
            for amateur in {id(a.source): a for a in self.amateurs}.values():
                source.check_differs(amateur)
        except CannotLeaveOut:
            return self.explicit and source.messages is None
        return True

    @property
    def in_force(self) -> str | None:
        """The preset that the request is decoded by; None where the request replaced its rule."""
        preset = self.preset
        if preset is None or PRESETS[preset].settings.get("rule") != self.settings.rule:
            return None
        return preset

    def as_dict(self) -> dict[str, Any]:
        """Return what is in force, by name, for clients."""
        contrast = self.settings.as_dict()
        if self.in_force is not None:
            contrast["preset"] = self.in_force
        amateurs: list[dict[str, Any]] = []
        for amateur, weight in zip(self.amateurs, self.weights, strict=True):
            amateurs.append({"amateur": amateur.lora and amateur.lora.lora_name})
            if amateur.source is not None:
                amateurs[-1]["prompt"] = str(amateur.source)[:_SHOWN]
            amateurs[-1]["weight"] = self.settings.rule if weight is None else weight
        if len(amateurs) == 1 and self.weights[0] in (None, -self.settings.beta):
            del amateurs[0]["weight"]  # the rule or beta says it
        else:
            contrast = {k: value for k, value in contrast.items() if k not in ("beta", "rule")}
        return contrast | (amateurs[0] if len(amateurs) == 1 else {"amateurs": amateurs})


@dataclass(frozen=True, slots=True)
class ResolvedContrast:
    """What is contrasted with what.

    Attributes:
        requested: The adapters, the weights and the method's settings.
        expert: The expert's prompt.
        prompts: Those of the amateurs; None for one that reads the expert's.
    """

    requested: RequestedContrast
    expert: Prompt
    prompts: tuple[Prompt | None, ...]

    @property
    def streams(self) -> list[Prompt]:
        """The prompt that each stream reads, the expert's first."""
        return [self.expert, *(prompt or self.expert for prompt in self.prompts)]

    @property
    def own_prompts(self) -> list[tuple[AmateurSpec, Prompt]]:
        """The amateurs that have a prompt of their own."""
        pairs = zip(self.requested.amateurs, self.prompts, strict=True)
        return [(amateur, prompt) for amateur, prompt in pairs if prompt is not None]

    def stream(self, temperature: float) -> Stream:
        """Return what the scheduler is told of a request with this temperature, 0 for greedy."""
        requested = self.requested
        name = requested.settings.rule
        rule = None if name is None else registry.get(name)
        amateurs = []
        for amateur, weight, prompt in zip(
            requested.amateurs, requested.weights, self.prompts, strict=True
        ):
            own = () if prompt is None else (prompt.ids, len(prompt.features))
            amateurs.append(AmateurStream(weight, _as_data(amateur.lora), *own))
        return Stream(
            requested.settings,
            tuple(amateurs),
            method=requested.in_force or name or ("custom" if self.own_prompts else "cold"),
            rule_keeps_state=rule is not None and rule.keeps_state,
            retires=rule is not None and rule.retires,
            charges=rule is not None and rule.charges,
            temperature=temperature or 1.0,
            explain=requested.explain,
        )

    def append_media(self, request: EngineCoreRequest) -> None:
        """Put the media of amateurs' own prompts after the expert's, as if the prompts stood one
        after the other: there they are in no block of the expert's.
        """
        if not any(prompt.features for _, prompt in self.own_prompts):
            return
        end = len(self.expert.ids)
        features = list(request.mm_features or ())
        for _, prompt in self.own_prompts:
            for feature in prompt.features:
                place = replace(feature.mm_position, offset=feature.mm_position.offset + end)
                features.append(replace(feature, mm_position=place))
            end += len(prompt.ids)
        request.mm_features = features


def same(adapter: LoRARequest | None, other: LoRARequest | None) -> bool:
    """Whether two adapters are the same."""
    if adapter is None or other is None:
        return adapter is other
    is_same = adapter.lora_int_id == other.lora_int_id or adapter.lora_name == other.lora_name
    return bool(is_same)


def _as_data(adapter: LoRARequest | None) -> dict[str, Any] | None:
    if adapter is None:
        return None
    return {name: value for name, value in asdict(adapter).items() if value is not None}
