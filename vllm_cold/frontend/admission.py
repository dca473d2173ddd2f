# SPDX-License-Identifier: Apache-2.0
"""Decides, once for each request, whether it is decoded with a contrast, and against what.

A request is read (``RequestedContrast``) before its prompt is made, decided about
(``ResolvedContrast``) when it is made, and admitted (``Stream``) when its parameters are known. A
wrong one is refused with HTTP 400 (online) or ValueError (offline) before it costs anything.
``intake`` and ``serving`` call this where requests come in.
"""

import importlib.metadata
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

import msgspec
from msgspec import structs
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest

from vllm_cold.compat.engine import is_configured
from vllm_cold.compat.runner import PROCESSORS
from vllm_cold.errors import ColdError
from vllm_cold.frontend import adapter_config, request_media
from vllm_cold.frontend.capacity import fit
from vllm_cold.frontend.contrast import RequestedContrast, ResolvedContrast, same
from vllm_cold.frontend.prompts import Prompt, PromptSource
from vllm_cold.frontend.rendering import aside, render
from vllm_cold.frontend.support import engine_defaults, lacks_slots, unsupported
from vllm_cold.params import ColdParams
from vllm_cold.rules import registry
from vllm_cold.settings.amateurs import AmateurSpec, count_amateurs, default_omission, describe
from vllm_cold.settings.arguments import ColdArgs, parse_request_args
from vllm_cold.settings.encoder_room import room_of, why_never
from vllm_cold.settings.sources import CannotLeaveOut
from vllm_cold.settings.table import (
    DEFAULT_BETA,
    DEFAULT_MEGAPIXELS,
    MAX_AMATEURS,
    MOST_ITEMS,
    PREFIX,
    is_ours,
    named_by,
)
from vllm_cold.wire.stream import without_cold

# Numbers told of a request's steps: some 50 bytes each in the front end, some 20 in an answer that
# is written at once.
_MOST_TOLD = 200_000
# In flat arguments: the ``RequestedContrast`` of a request that was read before.
REQUESTED = "cold_asked"
_LONG = 2**15  # characters, which are read in about a millisecond
_MOST_QUOTES = 16  # for each token


class Admission:
    """Decides about the requests of one engine.

    Args:
        processor: vLLM's InputProcessor of the engine.
        models: vLLM's OpenAIServingModels of a server; None where there is none.
    """

    def __init__(self, processor: Any, models: Any = None) -> None:
        self.config = processor.vllm_config
        self.renderer = processor.renderer
        # 0 for models that read no media.
        self.encoder_cache_size: int = processor.mm_encoder_cache_size
        self.defaults = engine_defaults(self.config)
        limits = self.defaults.values
        # A request waits until all its streams have sequence slots, and others wait after it: by
        # default it may not have the engine emptied for that.
        quarter = min(max(self.config.scheduler_config.max_num_seqs // 4, 2), MAX_AMATEURS)
        self.most_amateurs: int = limits.get("max_amateurs", quarter)
        self.most_megapixels: float = limits.get("max_megapixels", DEFAULT_MEGAPIXELS)
        # The live dict: adapters that are loaded later can be named too.
        self.adapters: Mapping[str, LoRARequest] = {} if models is None else models.lora_requests
        self.is_server = models is not None

    # ---- what is asked for -----------------------------------------------------------------------

    def read(
        self,
        arguments: Mapping[str, Any] | None,
        expert: LoRARequest | None,
        params: Any = None,
        unlimited: bool = False,
    ) -> RequestedContrast | None:
        """Return what a request asks for, or its engine's default for it; None for a regular
        request.

        Args:
            arguments: Its flat arguments.
            expert: Its adapter.
            params: The caller's SamplingParams or ColdParams; None for an HTTP request.
            unlimited: Whether nobody said how many tokens it gets.

        Raises:
            ValueError: the request asks for contrastive decoding and cannot have it; says why.
        """
        if isinstance(known := (arguments or {}).get(REQUESTED), RequestedContrast):
            return known
        if isinstance(params, ColdParams):
            requested: RequestedContrast | None = RequestedContrast.of_params(params, expert)
            self._check_number("amateurs", len(params.contrast()))
        else:
            requested = self._of_args(parse_request_args(arguments), expert, unlimited)
            if params is None and is_configured(self.config):
                _check_sendable(arguments)
        if requested is None:
            return None
        self._check_adapters(requested)
        name = requested.settings.rule
        if name is not None and self.config.speculative_config is not None:
            rule = registry.get(name)
            if rule.keeps_state or rule.is_of_scores:
                prefix = "" if isinstance(params, ColdParams) else PREFIX
                raise ColdError(
                    prefix + named_by([amateur.weight for amateur in requested.amateurs]),
                    name,
                    "this rule keeps state from step to step, or computes what is sampled from, "
                    "which speculative decoding does not know of; use another rule, or an engine "
                    "without speculative decoding",
                )
        return requested

    async def read_aside(
        self, arguments: Mapping[str, Any] | None, *rest: Any
    ) -> RequestedContrast | None:
        """Do as ``read``, off the event loop where there is much to parse."""
        return await aside(not is_long(arguments), self.read, arguments, *rest)

    def _check_number(self, field: str, amateurs: int) -> None:
        """Refuse, before any prompt is read, more amateurs than this engine allows."""
        if not is_configured(self.config):
            raise ValueError(f"vllm-cold cannot be used in this engine: {unsupported(self.config)}")
        if amateurs > self.most_amateurs:
            raise ColdError(
                field,
                amateurs,
                "is how many amateurs the request has, and this engine allows "
                f"{self.most_amateurs}; name fewer, or start it with max_amateurs "
                f"(--cold-max-amateurs) {amateurs}",
            )
        if (problem := lacks_slots(self.config, 1 + amateurs)) is not None:
            raise ValueError(problem)

    def _of_args(
        self, args: ColdArgs, expert: LoRARequest | None, unlimited: bool
    ) -> RequestedContrast | None:
        if args.enabled is False:
            return None
        default = default_omission(args, self.defaults)
        explicit = args.enabled is not None
        wanted = self.defaults.enabled and (expert is not None or default is not None)
        if not explicit and not wanted:
            return None
        if default is not None:
            args = replace(args, values={**args.values, default.name: default.value})
        counted, number = count_amateurs(args)
        self._check_number(PREFIX + (counted or "amateur"), number)
        self._check_length(args)
        amateurs = describe(args)
        if default is not None:
            name = f"{PREFIX}{default.name} ({default.whose}'s default)"
            for amateur in amateurs:
                amateur.prompt_field, amateur.lenient = name, True
        settings, weights = args.settings(self.defaults, [a.weight for a in amateurs])
        return RequestedContrast(
            settings,
            tuple(structs.replace(a, lora=self._adapter(a, expert)) for a in amateurs),
            weights,
            expert,
            args.values.get("preset") or self.defaults.values.get("preset"),
            # Only a server's header shows that a request was decoded without a contrast.
            optional=default is not None
            and (not explicit or (self.is_server and "preset" in args.values)),
            explicit=explicit,
            unlimited=unlimited,
            explain=args.values.get("explain", 0),
        )

    def _check_length(self, args: ColdArgs) -> None:
        """Refuse messages that are too long for the model before they are parsed, which takes much
        longer than parsing the body did.
        """
        limit = self.config.model_config.max_model_len
        messages = args.values.get("amateur_messages")
        for text in [messages] if isinstance(messages, str) else messages or ():
            # A token has a few quotes at most, and around each message and part are some.
            if text.count('"') > _MOST_QUOTES * limit:
                problem = f"is more than max_model_len={limit} tokens; shorten it"
                raise ColdError(PREFIX + "amateur_messages", text, problem)

    def _adapter(self, amateur: AmateurSpec, expert: LoRARequest | None) -> LoRARequest | None:
        """Return the adapter that an amateur names; without a name, the expert's if it has another
        prompt.
        """
        name = amateur.adapter
        if name is None:
            return None if amateur.source is None else expert
        adapter = self.adapters.get(name)
        names: Any = self.config.model_config.served_model_name or ()
        if adapter is None and name not in ([names] if isinstance(names, str) else names):
            loaded = ", ".join(sorted(self.adapters)) or "none"
            raise ColdError(
                amateur.field,
                name,
                f"no such adapter is loaded (loaded: {loaded}); load it, or name one of these",
            )
        return adapter

    def _check_adapters(self, requested: RequestedContrast) -> None:
        expert = requested.expert
        used = {} if expert is None else {expert.lora_int_id: expert}
        for amateur in requested.amateurs:
            if amateur.source is None and same(amateur.lora, expert):
                if expert is None:
                    raise ValueError(
                        "vllm-cold needs an adapter as expert, and this request has none: pass "
                        "lora_request (over HTTP: name the adapter as the model), or give the "
                        "amateur a prompt of its own."
                    )
                raise ColdError(
                    amateur.field,
                    expert.lora_name,
                    "must differ from the expert; leave it out to contrast with the base model",
                )
            if amateur.lora is None:
                continue
            name = amateur.lora.lora_name
            if self.config.lora_config is None:
                raise ColdError(
                    amateur.field,
                    name,
                    "LoRA is off; start the engine with enable_lora=True (--enable-lora)",
                )
            used.setdefault(amateur.lora.lora_int_id, amateur.lora)
            if len(used) > (most := self.config.lora_config.max_loras):
                raise ColdError(
                    amateur.field,
                    name,
                    f"expert and amateurs are {len(used)} adapters in one batch, but max_loras="
                    f"{most}; start the engine with max_loras (--max-loras) >= {len(used)}",
                )

    # ---- what is contrasted with what ------------------------------------------------------------

    async def decide(
        self,
        requested: RequestedContrast | None,
        source: PromptSource,
        rendered: Any,
        online: Any = None,
        offline: bool = False,
    ) -> ResolvedContrast | None:
        """Make the amateurs' prompts, and return what a request is decoded with. None for a regular
        request, and where a default has nothing to leave out.

        Args:
            requested: What it asks for.
            source: How its prompt was made.
            rendered: The prompt, or the request, that vLLM made.
            online: As in ``rendering.render``.
            offline: As there.

        Raises:
            ValueError: what was asked for is not possible with this prompt; says why.
        """
        if requested is None or not requested.applies(source):
            return None
        is_made = isinstance(rendered, Mapping)
        embeds = rendered.get("prompt_embeds") if is_made else rendered.prompt_embeds
        if embeds is not None:
            if requested.by_default:
                return None
            raise ColdError(
                "prompt_embeds",
                list(embeds.shape),
                "embeddings are not contrasted; send text, token ids or messages, or "
                '"cold": 0 to decode without a contrast',
            )
        for amateur in requested.amateurs:
            lora = amateur.lora
            if amateur.adapter is None and lora is not None and lora is not requested.expert:
                # A worker that cannot load an adapter takes the engine down with it.
                await aside(offline, _check_file, self.config.lora_config.max_lora_rank, amateur)
        try:
            prompts = await render(
                self.renderer,
                source,
                requested.amateurs,
                online,
                most_megapixels=math.inf if offline else self.most_megapixels,
                offline=offline,
            )
        except CannotLeaveOut:
            if requested.by_default:
                return None
            raise
        contrast = ResolvedContrast(requested, Prompt.of(rendered), prompts)
        for amateur, prompt in contrast.own_prompts:
            # A template may put in what was left out, or cut it off.
            if same(amateur.lora, requested.expert) and contrast.expert.equals(prompt):
                if requested.by_default:
                    return None
                raise amateur.refused(
                    "the amateur is the expert, prompt and adapter; give it another prompt or "
                    "adapter"
                )
        if (never := self._check_media(contrast)) is not None:
            if requested.by_default:
                return None
            raise ValueError(f"vllm-cold: this request {never}.")
        return contrast

    def _check_media(self, contrast: ResolvedContrast) -> str | None:
        """Refuse media that vllm-cold does not support, and say why the streams' media could never
        be encoded in lockstep; None if they can.
        """
        prompts = contrast.streams
        features = [feature for prompt in prompts for feature in prompt.features]
        if not features:
            return None
        if (problem := request_media.unsupported(self.config)) is not None:
            raise ValueError(f"{request_media.REFUSED}{problem}")
        if any("address" in (feature.data or ()) for feature in features):
            raise ValueError(  # vLLM would write over them once the first stream has read them
                f"{request_media.REFUSED}they are in shared memory; start the engine with "
                'mm_processor_cache_type="lru", or send text only.'
            )
        room = room_of(self.config, self.encoder_cache_size)
        return why_never([(len(prompt.ids), prompt.features) for prompt in prompts], room)

    # ---- with the parameters ---------------------------------------------------------------------

    def check(
        self, contrast: ResolvedContrast, params: Any, most: int, unlimited: bool = False
    ) -> int:
        """Return how many tokens, ``most`` or fewer, a request with these parameters gets.

        Raises:
            ColdError: the parameters do not fit what it is decoded with, or its streams have no
                room.
        """
        requested = contrast.requested
        _check_exact(requested.settings.rule, params, self.config.model_config.logits_processors)
        unlimited = unlimited or requested.unlimited
        lengths = [len(prompt.ids) for prompt in contrast.streams]
        most = fit(self.config, requested.amateurs, lengths, most, unlimited)
        numbers = 2 * requested.explain * (2 + len(requested.amateurs)) * most * (params.n or 1)
        if numbers > _MOST_TOLD:
            raise ColdError(
                "cold_explain",
                requested.explain,
                f"would tell of {most} tokens by some {numbers} numbers, more than {_MOST_TOLD}; "
                "ask for fewer of each token, or set max_tokens",
            )
        return most

    def admit(
        self, contrast: ResolvedContrast | None, params: Any, request: EngineCoreRequest
    ) -> None:
        """Give a contrastive request its ``Stream`` in ``extra_args``.

        Args:
            contrast: What was decided.
            params: What the caller passed: SamplingParams or ColdParams.
            request: What vLLM made of its prompt and ``params``; changed in place.

        Raises:
            ValueError: as in ``check``, or the request is a session.
        """
        sampling = request.sampling_params
        if contrast is None:
            if any(map(is_ours, sampling.extra_args or ())):
                sampling.extra_args = without_cold(sampling.extra_args)
            return
        if request.resumable:
            raise ValueError(
                "vllm-cold does not support streaming-input sessions; send the whole prompt."
            )
        most = self.check(contrast, params, sampling.max_tokens, params.max_tokens is None)
        sampling.max_tokens = most
        sampling.min_tokens = min(sampling.min_tokens, most)
        sampling.extra_args = contrast.stream(sampling.temperature).to_extra_args(
            sampling.extra_args
        )
        contrast.append_media(request)
        if isinstance(sampling, ColdParams):
            # This request's own copy, whose stream says all now. The rest must be valid together:
            # workers, which unpickle it, check it again.
            sampling.amateur = sampling.amateurs = None
            sampling.beta, sampling.rule = DEFAULT_BETA, None
            sampling.rule_parameters = sampling.bits = sampling.bits_per_token = None


# What would change the distribution that a rule of scores gives, or tell of the expert's, and what
# it is where it does not; None never does. vLLM is checked for them (``frontend_places``).
_INEXACT: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "logit_bias": (None, {}),
    "thinking_token_budget": (None,),
    "logprobs": (None,),
    "prompt_logprobs": (None,),
    "logprob_token_ids": (None,),
    "prompt_logprob_token_ids": (None,),
}


@cache
def _plugins() -> tuple[str, ...]:
    """List the logits processors of installed packages, which vLLM loads into each engine."""
    try:
        from vllm.v1.worker.gpu.sample.logits_processor.loader import LOGITSPROCS_GROUP as group
    except ModuleNotFoundError:  # in 0.23
        from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP as group

    return tuple(point.value for point in importlib.metadata.entry_points(group=group))


def _check_exact(name: str | None, params: Any, processors: Sequence[Any] | None) -> None:
    """Refuse what a rule of scores does not allow; ``processors``: the engine's own."""
    if name is None or not (rule := registry.get(name)).is_of_scores:
        return
    if others := [p for p in (*(processors or ()), *_plugins()) if p not in PROCESSORS]:
        raise ValueError(
            f"vllm-cold: the rule {name!r} says all of the distribution that is sampled from, and "
            f"this engine has logits processors of its own ({others[0]}); start one without."
        )
    if rule.draws and not params.temperature:
        problem = f"must be above 0: what the rule {name!r} promises is of tokens that are drawn"
        raise ColdError("temperature", params.temperature, problem)
    wrong = {}
    for field, allowed in _INEXACT.items():
        value = getattr(params, field, None)  # prompt_logprob_token_ids since 0.31
        is_array = hasattr(value, "shape")  # which is equal to nothing else
        if is_array or (value is not None and value not in allowed):
            wrong[field] = value
    if not wrong:
        return
    field, value = next(iter(wrong.items()))
    problem = f"changes the distribution that the rule {name!r} gives"
    if "logprob" in field:
        problem = f"tells of the expert, whose part in the answer the rule {name!r} limits"
    needed = ", ".join(f"{field}={_INEXACT[field][0]}" for field in wrong)
    raise ColdError(
        field,
        value,
        f"{problem}; needed are {needed}, which the model's generation_config may set otherwise "
        "(--generation-config vllm leaves that out)",
    )


def is_long(arguments: Mapping[str, Any] | None) -> bool:
    """Whether parsing flat arguments would keep other requests waiting."""
    values = [value for key, value in (arguments or {}).items() if is_ours(key)]
    lists = [value[: 2 * MOST_ITEMS] if isinstance(value, list) else [value] for value in values]
    return sum(len(text) for text in chain(*lists) if isinstance(text, str)) > _LONG


def _check_sendable(arguments: Mapping[str, Any] | None) -> None:
    """Refuse what a body may hold, as vLLM takes any JSON, but vLLM then answers with HTTP 500."""
    try:
        msgspec.msgpack.encode(arguments)
    except (UnicodeEncodeError, OverflowError) as error:
        raise ValueError(
            f"vllm_xargs cannot be sent to the engine ({error}): use valid Unicode text, and "
            "integers from -2^63 to 2^64 - 1."
        ) from error


def _check_file(max_rank: int, amateur: AmateurSpec) -> None:
    """Refuse an adapter whose folder cannot be read, or whose rank is too high."""
    name, path = amateur.lora.lora_name, os.path.expanduser(amateur.lora.lora_path)
    if not (os.path.isabs(path) or os.path.exists(path) or os.environ.get("HF_HUB_OFFLINE") == "1"):
        return  # a name on a hub
    try:
        rank = adapter_config.read_rank(path)
    except ValueError as error:
        raise ColdError(amateur.field, name, str(error)) from error
    if rank > max_rank:
        raise ColdError(
            amateur.field,
            name,
            f"its rank {rank} is above the engine's max_lora_rank={max_rank}; start the engine "
            "with a max_lora_rank (--max-lora-rank) of that or more",
        )
