# SPDX-License-Identifier: Apache-2.0
"""Where every request comes in, offline and online: a CoLD request leaves with its ``Stream``.

What was decided before, on a server when its prompt was made (``serving``), travels in what vLLM
made of the prompt. A worker that cannot load an adapter takes the engine down with it, so the file
of an amateur that the caller brings along is looked at; not on an event loop, where an amateur's
prompt is not made either. (A server has loaded its adapters already when they can be named.)
"""

from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vllm.sampling_params import SamplingParams

from vllm_cold.vllm.frontend import media, prompts
from vllm_cold.vllm.frontend.admission import Admission
from vllm_cold.vllm.frontend.contrast import Contrast
from vllm_cold.vllm.frontend.errors import refusals
from vllm_cold.vllm.frontend.prompts import UNDECIDED

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest


@dataclass(slots=True)
class Exchange:
    """The HTTP request that is being answered.

    Attributes:
        plain: Whether it is a beam search, which was admitted without CoLD and makes requests of
            its own.
        decided: The bodies that were decided about (a batch of chats is several), by their ids.
        used: What those are decoded with that were sent to the engine, by the same ids; for the
            header.
        steps: What is told of each token, where the client asks; known when the last one is.
    """

    plain: bool = False
    decided: dict[int, tuple[Any, Contrast | None]] = field(default_factory=dict)
    used: dict[int, Contrast | None] = field(default_factory=dict)
    steps: list[dict[str, Any]] | None = None


class FrontEnd:
    """What this process knows of its engines' requests.

    Attributes:
        server: The admission of this process's API server, if it is one.
    """

    def __init__(self) -> None:
        self.server: Admission | None = None
        self._admissions: WeakKeyDictionary[Any, Admission] = WeakKeyDictionary()
        self._exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)

    def of(self, processor: Any) -> Admission:
        """The admission of the engine that an InputProcessor of vLLM's is for."""
        if (found := self._admissions.get(processor)) is None:
            found = self._admissions[processor] = Admission(processor)
        return found

    def serve(self, models: Any, most_tokens: int | None) -> None:
        """An API server begins to serve these ``OpenAIServingModels``."""
        processor = models.engine_client.input_processor
        self.server = self._admissions[processor] = Admission(processor, models, most_tokens)

    @property
    def plain(self) -> bool:
        """Whether what comes in now are the requests of a beam search."""
        return (exchange := self._exchange.get()) is not None and exchange.plain

    def exchange(self) -> Exchange:
        """The HTTP request that is being answered."""
        return self._exchange.get() or self.begin()

    def begin(self) -> Exchange:
        """An HTTP request has come in."""
        self._exchange.set(exchange := Exchange())
        return exchange


FRONT_END = FrontEnd()


def _make(original: Callable[..., "EngineCoreRequest"]) -> Callable[..., "EngineCoreRequest"]:
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> "EngineCoreRequest":
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if request.sampling_params is not None and not FRONT_END.plain:
            carrier = prompts.carrying(prompt)
            kept = prompts.media_kept(self.renderer, [carrier, request], offline=True)
            # Of what an async engine has decided about, `add_request` sees to that.
            is_new = prompts.decision_in(carrier) is UNDECIDED
            with refusals(), kept if is_new else nullcontext():
                FRONT_END.of(self).admit(carrier, params, request)
            prompts.forget_media(carrier)
        return request

    return process_inputs


def _make_add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    async def add_request(
        self: Any,
        request_id: str,
        prompt: Any,
        params: Any,
        arrival_time: Any = None,
        lora_request: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        processor = self.input_processor
        # What vLLM did not make something of yet goes to a thread of its own, and its amateurs too.
        if isinstance(prompt, dict) and "type" in prompt and isinstance(params, SamplingParams):
            with refusals(), prompts.media_kept(processor.renderer, [prompt]):
                prompt = await _decided(FRONT_END.of(processor), prompt, params, lora_request)
        rest = (arrival_time, lora_request, *args)
        if prompts.decision_in(prompt) is UNDECIDED:
            return await original(self, request_id, prompt, params, *rest, **kwargs)
        with prompts.media_kept(processor.renderer, [prompt]):
            queue = await original(self, request_id, prompt, params, *rest, **kwargs)
        if sent := prompts.sent_data(prompt):
            media.tell_sent(processor.renderer, sent)
        return queue

    return add_request


async def _decided(admission: Admission, prompt: dict[str, Any], params: Any, expert: Any) -> Any:
    """The prompt, with what its request is decoded with if that is not there already."""
    is_new = prompts.decision_in(prompt) is UNDECIDED and not FRONT_END.plain
    if not (is_new and admission.may_contrast(prompt, params)):
        return prompt
    if (contrast := prompts.decision_in(params.extra_args)) is UNDECIDED:
        contrast = await admission.decide_aside(params.extra_args, expert, params)
    return await admission.prepare(prompt, contrast, expert)
