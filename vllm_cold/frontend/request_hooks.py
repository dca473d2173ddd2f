# SPDX-License-Identifier: Apache-2.0
"""Where API servers and ``LLM`` look at what a request says. These hooks load the rest
(``serving``) when the engine may have a contrast or a request asks for one; others load none of it.
"""

from typing import Any

from vllm_cold.compat import availability, engine
from vllm_cold.compat.patching import Original
from vllm_cold.compat.start_hooks import are_ours, has_our_keys

_unasked: Any = None  # the OpenAIServingModels of a server that nobody asked for a contrast yet
_reads_bodies = False  # whether ``serving`` reads each of its bodies


def serve(models: Any) -> None:
    """Begin to serve these ``OpenAIServingModels`` of an API server."""
    global _unasked, _reads_bodies
    _unasked, _reads_bodies = models, False
    if engine.may_contrast(models.engine_client.vllm_config):
        _begin_to_read()


def _begin_to_read() -> None:
    """Have ``serving`` read each body from now on, unless its files do not fit this vLLM: then
    vLLM's check of the parameters refuses who asks.
    """
    global _unasked, _reads_bodies
    if availability.verify() is not None:
        return
    from vllm_cold.frontend.intake import FRONT_END

    FRONT_END.serve(_unasked)
    _unasked, _reads_bodies = None, True


def _reads(body: Any) -> bool:
    """Whether ``serving`` is to read a body: in engines without contrasts, from the first on that
    asks for one.
    """
    if _unasked is not None and (
        has_our_keys(getattr(body, "vllm_xargs", None))
        or has_our_keys(getattr(body, "model_extra", None))
    ):
        _begin_to_read()
    return _reads_bodies


def wrap_models_init(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap ``OpenAIServingModels.__init__``."""
    original(self, *args, **kwargs)
    serve(self)


async def wrap_preprocess(
    original: Original, self: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Wrap ``OnlineRenderer.preprocess_cmpl`` and ``OnlineRenderer.preprocess_chat``."""
    if not _reads(request):
        return await original(self, request, *args, **kwargs)
    from vllm_cold.frontend import serving

    return await serving.preprocess(original, self, request, *args, **kwargs)


def wrap_to_sampling_params(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``ResponsesRequest.to_sampling_params`` and the like."""
    params = original(self, *args, **kwargs)
    if _reads(self):
        from vllm_cold.frontend import serving

        serving.check_params(self, params)
    return params


def wrap_to_beam_search_params(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap ``to_beam_search_params`` of ``ChatCompletionRequest`` and ``CompletionRequest``."""
    if _reads(self):
        from vllm_cold.frontend import serving

        serving.begin_search(self)
    return original(self, *args, **kwargs)


def wrap_beam_search(
    original: Original,
    self: Any,
    prompts: Any,
    params: Any,
    lora_request: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wrap ``LLM.beam_search``."""
    asks = are_ours(params) or engine.is_configured(self.llm_engine.vllm_config)
    if asks and availability.verify() is None:
        from vllm_cold.frontend import serving

        serving.check_search(self, prompts, params, lora_request)
    return original(self, prompts, params, lora_request, *args, **kwargs)
