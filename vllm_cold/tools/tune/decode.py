# SPDX-License-Identifier: Apache-2.0
"""Has a server decode problems, several at a time."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import openai

from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import endpoint, request_args
from vllm_cold.tools.server import Server, side_by_side, without_openai
from vllm_cold.tools.tune.answers import Job, Output
from vllm_cold.tools.tune.task import Task

_CONCURRENCY = 32  # requests at a time to a server that others may ask, too
_OWN_CONCURRENCY = 256  # so that batches are full


def ask(
    task: Task, server: Server, jobs: Sequence[Job], on_answer: Callable[[Job, Output], None]
) -> None:
    """Have a server decode jobs at temperature 0; ``on_answer`` is called for each as soon as it is
    finished. ToolError where a request is refused or ends with an error.
    """
    waiting = iter(jobs)

    async def work(client: openai.AsyncOpenAI) -> None:
        for job in waiting:  # all take the next one of the same
            on_answer(job, await _answer(task, server, client, job))

    async def run() -> None:
        async with openai.DefaultAsyncHttpxClient() as http:  # of this event loop
            with without_openai():
                client = server.client.with_options(http_client=http)
            most = _CONCURRENCY if task.server is not None else _OWN_CONCURRENCY
            await side_by_side(work(client) for _ in range(task.options.concurrency or most))

    asyncio.run(run())


async def _answer(task: Task, server: Server, client: openai.AsyncOpenAI, job: Job) -> Output:
    path, prompt = endpoint(job.reads)
    xargs = request_args(job.args, task.model) if job.args else {"cold": 0}
    most = task.options.max_tokens
    body = {
        "model": task.expert or task.model,
        **prompt,
        "temperature": 0.0,
        "max_tokens": most,
        "stop": task.options.stop or [],
        "vllm_xargs": xargs,
    }
    try:
        with server.errors():
            reply: Any = await client.post(path, body=body, cast_to=object)
    except ToolError as error:
        raise ToolError(f"{job.problem.place}: {error}") from error
    choice, usage = reply["choices"][0], reply.get("usage")
    finish = choice["finish_reason"]
    if finish == "length" and usage is not None and usage["completion_tokens"] < most:
        tokens = usage["prompt_tokens"]
        raise ToolError(
            f"{job.problem.place}: its prompt has {tokens} tokens, with --max-tokens "
            f"{tokens + most} in all, which exceeds the model's length; shorten the "
            "prompt, lower --max-tokens or raise --max-model-len"
        )
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Output(text or "", finish)
