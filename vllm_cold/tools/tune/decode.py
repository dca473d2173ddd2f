# SPDX-License-Identifier: Apache-2.0
"""The engine: one ``vllm.LLM`` that decodes problems under several settings in the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vllm_cold.method.settings import ColdError
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.contrast import Stream, as_written, read_contrast, read_streams
from vllm_cold.tools.engine import cold_params, engine_errors, prompt_maker
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.interrupts import kept_interrupts
from vllm_cold.tools.tune.data import Problem
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.store import Output

# Of the model's generation_config.json, what still counts at temperature 0; a server applies it.
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
ENDS = ("stop", "length", "repetition")  # finish reasons of outputs that are whole
_WAITING = 2  # requests handed over for each that can run: batches stay full, memory stays small


@dataclass(frozen=True, slots=True)
class Job:
    """One problem to be decoded, with CoLD or (None) greedily."""

    setting: Setting | None
    problem: Problem


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
        self._streams: dict[str, tuple[Stream, ...]] = {}
        defaults = self._config.model_config.get_diff_sampling_param()
        self.penalties = {name: defaults[name] for name in PENALTIES if defaults.get(name)}
        self._common: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "stop": list(stop),
            **self.penalties,
        }

    def tokenize(self, problems: Iterable[Problem]) -> None:
        """Make the tokens of all streams' prompts, before anything is decoded.

        Raises:
            ToolError: no chat template, a prompt that is too long for the model, an amateur that
                is its expert, or more streams than the engine has seats.
        """
        names = [name for name in self._adapters if name is not None]
        for problem in problems:
            amateurs = read_contrast(problem.args).amateurs
            try:
                streams = read_streams(
                    problem.prompt,
                    amateurs,
                    self._make,
                    self._expert,
                    self._base,
                    names,
                    self._chat,
                )
            except ColdError as error:
                said = as_written(error, problem.own_keys)
                raise ToolError(f"{problem.place}: {said}") from error
            self._check_room(problem, streams)
            self._streams[problem.id] = streams

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
        return cold_params(contrast, self._streams[job.problem.id], self._adapters, **common)

    def run(self, jobs: Iterable[Job], done: Callable[[Job, Output], None]) -> None:
        """Decode ``jobs`` and call ``done`` for each as soon as it is finished.

        Jobs of different settings run in the same batches: the engine is not left half empty
        while the last problems of a setting end.

        Raises:
            ToolError: the engine refuses a request or ends it with an error.
        """
        with kept_interrupts() as check:
            self._run(jobs, done, check)

    def _run(
        self, jobs: Iterable[Job], done: Callable[[Job, Output], None], check: Callable[[], None]
    ) -> None:
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
                    job = running.pop(result.request_id)
                    done(job, _output(job, result.outputs[0]))
        finally:
            # After an error: the engine must not go on with what nobody waits for.
            if alive and running and self._engine.has_unfinished_requests():
                self._engine.abort_request(list(running))

    def _add(self, request_id: str, job: Job) -> None:
        prompt = {"prompt_token_ids": list(self._streams[job.problem.id][0].ids)}
        adapter = None if self._expert is None else self._adapters[self._expert]
        try:
            self._engine.add_request(request_id, prompt, self._params(job), lora_request=adapter)
        except ValueError as error:
            raise ToolError(f"{job.problem.place}: {error}") from error


def _output(job: Job, completion: Any) -> Output:
    if completion.finish_reason not in ENDS:
        raise ToolError(
            f"{job.problem.place}: the engine ended it with {completion.finish_reason!r}: "
            f"{completion.stop_reason}"
        )
    return Output(completion.text, len(completion.token_ids), completion.finish_reason)
