# SPDX-License-Identifier: Apache-2.0
"""Decides, once for each request, whether it is decoded with CoLD, and against what.

A wrong request is refused with HTTP 400 (online) or ValueError (offline) before it costs anything.
``intake`` and ``serving`` ask, where requests come in.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from msgspec import structs

from vllm_cold import adapter_config
from vllm_cold.errors import ColdError
from vllm_cold.group.media import why_never
from vllm_cold.group.stream import without_cold
from vllm_cold.method.amateurs import (
    AmateurSpec,
    CannotLeaveOut,
    Distorted,
    Embeds,
    Source,
    Without,
    count,
    describe,
    says_what,
)
from vllm_cold.method.arguments import ColdArgs, parse_request_args
from vllm_cold.method.settings import (
    DEFAULT_BETA,
    MOST_ITEMS,
    PREFIX,
    ContrastArgs,
    is_known,
    is_ours,
    named_by,
    preset_of,
)
from vllm_cold.params import ColdParams
from vllm_cold.patching import at_once
from vllm_cold.rules import registry
from vllm_cold.vllm.frontend import media, prompts
from vllm_cold.vllm.frontend.capacity import fit
from vllm_cold.vllm.frontend.config import (
    engine_defaults,
    is_configured,
    lacks_seats,
    most_amateurs,
    most_megapixels,
    unsupported,
    uses_v2_runner,
)
from vllm_cold.vllm.frontend.contrast import Contrast, of_params, same
from vllm_cold.vllm.frontend.prompts import UNDECIDED
from vllm_cold.vllm.scheduler.encoder import room_of

_LONG = 2**15  # characters, which are read in about a millisecond
_MOST_QUOTES = 16  # for each token

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreRequest


class Admission:
    """Decides, once for each request of an engine, whether it is decoded with CoLD, and against
    what.

    Args:
        processor: vLLM's InputProcessor of the engine.
        models: vLLM's OpenAIServingModels of a server; None where there is none.
        most_tokens: The most that the server gives a request, however many it asks for.
    """

    def __init__(self, processor: Any, models: Any = None, most_tokens: int | None = None) -> None:
        self.config = processor.vllm_config
        self.renderer = processor.renderer
        # Of media; 0 for models that read none.
        self.encoder_cache_size: int = getattr(processor, "mm_encoder_cache_size", 0)
        self.defaults = engine_defaults(self.config)
        self.most_amateurs = most_amateurs(self.config)
        self.most_megapixels = most_megapixels(self.config)
        # The live dict: adapters that are loaded later can be named too.
        self.adapters: Mapping[str, LoRARequest] = {} if models is None else models.lora_requests
        self.is_server = models is not None
        self.most_tokens = most_tokens

    @cached_property
    def default_penalty(self) -> float | None:
        """The repetition penalty of a server's request that has none. May read a file."""
        found: float | None = self.config.model_config.get_diff_sampling_param().get(
            "repetition_penalty"
        )
        return found

    def decide(
        self, said: Mapping[str, Any] | None, expert: "LoRARequest | None", params: Any = None
    ) -> Contrast | None:
        """Whether a request is decoded with CoLD, as far as its prompt does not matter.

        Args:
            said: Its flat arguments.
            expert: Its adapter.
            params: The caller's SamplingParams or ColdParams, where there are any.

        Returns:
            How; None for a plain request.

        Raises:
            ValueError: the request asks for CoLD and cannot have it; says why.
        """
        if isinstance(params, ColdParams):
            contrast: Contrast | None = of_params(params, expert)
            self._check_number("amateurs", len(params.contrast()))
        else:
            contrast = self._of_args(parse_request_args(said), expert)
        if contrast is None:
            return None
        self._check_adapters(contrast, expert)
        rule = contrast.settings.rule
        drafts = self.config.speculative_config is not None
        if rule is not None and drafts and registry.get(rule).state:
            prefix = "" if isinstance(params, ColdParams) else PREFIX
            raise ColdError(
                prefix + named_by([one.weight for one in contrast.amateurs]),
                rule,
                "this rule keeps state from step to step, which speculative decoding may have to "
                "take back; use a rule without, or an engine without speculative decoding",
            )
        return contrast

    async def decide_aside(
        self, said: Mapping[str, Any] | None, expert: "LoRARequest | None", params: Any = None
    ) -> Contrast | None:
        """As ``decide``, off the event loop where there is much to read."""
        return await prompts.aside(not _is_long(said), self.decide, said, expert, params)

    def _check_number(self, field: str, amateurs: int) -> None:
        """Refuse, before anything is read, what this engine has no place for."""
        if not is_configured(self.config):
            raise ValueError(f"CoLD cannot be used in this engine: {unsupported(self.config)}")
        if amateurs > self.most_amateurs:
            raise ColdError(
                field,
                amateurs,
                "is how many amateurs the request has, and this engine allows "
                f"{self.most_amateurs}; name fewer, or start it with max_amateurs "
                f"(--cold-max-amateurs) {amateurs}",
            )
        if (problem := lacks_seats(self.config, 1 + amateurs)) is not None:
            raise ValueError(problem)

    def _of_args(self, args: ColdArgs, expert: "LoRARequest | None") -> Contrast | None:
        if args.enabled is False:
            return None
        left_out = self._left_out(args)
        asked = args != ColdArgs()
        wanted = self.defaults.enabled and (expert is not None or left_out is not None)
        if not asked and not wanted:
            return None
        contrast = args.contrast
        if left_out is not None:
            contrast = structs.replace(contrast, **left_out[1])
        counted_by, number = count(contrast)
        self._check_number(PREFIX + (counted_by or "amateur"), number)
        self._check_length(contrast)
        amateurs = describe(contrast)
        if left_out is not None:
            name = f"cold_{next(iter(left_out[1]))} ({left_out[0]}'s default)"
            lenient: dict[int, Source] = {}
            for one in amateurs:
                assert isinstance(one.source, (Without, Distorted))
                of = structs.replace(one.source, lenient=True)
                one.source = lenient.setdefault(id(one.source), of)
                one.prompt_field = name
        settings, weights = args.settings(self.defaults, [one.weight for one in amateurs])
        return Contrast(
            settings,
            tuple(structs.replace(one, lora=self._adapter(one, expert)) for one in amateurs),
            weights,
            contrast.preset or self.defaults.contrast.preset,
            # A server's header shows that a request was decoded without a contrast; nothing else
            # does.
            left_out is not None
            and (not asked or (self.is_server and contrast.preset is not None)),
            asked,
            explain=args.explain,
        )

    def _left_out(self, args: ColdArgs) -> tuple[str, dict[str, Any]] | None:
        """What an amateur does not read of the prompt, where the request says nothing of that:
        whose default it is, and the key and its value.
        """
        preset, name = preset_of(args.contrast), f"{args.contrast.preset}"
        if says_what(args.contrast) or (preset is not None and not preset.own_prompt):
            return None
        engine = self.defaults.contrast
        if preset is None and (engines := preset_of(engine)) is not None and engines.images:
            return "the engine", {"images": engines.images}
        if preset is not None and preset.images is not None:
            # A method about images: what an engine leaves out of chats would make another of it.
            return name, {"images": preset.images}
        own = None if preset is None else preset.without
        if isinstance(own, tuple):  # one for each of its amateurs
            return name, {"without": list(own)}
        if engine.without is not None:
            return "the engine", {"without": engine.without}
        return None if own is None else (name, {"without": own})

    def _check_length(self, args: ContrastArgs) -> None:
        """Refuse messages that are too long for the model before they are read, which takes a
        multiple of the time that the body took.
        """
        said, limit = args.amateur_messages, self.config.model_config.max_model_len
        for text in [said] if isinstance(said, str) else said or ():
            # A token has a few of them at most, and around each message and part are some.
            if text.count('"') > _MOST_QUOTES * limit:
                problem = f"is more than max_model_len={limit} tokens; shorten it"
                raise ColdError(PREFIX + "amateur_messages", text, problem)

    def _adapter(self, one: AmateurSpec, expert: "LoRARequest | None") -> "LoRARequest | None":
        """What an amateur names; without a name, the expert's if it has another prompt."""
        if one.adapter is None:
            return None if one.source is None else expert
        found = self.adapters.get(one.adapter)
        names: Any = getattr(self.config.model_config, "served_model_name", None) or ()
        if found is None and one.adapter not in ([names] if isinstance(names, str) else names):
            loaded = ", ".join(sorted(self.adapters)) or "none"
            raise ColdError(
                one.field,
                one.adapter,
                f"no such adapter is loaded (loaded: {loaded}); load it, or name one of these",
            )
        return found

    def _check_adapters(self, contrast: Contrast, expert: "LoRARequest | None") -> None:
        used = {} if expert is None else {expert.lora_int_id: expert}
        for one in contrast.amateurs:
            if one.source is None and same(one.lora, expert):
                if expert is None:
                    raise ValueError(
                        "CoLD needs an adapter as expert, and this request has none: pass "
                        "lora_request (over HTTP: name the adapter as the model), or give the "
                        "amateur a prompt of its own."
                    )
                raise ColdError(
                    one.field,
                    expert.lora_name,
                    "must differ from the expert; leave it out to contrast with the base model",
                )
            if one.lora is None:
                continue
            name = one.lora.lora_name
            if self.config.lora_config is None:
                raise ColdError(
                    one.field,
                    name,
                    "LoRA is off; start the engine with enable_lora=True (--enable-lora)",
                )
            used.setdefault(one.lora.lora_int_id, one.lora)
            if len(used) > (most := self.config.lora_config.max_loras):
                raise ColdError(
                    one.field,
                    name,
                    f"expert and amateurs are {len(used)} adapters in one batch, but max_loras="
                    f"{most}; start the engine with max_loras (--max-loras) >= {len(used)}",
                )

    async def prepare(
        self, prompt: Any, contrast: Contrast | None, expert: Any, online: Any = None
    ) -> Any:
        """What vLLM made of a prompt, with what its request is decoded with: ``contrast``, with the
        amateurs' prompts, which are made off the event loop.

        Raises:
            ValueError: one cannot be made.
        """
        source = prompts.prompt_source_of(prompt)
        settled = await self._settle(source, contrast, expert, prompt, online)
        return prompts.with_decision(prompt, settled)

    def admit(self, prompt: Any, params: Any, request: "EngineCoreRequest") -> None:
        """Give a CoLD request its ``Stream`` in ``extra_args``.

        Args:
            prompt: What vLLM was given.
            params: What the caller passed: SamplingParams or ColdParams.
            request: What vLLM made of both; changed in place.

        Raises:
            ValueError: the request asks for CoLD and cannot have it; says why.
        """
        sampling = request.sampling_params
        contrast = self._contrast(prompt, sampling, request)
        if contrast is None:
            if any(map(is_ours, sampling.extra_args or ())):
                sampling.extra_args = without_cold(sampling.extra_args)
            return
        if request.resumable:
            raise ValueError(
                "CoLD does not support streaming-input sessions; send the whole prompt."
            )
        _check_embeds(self.config.model_config, request)
        length = len(request.prompt_token_ids or request.prompt_embeds)
        unlimited = contrast.unlimited or params.max_tokens is None
        most = fit(self.config, contrast.amateurs, length, sampling.max_tokens, unlimited)
        sampling.max_tokens = most
        sampling.min_tokens = min(sampling.min_tokens, most)
        sampling.extra_args = contrast.stream().to_extra_args(sampling.extra_args)
        media.append(request, contrast.amateurs)
        sharing = sum(one.num_tokens is None for one in contrast.amateurs)
        media.count_reads(self.renderer, request, sharing, params.n)
        if isinstance(sampling, ColdParams):
            # This request's own copy: all is said now. What is left must go together: whoever
            # unpickles it, as workers do, checks it again.
            sampling.amateur = sampling.amateurs = None
            sampling.beta, sampling.rule = DEFAULT_BETA, None
            sampling.beta_max, sampling.rule_parameters = None, None

    def _contrast(
        self, prompt: Any, sampling: Any, request: "EngineCoreRequest"
    ) -> Contrast | None:
        """What is decided about a request, now if it was not before."""
        if not self.may_contrast(prompt, sampling):
            return None
        if (known := prompts.decision_in(prompt)) is not UNDECIDED:
            return cast(Contrast, known)
        source, expert = prompts.prompt_source_of(prompt), request.lora_request
        contrast = self.decided(sampling, expert)
        return at_once(self._settle(source, contrast, expert, request, offline=True))

    async def _settle(
        self,
        source: prompts.PromptSource,
        contrast: Contrast | None,
        expert: "LoRARequest | None",
        made: Any,
        online: Any = None,
        offline: bool = False,
    ) -> Contrast | None:
        """The contrast with its amateurs' prompts; None where a default has nothing to leave out.
        All prompts are known then, and no response has begun. ``made`` is what vLLM made of the
        expert's prompt, or of the request; the rest is as in ``prompts.render_async``.
        """
        if contrast is None or not contrast.applies(source):
            return None
        for one in contrast.amateurs:
            if one.adapter is None and one.lora is not None and one.lora is not expert:
                # A worker that cannot load an adapter takes the engine down with it.
                rank = self.config.lora_config.max_lora_rank
                await prompts.aside(offline, _check_file, rank, one)
        try:
            amateurs = await prompts.render_async(
                self.renderer,
                source,
                contrast.amateurs,
                online,
                most_megapixels=None if offline else self.most_megapixels,
                offline=offline,
            )
        except CannotLeaveOut:
            if contrast.gives_way:
                return None
            raise
        prompt = prompts.Prompt.of(made)
        settled = contrast.settle(amateurs, expert, prompt)
        if settled is not None:
            self._check_media(settled.amateurs, prompt)
            _check_drafter(self.config, settled.amateurs, prompt)
        return settled

    def _check_media(self, amateurs: tuple[AmateurSpec, ...], prompt: prompts.Prompt) -> None:
        """Refuse what CoLD cannot do with media, and what an engine could never encode in step."""
        own = [one for one in amateurs if one.num_tokens is not None]
        if not any((prompt.features, *(one.features for one in own))):
            return
        if (problem := media.unsupported(self.config)) is not None:
            raise ValueError(f"{media.REFUSED}{problem}")
        if prompt.embeds is not None or any(one.embeds is not None for one in own):
            raise ValueError(
                "CoLD does not support media in one request with prompt_embeds; send text or token "
                "ids."
            )
        experts = (len(prompt.ids or ()), prompt.features)
        amateurs_own = [(one.num_tokens, one.features) for one in own if one.num_tokens]
        streams = [experts] * (1 + len(amateurs) - len(own)) + amateurs_own
        room = room_of(self.config, self.encoder_cache_size)
        if (problem := why_never(streams, room)) is not None:
            raise ValueError(f"CoLD: this request {problem}.")

    def decided(self, params: Any, expert: "LoRARequest | None") -> Contrast | None:
        """What was or now is decided about a request whose prompt does not carry it."""
        if (known := prompts.decision_in(params.extra_args)) is not UNDECIDED:
            return cast(Contrast | None, known)
        return self.decide(params.extra_args, expert, params)

    def may_contrast(self, prompt: Any, params: Any) -> bool:
        """Whether a request may be decoded with CoLD, at little cost for those that are not."""
        for carrier in (prompt, params.extra_args):
            if (known := prompts.decision_in(carrier)) is not UNDECIDED:
                return known is not None
        says = any(is_ours(key) or is_known(key) for key in params.extra_args or ())
        return says or self.defaults.enabled or isinstance(params, ColdParams)


def says_much(said: Mapping[str, Any] | None) -> bool:
    """Whether a request says what its amateurs read, and to read that would keep others waiting."""
    if not _is_long(said):
        return False
    args = parse_request_args(said)
    return args.enabled is not False and says_what(args.contrast)


def _is_long(said: Mapping[str, Any] | None) -> bool:
    """Whether reading flat arguments would keep others waiting."""
    values = [value for key, value in (said or {}).items() if is_ours(key)]
    texts = [each for each in values if isinstance(each, str)]
    for each in values:
        if isinstance(each, list):
            texts += [text for text in each[: 2 * MOST_ITEMS] if isinstance(text, str)]
    return sum(map(len, texts)) > _LONG


def _check_drafter(config: Any, amateurs: tuple[AmateurSpec, ...], prompt: prompts.Prompt) -> None:
    """On V1, a drafter that is a model asks for the ids of prompts, and the worker ends where there
    are none. Beside embeddings there may be some, which need not be the vocabulary's.
    """
    speculative = config.speculative_config
    if speculative is None or uses_v2_runner(config):
        return
    of_embeds = [one for one in amateurs if one.embeds is not None]
    if prompt.embeds is None and not of_embeds:
        return
    if (method := speculative.method) in ("ngram", "suffix"):
        return
    problem = (
        f"speculative decoding is on ({method}) with the V1 model runner, whose drafter reads the "
        "token ids of prompts; send text or token ids, or start the engine with ngram or without "
        "speculative decoding"
    )
    if of_embeds:
        raise of_embeds[0].refused(problem)
    raise ColdError("prompt_embeds", _shown(prompt.embeds), problem)


def _shown(embeds: Any) -> str:
    return Embeds({"prompt_embeds": embeds}).value


def _check_embeds(model_config: Any, request: "EngineCoreRequest") -> None:
    prompt = prompts.Prompt.of(request)
    if prompt.embeds is None:
        return
    if (problem := prompt.problem(model_config)) is not None:
        raise ColdError("prompt_embeds", _shown(prompt.embeds), problem)
    check_penalty(request.sampling_params.repetition_penalty)


def check_penalty(repetition_penalty: float | None) -> None:
    """Of a request whose prompt is embeddings: for their tokens vLLM takes others.

    Raises:
        ColdError: there is one.
    """
    if repetition_penalty not in (None, 1.0):
        raise ColdError(
            "repetition_penalty",
            repetition_penalty,
            "is for the tokens of a prompt, and prompt_embeds has none; set it to 1, or use "
            "presence_penalty or frequency_penalty",
        )


def _check_file(max_rank: int, one: AmateurSpec) -> None:
    name, path = one.lora.lora_name, os.path.expanduser(one.lora.lora_path)
    if not (os.path.isabs(path) or os.path.exists(path) or os.environ.get("HF_HUB_OFFLINE") == "1"):
        return  # a name on a hub
    try:
        rank = adapter_config.read_rank(path)
    except ValueError as error:
        raise ColdError(one.field, name, str(error)) from error
    if rank > max_rank:
        raise ColdError(
            one.field,
            name,
            f"its rank {rank} is above the engine's max_lora_rank={max_rank}; start the engine "
            "with a max_lora_rank (--max-lora-rank) of that or more",
        )
