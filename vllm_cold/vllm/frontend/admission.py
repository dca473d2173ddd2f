# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``InputProcessor.process_inputs``, which every request passes in the front end,
offline and online, and ``AsyncLLM.add_request``, which calls it on an event loop.

Why: it is the one place that sees a request's parameters, its adapter and its prompt length
before the engine core does. Here it is decided whether the request is decoded with CoLD; a wrong
one is refused with HTTP 400 (online) or ValueError (offline) before it costs anything.
(``LogitsProcessor.validate_params`` would see the parameters only.) A worker that cannot load an
adapter takes the engine down with it, so the file of an amateur that the caller brings along is
looked at before; not on an event loop, where an amateur's prompt is not made either, hence the
second place. (A server has loaded its adapters already when they can be named, and ``serving`` has
made the prompts.)
Since: 0.23 to 0.33. Can go: when ``validate_params`` gets the request.
"""

import asyncio
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm_cold import adapter_config
from vllm_cold.group.stream import AmateurStream, Stream, without_cold
from vllm_cold.method.arguments import parse_request_args
from vllm_cold.method.settings import ColdError
from vllm_cold.params import UNSET, ColdParams
from vllm_cold.vllm.frontend import prompts
from vllm_cold.vllm.frontend.capacity import fit
from vllm_cold.vllm.frontend.errors import request_error
from vllm_cold.vllm.frontend.plan import (
    applies,
    decide,
    prepare,
    prepare_async,
    refuse_multimodal,
    settle,
)
from vllm_cold.vllm.patching import Place

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreRequest


_files_checked: ContextVar[bool] = ContextVar("files_checked", default=False)


def _make(original: Callable[..., "EngineCoreRequest"]) -> Callable[..., "EngineCoreRequest"]:
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> "EngineCoreRequest":
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if request.sampling_params is not None:
            try:
                admit(self, prompt, params, request)
                if not _files_checked.get():
                    check_files(self.vllm_config, params)
            except ValueError as error:
                raise request_error(error) from error
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
        token = None
        try:
            if isinstance(params, ColdParams):
                await asyncio.to_thread(check_files, self.vllm_config, params)
                token = _files_checked.set(True)
            prompt = await _prepared(self, prompt, params, lora_request)
        except ValueError as error:
            raise request_error(error) from error
        try:
            return await original(
                self, request_id, prompt, params, arrival_time, lora_request, *args, **kwargs
            )
        finally:
            if token is not None:
                _files_checked.reset(token)

    return add_request


async def _prepared(engine: Any, prompt: Any, params: Any, expert: Any) -> Any:
    """The prompt, with the amateurs' where they can be made now."""
    # What vLLM did not make something of yet goes to a thread of its own, and its amateurs' too.
    recipe = prompts.recipe_of(prompt)
    if recipe.prepared is not None or not prompts.is_tokens(prompt):
        return prompt
    args = parse_request_args(getattr(params, "extra_args", None))
    adapters = getattr(engine.input_processor, "cold_adapters", None)
    plan = decide(engine.vllm_config, args, expert, adapters, params)
    if plan is None:
        return prompt
    prepared = await prepare_async(engine.input_processor, recipe, plan)
    return prompts.with_prepared(prompt, prepared)


PLACES = (
    Place(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        _make,
        ("request_id", "prompt", "params"),
    ),
)
ASYNC = (
    Place(
        "vllm.v1.engine.async_llm:AsyncLLM.add_request",
        _make_add_request,
        ("request_id", "prompt", "params", "arrival_time", "lora_request"),
    ),
)


def admit(processor: Any, prompt: Any, params: Any, request: "EngineCoreRequest") -> None:
    """Decide about one request; a CoLD request gets its ``Stream`` in ``extra_args``.

    Args:
        processor: vLLM's InputProcessor.
        prompt: What it was given.
        params: What the caller passed: SamplingParams or ColdParams.
        request: What vLLM made of it; changed in place.

    Raises:
        ValueError: the request asks for CoLD and cannot have it; says why.
    """
    sampling = request.sampling_params
    config = processor.vllm_config
    recipe = prompts.recipe_of(prompt)
    prepared = recipe.prepared
    if prepared is None:
        args = parse_request_args(sampling.extra_args)
        adapters = getattr(processor, "cold_adapters", None)
        plan = decide(config, args, request.lora_request, adapters, params)
        if plan is None:
            if args.enabled is False:
                sampling.extra_args = without_cold(sampling.extra_args)
            return
        if applies(recipe, plan):
            _check_kind(request)
        prepared = prepare(processor, recipe, plan)
    prepared = settle(prepared, request.lora_request, request.prompt_token_ids)
    if prepared.plan is None:
        return
    _check_kind(request)
    length = len(request.prompt_token_ids or request.prompt_embeds)
    unlimited = prepared.unlimited or params.max_tokens is None
    if recipe.prepared is None and hasattr(processor, "cold_adapters"):
        # A server fills in what is left of the context where its client said nothing.
        unlimited |= length + sampling.max_tokens >= config.model_config.max_model_len
    most = fit(config, replace(prepared, unlimited=unlimited), length, sampling.max_tokens)
    sampling.max_tokens = most
    sampling.min_tokens = min(sampling.min_tokens, most)
    stream = Stream(
        prepared.plan.settings,
        tuple(
            AmateurStream(one.weight.weight, one.weight.adaptive, _as_data(one.adapter), ids)
            for one, ids in zip(prepared.plan.amateurs, prepared.prompts, strict=True)
        ),
        method=prepared.plan.method,
    )
    sampling.extra_args = stream.to_extra_args(sampling.extra_args)
    if isinstance(sampling, ColdParams):
        # This request's own copy: all is said now. What is left must go together: whoever unpickles
        # it, as workers do, checks it again.
        sampling.amateur = sampling.amateurs = sampling.beta_max = None


def _check_kind(request: "EngineCoreRequest") -> None:
    if request.mm_features:
        refuse_multimodal()
    if request.resumable:
        raise ValueError("CoLD does not support streaming-input sessions; send the whole prompt.")


def _as_data(adapter: "LoRARequest | None") -> dict[str, Any] | None:
    if adapter is None:
        return None
    values = {name: getattr(adapter, name) for name in adapter.__struct_fields__}
    return {name: value for name, value in values.items() if value is not None}


def check_files(config: "VllmConfig", params: Any) -> None:
    """Look at the adapter that a caller gives as amateur. Reads a file.

    Raises:
        ValueError: a worker could not load it; says why.
    """
    if not isinstance(params, ColdParams) or config.lora_config is None:
        return
    for one in params.contrast():
        if one.lora_request not in (None, UNSET):
            _check_file(config.lora_config.max_lora_rank, one.lora_request)


def _check_file(max_rank: int, adapter: "LoRARequest") -> None:
    path = os.path.expanduser(adapter.lora_path)
    if not (os.path.isabs(path) or os.path.exists(path) or os.environ.get("HF_HUB_OFFLINE") == "1"):
        return  # a name on a hub
    try:
        rank = adapter_config.read(path).rank
    except ValueError as error:
        raise ColdError("amateur", adapter.lora_name, str(error)) from error
    if rank > max_rank:
        raise ColdError(
            "amateur",
            adapter.lora_name,
            f"its rank {rank} is above the engine's max_lora_rank={max_rank}",
        )
