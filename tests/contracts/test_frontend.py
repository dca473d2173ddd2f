# SPDX-License-Identifier: Apache-2.0
"""Configuration, admission, servers."""

import inspect

import pytest

from tests.contracts.source import contains, find, in_order, parameters, set_in_init, since
from vllm_cold.method.amateurs import MEDIA
from vllm_cold.vllm.frontend import serving

pytestmark = pytest.mark.unit

_PROTOCOLS = (
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest",
)
_ENDPOINTS = (
    "chat_completion.serving:OpenAIServingChat",
    "completion.serving:OpenAIServingCompletion",
    "responses.serving:OpenAIServingResponses",
)


@pytest.mark.parametrize(
    ("where", "parts"),
    [
        # Installing the package is enough.
        ("vllm.plugins:load_general_plugins", ("DEFAULT_PLUGINS_GROUP",)),
        ("vllm.engine.arg_utils:AsyncEngineArgs.add_cli_args",
         ("load_general_plugins()", "EngineArgs.add_cli_args(parser)")),
        # The scheduler is chosen by its name.
        ("vllm.config:SchedulerConfig.get_scheduler_cls",
         ("resolve_obj_by_qualname(self.scheduler_cls)",)),
        # Every request, offline and online, passes the input processor, which copies parameters.
        *(
            (f"vllm.v1.engine.{name}.add_request",
             ("self.input_processor.process_inputs(request_id, prompt, params",))
            for name in ("llm_engine:LLMEngine", "async_llm:AsyncLLM")
        ),
        ("vllm.v1.engine.input_processor:InputProcessor.process_inputs",
         ("params.clone()", "return EngineCoreRequest(")),
        ("vllm.v1.engine.input_processor:InputProcessor.process_inputs",
         ("isinstance(prompt, dict) and 'type' in prompt",)),
        # n > 1: children inherit the group.
        ("vllm.v1.engine.parallel_sampling:ParentRequest.__init__",
         ("sampling_params = request.params",)),
        # An amateur's prompt is made by the methods that made its expert's.
        *(
            (f"vllm.renderers.base:BaseRenderer.{name}",
             ("tok_params is None", "self.tokenize_prompt"))
            for name in ("render_cmpl", "render_cmpl_async", "render_chat", "render_chat_async")
        ),
        # The tools put an answer's tokens behind a chat's.
        ("vllm.renderers.hf:HfRenderer.render_messages",
         ("parse_chat_messages(", "prompt['multi_modal_data'] = mm_data",
          "return (conversation, prompt)")),
        # A request gets as many tokens as it asks for, at most what the server's owner allows.
        ("vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.__init__",
         ("self.override_max_tokens = self.default_sampling_params.get('max_tokens') if "
          "mc.generation_config not in ('auto', 'vllm') else "
          "getattr(mc, 'override_generation_config', {}).get('max_new_tokens')",)),
        # Settings come through vllm_xargs.
        *((f"{protocol}.to_sampling_params", ("self.vllm_xargs", "extra_args=extra_args"))
          for protocol in _PROTOCOLS),
        # Metrics of CoLD are fed where vLLM's are.
        ("vllm.v1.metrics.loggers:StatLoggerManager.__init__",
         ("self.engine_indexes =", "self.stat_loggers", "PrometheusStatLogger(")),
    ],
)  # fmt: skip
def test_statements_in_order(where: str, parts: tuple[str, ...]) -> None:
    in_order(where, *parts)


def test_attributes_that_are_set() -> None:
    made = set_in_init(find("vllm.entrypoints.openai.models.serving:OpenAIServingModels"))
    assert made["lora_requests"] == "{}" and "engine_client" in made
    for where, name in (
        ("vllm.v1.engine.llm_engine:LLMEngine", "input_processor"),
        ("vllm.v1.engine.async_llm:AsyncLLM", "input_processor"),
    ):
        assert name in set_in_init(find(where)), where


def test_async_engines_are_configured_as_others() -> None:
    own = vars(find("vllm.engine.arg_utils:AsyncEngineArgs"))
    assert not {"create_engine_config", "from_cli_args"} & own.keys()
    assert find("vllm.plugins").DEFAULT_PLUGINS_GROUP == "vllm.general_plugins"


@since(0, 32)
def test_a_logits_processor_does_not_choose_the_runner() -> None:
    """Else V1 would be given the V2 class; in 0.23 a processor means the V1 runner."""
    for name in ("use_v2_model_runner", "_get_v2_model_runner_unsupported_features"):
        method = find(f"vllm.config:VllmConfig.{name}")
        assert "logits_processors" not in inspect.getsource(method)


def test_a_server_makes_prompts_of_a_requests_body() -> None:
    owner = serving.online_renderer()
    where = f"{owner.__module__}:{owner.__name__}"
    for name, call in (
        ("preprocess_chat", "renderer.render_chat_async([messages], chat_params, tok_params"),
        ("preprocess_cmpl", "renderer.render_cmpl_async(parsed_prompts, tok_params"),
    ):
        contains(f"{where}.{name}", call)
    assert {"renderer", "chat_template", "chat_template_content_format",
            "default_chat_template_kwargs"} <= set_in_init(owner).keys()  # fmt: skip


@since(0, 31)
def test_the_thread_of_media_forgets_them() -> None:
    """One thread, so what it forgets is gone before its next image."""
    base = "vllm.renderers.base:BaseRenderer"
    renderer = find(base)
    if hasattr(renderer, "queue_mm_cache_invalidations"):
        assert parameters(f"{base}.queue_mm_cache_invalidations")[-1:] == ["mm_hashes"]
        contains(f"{base}._process_multimodal", "self._drain_mm_cache_invalidations()")
    made = set_in_init(renderer)
    assert made["_mm_executor"] == "ThreadPoolExecutor(max_workers=1)"
    assert (
        "self._process_multimodal, executor=self._mm_executor"
        in (made["_process_multimodal_async"])
    )


def test_figures_come_with_their_engines_number() -> None:
    assert "engine_idx" in parameters("vllm.v1.metrics.loggers:StatLoggerManager.record")
    contains("vllm.v1.engine.async_llm:AsyncLLM", "engine_idx=outputs.engine_index")


@since(0, 31)
@pytest.mark.parametrize("endpoint", _ENDPOINTS)
def test_endpoints_look_at_the_models_name_first(endpoint: str) -> None:
    """For a preset behind it."""
    where = f"vllm.entrypoints.openai.{endpoint}"
    assert "_check_model" not in vars(find(where))
    assert parameters(f"{where}._check_model")[:1] == ["request"]
    contains(where, "await self._check_model(request)")
    contains(f"{where}._maybe_get_adapters", "request.model in self.models.lora_requests")
    models = "vllm.entrypoints.openai.models.serving:OpenAIServingModels.is_base_model"
    assert parameters(models) == ["model_name"]


@since(0, 31)
def test_media_of_a_prompt_are_made_in_two_steps() -> None:
    """A chat is a completion of what its messages are rendered to."""
    base = "vllm.renderers.base:BaseRenderer"
    for name in ("", "_async"):
        in_order(
            f"{base}.render_chat{name}",
            f"self.render_messages{name}(",
            f"self.tokenize_prompts{name}(dict_prompts, tok_params)",
            "prompt_extras['media_io_kwargs'] = chat_params.media_io_kwargs or {}",
            "self._apply_prompt_extras(tok_prompts, prompt_extras)",
            f"self.process_for_engine{name}(",
        )
        in_order(
            f"{base}.render_cmpl{name}",
            f"self.tokenize_prompts{name}(dict_prompts, tok_params)",
            "self._apply_prompt_extras(tok_prompts, prompt_extras)",
            f"self.process_for_engine{name}(",
        )
        for method in ("render_chat", "render_cmpl"):
            assert {"prompt_extras", "skip_mm_cache"} <= set(parameters(f"{base}.{method}{name}"))
        contains(f"{base}._process_tokens{name}", "prompt.get('multi_modal_uuids')")
    owner = serving.online_renderer()
    where = f"{owner.__module__}:{owner.__name__}"
    assert parameters(f"{where}.preprocess_chat")[:2] == ["request", "messages"]
    for name in ("preprocess_chat", "preprocess_cmpl"):
        contains(f"{where}.{name}", "skip_mm_cache=skip_mm_cache")


@since(0, 31)
def test_messages_have_these_types_of_media() -> None:
    read_by = inspect.getmodule(find("vllm.renderers.cohere:parse_chat_messages"))
    others = {"text", "input_text", "output_text", "thinking", "refusal", "prompt_embeds"}
    others.add("tool_reference")
    assert read_by.MM_PARSER_MAP.keys() == others.union(*MEDIA.values())


@since(0, 31)
def test_media_are_described_as_the_input_processor_does() -> None:
    where = "vllm.v1.engine.input_processor:InputProcessor"
    in_order(
        f"{where}.process_inputs",
        "decoder_input['mm_kwargs']",
        "decoder_input['mm_placeholders']",
        "decoder_input['mm_hashes']",
        "argsort_mm_positions(decoder_mm_positions)",
        "MultiModalFeatureSpec(data=decoder_mm_inputs[modality][idx], modality=modality, "
        "identifier=self._get_mm_identifier(base_mm_hash, lora_request), "
        "mm_position=decoder_mm_positions[modality][idx], mm_hash=base_mm_hash)",
    )
    contains(f"{where}._get_mm_identifier", "self.lora_config.enable_tower_connector_lora")
    # And are looked at there, the client's alone.
    contains(f"{where}._validate_model_input", "num_embeds > self.mm_encoder_cache_size")
    contains(f"{where}.__init__", "mm_budget.encoder_cache_size")
    in_order(
        "vllm.v1.core.encoder_cache_manager:compute_mm_encoder_budget",
        "max(scheduler_config.max_num_encoder_input_tokens, max_tokens_per_mm_item)",
        "max(scheduler_config.encoder_cache_size, max_tokens_per_mm_item)",
    )
    contains(
        "vllm.config:SchedulerConfig.__post_init__",
        "self.max_num_encoder_input_tokens = self.max_num_batched_tokens",
        "self.encoder_cache_size = self.max_num_batched_tokens",
    )


@since(0, 31)
def test_caches_of_processed_media() -> None:
    """What a front end believes to be sent is in the engine core, which all of a request's pass."""
    contains(
        "vllm.v1.engine.core:EngineCore.preprocess_add_request",
        "self.mm_receiver_cache.get_and_update_features(request.mm_features)",
    )
    lru = "vllm.multimodal.cache:LruKeyReplicated"
    in_order(
        f"{lru}SenderCache.get_and_update_item",
        "return (None, cached_item.prompt_updates)",
        "MultiModalProcessorCacheItemMetadata(*mm_item)",
    )
    in_order(
        f"{lru}ReceiverCache.get_and_update_item",
        "if mm_item is not None",
        "self.cache_if_fits(self._cache, mm_hash, mm_item)",
        "raise MultiModalCacheMissError([mm_hash])",
    )
    in_order(
        "vllm.multimodal.cache:MultiModalProcessorOnlyCache.get_and_update_item",
        "return (cached_item.item, cached_item.prompt_updates)",
        "return mm_item",
    )
    contains(
        "vllm.renderers.base:BaseRenderer._process_multimodal",
        "self._mm_processor_only_cache if skip_mm_cache else self._mm_processor_cache",
    )
    shm = "vllm.multimodal.cache:ShmObjectStore"
    contains(f"{shm}SenderCache.get_and_update_item", "self._shm_cache.get_cached(mm_hash)")
    contains(f"{shm}ReceiverCache.get_and_update_item", "return mm_item")
    storage = (
        "vllm.distributed.device_communicators.shm_object_storage:SingleWriterShmObjectStorage"
    )
    contains(f"{storage}.get_cached", "self.increment_writer_flag(monotonic_id)")
    contains(f"{storage}.default_is_free_check", "reader_count >= writer_count * self.n_readers")
    contains(
        "vllm.v1.worker.worker_base:WorkerWrapperBase._apply_mm_cache",
        "for req_data in scheduler_output.scheduled_new_reqs",
    )


@since(0, 31)
def test_media_are_fetched_by_one_method() -> None:
    connector = "vllm.multimodal.media.connector:MediaConnector"
    for kind in ("image", "video", "audio"):
        contains(f"{connector}.fetch_{kind}", "self.load_from_url(")
        contains(f"{connector}.fetch_{kind}_async", "self.load_from_url_async(")
    for name, awaited in (("load_from_url", False), ("load_from_url_async", True)):
        assert inspect.iscoroutinefunction(find(f"{connector}.{name}")) == awaited
    assert "media_io_kwargs" in set_in_init(find(connector))
