# SPDX-License-Identifier: Apache-2.0
"""Configuration and front ends: what goes wrong without a word. The rest of what is relied on there
stands in the table (``vllm_cold.compat.places``), or a server of the tests would not answer.
"""

import inspect

import pytest
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.stats import IterationStats

from tests.contracts.source import contains, find, in_order, parameters, set_in_init, since, until
from vllm_cold.frontend.serving import TELL_PROMPTS
from vllm_cold.settings.sources import MEDIA

pytestmark = pytest.mark.unit


@since("0.32")
@until("0.34", "there is one runner")
def test_a_logits_processor_does_not_choose_the_runner() -> None:
    """Else V1 would be given the V2 class; in 0.23 a processor means the V1 runner."""
    for name in ("use_v2_model_runner", "_get_v2_model_runner_unsupported_features"):
        method = find(f"vllm.config:VllmConfig.{name}")
        assert "logits_processors" not in inspect.getsource(method)


@since("0.33")
def test_an_error_of_a_request_that_ran_is_not_counted() -> None:
    """Its adapter runs for ever, as the metrics say; so errors are raised by what wraps
    `AsyncLLM.generate`.
    """
    from vllm.outputs import RequestError
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    processor, kinds = OutputProcessor(None, log_stats=True), EngineCoreEventType
    request = EngineCoreRequest(
        request_id="r",
        prompt_token_ids=[1],
        mm_features=None,
        sampling_params=SamplingParams(detokenize=False),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=LoRARequest("one", 1, "/one"),
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id="r",
    )
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "r")
    processor.add_request(request, None, queue=queue)
    events = [EngineCoreEvent.new_event(kind) for kind in (kinds.QUEUED, kinds.SCHEDULED)]
    began = EngineCoreOutput("r", [5], events=events)
    failed = EngineCoreOutput("r", [], finish_reason=FinishReason.ERROR)
    failed.error = RequestError("failed", "why")
    stats = IterationStats()
    for output in (began, failed):
        processor.process_outputs([output], 1.0, stats)
    assert not processor.request_states
    assert "one" in processor.lora_states.requests and not stats.finished_requests


@since("0.31")
def test_the_thread_of_media_forgets_them() -> None:
    """One thread, so what it forgets is gone before its next image."""
    made = set_in_init(find("vllm.renderers.base:BaseRenderer"))
    assert made["_mm_executor"] == "ThreadPoolExecutor(max_workers=1)"
    assert (
        "self._process_multimodal, executor=self._mm_executor"
        in (made["_process_multimodal_async"])
    )


def test_figures_come_with_their_engines_number() -> None:
    assert "engine_idx" in parameters("vllm.v1.metrics.loggers:StatLoggerManager.record")
    contains("vllm.v1.engine.async_llm:AsyncLLM", "engine_idx=outputs.engine_index")


@since("0.31")
def test_messages_have_these_types_of_media() -> None:
    read_by = inspect.getmodule(find("vllm.renderers.cohere:parse_chat_messages"))
    others = {"text", "input_text", "output_text", "thinking", "refusal", "prompt_embeds"}
    others.add("tool_reference")
    assert read_by.MM_PARSER_MAP.keys() == others.union(*MEDIA.values())


@since("0.31")
def test_what_the_input_processor_checks_of_media() -> None:
    """Of the client's prompt alone; admission checks the amateurs'."""
    where = "vllm.v1.engine.input_processor:InputProcessor"
    contains(f"{where}._get_mm_identifier", "self.lora_config.enable_tower_connector_lora")
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


def test_bodies_that_have_the_prompt_sent_back() -> None:
    """Refused where a part of the prompt is limited; of another name they would not be."""
    where = "vllm.entrypoints.openai"
    kinds = [
        find(f"{where}.{module}.protocol:{name}").model_fields
        for module, name in (
            ("completion", "CompletionRequest"),
            ("chat_completion", "ChatCompletionRequest"),
            ("responses", "ResponsesRequest"),
        )
    ]
    tell = {name for fields in kinds for name in fields if name.startswith(("echo", "return_"))}
    # Of the answer, and of endpoints that generate nothing.
    others = {"return_tokens_as_token_ids", "return_token_offsets", "return_mm_kwargs"}
    others.add("return_weight_versions")  # since 0.33
    assert {"enable_response_messages"} <= kinds[2].keys()
    assert tell - others == {*TELL_PROMPTS} - {"enable_response_messages"}
