# SPDX-License-Identifier: Apache-2.0
"""What is used of vLLM's scheduler, with types: vLLM's own names are Any to a type checker here.

The scheduler extends these classes for mypy alone (``TYPE_CHECKING``); at run time it extends
vLLM's, which must have what they have: ``places`` looks at it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from vllm_cold.scheduler.lockstep import Tokens


class Request(Tokens, Protocol):
    """``vllm.v1.request.Request``."""

    client_index: int
    priority: int
    arrival_time: float
    status: Any  # RequestStatus
    sampling_params: Any
    lora_request: Any
    num_preemptions: int
    num_prompt_tokens: int
    skip_reading_prefix_cache: bool
    is_prefill_chunk: bool
    trace_headers: Any
    block_hashes: Sequence[bytes]
    mm_features: Sequence[Any]
    shared_prefix_boundary: int

    def take_events(self) -> Any:
        """Return the events for whoever measures, and forget them."""


class WithConnector:
    """What of it is used where there is a KV connector; not in 0.23."""

    connector: Any
    defer_block_free: bool
    sched_step_seq: int
    deferred_frees: Any
    recompute_kv_load_failures: bool
    finished_recving_kv_req_ids: set[str]
    failed_recving_kv_req_ids: set[str]
    finished_req_ids: set[str]
    kv_holding_waiting: Any
    deferred_waiting: Any
    max_num_active_reqs: int
    _inflight_prefills: set[Request]

    def has_finished_requests(self) -> bool:
        """Whether the workers must hear of requests that have ended."""
        return False

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return True

    def _build_kv_connector_meta(self, connector: Any, scheduler_output: Any) -> Any: ...

    def _handle_invalid_blocks(
        self, invalid_block_ids: set[int], num_scheduled_tokens: dict[str, int]
    ) -> set[str]:
        return set()

    def _free_request_blocks(self, request: Request) -> None: ...

    def _request_remaining_blocks(self, request: Request) -> int:
        return 0


class Scheduler(WithConnector):
    """``vllm.v1.core.sched.scheduler.Scheduler``."""

    vllm_config: Any
    scheduler_config: Any
    cache_config: Any
    lora_config: Any
    policy: Any
    pause_state: Any
    kv_cache_manager: Any
    encoder_cache_manager: Any
    max_num_encoder_input_tokens: int
    requests: dict[str, Request]
    running: list[Request]
    waiting: Any  # a RequestQueue; with the FCFS policy also a deque
    prev_step_scheduled_req_ids: set[str]
    block_size: int
    max_model_len: int
    max_num_running_reqs: int
    max_num_scheduled_tokens: int
    num_spec_tokens: int
    num_lookahead_tokens: int
    num_waiting_for_streaming_input: int
    is_encoder_decoder: bool
    ec_connector: Any
    use_v2_model_runner: bool
    need_mamba_block_aligned_split: bool
    log_stats: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def add_request(self, request: Request) -> None:
        """Take on a request that has come."""

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: Any
    ) -> list[Any]:
        """End requests from outside; None for all."""
        return []

    def get_request_counts(self) -> tuple[int, int]:
        """Return (running, waiting)."""
        return 0, 0

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """Return the statistics of a step; None without any."""

    def make_spec_decoding_stats(self, spec_decoding_stats: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the statistics of drafts, with those of one more request."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan a step."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Take a step's results, by client."""
        return {}

    def _mamba_block_aligned_split(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_local_computed_tokens: int = 0,
        num_external_computed_tokens: int = 0,
        *args: Any,
    ) -> int:
        return num_new_tokens

    def _preempt_request(self, request: Request, timestamp: float) -> None: ...

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        *args: Any,
        **how: Any,
    ) -> tuple[Any, ...]:
        return ()

    def _update_after_schedule(self, scheduler_output: Any) -> None: ...

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forget what is cached; whether it was possible."""
        return False
