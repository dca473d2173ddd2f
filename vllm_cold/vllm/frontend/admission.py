# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``InputProcessor.process_inputs``, which every request passes in the front end,
offline and online, and ``AsyncLLM.add_request``, which calls it on an event loop.

Why: it is the one place that sees a request's parameters, its adapter and its prompt length
before the engine core does. Here it is decided whether the request is decoded with CoLD; a wrong
one is refused with HTTP 400 (online) or ValueError (offline) before it costs anything.
(``LogitsProcessor.validate_params`` would see the parameters only.) A worker that cannot load an
adapter takes the engine down with it, so the file of an amateur that the caller brings along is
looked at before; not on an event loop, hence the second place. (A server has loaded its adapters
already when they can be named.)
Since: 0.23 to 0.33. Can go: when ``validate_params`` gets the request.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vllm_cold import adapter_config
from vllm_cold.group.stream import Stream, without_cold
from vllm_cold.method.settings import ColdError, ColdSettings, RequestArgs, parse_request_args
from vllm_cold.params import ColdParams
from vllm_cold.vllm.frontend.config import engine_defaults, is_configured, unsupported
from vllm_cold.vllm.frontend.errors import request_error
from vllm_cold.vllm.patching import Place

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreRequest


# Set while a beam search that was admitted without CoLD makes its own requests.
plain_search: ContextVar[bool] = ContextVar("plain_search", default=False)
_files_checked: ContextVar[bool] = ContextVar("files_checked", default=False)


def _make(original: Callable[..., "EngineCoreRequest"]) -> Callable[..., "EngineCoreRequest"]:
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> "EngineCoreRequest":
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if request.sampling_params is not None:
            try:
                admit(self.vllm_config, params, request, getattr(self, "cold_adapters", {}))
                if not _files_checked.get():
                    check_files(self.vllm_config, params)
            except ValueError as error:
                raise request_error(error) from error
        return request

    return process_inputs


def _make_add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    async def add_request(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if getattr(params, "amateur", None) is None:
            return await original(self, request_id, prompt, params, *args, **kwargs)
        try:
            await asyncio.to_thread(check_files, self.vllm_config, params)
        except ValueError as error:
            raise request_error(error) from error
        token = _files_checked.set(True)
        try:
            return await original(self, request_id, prompt, params, *args, **kwargs)
        finally:
            _files_checked.reset(token)

    return add_request


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
        ("request_id", "prompt", "params"),
    ),
)


def decide(
    config: "VllmConfig",
    args: RequestArgs,
    expert: "LoRARequest | None",
    adapters: Mapping[str, "LoRARequest"],
    params: Any = None,
) -> "tuple[ColdSettings, LoRARequest | None] | None":
    """Whether a request is decoded with CoLD, as far as its length does not matter.

    Args:
        config: The engine's configuration.
        args: The request's flat arguments.
        expert: The request's adapter.
        adapters: Adapters that can be named as ``cold_amateur``, by name.
        params: The caller's SamplingParams or ColdParams, where there are any.

    Returns:
        The settings and the amateur's adapter (None for the base model); None for a plain request.

    Raises:
        ValueError: the request asks for CoLD and cannot have it; says why.
    """
    amateur: LoRARequest | None = None
    field = "amateur"
    if isinstance(params, ColdParams):
        settings, amateur = params.settings(), params.amateur
    elif args.enabled is False or (
        args == RequestArgs()
        and not (expert is not None and engine_defaults(config).enabled and not plain_search.get())
    ):
        return None
    else:
        settings = args.settings(engine_defaults(config).settings)
        if args.amateur is not None:
            field = "cold_amateur"
            amateur = _find_adapter(args.amateur, adapters)
    if not is_configured(config):
        raise ValueError(f"CoLD cannot be used in this engine: {unsupported(config)}")
    if expert is None:
        raise ValueError(
            "CoLD needs an adapter as expert, and this request has none: pass lora_request (over "
            "HTTP: name the adapter as the model)."
        )
    if amateur is not None:
        _check_amateur(field, config, expert, amateur)
    return settings, amateur


def admit(
    config: "VllmConfig",
    params: Any,
    request: "EngineCoreRequest",
    adapters: Mapping[str, "LoRARequest"],
) -> None:
    """Decide about one request; a CoLD request gets its ``Stream`` in ``extra_args``.

    Args:
        config: The engine's configuration.
        params: What the caller passed: SamplingParams or ColdParams.
        request: What vLLM made of it; changed in place.
        adapters: Adapters that can be named as ``cold_amateur``, by name.

    Raises:
        ValueError: the request asks for CoLD and cannot have it; says why.
    """
    sampling = request.sampling_params
    args = parse_request_args(sampling.extra_args)
    decision = decide(config, args, request.lora_request, adapters, params)
    if decision is None:
        if args.enabled is False:
            sampling.extra_args = without_cold(sampling.extra_args)
        return
    settings, amateur = decision
    if request.mm_features:
        raise ValueError("CoLD does not support multimodal prompts; send text only.")
    if request.resumable:
        raise ValueError("CoLD does not support streaming-input sessions; send the whole prompt.")
    _check_capacity(config, request)
    stream = Stream(
        settings,
        None
        if amateur is None
        else {
            name: value
            for name in amateur.__struct_fields__
            if (value := getattr(amateur, name)) is not None
        },
    )
    sampling.extra_args = stream.to_extra_args(sampling.extra_args)


def _find_adapter(name: str, adapters: Mapping[str, "LoRARequest"]) -> "LoRARequest":
    found = adapters.get(name)
    if found is None:
        loaded = ", ".join(sorted(adapters)) or "none"
        raise ColdError("cold_amateur", name, f"no such adapter is loaded (loaded: {loaded})")
    return found


def _check_amateur(
    field: str, config: "VllmConfig", expert: "LoRARequest", amateur: "LoRARequest"
) -> None:
    if amateur.lora_int_id == expert.lora_int_id or amateur.lora_name == expert.lora_name:
        raise ColdError(
            field,
            amateur.lora_name,
            "must differ from the expert; leave it out to contrast with the base model",
        )
    if config.lora_config.max_loras < 2:
        raise ColdError(
            field,
            amateur.lora_name,
            f"expert and amateur are two adapters in one batch, but max_loras="
            f"{config.lora_config.max_loras}; start the engine with max_loras (--max-loras) >= 2",
        )


def check_files(config: "VllmConfig", params: Any) -> None:
    """Look at the adapter that a caller gives as amateur. Reads a file.

    Raises:
        ValueError: a worker could not load it; says why.
    """
    amateur = getattr(params, "amateur", None)
    if amateur is None or config.lora_config is None:
        return
    path = os.path.expanduser(amateur.lora_path)
    if not (os.path.isabs(path) or os.path.exists(path) or os.environ.get("HF_HUB_OFFLINE") == "1"):
        return  # a name on a hub
    try:
        rank = adapter_config.read(path).rank
    except ValueError as error:
        raise ColdError("amateur", amateur.lora_name, str(error)) from error
    if rank > config.lora_config.max_lora_rank:
        raise ColdError(
            "amateur",
            amateur.lora_name,
            f"its rank {rank} is above the engine's max_lora_rank="
            f"{config.lora_config.max_lora_rank}",
        )


def _check_capacity(config: "VllmConfig", request: "EngineCoreRequest") -> None:
    """Refuse what could never finish: both streams at their full length, in vLLM's blocks."""
    cache = config.cache_config
    num_blocks, block_size = cache.num_gpu_blocks, cache.block_size
    if not num_blocks or not block_size:
        return  # not known yet in this process; the scheduler ends such a request with an error
    parallel = config.parallel_config
    block_size *= getattr(parallel, "decode_context_parallel_size", 1)
    local = getattr(parallel, "local_engines_only", False)
    engines = parallel.data_parallel_size_local if local else parallel.data_parallel_size
    prompt = len(request.prompt_token_ids or request.prompt_embeds)
    # The last token is sampled, but nothing is computed for it.
    length = min(
        prompt + (request.sampling_params.max_tokens or 1) - 1, config.model_config.max_model_len
    )
    num_blocks //= engines
    # vLLM keeps one block as the null block, and the watermark's free when the amateur is admitted.
    watermark = int(getattr(config.scheduler_config, "watermark", 0.0) * num_blocks)
    usable = num_blocks - 1 - watermark
    needed = 2 * -(-length // block_size)
    if needed > usable:
        raise ColdError(
            "max_tokens",
            request.sampling_params.max_tokens,
            f"with the prompt's {prompt} tokens, the two streams of a CoLD request need {needed} "
            f"KV cache blocks of {block_size} tokens, and the engine has {usable}; lower "
            "max_tokens, shorten the prompt or enlarge the KV cache",
        )
