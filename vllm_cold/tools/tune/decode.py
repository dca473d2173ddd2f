# SPDX-License-Identifier: Apache-2.0
"""What decodes problems, several settings at a time: a server that is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import openai

from vllm_cold.settings.amateurs import Messages
from vllm_cold.tools.address import without_openai
from vllm_cold.tools.contrast import request_args
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.own_server import serving
from vllm_cold.tools.pictures import as_sent
from vllm_cold.tools.server import Server
from vllm_cold.tools.tune.answers import Job, Output

if TYPE_CHECKING:
    from vllm_cold.tools.tune.task import Task

CONCURRENCY = 32  # requests at a time to a server that others may ask, too
_OWN_CONCURRENCY = 256  # so that batches are full

Done = Callable[[Job, Output], None]
Decode = Callable[[Sequence[Job], Done], None]
"""Decodes jobs at temperature 0 and calls ``Done`` for each as soon as it is finished. ToolError
where a request is refused or ends with an error.
"""


def decoder(task: Task, stack: ExitStack) -> Decode:
    """What decodes a task's problems. Without a server of the task's one starts now, which
    ``stack`` ends, or ToolError says why it does not.
    """
    if task.server is not None:
        return partial(ask, task, task.server)
    own = serving(
        task.model, task.adapters, task.expert, verbose=task.options.verbose, **task.engine
    )
    return partial(ask, task, stack.enter_context(own))


def _sampling(task: Task) -> dict[str, Any]:
    stop = task.options.stop or []
    return {"temperature": 0.0, "max_tokens": task.options.max_tokens, "stop": stop}


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
            most = CONCURRENCY if task.server is not None else _OWN_CONCURRENCY
            async with asyncio.TaskGroup() as group:
                for _ in range(task.options.concurrency or most):
                    group.create_task(work(client, waiting))

    try:
        asyncio.run(run())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _answer(task: Task, server: Server, client: openai.AsyncOpenAI, job: Job) -> Output:
    reads = job.reads
    told = request_args(job.args, task.model) if job.args else {"cold": 0}
    common = _sampling(task) | {
        "model": task.expert or task.model,
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
    most, finish = common["max_tokens"], found.finish_reason
    if finish == "length" and usage is not None and usage.completion_tokens < most:
        raise ToolError(
            f"{job.problem.place}: its prompt has {usage.prompt_tokens} tokens, with --max-tokens "
            f"{usage.prompt_tokens + most} in all, which the model's length does not hold; shorten "
            "it, lower --max-tokens or raise --max-model-len"
        )
    return Output(text or "", finish)
