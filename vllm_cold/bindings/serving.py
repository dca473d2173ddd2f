# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``OpenAIServingModels.__init__``, the protocols' ``to_beam_search_params`` and
``to_sampling_params``, and ``LLM.beam_search``.

Why: ``cold_amateur`` names an adapter, and only the server's list of loaded adapters (static or
loaded at run time) knows what the name stands for; and beam search makes its own sampling
parameters, so a request for both would silently lose one of the two. ``to_sampling_params`` runs
before a streamed response starts, so a wrong request gets its HTTP 400 there; admission itself
comes after the headers.
Since: 0.23 to 0.33. Can go: when vLLM resolves adapter names for extensions, and when beam search
passes ``vllm_xargs`` on.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from vllm_cold.bindings import admission
from vllm_cold.bindings.engine_config import engine_defaults, is_configured
from vllm_cold.bindings.patching import wrap
from vllm_cold.settings import ColdError, parse_request_args

_models: Any = None  # this process's OpenAIServingModels


def install_online() -> None:
    """For an API server process."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    wrap(OpenAIServingModels, "__init__", _make_models_init)
    for protocol in (CompletionRequest, ChatCompletionRequest):
        wrap(protocol, "to_beam_search_params", _make_beam_params)
        wrap(protocol, "to_sampling_params", _make_sampling_params)


def install_offline() -> None:
    """For a process that uses the LLM class."""
    from vllm import LLM

    owner = next(c for c in LLM.__mro__ if "beam_search" in vars(c))
    wrap(owner, "beam_search", _make_beam_search)


def _make_models_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        global _models
        original(self, *args, **kwargs)
        _models = self
        # The live dict: adapters that are loaded later can be named too.
        self.engine_client.input_processor.cold_adapters = self.lora_requests

    return __init__


def _make_sampling_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _models is not None:
            adapters = _models.lora_requests
            try:
                admission.decide(
                    _models.engine_client.vllm_config,
                    parse_request_args(self.vllm_xargs),
                    adapters.get(self.model),
                    adapters,
                )
                if is_configured(_models.engine_client.vllm_config):
                    _check_sendable(self.vllm_xargs)
            except ValueError as error:
                raise admission.request_error(error) from error
        return original(self, *args, **kwargs)

    return to_sampling_params


def _check_sendable(xargs: Any) -> None:
    """Refuse what cannot be encoded for the engine, whosever key it is: vLLM says HTTP 500."""
    try:
        msgspec.msgpack.encode(xargs)
    except (UnicodeEncodeError, OverflowError) as error:
        raise ValueError(
            f"vllm_xargs cannot be sent to the engine ({error}): use valid Unicode text, and "
            "integers from -2^63 to 2^64 - 1."
        ) from error


def _make_beam_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        wants = parse_request_args(self.vllm_xargs).enabled
        if wants is None and _models is not None and self.model in _models.lora_requests:
            wants = engine_defaults(_models.engine_client.vllm_config).enabled
        if wants:
            raise admission.request_error(
                ColdError(
                    "use_beam_search",
                    True,
                    'CoLD does not support beam search; leave it out, or send {"cold": 0} in '
                    "vllm_xargs to search with the adapter alone",
                )
            )
        # The parameters that beam search makes for its steps do not carry vllm_xargs.
        admission.plain_search.set(True)
        return original(self, *args, **kwargs)

    return to_beam_search_params


def _make_beam_search(original: Callable[..., Any]) -> Callable[..., Any]:
    def beam_search(
        self: Any, prompts: Any, params: Any, lora_request: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        from vllm_cold.params import ColdParams

        default = engine_defaults(self.llm_engine.vllm_config).enabled
        adapters = lora_request if isinstance(lora_request, (list, tuple)) else [lora_request]
        if isinstance(params, ColdParams) or (default and any(adapters)):
            raise ColdError(
                "beam_search",
                type(params).__name__,
                "CoLD does not support beam search; use generate(), or an engine whose default "
                "sampler is not CoLD",
            )
        return original(self, prompts, params, lora_request, *args, **kwargs)

    return beam_search
