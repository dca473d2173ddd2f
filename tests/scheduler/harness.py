# SPDX-License-Identifier: Apache-2.0
"""A real contrastive decoding scheduler without a model: requests in, tokens out, invariants after
every step.
"""

import inspect
from collections import deque
from collections.abc import Collection, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVTransferConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.utils.hashing import sha256
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from tests.scheduler.connector import ConnectorWorkers, Ways
from tests.scheduler.media import Media, seen
from tests.scheduler.ssm import StateLayers
from tests.scheduler.workers import RELEASE, WINDOW, FirstStage, Workers, solo, weights_of
from vllm_cold.scheduler.drafting import DraftController
from vllm_cold.scheduler.output_checks import ENDED_BY_RULE
from vllm_cold.scheduler.scheduler import ColdAsyncScheduler, ColdScheduler
from vllm_cold.settings import encoder_room as of_group
from vllm_cold.settings.table import ColdSettings
from vllm_cold.wire.counters import ColdStats
from vllm_cold.wire.step_stats import RowStats
from vllm_cold.wire.stream import AmateurStream, Stream

MAX_MODEL_LEN = 64

# What vLLM 0.23 cannot do, with or without pairs: hold prompts back; preempt a request with results
# under way (it admits it again, and appends their tokens to what is computed anew); go on after a
# running request that was preempted without tokens in this pass (with the priority policy it passes
# the next one over: if that is a stream, its group is split).
IS_0_23 = RELEASE == (0, 23)

# Steps in a row that may do nothing although a request could run.
MAX_IDLE_STEPS = 6


@dataclass(frozen=True)
class Setup:
    """An engine, as far as its scheduler sees it."""

    num_blocks: int = 33
    block_size: int = 4
    budget: int = 16
    max_num_seqs: int = 6
    max_loras: int = 2
    caching: bool = True
    is_async: bool = False
    policy: str = "fcfs"
    long_prefill: int = 0
    v2: bool = False
    watermark: int = 0
    """Blocks that an admission leaves free."""
    dcp: int = 1
    """Ranks that share a request's KV (decode context parallelism)."""
    windows: int = 0
    """KV cache groups with a sliding window, besides the one with full attention."""
    unit: int | None = None
    """vLLM's ``prefix_match_unit``, without SSM layers; those have their own."""
    layers: StateLayers | None = None
    """Layers with SSM states."""
    max_model_len: int = MAX_MODEL_LEN
    drafts: int = 0
    """The most drafts that a request has in a step."""
    right: float = 0.6
    """How many of them are right."""
    break_even: float = 0.0
    """How many must be, for drafts to pay."""
    draft_slots: int = 0
    """Tokens that the drafter adds to each scheduled request."""
    lookahead: int = 0
    """Tokens after a request's that the drafter writes KV of."""
    depth: int = 0
    """Steps in flight before the first result comes back; 0 for 2 if async, else 1."""
    stages: int = 0
    """Of a pipeline; 0 for none. It is filled like vLLM's batch queue."""
    connector: Ways | None = None
    """How the KV connector behaves; None for none."""
    only_cold: bool = False
    """Whether no regular requests come."""
    media: Media | None = None
    """Images in prompts; None for none."""
    interval: int = 1
    """Steps from one with prompts to the next, where others decode (0.33 and newer)."""
    share: float | None = None
    """Of the sequence slots, that contrastive requests may have."""

    def __post_init__(self) -> None:
        if RELEASE >= (0, 34):  # which has no V1
            object.__setattr__(self, "v2", True)

    @property
    def slots_of_share(self) -> int:
        """How many these are; all where there is no limit."""
        return int((self.share or 1.0) * self.max_num_seqs + 1e-6)


def rows_of(ids: list[str]) -> dict[str, Any]:
    """What a ``ModelRunnerOutput`` says of these requests' rows."""
    rows = {"req_id_to_index": {r: i for i, r in enumerate(ids)}} if RELEASE < (0, 34) else {}
    return {"req_ids": ids, **rows}


@dataclass(frozen=True)
class Asked:
    """What a client asked for."""

    prompt: Sequence[int]
    max_tokens: int
    adapter: int = 0
    cold: bool = False
    method: str = "cold"
    amateur: int = 0
    amateurs: Sequence[tuple[int, Sequence[int] | None]] = ()
    """Adapter and prompt of each; None for the expert's. Default: one, ``amateur``."""
    priority: int = 0
    stop: int | None = None
    grammar: bool = False
    lives: Sequence[int] = ()
    """For how many tokens each amateur is needed; none if all are to the end."""
    rule_keeps_state: bool = False
    noises: Sequence[int] = ()
    """Of each amateur, what it sees in place of its expert's images; 0, or none, for the same."""
    media: Media | None = None
    """What its prompts' images are; ``Harness`` knows."""

    def others(self) -> Sequence[tuple[int, Sequence[int] | None]]:
        """Adapter and own prompt of each amateur."""
        if not self.cold:
            return ()
        others = self.amateurs or ((self.amateur, None),)
        # With other images a prompt is the amateur's own.
        noises = self.noises or (0,) * len(others)
        pairs = zip(others, noises, strict=True)
        return [(adapter, own or self.prompt if noise else own) for (adapter, own), noise in pairs]

    def streams(self) -> list[tuple[Sequence[int], list[Any]]]:
        """Prompt and images of each."""
        others = self.others()
        noises = (0, *(self.noises or (0,) * len(others)))
        prompts = [self.prompt, *(own or self.prompt for _, own in others)]
        if self.media is None or not (self.cold or self.media.regular):
            return [(each, []) for each in prompts]
        pairs = zip(prompts, noises, strict=True)
        return [(each, self.media.features(each, noise)) for each, noise in pairs]

    def solo(self) -> list[int]:
        """The tokens that it gets on an idle engine."""
        read, *others = [seen(prompt, features) for prompt, features in self.streams()]
        adapters = [adapter for adapter, _ in self.others()]
        return solo(
            read,
            self.adapter,
            list(zip(adapters, others, strict=True)),
            self.max_tokens,
            self.stop,
            self.lives,
        )

    def settings(self) -> ColdSettings:
        """Its settings."""
        if not self.lives:
            return ColdSettings()
        lives = {f"life_{i}": float(life) for i, life in enumerate(self.lives, 1)}
        return ColdSettings(
            rule="lives_with_state" if self.rule_keeps_state else "lives", rule_parameters=lives
        )


@StructuredOutputGrammar.register  # 0.26 to 0.29 want one of these
class Grammar:
    """A compiled grammar that accepts everything."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return True

    def is_terminated(self) -> bool:
        return False

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """Of an expert's drafts only some; its amateurs have no grammar."""
        return tokens[: sum(tokens) % (len(tokens) + 1)]


class Timeless(DraftController):
    """Whether drafts pay does not depend on the time of steps."""

    each_stream = 0.0

    def break_even(self, *step: int) -> float:
        return self.each_stream


def make_scheduler(model: Path, setup: Setup, classes: Sequence[type] | None = None) -> Any:
    """The scheduler of an engine.

    Args:
        model: Folder of the tiny model; only its configuration is read.
        setup: The engine.
        classes: The synchronous and the asynchronous scheduler class; default: vllm-cold's.
    """
    model_config = ModelConfig(
        model=str(model),
        dtype="float32",
        seed=0,
        max_model_len=setup.max_model_len,
        hf_overrides={"max_position_embeddings": max(setup.max_model_len, 512)},
    )
    parallel_config = ParallelConfig()
    speculative_config = None
    if setup.drafts:
        speculative_config = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=setup.drafts,
            target_model_config=model_config,
            target_parallel_config=parallel_config,
        )
    transfer = None
    if (ways := setup.connector) is not None:
        transfer = KVTransferConfig(
            kv_connector="StandIn",
            kv_connector_module_path="tests.scheduler.connector",
            kv_role="kv_both",
            kv_load_failure_policy=ways.policy,  # type: ignore[arg-type]
            kv_connector_extra_config=asdict(ways),
        )
    config = VllmConfig(
        speculative_config=speculative_config,
        parallel_config=parallel_config,
        scheduler_config=SchedulerConfig(
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=max(setup.budget, setup.max_num_seqs),
            max_num_scheduled_tokens=setup.budget,
            max_model_len=setup.max_model_len,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            async_scheduling=setup.is_async and not setup.drafts,  # none of an n-gram's
            policy=setup.policy,  # type: ignore[arg-type]
            long_prefill_token_threshold=setup.long_prefill,
            **({"prefill_schedule_interval": setup.interval} if setup.interval > 1 else {}),
        ),
        model_config=model_config,
        cache_config=CacheConfig(
            block_size=setup.block_size,
            gpu_memory_utilization=0.9,
            enable_prefix_caching=setup.caching,
        ),
        lora_config=LoRAConfig(max_lora_rank=8, max_loras=setup.max_loras),
        kv_transfer_config=transfer,
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.async_scheduling = setup.is_async
    config.cache_config.num_gpu_blocks = setup.num_blocks
    config.parallel_config.decode_context_parallel_size = setup.dcp
    if setup.share is not None:
        config.additional_config = {"cold": {"max_share": setup.share}}
    shape: dict[str, Any] = {"num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    full = FullAttentionSpec(block_size=setup.block_size // setup.dcp, **shape)
    window = SlidingWindowSpec(block_size=setup.block_size, sliding_window=WINDOW, **shape)
    groups = [
        KVCacheGroupSpec(["full"], full),
        *(KVCacheGroupSpec([f"window {i}"], window) for i in range(setup.windows)),
    ]
    sizes = {"block_size": setup.block_size}
    if setup.unit is not None:
        sizes["hash_block_size"] = config.cache_config.prefix_match_unit = setup.unit
    how: dict[str, Any] = {}
    if (layers := setup.layers) is not None:
        groups, how, sizes = _with_ssm(config, layers, groups)
    scheduler: Any = (classes or (ColdScheduler, ColdAsyncScheduler))[setup.is_async](
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=setup.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=groups,
            **how,
        ),
        structured_output_manager=StructuredOutputManager(config),
        log_stats=True,
        **sizes,
    )
    if RELEASE < (0, 34):
        scheduler.use_v2_model_runner = setup.v2
    if hasattr(scheduler, "_encoder"):  # ours
        scheduler._encoder._shares_data = not setup.v2
    if (media := setup.media) is not None:
        scheduler.encoder_cache_manager = EncoderCacheManager(media.cache)
        scheduler.max_num_encoder_input_tokens = media.budget
        scheduler.scheduler_config.disable_chunked_mm_input = media.is_whole
    if setup.drafts:
        scheduler.num_lookahead_tokens = setup.lookahead
        scheduler._draft_controller = Timeless()
        scheduler._draft_controller.each_stream = setup.break_even / 2
        scheduler._draft_slots = setup.draft_slots
        slots = SimpleNamespace(
            num_speculative_tokens=setup.drafts, max_num_new_slots_for_drafting=setup.draft_slots
        )
        scheduler.vllm_config.speculative_config = slots
    scheduler.kv_cache_manager.watermark_blocks = setup.watermark
    return scheduler


def _with_ssm(
    config: VllmConfig, layers: StateLayers, groups: list[KVCacheGroupSpec]
) -> tuple[list[KVCacheGroupSpec], dict[str, Any], dict[str, int]]:
    """The KV cache groups of a model with SSM layers, what else its ``KVCacheConfig`` says, and the
    sizes of blocks that vLLM finds for it.
    """
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

    cache, max_model_len = config.cache_config, config.model_config.max_model_len
    cache.mamba_cache_mode = layers.mode  # type: ignore[assignment]
    cache.prefix_match_unit = layers.unit
    if not layers.attention and layers.mode == "none":
        cache.block_size = max_model_len
    spec = layers.spec(cache.block_size, max_model_len)
    groups = groups if layers.attention else []
    groups = [*groups, *(KVCacheGroupSpec([f"state {i}"], spec) for i in range(layers.groups))]
    how = {"prefix_cache_retention_interval": layers.retention}
    found = resolve_kv_cache_block_sizes(KVCacheConfig(1, [], groups, **how), config)
    return groups, how, dict(zip(("block_size", "hash_block_size"), found, strict=True))


def stats_of(rows: Sequence[tuple[str, RowStats]]) -> Any:
    """In place of a step's ``StepStats``: figures with the ids of their groups."""
    told = [(name, found if found.present else found._replace(idle=1)) for name, found in rows]
    return SimpleNamespace(figures=lambda: iter(told))


def make_request(request_id: str, asked: Asked, hasher: Any, arrival: float) -> Request:
    """The request as the engine core gets it."""

    def lora(number: int) -> dict[str, Any] | None:
        name = f"a{number}"
        return {"lora_name": name, "lora_int_id": number, "lora_path": "/a"} if number else None

    params = SamplingParams(
        max_tokens=asked.max_tokens,
        temperature=0.0,
        ignore_eos=True,
        stop_token_ids=None if asked.stop is None else [asked.stop],
        structured_outputs=StructuredOutputsParams(regex=".*") if asked.grammar else None,
    )
    (_, features), *of_amateurs = asked.streams()
    end, amateurs = len(asked.prompt), []
    if asked.cold:
        for (adapter, own), (_, mine) in zip(asked.others(), of_amateurs, strict=True):
            weight = None if asked.lives else -0.5
            if own is None:
                amateurs.append(AmateurStream(weight, lora(adapter)))
                continue
            amateurs.append(AmateurStream(weight, lora(adapter), list(own), num_features=len(mine)))
            for feature in mine:
                place = feature.mm_position
                moved = replace(place, offset=place.offset + end)
                features.append(replace(feature, mm_position=moved))
            end += len(own)
        params.extra_args = Stream(
            asked.settings(),
            tuple(amateurs),
            method=asked.method,
            rule_keeps_state=bool(asked.lives) and asked.rule_keeps_state,
            retires=bool(asked.lives),
            explain=int(bool(asked.lives)),
        ).to_extra_args(None)
    return Request(
        request_id=request_id,
        prompt_token_ids=list(asked.prompt),
        sampling_params=params,
        pooling_params=None,
        lora_request=(adapter := lora(asked.adapter)) and LoRARequest(**adapter),
        arrival_time=arrival,
        priority=asked.priority,
        mm_features=features,
        block_hasher=hasher,
    )


def make_hasher(block_size: int) -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(block_size, sha256)


class WithoutModel:
    """A scheduler and its requests, each of which gets the same token whenever it is at its end."""

    def __init__(self, model: Path, setup: Setup, classes: Sequence[type] | None = None) -> None:
        self.sched: Any = make_scheduler(model, setup, classes)
        self.hasher = make_hasher(setup.block_size)
        self.added = 0

    def request(self, asked: Asked, name: str) -> Request:
        """It came after those before it."""
        self.added += 1
        return make_request(name, asked, self.hasher, float(self.added))

    def add(self, asked: Asked, name: str) -> None:
        self.sched.add_request(self.request(asked, name))

    def result(self, output: Any) -> ModelRunnerOutput:
        """Of a step."""
        ids = list(output.num_scheduled_tokens)
        sampled = [[] if self.sched.requests[i].is_prefill_chunk else [7] for i in ids]
        result = ModelRunnerOutput(sampled_token_ids=sampled, **rows_of(ids))
        found = {i: getattr(self.sched, "_groups", {}).get(i) for i in ids}
        experts = [group.expert for i, group in found.items() if group and group.request_id == i]
        figures = RowStats(1, 0, 0, present=1)
        result.cold = [stats_of([(self.sched._group_id(expert), figures) for expert in experts])]
        return result

    def step(self) -> Any:
        output = self.sched.schedule()
        self.sched.update_from_output(output, self.result(output))
        return output


def cases_in(module: ModuleType) -> list[Any]:
    """Its functions that need a model, for ``parametrize``: with and without asynchronous
    scheduling where they know of it.
    """
    found = []
    for name, case in inspect.getmembers(module, inspect.isfunction):
        parameters = inspect.signature(case).parameters
        if [p.name for p in parameters.values() if p.default is p.empty] != ["model"]:
            continue
        if case.__module__ == module.__name__ and not name.startswith("_"):
            if "is_async" in parameters:
                found += [
                    pytest.param(partial(case, is_async=on), id=f"{name}-{'a' * on}sync")
                    for on in (False, True)
                ]
            else:
                found.append(pytest.param(case, id=name))
    return found


class Harness:
    """Drives one scheduler and its workers, and checks both after every call."""

    def __init__(self, model: Path, setup: Setup) -> None:
        self.setup = setup
        self.sched: Any = make_scheduler(model, setup)
        unit = setup.layers.unit if setup.layers else setup.unit
        self.hasher = make_hasher(unit or setup.block_size)
        self.depth = setup.depth or max(setup.stages, 1) + setup.is_async
        if IS_0_23:
            self.depth = min(self.depth, 2 if setup.is_async else 1)
        self.workers = Workers(setup)
        if setup.stages:
            self._lay_pipeline()
        self.loads: ConnectorWorkers | None = None
        if setup.connector is not None:
            self.loads = ConnectorWorkers(self.sched.connector, self.workers.kv)
            self.workers.loads = self.loads
        self.in_flight: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self.asked: dict[str, Asked] = {}
        self.got: dict[str, list[int]] = {}  # what each client got
        self.first_step: dict[str, int] = {}  # in which step its first token was sampled
        self.reports: list[ColdStats] = []  # what was sent along for /metrics
        self.ended: dict[str, str] = {}  # and why
        self.paused = PauseState.UNPAUSED
        self.steps = 0
        self.idle = 0
        self.preemptions = 0
        self.group_preemptions = 0
        self.occupied: list[Any] = []  # blocks that somebody else took
        self.refused = 0  # how often blocks were asked for that are not there
        self._count_refusals()
        self.errors: dict[str, str] = {}  # requests that may end with an error, and its sentence
        self.before = self._sizes()
        self.free_at_start = self.free_blocks()

    def _lay_pipeline(self) -> None:
        """Stages before the last one know sampled tokens from the scheduler alone."""
        self.sched.use_pp = True
        if self.setup.is_async:
            self.sched.pp_size = self.sched.decode_stagger = self.setup.stages
            return
        first, last = FirstStage(self.setup), self.workers.execute

        def execute(output: Any) -> Any:
            first.execute(output)
            return last(output)

        self.workers.execute = execute  # type: ignore[method-assign]

    def _count_refusals(self) -> None:
        manager = self.sched.kv_cache_manager
        allocate = manager.allocate_slots

        def watched(*args: Any, **kwargs: Any) -> Any:
            blocks = allocate(*args, **kwargs)
            self.refused += blocks is None
            return blocks

        manager.allocate_slots = watched

    def free_blocks(self) -> int:
        return int(self.sched.kv_cache_manager.block_pool.get_num_free_blocks())

    def capacity_of(self, streams: int) -> int:
        """Tokens, prompt and output, of each of so many streams of a group that is admitted."""
        per_stream = (self.setup.num_blocks - 1 - self.setup.watermark) // streams
        per_stream //= 1 + self.setup.windows
        if (layers := self.setup.layers) is not None:
            per_stream -= layers.blocks_of_a_stream(self.depth)
            if not layers.attention:
                return MAX_MODEL_LEN if per_stream >= 0 else 0
        return min(per_stream * self.setup.block_size - self.setup.lookahead, MAX_MODEL_LEN)

    def alive(self) -> list[str]:
        return [r for r in self.asked if r not in self.ended]

    def groups(self) -> list[Any]:
        return list({id(g): g for g in self.sched._groups.values()}.values())

    def may_squeeze(self) -> bool:
        """A group that fails three times with nothing else running counts as too large."""
        return not any(g.failed_alone for g in self.groups())

    def may_reset(self) -> bool:
        """Stock vLLM resets no cache while blocks are waited for."""
        if self.loads is None or self.in_flight or self.loads.busy():
            return self.loads is None
        return not any(
            r.status == RequestStatus.WAITING_FOR_REMOTE_KVS
            or r.num_computed_tokens
            and i not in self.sched._groups
            and r.status != RequestStatus.RUNNING
            for i, r in self.sched.requests.items()
        )

    # ---- what happens to an engine -----------------------------------------------------------

    def add(
        self, prompt: Sequence[int], max_tokens: int, arrival: float | None = None, **rest: Any
    ) -> str:
        """A request arrives; see ``Asked``. ``arrival``: when; default: each at its own time."""
        asked = Asked(prompt, max_tokens, media=self.setup.media, **rest)
        request_id = f"r{len(self.asked) + 1}"
        self.sched.add_request(
            make_request(
                request_id,
                asked,
                self.hasher,
                arrival=float(len(self.asked)) if arrival is None else arrival,
            )
        )
        self.asked[request_id] = asked
        self.got[request_id] = []
        self.check()
        return request_id

    def why_never(self, prompt: Sequence[int], **rest: Any) -> str | None:
        """Why admission refuses a request, on account of its images."""
        if self.setup.media is None:
            return None
        asked = Asked(prompt, 1, media=self.setup.media, **rest)
        streams = [(len(each), features) for each, features in asked.streams()]
        return of_group.why_never(streams, self.sched._encoder.room)

    def schedule(self, throttle: bool = False, squeeze: int = 0) -> int:
        """Schedule a step and run it; its results wait in ``in_flight``.

        Args:
            throttle: Whether prompts are held back (prefill balancing of data parallelism).
            squeeze: Blocks that are taken away during the pass, so that requests are preempted.

        Returns:
            The number of scheduled tokens.
        """
        assert len(self.in_flight) < self.depth
        throttle = throttle and not IS_0_23
        pool = self.sched.kv_cache_manager.block_pool
        taken = pool.get_new_blocks(min(squeeze, pool.get_num_free_blocks()))
        ran = [(g, [s.status == RequestStatus.RUNNING for s in g.streams]) for g in self.groups()]
        refused = self.refused
        output = self.sched.schedule(*(True,) if throttle else ())
        pool.free_blocks(taken)
        self._check_output(output)
        for group, before in ran:
            if any(before) and group.expert not in self.sched.running:
                self.group_preemptions += 1
                wanted = self.refused > refused or not all(before) or self.errors
                assert wanted, f"{group.request_id} was preempted for nothing"
        self.steps += 1
        could_run = (
            not self.in_flight
            and not throttle
            and not squeeze
            and self.paused == PauseState.UNPAUSED
            and any(not self._compiling(r) for r in self.alive())
            and not (self.loads and self.loads.busy())
        )
        count = int(output.total_num_scheduled_tokens)
        self.idle = self.idle + 1 if could_run and not count else 0
        # A connector may say something else when vLLM asks than when we did.
        ways = self.setup.connector
        is_fickle = ways is not None and (ways.unknown > 0 or 0 < ways.late < 1)
        most = MAX_IDLE_STEPS * (5 if is_fickle else 1)
        assert self.idle <= most, "requests wait, and nothing is scheduled"
        sampled, told = self.workers.execute(output)
        if (encoder := self.workers.encoder) is not None:
            believed = self.sched.encoder_cache_manager.cached.keys()
            assert believed == encoder.held.keys(), "the encoder's cache is not what vLLM believes"
        for request_id, tokens in sampled.items():
            if tokens:
                self.first_step.setdefault(request_id, self.steps)
        ids = list(sampled)
        result = ModelRunnerOutput(
            **rows_of(ids),
            sampled_token_ids=[sampled[r] for r in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
            kv_connector_output=told,
        )
        result.cold = [stats_of(self.workers.scored)]
        self.in_flight.append((output, result))
        self.check()
        return count

    def deliver(self) -> None:
        """The results of the oldest step come back."""
        output, result = self.in_flight.popleft()
        for client in self.sched.update_from_output(output, result).values():
            stats = client.scheduler_stats
            if stats is not None and "cold" in (stats.kv_connector_stats or ()):
                self.reports.append(msgspec.convert(stats.kv_connector_stats["cold"], ColdStats))
            for one in client.outputs:
                request_id = one.request_id
                assert request_id in self.asked, f"{request_id} was made public"
                assert request_id not in self.ended, "output after the end"
                self.got[request_id] += one.new_token_ids
                if one.new_token_ids:
                    num = len(one.new_token_ids)
                    self._check_told(request_id, one.kv_transfer_params, num)
                if one.finish_reason is not None:
                    self.ended[request_id] = str(one.finish_reason)
                    self._check_end(request_id, one)
        if self.setup.drafts and not self.setup.is_async:
            self.sched.update_draft_token_ids(self.workers.take_drafts(output.num_scheduled_tokens))
        self.check()

    def _check_told(self, request_id: str, told: Any, num: int) -> None:
        """Of a client that asks, those of each token come with it; of nobody else."""
        lives, num_tokens = self.asked[request_id].lives, len(self.got[request_id])
        steps = range(num_tokens - num, num_tokens)
        rows = [[w if w else None for w in weights_of(lives, step)] for step in steps]
        if lives:
            assert [each["weights"] for each in told["cold"]["steps"]] == rows
        else:
            assert told is None

    def step(self, **how: Any) -> int:
        """Schedule once, and deliver the oldest results if enough steps are in flight."""
        while len(self.in_flight) >= self.depth:
            self.deliver()
        count = self.schedule(**how)
        if len(self.in_flight) >= self.depth:
            self.deliver()
        return count

    def until_idle(self) -> None:
        """Steps until all requests have ended; what is under way stays so."""
        while self.alive():
            self.step()

    def abort(self, request_ids: Collection[str] | None) -> None:
        """None for all, as when an engine is paused with mode "abort"."""
        asked = None if request_ids is None else [r for r in request_ids if r not in self.ended]
        alive = self.alive() if asked is None else asked
        finished = self.sched.finish_requests(asked, RequestStatus.FINISHED_ABORTED)
        # vLLM 0.23 gives (request id, client index).
        names = sorted(r[0] if isinstance(r, tuple) else r.request_id for r in finished)
        assert names == sorted(alive)
        self.ended.update(dict.fromkeys(alive, "abort"))
        self.check()

    def reset(self, running: bool) -> None:
        """reset_prefix_cache, with running requests preempted or only if there are none."""
        done = self.sched.reset_prefix_cache(reset_running_requests=running)
        assert done or not running
        self.check()

    def forget_images(self) -> None:
        """The encoder's cache is reset, as for new weights."""
        self.sched.reset_encoder_cache()
        assert self.workers.encoder is not None
        self.workers.encoder.held.clear()

    def occupy(self, leave: int) -> None:
        """Somebody else takes all free blocks but ``leave``, until ``drain``."""
        pool = self.sched.kv_cache_manager.block_pool
        self.occupied += pool.get_new_blocks(self.free_blocks() - leave)

    def pause(self, state: PauseState) -> None:
        self.paused = state
        self.sched.set_pause_state(state)

    def wait(self) -> None:
        """Admit nobody until everything that runs has ended, as a pause with mode "wait"."""
        self.pause(PauseState.PAUSED_NEW)
        bound = self.steps + 200 + 20 * sum(a.max_tokens for a in self.asked.values())
        self._come_to_rest(bound, "an engine whose admission is paused never comes to rest")
        assert not self.sched.running
        self.pause(PauseState.UNPAUSED)

    def _come_to_rest(self, bound: int, otherwise: str) -> None:
        """Until nothing is left, of what has ended either."""
        while self.sched.has_requests() or self.in_flight:
            assert self.steps < bound, otherwise
            if self.sched.has_requests():
                self.step()
            else:
                self.deliver()

    def compiling(self) -> list[str]:
        """Requests whose grammar is being compiled."""
        return [r for r in self.alive() if self._compiling(r)]

    def _compiling(self, request_id: str) -> bool:
        structured = self.sched.requests[request_id].structured_output_request
        return structured is not None and structured.grammar is None

    def compiled(self, request_id: str) -> None:
        self.sched.requests[request_id].structured_output_request.grammar = Grammar()

    def drain(self) -> None:
        """Run until everything has ended; then nothing may be left."""
        self.pause(PauseState.UNPAUSED)
        self.sched.kv_cache_manager.block_pool.free_blocks(self.occupied)
        self.occupied.clear()
        for request_id in self.compiling():
            self.compiled(request_id)
        work = sum(len(a.prompt) + a.max_tokens for a in map(self.asked.get, self.alive()) if a)
        bound = self.steps + 200 + 20 * work
        while self.sched.has_unfinished_requests():
            assert self.steps < bound, f"no end in sight for {self.alive()}"
            self.step()
        while self.in_flight:
            self.deliver()
        self.step()  # tells the workers what has finished
        # What ended amid a load, or is saved, is free later.
        self._come_to_rest(bound + 50, "something of requests that have ended is left")
        assert set(self.ended) == set(self.asked)
        assert not self.sched.requests
        assert not self.workers.rows
        self._check_encoder()
        assert self._sizes() == self.before, "something was left behind"
        assert self.free_blocks() == self.free_at_start

    # ---- invariants ----------------------------------------------------------------------------

    def _sizes(self) -> dict[str, int]:
        """The size of everything that the scheduler keeps, but for rings of the last steps."""
        sched = self.sched
        kept = {**vars(sched), "loads": sched._loads.streams}
        return {
            name: len(value)
            for name, value in kept.items()
            if isinstance(value, Sized) and not isinstance(value, str)
            if getattr(value, "maxlen", None) is None
        }

    def _check_encoder(self) -> None:
        """No image is anybody's any more."""
        manager = self.sched.encoder_cache_manager
        assert not manager.request_cached_ids and not any(manager.cached.values())
        assert manager.num_freeable_slots == manager.cache_size
        held = sum(manager.freeable.values())
        assert manager.num_free_slots == manager.cache_size - held
        self.sched._encoder.begin_pass()  # forgets the last one

    def _check_end(self, request_id: str, output: Any) -> None:
        reason, asked = self.ended[request_id], self.asked[request_id]
        if reason == "error" and request_id in self.errors:
            self.errors[request_id] = output.stop_reason
            return
        if reason == "error" and self.loads and self.loads.ways.policy == "fail":
            assert self.loads.failed and output.stop_reason is None
            assert self.got[request_id] == asked.solo()[: len(self.got[request_id])]
            return
        assert reason in ("length", "stop"), f"{request_id}: {output.stop_reason}"
        if reason == "stop" and output.stop_reason == ENDED_BY_RULE:
            assert self.got[request_id] == asked.solo()[: len(self.got[request_id])]
            return
        assert self.got[request_id] == asked.solo(), f"{request_id}: wrong tokens"

    def _check_output(self, output: Any) -> None:
        """What goes to the workers is consistent, and no group is split."""
        scheduled = output.num_scheduled_tokens
        assert output.total_num_scheduled_tokens == sum(scheduled.values())
        assert output.total_num_scheduled_tokens <= self.setup.budget
        assert all(n > 0 for n in scheduled.values())
        self.preemptions += len(output.preempted_req_ids or ())
        new = [r.req_id for r in output.scheduled_new_reqs]
        cached = output.scheduled_cached_reqs
        assert sorted([*new, *cached.req_ids]) == sorted(scheduled)
        columns = (cached.req_ids, cached.num_computed_tokens, cached.new_block_ids)
        assert len({len(c) for c in (*columns, cached.num_output_tokens)}) == 1
        for group in self.groups():
            samples = {r.request_id in scheduled and not r.is_prefill_chunk for r in group.streams}
            assert len(samples) == 1, "one stream samples without the others"
            drafts = [
                output.scheduled_spec_decode_tokens.get(r.request_id, ()) for r in group.streams
            ]
            assert all(d == drafts[0] for d in drafts), "the streams have other drafts"

    def check(self) -> None:
        """The state between calls."""
        sched = self.sched
        queued = [
            *sched.waiting,
            *getattr(sched, "skipped_waiting", ()),
            *getattr(sched, "kv_holding_waiting", ()),
        ]
        assert len(queued) == len(set(queued)), "a request waits twice"
        loading = {r for r in queued if r.status == RequestStatus.WAITING_FOR_REMOTE_KVS}
        running = {r.request_id for r in sched.running}
        for group in self.groups():
            outputs = [list(r.output_token_ids) for r in group.streams]
            assert all(tokens == outputs[0] for tokens in outputs)
            waits = [r for r in group.streams if r in queued]
            runs = [r for r in group.streams if r.request_id in running]
            held = [r for r in waits if r in loading or r.num_computed_tokens]
            # For all of them the expert waits, unless some run or have blocks.
            assert waits == (held if runs or held else [group.expert])
        if self.setup.share is not None:
            queue = set(sched.waiting)
            taken = [g for g in self.groups() if g.amateurs and g.expert not in queue]
            alone = [g for g in self.groups() if not g.amateurs and g.request_id in running]
            slots = sum(len(g.streams) for g in (*taken, *alone))
            assert slots <= self.setup.slots_of_share, "groups have more than their share"
        known = {r.request_id for g in self.groups() for r in g.streams}
        ended = {r for r, request in sched.requests.items() if request.is_finished()}
        assert self.loads or not ended
        assert sched.has_finished_requests() == bool(sched.finished_req_ids or ended)
        assert set(sched.requests) - ended == {*self.alive(), *known}
        held: set[int] = set()
        for request_id, request in sched.requests.items():
            assert (request.status == RequestStatus.RUNNING) == (request_id in running)
            groups = sched.kv_cache_manager.get_block_ids(request_id)
            holds = request.num_computed_tokens > 0 or request in loading or request_id in ended
            assert request_id in running or not any(groups) or (self.loads and holds), (
                f"{request_id} waits and holds blocks: {request.status.name} {request in queued}"
            )
            held.update(*groups)
        later = getattr(sched, "deferred_frees", ())  # not in 0.23
        held.update(block.block_id for _, blocks in later for block in blocks)
        held.discard(0)  # stands for blocks out of a window
        free = self.setup.num_blocks - 1 - len(held) - len(self.occupied)
        assert self.free_blocks() == free
        deferred = getattr(sched, "deferred_waiting", ())
        assert set(deferred) <= set(queued), "a request that waits nowhere is counted as waiting"
        # A contrastive request is counted once.
        of_groups = {s.request_id for g in self.groups() for s in g.streams}
        num = len(running - of_groups)
        num += sum(any(r.request_id in running for r in g.streams) for g in self.groups())
        assert sched.get_request_counts() == (num, len(self.alive()) - num)
