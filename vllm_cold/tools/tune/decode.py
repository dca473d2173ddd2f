# SPDX-License-Identifier: Apache-2.0
"""Has a server decode problems, several at a time."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import openai

from vllm_cold.settings.sources import Messages
from vllm_cold.tools.asked_contrast import request_args
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.pictures import as_sent
from vllm_cold.tools.server import Server, side_by_side, without_openai
from vllm_cold.tools.tune.answers import Job, Output
from vllm_cold.tools.tune.task import Task

_CONCURRENCY = 32  # requests at a time to a server that others may ask, too
_OWN_CONCURRENCY = 256  # so that batches are full


def ask(
    task: Task, server: Server, jobs: Sequence[Job], done: Callable[[Job, Output], None]
) -> None:
    """Have a server decode jobs at temperature 0; ``done`` is called for each as soon as it is
    finished. ToolError where a request is refused or ends with an error.
    """
    waiting = iter(jobs)

    async def work(client: openai.AsyncOpenAI) -> None:
        for job in waiting:  # all take the next one of the same
            done(job, await _answer(task, server, client, job))

    async def run() -> None:
        async with openai.DefaultAsyncHttpxClient() as http:  # of this event loop
            with without_openai():
                client = server.client.with_options(http_client=http)
            most = _CONCURRENCY if task.server is not None else _OWN_CONCURRENCY
            await side_by_side(work(client) for _ in range(task.options.concurrency or most))

    asyncio.run(run())


async def _answer(task: Task, server: Server, client: openai.AsyncOpenAI, job: Job) -> Output:
    reads = job.reads
    told = request_args(job.args, task.model) if job.args else {"cold": 0}
    most = task.options.max_tokens
    common: dict[str, Any] = {
        "model": task.expert or task.model,
        "temperature": 0.0,
        "max_tokens": most,
        "stop": task.options.stop or [],
        "extra_body": {"vllm_xargs": told},
    }
    try:
        with server.errors():
            if isinstance(reads, Messages):
                messages: Any = as_sent(reads.value)
                chat = await client.chat.completions.create(messages=messages, **common)
                found, text, usage = chat.choices[0], chat.choices[0].message.content, chat.usage
            else:
                reply = await client.completions.create(prompt=reads.value, **common)
                found, text, usage = reply.choices[0], reply.choices[0].text, reply.usage
    except ToolError as error:
        raise ToolError(f"{job.problem.place}: {error}") from error
    finish = found.finish_reason
    if finish == "length" and usage is not None and usage.completion_tokens < most:
        raise ToolError(
            f"{job.problem.place}: its prompt has {usage.prompt_tokens} tokens, with --max-tokens "
            f"{usage.prompt_tokens + most} in all, which exceeds the model's length; shorten the "
            "prompt, lower --max-tokens or raise --max-model-len"
        )
    return Output(text or "", finish)
