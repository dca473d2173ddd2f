# SPDX-License-Identifier: Apache-2.0
"""Whether a request is decoded with CoLD, and against what.

``decide`` makes a plan of what the request, its parameters and the engine's defaults say, and
``prepare`` the amateurs' prompts; ``admission`` asks for both. Changes nothing.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec import structs

from vllm_cold.method.amateurs import (
    CannotLeaveOut,
    Described,
    Source,
    Without,
    describe,
    read_prompt,
    says_what,
)
from vllm_cold.method.arguments import EngineDefaults, RequestArgs
from vllm_cold.method.settings import ADAPTIVE, ColdError, ColdSettings, Weight, preset_of
from vllm_cold.params import ColdParams
from vllm_cold.vllm.frontend import prompts
from vllm_cold.vllm.frontend.config import (
    engine_defaults,
    is_configured,
    lacks_seats,
    unsupported,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest

_SHOWN = 100  # characters of what an amateur reads: a client decides how long that is
# Set while a beam search that was admitted without CoLD makes its own requests.
plain_search: ContextVar[bool] = ContextVar("plain_search", default=False)


@dataclass(frozen=True, slots=True)
class Planned:
    """An amateur of a plan.

    Attributes:
        field: What an error about it names.
        adapter: None for the base model.
        prompt: How its prompt is made.
        weight: Its weight.
    """

    field: str
    adapter: "LoRARequest | None"
    prompt: prompts.Order
    weight: Weight

    def as_dict(self) -> dict[str, Any]:
        """For those who ask what a request was decoded with."""
        told: dict[str, Any] = {"amateur": self.adapter and self.adapter.lora_name}
        if self.prompt.source is not None:
            told["prompt"] = str(self.prompt.source)[:_SHOWN]
        told["weight"] = ADAPTIVE if self.weight.adaptive else self.weight.weight
        return told


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is decoded with CoLD, as far as no length matters.

    Attributes:
        settings: The method's knobs.
        amateurs: One or more.
        preset: The name of the method that was asked for, None if none was.
        optional: Whether the request is decoded without CoLD where its conversation has nothing
            that would be left out: the engine's default or a preset's says what that is, not the
            request.
        asked: Whether the request says anything itself, and so is told of all else that is in the
            way.
    """

    settings: ColdSettings
    amateurs: tuple[Planned, ...]
    preset: str | None = None
    optional: bool = False
    asked: bool = True

    @property
    def method(self) -> str:
        """What it is counted under: the preset; without one "cold", or "custom" if an amateur has a
        prompt of its own.
        """
        own = any(one.prompt.source is not None for one in self.amateurs)
        return self.preset or ("custom" if own else "cold")

    def as_dict(self) -> dict[str, Any]:
        """What is in force, by name; without what is not."""
        told = self.settings.as_dict()
        if self.preset is not None:
            told["preset"] = self.preset
        amateurs = [one.as_dict() for one in self.amateurs]
        if len(amateurs) > 1:
            del told["beta"]
            return {**told, "amateurs": amateurs}
        if self.amateurs[0].weight == (-self.settings.strength, self.settings.adaptive):
            del amateurs[0]["weight"]  # beta says it
        else:
            del told["beta"]
        return {**told, **amateurs[0]}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with its amateurs' prompts.

    Attributes:
        plan: None for a request that is decoded without CoLD.
        prompts: Of the amateurs, token ids; None for the expert's.
        unlimited: Whether nobody said how many tokens the request gets.
    """

    plan: Plan | None
    prompts: tuple[list[int] | None, ...] = ()
    unlimited: bool = False


def decide(
    config: "VllmConfig",
    args: RequestArgs,
    expert: "LoRARequest | None",
    adapters: Mapping[str, "LoRARequest"] | None,
    params: Any = None,
) -> Plan | None:
    """Whether a request is decoded with CoLD, as far as its length does not matter.

    Args:
        config: The engine's configuration.
        args: The request's flat arguments.
        expert: The request's adapter.
        adapters: Adapters that can be named as ``cold_amateur``, by name; None where there is no
            server.
        params: The caller's SamplingParams or ColdParams, where there are any.

    Returns:
        How; None for a plain request.

    Raises:
        ValueError: the request asks for CoLD and cannot have it; says why.
    """
    if isinstance(params, ColdParams):
        plan = _of_params(params, expert)
    elif args.enabled is False:
        return None
    else:
        defaults = engine_defaults(config)
        asked = args != RequestArgs()
        left_out = _left_out(args, defaults)
        wanted = defaults.enabled and (expert is not None or left_out is not None)
        if not asked and (not wanted or plain_search.get()):
            return None
        plan = _of_args(config, args, defaults, expert, adapters, left_out)
    if not is_configured(config):
        raise ValueError(f"CoLD cannot be used in this engine: {unsupported(config)}")
    _check_adapters(config, expert, plan)
    _check_seats(config, plan)
    return plan


def _of_params(params: ColdParams, expert: "LoRARequest | None") -> Plan:
    settings, weights = params.combine()
    named = "amateur" if params.amateurs is None else "amateurs[{}]"
    return Plan(
        settings,
        tuple(
            Planned(
                named.format(i),
                one.adapter(expert),
                prompts.Order(named.format(i), read_prompt("prompt", one.prompt)),
                weight,
            )
            for i, (one, weight) in enumerate(zip(params.contrast(), weights, strict=True))
        ),
        params.method,
    )


def _left_out(args: RequestArgs, defaults: EngineDefaults) -> tuple[str, Any] | None:
    """What an amateur does not read of a chat, where the request says nothing of that, and whose
    default it is.
    """
    preset = preset_of(args.contrast)
    if says_what(args.contrast) or (preset is not None and not preset.own_prompt):
        return None
    own = None if preset is None else preset.without
    if isinstance(own, tuple):  # one for each of its amateurs
        return f"{args.contrast.preset}", list(own)
    if defaults.contrast.without is not None:
        return "the engine", defaults.contrast.without
    return None if own is None else (f"{args.contrast.preset}", own)


def _of_args(
    config: "VllmConfig",
    args: RequestArgs,
    defaults: EngineDefaults,
    expert: "LoRARequest | None",
    adapters: Mapping[str, "LoRARequest"] | None,
    left_out: tuple[str, Any] | None,
) -> Plan:
    contrast = args.contrast
    if left_out is not None:
        contrast = structs.replace(contrast, without=left_out[1])
    described = describe(contrast)
    if left_out is not None:
        field = f"cold_without ({left_out[0]}'s default)"
        described = tuple(
            replace(one, prompt_field=field, source=_lenient(one.source)) for one in described
        )
    settings, weights = args.settings(defaults, [one.weight for one in described])
    asked = args != RequestArgs()
    return Plan(
        settings,
        tuple(
            Planned(
                one.field,
                _adapter(config, one, expert, adapters or {}),
                prompts.Order(one.prompt_field, one.source),
                weight,
            )
            for one, weight in zip(described, weights, strict=True)
        ),
        contrast.preset or defaults.contrast.preset,
        # A server's header shows that a request was decoded without a contrast; nothing else does.
        left_out is not None
        and (not asked or (adapters is not None and args.contrast.preset is not None)),
        asked,
    )


def _lenient(source: Source | None) -> Source | None:
    return replace(source, lenient=True) if isinstance(source, Without) else source


def _adapter(
    config: "VllmConfig",
    one: Described,
    expert: "LoRARequest | None",
    adapters: Mapping[str, "LoRARequest"],
) -> "LoRARequest | None":
    """The adapter that an amateur names; without a name, the expert's if it has another prompt."""
    if one.adapter is None:
        return None if one.source is None else expert
    found = adapters.get(one.adapter)
    if found is None and one.adapter not in _base_names(config):
        loaded = ", ".join(sorted(adapters)) or "none"
        raise ColdError(one.field, one.adapter, f"no such adapter is loaded (loaded: {loaded})")
    return found


def _base_names(config: "VllmConfig") -> Sequence[str]:
    """What the base model is called."""
    names = getattr(config.model_config, "served_model_name", None) or ()
    return [names] if isinstance(names, str) else names


def _same(one: "LoRARequest | None", other: "LoRARequest | None") -> bool:
    if one is None or other is None:
        return one is other
    return bool(one.lora_int_id == other.lora_int_id or one.lora_name == other.lora_name)


def _check_adapters(config: "VllmConfig", expert: "LoRARequest | None", plan: Plan) -> None:
    used = {} if expert is None else {expert.lora_int_id: expert}
    for one in plan.amateurs:
        if one.prompt.source is None and _same(one.adapter, expert):
            _refuse_equal(one, expert)
        if one.adapter is None:
            continue
        name = one.adapter.lora_name
        if config.lora_config is None:
            raise ColdError(
                one.field,
                name,
                "LoRA is off; start the engine with enable_lora=True (--enable-lora)",
            )
        used.setdefault(one.adapter.lora_int_id, one.adapter)
        if len(used) > (most := config.lora_config.max_loras):
            raise ColdError(
                one.field,
                name,
                f"expert and amateur are two adapters in one batch, but max_loras={most}; start "
                "the engine with max_loras (--max-loras) >= 2"
                if len(used) == 2
                else f"expert and amateurs are {len(used)} adapters in one batch, but max_loras="
                f"{most}; start the engine with max_loras (--max-loras) of that many",
            )


def _refuse_equal(one: Planned, expert: "LoRARequest | None") -> None:
    if expert is None:
        raise ValueError(
            "CoLD needs an adapter as expert, and this request has none: pass lora_request (over "
            "HTTP: name the adapter as the model), or give the amateur a prompt of its own."
        )
    raise ColdError(
        one.field,
        expert.lora_name,
        "must differ from the expert; leave it out to contrast with the base model",
    )


def _check_seats(config: "VllmConfig", plan: Plan) -> None:
    """Raise ValueError if the engine has no room for so many streams."""
    if (problem := lacks_seats(config, 1 + len(plan.amateurs))) is not None:
        raise ValueError(problem)


def _orders(plan: Plan) -> list[prompts.Order]:
    return [one.prompt for one in plan.amateurs]


def applies(recipe: prompts.Recipe, plan: Plan) -> bool:
    """Whether a request has what the engine's default leaves out; one that asked itself has to."""
    if not plan.optional:
        return True
    if recipe.messages is None:
        return plan.asked  # and is refused when its amateur's prompt is made
    try:
        for one in plan.amateurs:
            prompts.messages_of(recipe, one.prompt)
    except CannotLeaveOut:
        return False
    return True


def refuse_multimodal() -> NoReturn:
    """Raise what a request with images is told."""
    raise ValueError("CoLD does not support multimodal prompts; send text only.")


def prepare(processor: Any, recipe: prompts.Recipe, plan: Plan) -> Prepared:
    """Make the amateurs' prompts, with the renderer of vLLM's InputProcessor.

    Raises:
        ValueError: one cannot be made.
    """
    if not applies(recipe, plan):
        return Prepared(None)
    return Prepared(plan, tuple(prompts.render(processor, recipe, _orders(plan))))


async def prepare_async(processor: Any, recipe: prompts.Recipe, plan: Plan) -> Prepared:
    """As ``prepare``, without blocking the event loop."""
    if not applies(recipe, plan):
        return Prepared(None)
    return Prepared(plan, tuple(await prompts.render_async(processor, recipe, _orders(plan))))


def settle(
    prepared: Prepared, expert: "LoRARequest | None", expert_prompt: list[int] | None
) -> Prepared:
    """No amateur is its expert in prompt and adapter: refused where the request asked for it, and
    no contrast where it did not (a template may put in what was left out, or cut it off).

    Raises:
        ColdError: there is one.
    """
    if (plan := prepared.plan) is None:
        return prepared
    for one, ids in zip(plan.amateurs, prepared.prompts, strict=True):
        if ids is not None and ids == expert_prompt and _same(one.adapter, expert):
            if plan.optional and not plan.asked:
                return Prepared(None)
            raise one.prompt.refused(
                "the amateur is the expert, prompt and adapter; give it another prompt or adapter"
            )
    return prepared
