# SPDX-License-Identifier: Apache-2.0
"""What is decoded, several problems at a time by a server, and ``answers.jsonl``, to which each
answer is added as it comes.

The first line says what made the answers: model, adapters and options. Each further line is one
answer with what was asked for, by which it is found again. So nothing is decoded again if the rule
of ``--match``, the reference answers, the split or the grid changes; a problem that changes is.
"""

import asyncio
import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import openai

from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.contrast_args import (
    Content,
    as_json,
    endpoint,
    merge,
    reads_args,
    request_args,
)
from vllm_cold.tools.server import Server, http_client, without_openai
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.problems import Problem
from vllm_cold.tools.tune.task import Task

NAME = "answers.jsonl"
_MARK = "vllm-cold tune"  # begins the file, with the version of its format
_BROKEN = (None, "abort", "error")  # finish reasons of answers that are not whole
_CONCURRENCY = 32  # requests at a time to a server that others may ask, too
_OWN_CONCURRENCY = 256  # so that batches are full
# Of a request that others' server refuses for now: 40 seconds, or as it says (Retry-After).
RETRIES = 8
_encode = msgspec.json.Encoder(order="deterministic").encode


class Job(NamedTuple):
    """A problem to be decoded with a contrast, with a baseline, with both, or greedily."""

    setting: Setting
    problem: Problem

    @property
    def reads(self) -> Content:
        """What the expert reads."""
        name = self.setting.baseline
        return self.problem.prompt if name is None else self.problem.baselines[name]

    @property
    def args(self) -> dict[str, Any]:
        """What it is contrasted with, and how, as flat arguments; empty where it is not."""
        how = self.setting.args
        if not how:
            return {}
        # With a baseline the amateur reads what it reads with the problem's own prompt.
        reads = {}
        if self.setting.baseline is not None:
            reads = reads_args(self.problem.lacking)
            if self.reads == self.problem.lacking:
                return {}  # no passage is shown
        return merge(self.problem.args, reads) | how

    @property
    def key(self) -> bytes:
        """All that its answer depends on, but for what is the same in a whole run."""
        return _encode([as_json(self.reads), self.args])


class Output(msgspec.Struct, frozen=True):
    """What was made of one problem."""

    text: str
    finish: str  # vLLM's reason, "length" where --max-tokens cut it off


class _Line(Output, frozen=True):
    prompt: Any
    args: dict[str, Any]


class Answers(dict[bytes, Output]):
    """The answers that are there, by their jobs' keys; ToolError for another run's file, or one
    that ``tune`` did not write.
    """

    def __init__(self, path: Path, file: BinaryIO, made_with: Mapping[str, Any]) -> None:
        super().__init__()
        self.path, self._file = path, file
        head = {_MARK: 3, **made_with}
        file.seek(0)
        content = file.read()
        first, *lines = content.split(b"\n")
        if content and not first.startswith(_encode({_MARK: 3})[:-1]):
            raise ToolError(
                f"{path}: was not written by this version of vllm-cold tune; choose another "
                "--output"
            )
        for line in lines:
            # What a kill has cut off, or is damaged, is decoded again.
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                row = msgspec.json.decode(line, type=_Line)
                self[_encode([row.prompt, row.args])] = row
        if not self:
            file.truncate(0)
            self._write(head)
            return
        then, now = msgspec.json.decode(first), msgspec.json.decode(_encode(head))
        for name in now:
            if then.get(name) != now[name]:
                was = f"{name} was {then.get(name)!r} and is {now[name]!r}"
                raise ToolError(
                    f"{path}: holds answers of another run "
                    f"({was if len(was) < 99 else f'{name} changed'}); choose another --output, or "
                    "remove that file"
                )
        if lines[-1]:
            file.write(b"\n")

    def add(self, job: Job, answer: Output) -> None:
        """Keep an answer; it is with the operating system when this returns. ToolError for one that
        was ended by an error, or from outside.
        """
        if answer.finish in _BROKEN:
            raise ToolError(
                f"{job.problem.place}: was ended with {answer.finish!r}; see the log of the engine "
                "or the server, and run the same command again"
            )
        prompt, args = msgspec.json.decode(job.key)
        line = {"id": job.problem.id, "setting": job.setting.values or "greedy"}
        self._write({**line, **msgspec.to_builtins(answer), "prompt": prompt, "args": args})
        self[job.key] = answer

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
        except OSError as error:
            raise ToolError(
                f"{self.path}: cannot be written: {error.strerror}; {len(self)} answers are kept "
                "there, and the same command goes on when it can be"
            ) from error


@contextmanager
def open_answers(folder: str, made_with: Mapping[str, Any]) -> Iterator[Answers]:
    """Open the answers of a folder, which is made if need be; no second process can do so.

    Args:
        folder: That of ``--output``.
        made_with: What the answers depend on besides their jobs, as JSON.

    Raises:
        ToolError: it cannot be written, another process writes there, or the answers are of another
            run.
    """
    path = Path(folder) / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ToolError(
            f"--output={folder!r}: cannot be written ({error.strerror}); if another vllm-cold tune "
            "is writing there, wait for it, or choose another folder"
        ) from None
    with file:
        yield Answers(path, file, made_with)


def ask(
    task: Task, server: Server, jobs: Sequence[Job], on_answer: Callable[[Job, Output], None]
) -> None:
    """Have a server decode jobs at temperature 0; ``on_answer`` is called for each as soon as it is
    finished. ToolError where a request is refused or ends with an error.
    """
    waiting, per_minute = iter(jobs), task.options.requests_per_minute

    async def work(client: openai.AsyncOpenAI, turn: asyncio.Lock) -> None:
        for job in waiting:  # all take the next one of the same
            if per_minute is not None:
                async with turn:
                    await asyncio.sleep(60 / per_minute)
            on_answer(job, await _answer(task, server, client, job))

    async def run() -> None:
        async with http_client() as http:  # of this event loop
            retries = 0 if task.server is None else RETRIES
            with without_openai():
                client = server.client.with_options(http_client=http, max_retries=retries)
            most = _CONCURRENCY if task.server is not None else _OWN_CONCURRENCY
            num = task.options.concurrency or most
            turn = asyncio.Lock()
            await asyncio.gather(*(work(client, turn) for _ in range(num)))  # ends at first error

    asyncio.run(run())


async def _answer(task: Task, server: Server, client: openai.AsyncOpenAI, job: Job) -> Output:
    path, prompt = endpoint(job.reads)
    most = task.options.max_tokens
    body = {
        "model": task.expert or task.model,
        **prompt,
        "temperature": 0.0,
        "max_tokens": most,
    }
    if task.options.stop:
        body["stop"] = task.options.stop
    if server.has_cold:  # nobody else is sent what OpenAI's API does not have
        body["vllm_xargs"] = request_args(job.args, task.model) if job.args else {"cold": 0}
    try:
        reply = await server.post(client, path, body)
    except ToolError as error:
        hint = ""
        if "HTTP 404" in str(error) and path == "/completions":
            hint = "; a server for chats alone takes them with --chat"
        if "HTTP 429" in str(error):
            hint = "; ask for less with --concurrency or --requests-per-minute"
        raise ToolError(f"{job.problem.place}: {error}{hint}") from error
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
