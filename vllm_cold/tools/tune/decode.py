# SPDX-License-Identifier: Apache-2.0
"""What decodes problems, several settings at a time: an engine here, or a server that is asked."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Annotated, Any

import httpx
import openai
from pydantic import BaseModel, Field

from vllm_cold.method.settings import ColdError
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.address import without_openai
from vllm_cold.tools.contrast import (
    Stream,
    as_written,
    messages_of,
    read_contrast,
    read_streams,
    request_args,
)
from vllm_cold.tools.engine import cold_params, engine_errors, prompt_maker
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.interrupts import kept_interrupts
from vllm_cold.tools.server import Server
from vllm_cold.tools.tune.answers import Answer
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.problems import Problem

# Of the model's generation_config.json, what still counts at temperature 0; a server applies it.
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
ENDS = ("stop", "length", "repetition")  # finish reasons of answers that are whole
CONCURRENCY = 32  # requests to a server at a time
_WAITING = 2  # requests handed over for each that can run: batches stay full, memory stays small


@dataclass(frozen=True, slots=True)
class Job:
    """One problem to be decoded, with CoLD or (None) greedily."""

    setting: Setting | None
    problem: Problem


Done = Callable[[Job, Answer], None]


class Decoder:
    """Decodes jobs in an engine, as a server would at temperature 0.

    Args:
        llm: The engine.
        base: What the base model is called.
        adapters: All that are used.
        expert: The name of the expert's, None for the base model.
        max_tokens: Per output.
        stop: Stop strings.
        chat: Whether text prompts go through the chat template; messages always do.

    Raises:
        ToolError: CoLD cannot be used in this engine.
    """

    def __init__(
        self,
        llm: Any,
        base: str,
        adapters: Sequence[Adapter],
        expert: str | None,
        max_tokens: int,
        stop: Sequence[str] = (),
        chat: bool = False,
    ) -> None:
        from vllm.lora.request import LoRARequest

        from vllm_cold.vllm import availability
        from vllm_cold.vllm.frontend.config import is_configured, unsupported

        self._engine = llm.llm_engine
        self._config = self._engine.vllm_config
        # Now, and not after the greedy pass.
        try:
            availability.require_active()
        except ValueError as error:
            raise ToolError(str(error)) from None
        if not is_configured(self._config):
            raise ToolError(f"CoLD cannot be used in this engine: {unsupported(self._config)}")
        self._make, self._chat = prompt_maker(llm), chat
        self._base, self._expert = base, expert
        self._adapters: dict[str, Any] = {
            one.name: LoRARequest(one.name, number, one.folder)
            for number, one in enumerate(adapters, 1)
        }
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._streams: dict[tuple[str, str | None], tuple[Stream, ...]] = {}
        defaults = self._config.model_config.get_diff_sampling_param()
        self._common: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "stop": list(stop),
            **{name: defaults[name] for name in PENALTIES if defaults.get(name)},
        }

    def tokenize(self, problems: Iterable[Problem], settings: Iterable[Setting]) -> None:
        """Make the tokens of all streams' prompts, before anything is decoded.

        Raises:
            ToolError: no chat template, a prompt that is too long for the model, an amateur that
                is its expert, or more streams than the engine has seats.
        """
        # The same options can mean other amateurs for a preset, and for nothing else of a setting.
        methods = {setting.preset: setting for setting in settings}
        for problem in problems:
            for preset, setting in methods.items():
                try:
                    streams = read_streams(
                        problem.prompt,
                        read_contrast({**problem.args, **setting.args}).amateurs,
                        self._make,
                        self._expert,
                        self._base,
                        list(self._adapters),
                        self._chat,
                    )
                except ColdError as error:
                    said = as_written(error, problem.own_keys)
                    raise ToolError(f"{problem.place}: {said}") from error
                self._check_room(problem, streams)
                self._streams[problem.id, preset] = streams
                self._prompts[problem.id] = streams[0].ids

    def _check_room(self, problem: Problem, streams: Sequence[Stream]) -> None:
        limit = self._config.model_config.max_model_len
        whose = "its prompt"
        for stream in streams:
            needed = len(stream.ids) + self._common["max_tokens"]
            if needed > limit:
                raise ToolError(
                    f"{problem.place}: {whose} has {len(stream.ids)} tokens, with --max-tokens "
                    f"{needed} in all, and the engine's limit is {limit}; shorten it, lower "
                    "--max-tokens or raise --max-model-len"
                )
            whose = "an amateur's prompt"
        seats, needed = self._config.scheduler_config.max_num_seqs, len(streams)
        if seats < needed:
            raise ToolError(
                f"{problem.place}: expert and amateurs take {needed} sequences, and the engine has "
                f"room for {seats}; raise --max-num-seqs"
            )

    def _params(self, job: Job) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = self._common | {"output_kind": RequestOutputKind.FINAL_ONLY}
        if job.setting is None:
            # Greedy, whatever the engine's default sampler is.
            return SamplingParams(**common, extra_args={"cold": 0})
        contrast = read_contrast({**job.problem.args, **job.setting.args})
        streams = self._streams[job.problem.id, job.setting.preset]
        return cold_params(contrast, streams, self._adapters, **common)

    def run(self, jobs: Iterable[Job], done: Done) -> None:
        """Decode ``jobs`` and call ``done`` for each as soon as it is finished.

        Jobs of different settings run in the same batches: the engine is not left half empty
        while the last problems of a setting end.

        Raises:
            ToolError: the engine refuses a request or ends it with an error.
        """
        with kept_interrupts() as check:
            self._run(jobs, done, check)

    def _run(self, jobs: Iterable[Job], done: Done, check: Callable[[], None]) -> None:
        room = _WAITING * self._config.scheduler_config.max_num_seqs
        waiting = iter(jobs)
        running: dict[str, Job] = {}
        number = 0
        alive = True
        try:
            while True:
                check()
                for job in islice(waiting, room - len(running)):
                    self._add(str(number), job)
                    running[str(number)] = job
                    number += 1
                if not running:
                    return
                alive = False
                with engine_errors():
                    results = self._engine.step()
                alive = True
                for result in results:
                    job, (completion,) = running.pop(result.request_id), result.outputs
                    done(job, _whole(job, completion.text, completion.finish_reason, "engine"))
        finally:
            # After an error: the engine must not go on with what nobody waits for.
            if alive and running and self._engine.has_unfinished_requests():
                self._engine.abort_request(list(running))

    def _add(self, request_id: str, job: Job) -> None:
        prompt = {"prompt_token_ids": list(self._prompts[job.problem.id])}
        adapter = None if self._expert is None else self._adapters[self._expert]
        try:
            self._engine.add_request(request_id, prompt, self._params(job), lora_request=adapter)
        except ValueError as error:
            raise ToolError(f"{job.problem.place}: {error}") from error


def _whole(job: Job, text: str, finish: str, who: str) -> Answer:
    """An answer that may be judged.

    Raises:
        ToolError: it was ended by an error, or from outside.
    """
    if finish not in ENDS:
        raise ToolError(
            f"{job.problem.place}: the {who} ended it with {finish!r}; see its log, and run the "
            "same command again"
        )
    return Answer(text, finish)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    text: str = ""
    message: _Message = _Message()
    finish_reason: str


class _Reply(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]


_CHAT = ("/chat/completions", "messages")


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
                return str(self._client.get(url, cast_to=httpx.Response).json()["version"])
            except (openai.NotFoundError, ValueError, KeyError, TypeError):
                return "unknown"

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

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """See ``Decoder.run``. One token with CoLD comes first: what the server refuses is refused
        before all are decoded greedily.

        Raises:
            ToolError: the server refuses a request, or cannot be reached.
        """
        try:
            asyncio.run(self._run(jobs, done))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _run(self, jobs: Sequence[Job], done: Done) -> None:
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

    async def _decode(self, client: openai.AsyncOpenAI, job: Job, **more: Any) -> Answer:
        problem = job.problem
        body = {**self._common, **self.fields(job.setting, problem.args), **more}
        messages = messages_of(problem.prompt, self._chat)
        path, key = ("/completions", "prompt") if messages is None else _CHAT
        body[key] = messages or problem.prompt
        try:
            with self._errors():
                reply = await client.post(path, body=body, cast_to=httpx.Response)
                choice = _Reply.model_validate_json(reply.text).choices[0]
        except ToolError as error:
            raise ToolError(f"{problem.place}: {error}") from error
        text = choice.text if messages is None else choice.message.content
        return _whole(job, text or "", choice.finish_reason, "server")
