# SPDX-License-Identifier: Apache-2.0
"""Where every request comes in, offline and online: a contrastive request leaves with its
``Stream``.

What a server decided when the prompt was made (``serving``) travels in the made prompt. Other
requests are decided about here; on an event loop, prompts are made and files are read elsewhere.
"""

from collections import deque
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from vllm_cold.compat.patching import Original, at_once
from vllm_cold.compat.vllm_errors import as_http_400
from vllm_cold.frontend import media_cache
from vllm_cold.frontend.admission import Admission
from vllm_cold.frontend.contrast import RequestedContrast, ResolvedContrast
from vllm_cold.frontend.prompts import contrast_of, is_decided, source_of, with_contrast


@dataclass(slots=True)
class DecidedBody:
    """A body that was decided about when its prompts were made.

    Attributes:
        body: It itself: while it is kept, nothing else has its id.
        contrasts: What those of its prompts are decoded with that the engine was not sent yet.
    """

    body: Any
    contrasts: deque[ResolvedContrast | None]


@dataclass(slots=True)
class Exchange:
    """The HTTP request that is being answered.

    Attributes:
        is_search: Whether it is a beam search, which was admitted without contrastive decoding and
            makes requests of its own.
        decided: The bodies that were decided about (a batch of chats is several), by their ids.
        used: What each prompt that was sent to the engine asked for; None for no contrast. For the
            header.
        told: What is told of tokens (``wire.transfer_params``); known with the last one.
        path: Where the request was sent.
    """

    is_search: bool = False
    decided: dict[int, DecidedBody] = field(default_factory=dict)
    used: list[RequestedContrast | None] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    path: str = ""


class FrontEnd:
    """What this process knows of its engines' requests.

    Attributes:
        server: The admission of this process's API server, from ``serve`` on.
    """

    server: Admission

    def __init__(self) -> None:
        self._admissions: WeakKeyDictionary[Any, Admission] = WeakKeyDictionary()
        self._exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)

    def of(self, processor: Any) -> Admission:
        """Return the admission of the engine of this InputProcessor."""
        if (admission := self._admissions.get(processor)) is None:
            admission = self._admissions[processor] = Admission(processor)
        return admission

    def serve(self, models: Any) -> None:
        """Begin to serve these ``OpenAIServingModels`` of an API server."""
        processor = models.engine_client.input_processor
        self.server = self._admissions[processor] = Admission(processor, models)

    @property
    def is_search(self) -> bool:
        """Whether a beam search makes the requests that come in now."""
        return (exchange := self._exchange.get()) is not None and exchange.is_search

    def exchange(self) -> Exchange:
        """Return the HTTP request that is being answered."""
        return self._exchange.get() or self.begin()

    def begin(self) -> Exchange:
        """Begin an exchange for an HTTP request that has come in, and return it."""
        self._exchange.set(exchange := Exchange())
        return exchange


FRONT_END = FrontEnd()


def admit_request(processor: Any, request: EngineCoreRequest, prompt: Any, params: Any) -> None:
    """Decide about a request that vLLM's InputProcessor has made of a prompt; a contrastive one
    gets its ``Stream``.

    Raises:
        ValueError: it asks for contrastive decoding and cannot have it.
    """
    if FRONT_END.is_search:
        return
    admission = FRONT_END.of(processor)
    with as_http_400():
        if is_decided(prompt):  # by a server or an async engine, which see to its media
            admission.admit(contrast_of(prompt), params, request)
            return
        source = source_of(prompt)
        with media_cache.forgotten_if_refused(processor.renderer, offline=True):
            requested = admission.read(params.extra_args, request.lora_request, params)
            contrast = at_once(admission.decide(requested, source, request, offline=True))
            admission.admit(contrast, params, request)
    source.fetched.clear()  # no further prompt is made of decoded media


async def wrap_add_request(
    original: Original,
    self: Any,
    request_id: str,
    prompt: Any,
    params: Any,
    arrival_time: Any = None,
    lora_request: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wrap ``AsyncLLM.add_request``."""
    rest = (arrival_time, lora_request, *args)
    # vLLM makes other prompts in a thread of its own, where ``process_inputs`` is wrapped.
    is_made = isinstance(prompt, dict) and "type" in prompt
    if not is_made or not isinstance(params, SamplingParams):
        return await original(self, request_id, prompt, params, *rest, **kwargs)
    renderer = self.input_processor.renderer
    # A server has decided about its prompts, and about a beam search as a whole. What it
    # refuses has not passed the sender's cache, or is vLLM's alone.
    decided = is_decided(prompt) or FRONT_END.is_search
    guard = media_cache.forgotten_if_refused(renderer, offline=False)
    with nullcontext() if decided else guard:
        if not decided:
            admission = FRONT_END.of(self.input_processor)
            with as_http_400():
                requested = await admission.read_aside(params.extra_args, lora_request, params)
                contrast = await admission.decide(requested, source_of(prompt), prompt)
            prompt = with_contrast(prompt, contrast)
        queue = await original(self, request_id, prompt, params, *rest, **kwargs)
    media_cache.tell_sent(renderer, prompt)
    return queue
