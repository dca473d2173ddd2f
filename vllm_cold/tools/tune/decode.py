# SPDX-License-Identifier: Apache-2.0
"""The engine: one ``vllm.LLM`` that decodes problems under several settings in the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.engine import engine_errors
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.interrupts import kept_interrupts
from vllm_cold.tools.tune.data import Problem
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.store import Output

# Of the model's generation_config.json, what still counts at temperature 0; a server applies it.
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
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
        expert: The adapter.
        amateur: What to contrast with; None for the base model.
        max_tokens: Per output.
        stop: Stop strings.
        chat: Whether text prompts go through the chat template; messages always do.

    Raises:
        ToolError: CoLD cannot be used in this engine.
    """

    def __init__(
        self,
        llm: Any,
        expert: Adapter,
        amateur: Adapter | None,
        max_tokens: int,
        stop: Sequence[str] = (),
        chat: bool = False,
    ) -> None:
        from vllm.lora.request import LoRARequest

        from vllm_cold.vllm import availability
        from vllm_cold.vllm.frontend.config import is_configured, unsupported

        self._engine = llm.llm_engine
        self._tokenizer = llm.get_tokenizer()
        self._config = self._engine.vllm_config
        # Now, and not after the greedy pass.
        try:
            availability.require_active()
        except ValueError as error:
            raise ToolError(str(error)) from None
        if not is_configured(self._config):
            raise ToolError(f"CoLD cannot be used in this engine: {unsupported(self._config)}")
        self._expert = LoRARequest(expert.name, 1, expert.folder)
        self._amateur = amateur and LoRARequest(amateur.name, 2, amateur.folder)
        self._chat = chat
        self._tokens: dict[str, list[int]] = {}
        defaults = self._config.model_config.get_diff_sampling_param()
        self.penalties = {name: defaults[name] for name in PENALTIES if defaults.get(name)}
        self._common: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "stop": list(stop),
            **self.penalties,
        }

    def tokenize(self, problems: Iterable[Problem]) -> None:
        """Make all prompts' tokens, before anything is decoded.

        Raises:
            ToolError: no chat template, or a prompt that is too long for the model.
        """
        limit = self._config.model_config.max_model_len
        for problem in problems:
            tokens = self._tokenize(problem)
            needed = len(tokens) + self._common["max_tokens"]
            if not tokens or needed > limit:
                raise ToolError(
                    f"problem {problem.id!r} (line {problem.line}): its prompt has {len(tokens)} "
                    f"tokens, with --max-tokens {needed} in all, and the engine's limit is "
                    f"{limit}; shorten it, lower --max-tokens or raise --max-model-len"
                )
            self._tokens[problem.id] = tokens

    def _tokenize(self, problem: Problem) -> list[int]:
        if isinstance(problem.prompt, str) and not self._chat:
            return list(self._tokenizer.encode(problem.prompt))
        messages = problem.prompt
        if isinstance(messages, str):
            messages = (("user", messages),)
        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False,
                add_generation_prompt=True,
            )
        # Templates are programs of the model's authors and raise what they like.
        except Exception as error:
            raise ToolError(
                f"problem {problem.id!r} (line {problem.line}): the model's chat template does "
                f'not take it ({error}); use "prompt" without --chat for a model that has none'
            ) from error
        # The template has put the special tokens in already.
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _params(self, setting: Setting | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from vllm_cold import ColdParams

        common = self._common | {"output_kind": RequestOutputKind.FINAL_ONLY}
        if setting is None:
            # Greedy, whatever the engine's default sampler is.
            return SamplingParams(**common, extra_args={"cold": 0})
        return ColdParams(
            alpha=setting.alpha,
            beta=setting.beta,
            beta_max=setting.beta_max,
            amateur=self._amateur,
            **common,
        )

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
        prompt = {"prompt_token_ids": self._tokens[job.problem.id]}
        try:
            self._engine.add_request(
                request_id, prompt, self._params(job.setting), lora_request=self._expert
            )
        except ValueError as error:
            raise ToolError(
                f"problem {job.problem.id!r} (line {job.problem.line}): {error}"
            ) from error


def _output(job: Job, completion: Any) -> Output:
    if completion.finish_reason not in ("stop", "length", "repetition"):
        raise ToolError(
            f"problem {job.problem.id!r} (line {job.problem.line}): the engine ended it with "
            f"{completion.finish_reason!r}: {completion.stop_reason}"
        )
    return Output(completion.text, len(completion.token_ids), completion.finish_reason)
