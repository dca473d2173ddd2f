# SPDX-License-Identifier: Apache-2.0
"""What a request asks for (``Asked``), and what ``admission`` makes of that and its prompt: what is
contrasted with what (``RequestContrast``), which the scheduler gets as a ``Stream``.
"""

from dataclasses import dataclass, replace
from typing import Any

from msgspec.structs import asdict
from safetensors.torch import save
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest

from vllm_cold.frontend.prompts import Prompt, PromptSource
from vllm_cold.params import ColdParams
from vllm_cold.rules import registry
from vllm_cold.settings.amateurs import AmateurSpec, ContrastSpec
from vllm_cold.settings.presets import PRESETS, PresetName
from vllm_cold.settings.sources import CannotLeaveOut
from vllm_cold.wire.stream import AmateurStream, Stream

_SHOWN = 100  # characters of what an amateur reads: a client decides how long that is


@dataclass(frozen=True, slots=True)
class Asked(ContrastSpec):
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
    preset: PresetName | None = None
    optional: bool = False
    explicit: bool = True
    unlimited: bool = False
    explain: int = 0

    @classmethod
    def of_params(cls, params: ColdParams, expert: LoRARequest | None) -> "Asked":
        """What ``ColdParams`` ask for."""
        settings, weights = params.combine()
        named = "amateur" if params.amateurs is None else "amateurs[{}]"
        amateurs: list[AmateurSpec] = []
        for i, one in enumerate(params.contrast()):
            # A prompt that several read is one object, and made once.
            known = (each.source for each in amateurs if each.source == one.source)
            field, lora = named.format(i), one.adapter(expert)
            source = next(known, one.source)
            amateurs.append(AmateurSpec(field, field, source=source, weight=one.weight, lora=lora))
        explain = int(params.explain)
        return cls(settings, tuple(amateurs), weights, expert, params.method, explain=explain)

    @property
    def by_default(self) -> bool:
        """Whether only a default asks: the request is served without a contrast where one is not
        possible.
        """
        return self.optional and not self.explicit

    def applies(self, source: PromptSource) -> bool:
        """Whether a prompt has what a default leaves out. True for a request that says itself what
        is left out, and for a completion with a preset: it is refused later where the prompt has no
        such thing.
        """
        if not self.optional:
            return True
        try:
            for one in {id(each.source): each for each in self.amateurs}.values():
                source.check_differs(one)
        except CannotLeaveOut:
            return self.explicit and source.messages is None
        return True

    @property
    def in_force(self) -> PresetName | None:
        """The preset that the request is decoded by; None where the request replaced its rule."""
        preset = self.preset
        if preset is None or PRESETS[preset].settings.get("rule") != self.settings.rule:
            return None
        return preset

    def as_dict(self) -> dict[str, Any]:
        """What is in force, by name, for clients."""
        told = self.settings.as_dict()
        if self.in_force is not None:
            told["preset"] = self.in_force
        amateurs: list[dict[str, Any]] = []
        for one, weight in zip(self.amateurs, self.weights, strict=True):
            amateurs.append({"amateur": one.lora and one.lora.lora_name})
            if one.source is not None:
                amateurs[-1]["prompt"] = str(one.source)[:_SHOWN]
            amateurs[-1]["weight"] = self.settings.rule if weight is None else weight
        if len(amateurs) == 1 and self.weights[0] in (None, -self.settings.beta):
            del amateurs[0]["weight"]  # the rule or beta says it
        else:
            told = {name: value for name, value in told.items() if name not in ("beta", "rule")}
        return {**told, **amateurs[0]} if len(amateurs) == 1 else {**told, "amateurs": amateurs}


@dataclass(frozen=True, slots=True)
class RequestContrast:
    """What is contrasted with what.

    Attributes:
        asked: The adapters, the weights and the method's settings.
        expert: The expert's prompt.
        prompts: Those of the amateurs; None for one that reads the expert's.
    """

    asked: Asked
    expert: Prompt
    prompts: tuple[Prompt | None, ...]

    @property
    def streams(self) -> list[Prompt]:
        """The prompt that each stream reads, the expert's first."""
        return [self.expert, *(one or self.expert for one in self.prompts)]

    @property
    def own(self) -> list[tuple[AmateurSpec, Prompt]]:
        """The amateurs that have a prompt of their own."""
        pairs = zip(self.asked.amateurs, self.prompts, strict=True)
        return [(one, prompt) for one, prompt in pairs if prompt is not None]

    def stream(self) -> Stream:
        """What the scheduler is told. Copies embeddings, so call it after ``Admission.check``."""
        asked = self.asked
        name = asked.settings.rule
        rule = None if name is None else registry.get(name)
        # A prompt that several read is copied once.
        tensors = {id(one): one.embeds for _, one in self.own if one.embeds is not None}
        copies = {key: save({"embeds": one.contiguous()}) for key, one in tensors.items()}
        amateurs = []
        for one, weight, prompt in zip(asked.amateurs, asked.weights, self.prompts, strict=True):
            own = prompt or Prompt(None)  # None: it reads the expert's
            amateurs.append(
                AmateurStream(
                    weight,
                    _as_data(one.lora),
                    own.ids,
                    copies.get(id(own)),
                    own.is_token_ids,
                    len(own.features),
                )
            )
        return Stream(
            asked.settings,
            tuple(amateurs),
            method=asked.in_force or name or ("custom" if self.own else "cold"),
            rule_keeps_state=rule is not None and rule.state > 0,
            retires=rule is not None and rule.retires,
            explain=asked.explain,
        )

    def append_media(self, request: EngineCoreRequest) -> None:
        """Put the media of amateurs' own prompts after the expert's, as if the prompts stood one
        after the other: there they are in no block of the expert's.
        """
        if not any(one.features for _, one in self.own):
            return
        end = len(self.expert.ids or ())
        features = list(request.mm_features or ())
        for _, one in self.own:
            for feature in one.features:
                place = replace(feature.mm_position, offset=feature.mm_position.offset + end)
                features.append(replace(feature, mm_position=place))
            end += len(one.ids or ())
        request.mm_features = features


def same(one: LoRARequest | None, other: LoRARequest | None) -> bool:
    """Whether two adapters are one."""
    if one is None or other is None:
        return one is other
    return bool(one.lora_int_id == other.lora_int_id or one.lora_name == other.lora_name)


def _as_data(adapter: LoRARequest | None) -> dict[str, Any] | None:
    if adapter is None:
        return None
    return {name: value for name, value in asdict(adapter).items() if value is not None}
