# SPDX-License-Identifier: Apache-2.0
"""What a request is decoded with, as ``admission`` decides it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_cold.errors import ColdError
from vllm_cold.group.stream import AmateurStream, Stream
from vllm_cold.method import arguments
from vllm_cold.method.amateurs import AmateurSpec, CannotLeaveOut, Without
from vllm_cold.method.embeddings import Embeddings
from vllm_cold.method.presets import PRESETS, PresetName
from vllm_cold.params import ColdParams
from vllm_cold.rules import registry
from vllm_cold.vllm.frontend import prompts

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

_SHOWN = 100  # characters of what an amateur reads: a client decides how long that is


@dataclass(frozen=True, slots=True)
class Contrast(arguments.Contrast):
    """What a request is decoded with, and how it was asked for.

    Attributes:
        preset: The name of the method that was asked for, None if none was.
        optional: Whether the request is decoded without CoLD where its conversation has nothing
            that would be left out: the engine's default or a preset's says what that is, not the
            request.
        asked: Whether the request says anything itself, and so is told of all else that is in the
            way.
        unlimited: Whether nobody said how many tokens the request gets.
        explain: Of how many tokens of each step the client is told; 0 for none.
    """

    preset: PresetName | None = None
    optional: bool = False
    asked: bool = True
    unlimited: bool = False
    explain: int = 0

    @property
    def gives_way(self) -> bool:
        """Whether nobody is told what is in the way: the request asked for nothing."""
        return self.optional and not self.asked

    def check_alone(self, prompts: int) -> None:
        """Refuse to tell of the steps of several prompts: there is room for those of one."""
        if self.explain and prompts > 1:
            raise ColdError("prompt", prompts, "must be one beside cold_explain; send each alone")

    def applies(self, prompt_source: prompts.PromptSource) -> bool:
        """Whether a request has what a default leaves out; one that asked itself has to."""
        if not self.optional:
            return True
        if prompt_source.messages is None and not prompt_source.has_images:
            return self.asked  # and is refused when its amateur's prompt is made
        try:
            for one in {id(each.source): each for each in self.amateurs}.values():
                if isinstance(one.source, Without) and prompt_source.messages is None:
                    return self.asked
                prompts.check_there(prompt_source, one)
        except CannotLeaveOut:
            return False
        return True

    def settle(
        self,
        amateurs: tuple[AmateurSpec, ...],
        expert: "LoRARequest | None",
        expert_prompt: prompts.Prompt,
    ) -> "Contrast | None":
        """The contrast with its amateurs' prompts, none of which is its expert in prompt and
        adapter: refused where the request asked for it, and no contrast where it did not (a
        template may put in what was left out, or cut it off).

        Raises:
            ColdError: there is one.
        """
        for one in amateurs:
            if one.source is not None and same(one.lora, expert) and expert_prompt.is_of(one):
                if self.gives_way:
                    return None
                raise one.refused(
                    "the amateur is the expert, prompt and adapter; give it another prompt or "
                    "adapter"
                )
        return replace(self, amateurs=amateurs)

    def stream(self) -> Stream:
        """What the scheduler is told. Copies embeddings, which must have room by now."""
        amateurs = zip(self.amateurs, self.weights, strict=True)
        own = any(one.source is not None for one in self.amateurs)
        name = self.settings.rule
        rule = None if name is None else registry.get(name)
        # A preset whose rule is another one, or none, is not what the request is decoded by.
        preset = self.preset
        if preset is not None and name is not None and PRESETS[preset].knobs.get("rule") != name:
            preset = None
        return Stream(
            self.settings,
            tuple(
                AmateurStream(weight, _as_data(one.lora), one.prompt, embeds, len(one.features))
                for (one, weight), embeds in zip(amateurs, _copies(self.amateurs), strict=True)
            ),
            method=preset or name or ("custom" if own else "cold"),
            keeps_state=rule is not None and rule.state > 0,
            retires=rule is not None and rule.retires,
            explain=self.explain,
        )

    def as_dict(self) -> dict[str, Any]:
        """For those who ask: what is in force, by name; without what is not."""
        told = self.settings.as_dict()
        if self.preset is not None:
            told["preset"] = self.preset
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


def of_params(params: ColdParams, expert: "LoRARequest | None") -> Contrast:
    """What ``ColdParams`` ask for."""
    settings, weights = params.combine()
    named = "amateur" if params.amateurs is None else "amateurs[{}]"
    amateurs: list[AmateurSpec] = []
    for i, one in enumerate(params.contrast()):
        # What several read is one and the same, and made once.
        source = next((each.source for each in amateurs if each.source == one.source), one.source)
        field = named.format(i)
        lora = one.adapter(expert)
        amateurs.append(AmateurSpec(field, field, source=source, weight=one.weight, lora=lora))
    return Contrast(settings, tuple(amateurs), weights, params.method, explain=int(params.explain))


def same(one: "LoRARequest | None", other: "LoRARequest | None") -> bool:
    """Whether two adapters are one."""
    if one is None or other is None:
        return one is other
    return bool(one.lora_int_id == other.lora_int_id or one.lora_name == other.lora_name)


def _copies(amateurs: tuple[AmateurSpec, ...]) -> Iterator[Embeddings | None]:
    """Their embeddings; of those who read the same, one copy."""
    made: dict[tuple[int, int], Embeddings] = {}
    for one in amateurs:
        if one.embeds is None:
            yield None
            continue
        key = id(one.embeds), id(one.is_token_ids)
        if key not in made:
            made[key] = Embeddings.of(one.embeds, one.is_token_ids)
        yield made[key]


def _as_data(adapter: "LoRARequest | None") -> dict[str, Any] | None:
    if adapter is None:
        return None
    values = {name: getattr(adapter, name) for name in adapter.__struct_fields__}
    return {name: value for name, value in values.items() if value is not None}
