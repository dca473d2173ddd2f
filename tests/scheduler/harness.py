# SPDX-License-Identifier: Apache-2.0
"""A real CoLD scheduler without a model: requests in, made-up tokens back, invariants checked."""

import random
from collections import deque
from pathlib import Path
from typing import Any

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    LoRAConfig,
    ModelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_cold.bindings.scheduler import ColdAsyncScheduler, ColdScheduler
from vllm_cold.pairing import tokens_left
from vllm_cold.stream import Stream

MAX_MODEL_LEN = 64


class Harness:
    """Drives one scheduler; ``depth`` steps are in flight before results come back."""

    def __init__(
        self,
        model: Path,
        *,
        num_blocks: int = 33,
        block_size: int = 4,
        budget: int = 16,
        max_num_seqs: int = 6,
        max_loras: int = 2,
        caching: bool = True,
        is_async: bool = False,
        policy: str = "fcfs",
        long_prefill: int = 0,
    ) -> None:
        scheduler_config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max(budget, max_num_seqs),
            max_num_scheduled_tokens=budget,
            max_model_len=MAX_MODEL_LEN,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            async_scheduling=is_async,
            policy=policy,  # type: ignore[arg-type]
            long_prefill_token_threshold=long_prefill,
        )
        cache_config = CacheConfig(
            block_size=block_size, gpu_memory_utilization=0.9, enable_prefix_caching=caching
        )
        config = VllmConfig(
            scheduler_config=scheduler_config,
            model_config=ModelConfig(
                model=str(model), dtype="float32", seed=0, max_model_len=MAX_MODEL_LEN
            ),
            cache_config=cache_config,
            lora_config=LoRAConfig(max_lora_rank=8, max_loras=max_loras),
            device_config=DeviceConfig("cpu"),
        )
        config.scheduler_config.async_scheduling = is_async
        config.cache_config.num_gpu_blocks = num_blocks
        kv = KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[
                KVCacheGroupSpec(
                    ["layer"],
                    FullAttentionSpec(
                        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
                    ),
                )
            ],
        )
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(block_size, sha256)
        self.sched: Any = (ColdAsyncScheduler if is_async else ColdScheduler)(
            vllm_config=config,
            kv_cache_config=kv,
            structured_output_manager=StructuredOutputManager(config),
            block_size=block_size,
            log_stats=True,
        )
        self.depth = 2 if is_async else 1
        self.in_flight: deque[tuple[Any, Any]] = deque()
        self.known: dict[str, list[int]] = {}  # what each client got
        self.wanted: dict[str, int] = {}
        self.ended: dict[str, Any] = {}
        self.workers: set[str] = set()  # requests that the workers have been sent
        self.num_blocks = num_blocks
        self.count = 0
        self.preemptions = 0
        self.max_loras = max_loras
        self.free_at_start = self.free_blocks()

    def free_blocks(self) -> int:
        return int(self.sched.kv_cache_manager.block_pool.get_num_free_blocks())

    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        cold: bool,
        adapter: int | None = None,
        amateur: int | None = None,
        priority: int = 0,
    ) -> str:
        def lora(number: int | None) -> LoRARequest | None:
            return LoRARequest(f"a{number}", number, "/a") if number else None

        self.count += 1
        request_id = f"r{self.count}"
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        params._eos_token_id = 2
        if cold:
            other = lora(amateur)
            stream = Stream(
                0.1,
                0.5,
                amateur={"lora_name": other.lora_name, "lora_int_id": amateur, "lora_path": "/a"}
                if other
                else None,
            )
            params.extra_args = stream.to_extra_args(None)
        self.sched.add_request(
            Request(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling_params=params,
                pooling_params=None,
                lora_request=lora(adapter),
                arrival_time=float(self.count),
                priority=priority,
                block_hasher=self.hasher,
            )
        )
        self.known[request_id] = []
        self.wanted[request_id] = max_tokens
        return request_id

    def step(self, throttle: bool = False) -> int:
        """Schedule once, and return the oldest result if enough steps are in flight."""
        output = self.sched.schedule()
        self.check_output(output)
        result = self.run(output)
        self.in_flight.append((output, result))
        if len(self.in_flight) >= self.depth:
            self.deliver()
        self.check_state()
        return int(output.total_num_scheduled_tokens)

    def run(self, output: Any) -> ModelRunnerOutput:
        """A model whose next token depends on the position alone, so that resuming repeats it."""
        ids = list(output.num_scheduled_tokens)
        sampled = []
        for request_id in ids:
            request = self.sched.requests[request_id]
            # Counts have advanced: a request that is past its prompt chunk sampled.
            if request.is_prefill_chunk:
                sampled.append([])
            else:
                sampled.append([3 + request.num_computed_tokens % 50])
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={r: i for i, r in enumerate(ids)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def deliver(self) -> None:
        output, result = self.in_flight.popleft()
        for client in self.sched.update_from_output(output, result).values():
            for one in client.outputs:
                assert one.request_id in self.known, f"{one.request_id} was made public"
                assert one.request_id not in self.ended, "output after the end"
                self.known[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    self.ended[one.request_id] = one
                    assert str(one.finish_reason) == "length", one.stop_reason
                    assert len(self.known[one.request_id]) == self.wanted[one.request_id]

    def abort(self, request_id: str) -> None:
        if request_id in self.ended:
            return
        finished = self.sched.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        assert [r.request_id for r in finished] == [request_id]
        self.ended[request_id] = None

    def pairs(self) -> list[Any]:
        return list({id(p): p for p in self.sched._pairs.values()}.values())

    def check_output(self, output: Any) -> None:
        """What goes to the workers is whole and consistent."""
        scheduled = output.num_scheduled_tokens
        assert output.total_num_scheduled_tokens == sum(scheduled.values())
        assert all(n > 0 for n in scheduled.values())
        self.preemptions += len(output.preempted_req_ids or ())
        new = [r.req_id for r in output.scheduled_new_reqs]
        cached = output.scheduled_cached_reqs
        assert sorted([*new, *cached.req_ids]) == sorted(scheduled)
        assert len(cached.req_ids) == len(cached.num_computed_tokens) == len(cached.new_block_ids)
        self.workers -= output.finished_req_ids
        assert self.workers.isdisjoint(new), "sent as new twice"
        self.workers |= set(new)
        assert set(cached.req_ids) <= self.workers, "never sent as new"
        adapters = {
            r.lora_request.lora_int_id
            for i in scheduled
            if (r := self.sched.requests[i]).lora_request is not None
        }
        assert len(adapters) <= self.max_loras
        for pair in self.pairs():
            samples = [
                r.request_id in scheduled and not r.is_prefill_chunk
                for r in (pair.expert, pair.amateur)
            ]
            assert samples[0] == samples[1], "one stream samples without the other"

    def check_state(self) -> None:
        queued = list(self.sched.waiting)
        for pair in self.pairs():
            expert, amateur = pair.expert, pair.amateur
            assert list(expert.all_token_ids) == list(amateur.all_token_ids)
            assert amateur not in queued
            if amateur.status == RequestStatus.RUNNING:
                assert expert.status == RequestStatus.RUNNING
            running = self.sched.running
            assert (amateur in running) == (amateur.status == RequestStatus.RUNNING)
        for request in self.sched.running:
            assert tokens_left(request) >= 0

    def drain(self, bound: int = 3000) -> None:
        """Run until everything has ended; then nothing may be left."""
        for _ in range(bound):
            if not self.sched.has_unfinished_requests() and not self.in_flight:
                break
            if self.sched.has_unfinished_requests():
                self.step()
            else:
                self.deliver()
        else:
            raise AssertionError(f"no end after {bound} steps: {self.sched.requests.keys()}")
        while self.in_flight:
            self.deliver()
        assert set(self.ended) == set(self.known)
        assert not self.sched.requests
        assert not self.sched._pairs
        assert not self.sched.running
        assert not self.sched.waiting
        assert self.free_blocks() == self.free_at_start


def blast(model: Path, seed: int, steps: int, **options: Any) -> Harness:
    """A seeded storm of arrivals, aborts and resets; ends with everything drained."""
    rng = random.Random(seed)
    harness = Harness(model, **options)
    size = options.get("block_size", 4)
    most = min(MAX_MODEL_LEN - 1, (harness.num_blocks - 1) // 2 * size - 1)
    prefix = [rng.randrange(3, 500) for _ in range(most)]
    adapters = [None, 1, 2, 3][: options.get("max_loras", 2) + 2]
    for _ in range(steps):
        event = rng.random()
        if event < 0.25 and len(harness.sched.requests) < 24:
            length = rng.choice((1, 2, size, size + 1, rng.randint(1, max(most - 2, 1))))
            length = min(length, most - 1)
            head = prefix[: rng.randint(0, length)]
            prompt = head + [rng.randrange(3, 500) for _ in range(length - len(head))]
            cold = rng.random() < 0.6
            adapter = rng.choice(adapters[1:] if cold else adapters)
            others = [a for a in adapters[1:] if a != adapter]
            two = cold and options.get("max_loras", 2) >= 2 and others and rng.random() < 0.2
            harness.add(
                prompt,
                rng.randint(1, most - length),
                cold=cold,
                adapter=adapter,
                amateur=rng.choice(others) if two else None,
                priority=rng.randint(0, 2),
            )
        elif event < 0.29:
            alive = [r for r in harness.known if r not in harness.ended]
            if alive:
                harness.abort(rng.choice(alive))
        elif event < 0.30 and not harness.in_flight:
            harness.sched.reset_prefix_cache(reset_running_requests=True)
        harness.step()
    harness.drain()
    return harness
