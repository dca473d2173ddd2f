# SPDX-License-Identifier: Apache-2.0
"""What decodes problems, several settings at a time: an engine here, or a server that is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import openai

from vllm_cold.errors import ColdError
from vllm_cold.method.amateurs import Messages
from vllm_cold.tools.address import without_openai
from vllm_cold.tools.contrast import (
    Stream,
    as_written,
    media_in,
    read_contrast,
    read_streams,
    request_args,
)
from vllm_cold.tools.engine import (
    cold_params,
    engine_errors,
    engine_prompt,
    prompt_maker,
    start_llm,
)
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.interrupts import kept_interrupts
from vllm_cold.tools.pictures import as_sent, without_data
from vllm_cold.tools.server import Server
from vllm_cold.tools.tune.answers import Answer, Job
from vllm_cold.tools.tune.problems import Problem

if TYPE_CHECKING:
    from vllm_cold.tools.tune.task import Task

# Of the model's generation_config.json, what still counts at temperature 0; a server applies it.
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
CONCURRENCY = 32  # requests to a server at a time
_WAITING = 2  # requests handed over for each that can run: batches stay full, memory stays small

Done = Callable[[Job, Answer], None]
Decode = Callable[[Sequence[Job], Done], None]
"""Decodes jobs at temperature 0 and calls ``Done`` for each as soon as it is finished. ToolError
where a request is refused or ends with an error.
"""


def decoder(task: Task) -> Decode:
    """What decodes a task's problems; an engine starts now, or ToolError says why it does not."""
    return Engine(task).run if task.server is None else partial(ask, task, task.server)


def _sampling(task: Task) -> dict[str, Any]:
    stop = task.options.stop or []
    return {"temperature": 0.0, "max_tokens": task.options.max_tokens, "stop": stop}


def _kind(job: Job) -> tuple[Any, ...]:
    """By what its streams differ from others: the same options can mean other amateurs for a
    preset, and for nothing else of a contrast.
    """
    return job.problem.id, job.plain, bool(job.args), job.setting and job.setting.preset


class Engine:
    """An engine in this process. ``run`` is a ``Decode``: jobs of different settings are in the
    same batches, so that it is not left half empty while the last problems of a setting end.
    """

    def __init__(self, task: Task) -> None:
        self._llm = start_llm(task.model, task.options.verbose, **task.engine)
        from vllm.lora.request import LoRARequest

        self._engine = self._llm.llm_engine
        self._config = self._engine.vllm_config
        self._limit: int = self._config.model_config.max_model_len
        self._adapters: dict[str, Any] = {
            one.name: LoRARequest(one.name, number, one.folder)
            for number, one in enumerate(task.adapters, 1)
        }
        self._adapter = None if task.expert is None else self._adapters[task.expert]
        defaults = self._config.model_config.get_diff_sampling_param()
        penalties = {name: defaults[name] for name in PENALTIES if defaults.get(name)}
        self._common = _sampling(task) | penalties
        # What cannot be decoded is said before anything is.
        make = prompt_maker(self._llm)
        settings = (None, *task.plain, *task.grid, *task.combined)
        jobs = [Job(one, problem) for problem in task.problems for one in settings]
        kinds = {_kind(job): job for job in jobs}
        self._streams = {kind: self._read(task, job, make) for kind, job in kinds.items()}

    def _read(self, task: Task, job: Job, make: Callable[..., list[int]]) -> tuple[Stream, ...]:
        """The job's streams, first the expert's."""
        problem = job.problem
        try:
            if job.args:
                amateurs, names = read_contrast(job.args).amateurs, list(self._adapters)
                streams = read_streams(job.reads, amateurs, make, task.expert, task.model, names)
            else:
                ids = tuple(make("prompt", job.reads))
                streams = (Stream(task.expert, ids, media_in(job.reads)),)
        except ColdError as error:
            said = as_written(error, problem.own_keys)
            raise ToolError(f"{problem.place}: {said}") from error
        longest = max(len(stream.ids) for stream in streams)
        if longest + task.options.max_tokens > self._limit:  # vLLM would cut the output off
            self._refuse(problem, longest)
        return streams

    def _refuse(self, problem: Problem, longest: int) -> NoReturn:
        most = self._common["max_tokens"]
        raise ToolError(
            f"{problem.place}: its longest prompt has {longest} tokens, with --max-tokens "
            f"{longest + most} in all, and the engine's limit is {self._limit}; shorten it, lower "
            "--max-tokens or raise --max-model-len"
        )

    def _add(self, request_id: str, job: Job) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        streams = self._streams[_kind(job)]
        common = self._common | {"output_kind": RequestOutputKind.FINAL_ONLY}
        try:
            prompt = engine_prompt(self._llm, streams[0])
            if job.args:
                contrast = read_contrast(job.args)
                params = cold_params(self._llm, contrast, streams, self._adapters, **common)
            else:  # greedy, whatever the engine's default sampler is
                params = SamplingParams(**common, extra_args={"cold": 0})
            self._engine.add_request(request_id, prompt, params, lora_request=self._adapter)
        except ValueError as error:
            raise ToolError(f"{job.problem.place}: {without_data(str(error))}") from error

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """See ``Decode``. After an error or Ctrl-C the engine is of no use any more."""
        room = _WAITING * self._config.scheduler_config.max_num_seqs
        waiting, most = iter(enumerate(jobs)), self._common["max_tokens"]
        running: dict[str, Job] = {}
        with kept_interrupts() as check:
            while True:
                check()
                for number, job in islice(waiting, room - len(running)):
                    self._add(str(number), job)
                    running[str(number)] = job
                if not running:
                    return
                with engine_errors():
                    results = self._engine.step()
                for result in results:
                    job, (completion,) = running.pop(result.request_id), result.outputs
                    finish = completion.finish_reason
                    # How long a prompt is with its images, nobody knew before.
                    if finish == "length" and len(completion.token_ids) < most:
                        self._refuse(job.problem, len(result.prompt_token_ids))
                    done(job, Answer(completion.text, finish))


def ask(task: Task, server: Server, jobs: Sequence[Job], done: Done) -> None:
    """Have a server decode jobs; a ``Decode`` but for its first arguments."""

    async def work(client: openai.AsyncOpenAI, waiting: Any) -> None:
        for job in waiting:  # all take the next one of the same
            done(job, await _answer(task, server, client, job))

    async def run() -> None:
        waiting = iter(jobs)
        async with openai.DefaultAsyncHttpxClient() as http:  # of this event loop
            with without_openai():
                client = server.client.with_options(http_client=http)
            async with asyncio.TaskGroup() as group:
                for _ in range(task.options.concurrency or CONCURRENCY):
                    group.create_task(work(client, waiting))

    try:
        asyncio.run(run())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _answer(task: Task, server: Server, client: openai.AsyncOpenAI, job: Job) -> Answer:
    reads = job.reads
    told = request_args(job.args, task.model) if job.args else {"cold": 0}
    common = _sampling(task) | {
        "model": task.expert or task.model,
        "extra_body": {"vllm_xargs": told},
    }
    try:
        with server._errors():
            if isinstance(reads, Messages):
                messages: Any = as_sent(reads.value)
                chat = await client.chat.completions.create(messages=messages, **common)
                found, text = chat.choices[0], chat.choices[0].message.content
            else:
                reply = await client.completions.create(prompt=reads.value, **common)
                found, text = reply.choices[0], reply.choices[0].text
    except ToolError as error:
        raise ToolError(f"{job.problem.place}: {error}") from error
    return Answer(text or "", found.finish_reason)
