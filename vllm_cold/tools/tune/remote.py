# SPDX-License-Identifier: Apache-2.0
"""A running server in place of an engine: problems are sent to it as a client would send them."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import httpx
import openai
from pydantic import BaseModel, Field

from vllm_cold.tools.address import without_openai
from vllm_cold.tools.contrast import messages_of, request_args
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.server import Server
from vllm_cold.tools.tune.decode import ENDS, Job
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.store import Output

CONCURRENCY = 32  # requests at a time


class _Message(BaseModel):
    content: str | None


class _Choice(BaseModel):
    text: str = ""
    message: _Message = _Message(content=None)
    finish_reason: str


class _Usage(BaseModel):
    completion_tokens: int


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage


class _Version(BaseModel):
    version: str


class ServerDecoder(Server):
    """Decodes jobs on a running server, as ``Decoder`` does in an engine.

    Args:
        options: Those of the command that say which server, and how to ask it.

    Raises:
        ToolError: see ``Server``.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        given = options.concurrency
        self._concurrency: int = CONCURRENCY if given is None else given
        if self._concurrency < 1:
            raise ToolError(f"--concurrency={given}: must be 1 or more")
        super().__init__(
            options.url,
            options.adapter,
            [name for name in options.amateur or () if name],
            options.model,
            options.api_key,
            options.insecure_http,
        )
        self._chat = options.chat
        self._common: dict[str, Any] = {
            "model": self.expert or self.base,
            "temperature": 0.0,
            "max_tokens": options.max_tokens,
            "stop": options.stop or [],
        }

    @cached_property
    def version(self) -> str:
        """vLLM's, on the server; "unknown" where nothing answers that."""
        url = str(self._client.base_url.join("../version"))
        with self._errors():
            try:
                reply = self._client.get(url, cast_to=httpx.Response)
            except openai.NotFoundError:
                return "unknown"
            return _Version.model_validate_json(reply.text).version

    def fields(
        self, setting: Setting | None, args: Mapping[str, Any], own_contrast: bool = False
    ) -> dict[str, Any]:
        """What a request's body has to say of it, beside the prompt.

        Args:
            setting: None for greedy decoding.
            args: What is contrasted with, as flat arguments.
            own_contrast: Whether more is to be said of that.
        """
        said: dict[str, Any] = {"cold": 0}
        if setting is not None:
            said = request_args({**args, **setting.args}, None if own_contrast else self.base)
        return {"model": self._common["model"], "vllm_xargs": said}

    def run(self, jobs: Sequence[Job], done: Callable[[Job, Output], None]) -> None:
        """See ``Decoder.run``. One token with CoLD comes first: what the server refuses is refused
        before all are decoded greedily.

        Raises:
            ToolError: the server refuses a request, or cannot be reached.
        """
        try:
            asyncio.run(self._run(jobs, done))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _run(self, jobs: Sequence[Job], done: Callable[[Job, Output], None]) -> None:
        with without_openai():
            client = openai.AsyncOpenAI(
                base_url=self._client.base_url,
                api_key=self._client.api_key,
                max_retries=0,
                timeout=600,
            )

        waiting = iter(jobs)

        async def work() -> None:
            for job in waiting:  # all take the next one of the same
                done(job, await self._decode(client, job))

        async with client:
            cold = next((job for job in jobs if job.setting is not None), None)
            if cold is not None and cold is not jobs[0]:
                await self._decode(client, cold, max_tokens=1)
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(work())

    async def _decode(self, client: openai.AsyncOpenAI, job: Job, **more: Any) -> Output:
        problem = job.problem
        extra = self.fields(job.setting, problem.args)
        options: dict[str, Any] = {**self._common, "extra_body": extra, **more}
        messages: list[Any] | None = messages_of(problem.prompt, self._chat)
        try:
            with self._errors():
                if messages is None:
                    completions = client.completions.with_raw_response
                    reply = await completions.create(prompt=str(problem.prompt), **options)
                else:
                    chats = client.chat.completions.with_raw_response
                    reply = await chats.create(messages=messages, **options)
                found = _Reply.model_validate_json(reply.text)
        except ToolError as error:
            raise ToolError(f"{problem.place}: {error}") from error
        choice = found.choices[0]
        if choice.finish_reason not in ENDS:
            raise ToolError(f"{problem.place}: the server ended it with {choice.finish_reason!r}")
        text = choice.text if messages is None else choice.message.content or ""
        return Output(text, found.usage.completion_tokens, choice.finish_reason)
