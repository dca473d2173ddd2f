# SPDX-License-Identifier: Apache-2.0
"""One process of ``benchmarks.bench_beside``: an ``AsyncLLM``, which is what an API server asks,
and a client that sends traffic to it at its times. ``python -m benchmarks.beside.server FD``: see
``benchmarks.e2e.worker``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.e2e.worker import main

TOP = 5  # log-probabilities of a token, where they are asked for
ALPHA, BETA = 0.1, 0.5


class Server:
    """An engine in a process of its own, and its front end here.

    Args:
        settings: ``contrasts``: whether it must be able to; ``adapters``: folders by name, empty
            for none; ``cold``: what ``additional_config`` says of contrasts, None for nothing; the
            rest is for ``AsyncEngineArgs``.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        adapters, contrasts = settings["adapters"], settings["contrasts"]
        options = dict(settings["options"])
        if adapters:
            options |= {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": 8}
        if settings["cold"] is not None:
            options["additional_config"] = {"cold": settings["cold"]}
        self._adapters = {
            name: LoRARequest(name, index, folder)
            for index, (name, folder) in enumerate(adapters.items(), 1)
        }
        self._loop = asyncio.new_event_loop()
        self._sent = 0

        async def make() -> Any:
            return AsyncLLM.from_engine_args(
                AsyncEngineArgs(disable_log_stats=True, seed=0, **options)
            )

        self._engine = self._loop.run_until_complete(make())
        scheduler = str(self._engine.vllm_config.scheduler_config.scheduler_cls)
        if ("vllm_cold" in scheduler) != contrasts:
            raise RuntimeError(f"the scheduler is {scheduler}: must be ours iff it contrasts")

    def facts(self) -> dict[str, Any]:
        """What the engine is, as far as it matters for speed."""
        config = self._engine.vllm_config
        return {
            "plugins": os.environ.get("VLLM_PLUGINS", "all"),
            "scheduler": str(config.scheduler_config.scheduler_cls),
            "compilation": config.compilation_config.mode.name,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "async scheduling": config.scheduler_config.async_scheduling,
        }

    def run(
        self, requests: Sequence[Mapping[str, Any]], at_a_time: int = 0, logprobs: bool = False
    ) -> dict[str, Any]:
        """Send requests at their times and wait for all, with an empty prefix cache.

        Args:
            requests: See ``traffic.Request.as_json``.
            at_a_time: So many clients, each of which sends the next one when it has its answer,
                whatever its time is; 0 for none.
            logprobs: Whether to tell the likeliest tokens at each position.

        Returns:
            Of each request seconds, from when it was due: ``first`` and ``last`` token, and
            ``sent``; its ``tokens``; ``likely``, with ``logprobs``: of each position, by token.
        """
        return self._loop.run_until_complete(self._run(requests, at_a_time, logprobs))

    async def _run(
        self, requests: Sequence[Mapping[str, Any]], at_a_time: int, logprobs: bool
    ) -> dict[str, Any]:
        if not await self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: requests are still running")
        gc.collect()
        gate = asyncio.Semaphore(at_a_time or len(requests))
        start = time.perf_counter()

        async def send(request: Mapping[str, Any]) -> dict[str, Any]:
            if not at_a_time:
                await asyncio.sleep(start + request["at"] - time.perf_counter())
            async with gate:
                due = time.perf_counter() if at_a_time else start + request["at"]
                return await self._answer(request, start, due, logprobs)

        answers = await asyncio.gather(*map(send, requests))
        return {key: [answer[key] for answer in answers] for key in answers[0]}

    async def _answer(
        self, request: Mapping[str, Any], start: float, due: float, logprobs: bool
    ) -> dict[str, Any]:
        expert = request["streams"][0]
        sent = time.perf_counter()
        self._sent += 1
        outputs = self._engine.generate(
            {"prompt_token_ids": list(expert["prompt"])},
            self._params(request, logprobs),
            f"request-{self._sent}",
            lora_request=self._adapters.get(expert["adapter"]),
        )
        stamps, tokens, likely = [], [], []
        async for output in outputs:
            answer = output.outputs[0]
            if answer.token_ids:
                stamps.append(time.perf_counter())
                tokens += answer.token_ids
            for position in answer.logprobs or ():
                likely.append({str(key): each.logprob for key, each in position.items()})
        return {
            "first": stamps[0] - due, "last": stamps[-1] - due, "sent": sent - due,
            "done": stamps[-1] - start, "tokens": tokens, "likely": likely,
        }  # fmt: skip

    def _params(self, request: Mapping[str, Any], logprobs: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        options: dict[str, Any] = {
            "temperature": 0.0, "max_tokens": request["tokens"], "ignore_eos": True,
            "logprobs": TOP if logprobs else None, "output_kind": RequestOutputKind.DELTA,
            "detokenize": False,
        }  # fmt: skip
        amateurs = request["streams"][1:]
        if not amateurs:
            return SamplingParams(**options)
        from vllm_cold import Amateur, ColdParams

        return ColdParams(
            alpha=ALPHA,
            beta=BETA,
            amateurs=[
                Amateur(
                    prompt=list(each["prompt"]), lora_request=self._adapters.get(each["adapter"])
                )
                for each in amateurs
            ],
            **options,
        )


if __name__ == "__main__":
    from examples.demo import quiet

    quiet()
    main(Server)
