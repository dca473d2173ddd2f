# SPDX-License-Identifier: Apache-2.0
"""Many requests on an engine that is too small for them, and each of them alone on one that is not.

``Engines.alone`` gives a job's result on an idle engine with plenty of KV
cache; ``drive`` sends many jobs at random moments, aborts some, and gives the survivors' results.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from tests.engine.conftest import Pool, free_blocks, lora, scheduler
from tests.engine.streams import Job
from vllm_cold.wire.transfer_params import told_in

MAX_STEPS = 20_000


T = TypeVar("T")


@dataclass
class Completion:
    """What the client has of one completion."""

    tokens: list[int]
    text: str
    finish_reason: str | None
    stop_reason: int | str | None
    logprobs: list[dict[int, float]]


@dataclass
class Result:
    """A request's completions (n of them) and its prompt's logprobs."""

    completions: dict[int, Completion] = field(default_factory=dict)
    prompt_logprobs: list[dict[int, float] | None] | None = None
    budget: Any = None
    """What it cost, by a rule that charges; of several completions a list."""

    @property
    def tokens(self) -> list[list[int]]:
        return [c.tokens for _, c in sorted(self.completions.items())]

    @property
    def text(self) -> str:
        return self.completions[0].text

    def add(self, output: Any) -> None:
        """Take in one of the request's outputs, which has all that came before."""
        if output.prompt_logprobs:
            self.prompt_logprobs = [p and plain_logprobs(p) for p in output.prompt_logprobs]
        self.budget = told_in(output.kv_transfer_params).get("budget", self.budget)
        for part in output.outputs:
            self.completions[part.index] = Completion(
                list(part.token_ids),
                part.text,
                part.finish_reason,
                part.stop_reason,
                [plain_logprobs(p) for p in part.logprobs or ()],
            )


def some(all_of_them: list[T], runner: str) -> list[T]:
    """All of them on V1; on V2, which is slow in the interpreter, the first 24."""
    return all_of_them if runner == "v1" else all_of_them[:24]


def plain_logprobs(position: Any) -> dict[int, float]:
    return {token: entry.logprob for token, entry in position.items()}


def numbers_in(budget: Any) -> list[float]:
    """All numbers in what an answer, or several, have cost."""
    if isinstance(budget, dict):
        budget = [budget[key] for key in ("spent", "left")]
    if isinstance(budget, list):
        return [number for part in budget for number in numbers_in(part)]
    return [] if budget is None else [budget]


def first_difference(mine: Sequence[int], other: Sequence[int]) -> int | None:
    """Where two token lists part; None if one of them begins with the other."""
    pairs = enumerate(zip(mine, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), None)


def assert_close(
    got: Sequence[dict[int, float] | None], alone: Sequence[dict[int, float] | None], where: object
) -> None:
    assert len(got) == len(alone), where
    for mine, other in zip(got, alone, strict=True):
        if mine is None or other is None:
            assert mine is other, where
            continue
        assert mine.keys() == other.keys(), where
        for token, value in mine.items():
            assert math.isclose(value, other[token], abs_tol=1e-3), (where, value, other[token])


def add(llm: Any, tiny: Path, job: Job, name: str, priority: int = 0) -> str:
    """Add a request; vLLM's own id of it."""
    added = llm.llm_engine.add_request(
        name,
        job.asked(),
        job.params(tiny),
        lora_request=lora(tiny, job.group.expert),
        priority=priority,
    )
    return str(added)


class Receiver:
    """Collects the outputs of running jobs by their names."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        self.finished: set[str] = set()

    def expect(self, name: str) -> None:
        self.results[name] = Result()

    def take(self, outputs: list[Any]) -> None:
        for output in outputs:
            assert output.request_id not in self.finished, "an output after the last one"
            self.results[output.request_id].add(output)
            if output.finished:
                self.finished.add(output.request_id)


def model_of(llm: Any) -> Any:
    """The model object of an in-process engine."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return executor.driver_worker.worker.model_runner.model


def assert_idle(llm: Any) -> None:
    """The scheduler has forgotten everything that ran."""
    sched = scheduler(llm)
    assert not sched.requests
    assert not sched.running
    assert not sched.waiting
    for other in ("skipped_waiting", "deferred_waiting"):  # of some releases
        assert not getattr(sched, other, ())
    assert not any((sched._groups, sched._failed))
    assert sched.get_request_counts() == (0, 0)


@contextmanager
def preempted_pairs(llm: Any) -> Iterator[list[Any]]:
    """The scheduler's groups that were preempted in the meantime, one entry each time."""
    sched, groups = scheduler(llm), []
    original = sched._preempt_request

    def record(request: Any, *args: Any, **kwargs: Any) -> None:
        if request.request_id.endswith("-amateur-1"):
            groups.append(sched._groups[request.request_id])
        original(request, *args, **kwargs)

    sched._preempt_request = record
    try:
        yield groups
    finally:
        del sched._preempt_request


@contextmanager
def scheduled(llm: Any) -> Iterator[list[list[int]]]:
    """For each step of the engine that computes something: how many tokens of each stream."""
    sched, steps = scheduler(llm), []
    original = sched.schedule

    def record(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if output.num_scheduled_tokens:
            steps.append(sorted(output.num_scheduled_tokens.values()))
        return output

    sched.schedule = record
    try:
        yield steps
    finally:
        del sched.schedule


def drive(
    llm: Any,
    tiny: Path,
    jobs: Sequence[Job],
    seed: int,
    abort: float = 0.0,
    disturb: Callable[[int], None] = lambda step: None,
) -> dict[int, Result]:
    """Send the jobs in random order at random moments; results of those that were not aborted.

    Args:
        llm: The engine.
        tiny: The folder of the tiny model.
        jobs: The requests.
        seed: Of order, moments and priorities.
        abort: Which part of the requests is aborted, each a random number of steps after it came.
        disturb: Called after every step with its number.
    """
    rng, engine = random.Random(seed), llm.llm_engine
    before = free_blocks(llm)
    pending = rng.sample(range(len(jobs)), len(jobs))
    victims = set(rng.sample(pending, round(abort * len(jobs))))
    due: dict[str, tuple[str, int]] = {}  # name -> (vLLM's id, the step of its abort)
    receiver, step = Receiver(), 0
    while pending or engine.has_unfinished_requests():
        for _ in range(rng.choice((0, 0, 1, 2, 5)) if pending else 0):
            if pending:
                index = pending.pop()
                receiver.expect(str(index))
                added = add(llm, tiny, jobs[index], str(index), rng.randrange(3))
                if index in victims:
                    due[str(index)] = added, step + rng.choice((0, 0, 1, 2, 3, 5, 9, 20, 50))
        receiver.take(engine.step())
        for name in [n for n, (_, when) in due.items() if when <= step]:
            engine.abort_request([due.pop(name)[0]], internal=True)
        disturb(step)
        step += 1
        assert step < MAX_STEPS, "the engine stands still"
    while scheduler(llm).connector is not None and scheduler(llm).has_requests():
        receiver.take(engine.step())  # what is under way for requests that have ended
        step += 1
        assert step < MAX_STEPS, "what was under way does not come"
    assert_idle(llm)
    assert free_blocks(llm) == before
    survivors = set(range(len(jobs))) - victims
    assert survivors <= {int(name) for name in receiver.finished}
    return {i: receiver.results[str(i)] for i in survivors}


class Engines:
    """A roomy engine, and one other at a time, on the same model."""

    def __init__(self, tiny: Path, pool: Pool, **options: Any) -> None:
        """``options``: what these engines have in common."""
        self.tiny = tiny
        self.options = pool.options | options
        self._pool = pool
        self._alone: dict[Job, Result] = {}

    def get(self, **kwargs: Any) -> Any:
        """The engine with these options."""
        return self._pool.get(**self.options | kwargs)

    @property
    def roomy(self) -> Any:
        return self.get(enable_prefix_caching=False, max_loras=3)

    @property
    def tokenizer(self) -> Any:
        return self.roomy.get_tokenizer()

    def alone(self, job: Job) -> Result:
        """The job's result on an idle engine without prefix cache and with room for it."""
        if job not in self._alone:
            receiver, engine = Receiver(), self.roomy.llm_engine
            receiver.expect("alone")
            add(self.roomy, self.tiny, job, "alone")
            while engine.has_unfinished_requests():
                receiver.take(engine.step())
            self._alone[job] = receiver.results["alone"]
        return self._alone[job]

    def check(self, jobs: Sequence[Job], results: dict[int, Result], where: object = "") -> None:
        """Every result equals the job's alone: tokens, text, reasons exactly, logprobs but for
        rounding. Where two tokens are as good but for rounding, the comparison ends.
        """
        ties = sum(not self._is_same(jobs[i], r, (where, i, jobs[i])) for i, r in results.items())
        assert ties <= max(1, len(results) // 20), "too few of the results can be compared"

    def _is_same(self, job: Job, got: Result, where: object) -> bool:
        alone, whole = self.alone(job), True
        assert got.completions.keys() == alone.completions.keys(), where
        for index, mine in got.completions.items():
            other = alone.completions[index]
            at = first_difference(mine.tokens, other.tokens)
            if at is not None and self._is_tie(job, index, mine.tokens[: at + 1]):
                whole = False
                continue
            assert mine.tokens == other.tokens, where
            assert mine.text == other.text, where
            assert mine.finish_reason == other.finish_reason, where
            assert mine.stop_reason == other.stop_reason, where
            assert_close(mine.logprobs, other.logprobs, where)
        assert (got.prompt_logprobs is None) == (alone.prompt_logprobs is None), where
        if got.prompt_logprobs is not None:
            assert_close(got.prompt_logprobs, alone.prompt_logprobs or (), where)
        if whole:  # each token is charged once
            flat, other_flat = (numbers_in(result.budget) for result in (got, alone))
            assert flat == pytest.approx(other_flat, abs=2e-2), where
        return whole

    def _is_tie(self, job: Job, index: int, tokens: list[int]) -> bool:
        """Whether the job alone may as well begin with ``tokens``: it does so in some of 64 runs
        whose logits are changed by a ten-thousandth.
        """
        roomy = self.roomy  # once: with a request in it, it would be ended for another
        model, engine, receiver = model_of(roomy), roomy.llm_engine, Receiver()
        original = model.compute_logits
        model.compute_logits = lambda *args: (x := original(*args)) + 1e-4 * torch.randn_like(x)
        try:
            for copy in range(64):
                receiver.expect(str(copy))
                add(roomy, self.tiny, job, str(copy))
            while engine.has_unfinished_requests():
                receiver.take(engine.step())
        finally:
            del model.compute_logits
        runs = [r.completions[index].tokens for r in receiver.results.values()]
        return any(run[: len(tokens)] == tokens for run in runs)


@pytest.fixture(scope="module")
def engines(tiny: Path, pool: Pool) -> Engines:
    return Engines(tiny, pool)
