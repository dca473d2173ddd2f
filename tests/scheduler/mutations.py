# SPDX-License-Identifier: Apache-2.0
"""The rules of a pair, each with the change that takes it out of the code."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from tests.scheduler import cases
from vllm_cold.group import lockstep
from vllm_cold.group.lockstep import Step
from vllm_cold.vllm.scheduler import scheduler
from vllm_cold.vllm.scheduler.scheduler import PairScheduling


@dataclass(frozen=True)
class Mutation:
    """A rule and how to remove it.

    Attributes:
        rule: What the code sees to.
        owner: The class or module with the function.
        function: Its name.
        old: Text in its source, exactly once.
        new: What stands there without the rule.
        case: What fails then; None for storms.
    """

    rule: str
    owner: Any
    function: str
    old: str
    new: str
    case: Callable[[Path], None] | None = None

    def make(self) -> FunctionType:
        """The function without the rule.

        Raises:
            LookupError: ``old`` is not in its source exactly once: the table is out of date.
        """
        function = getattr(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise LookupError(f"{self.rule}: {self.old!r} is not in {self.function} once")
        source = source.replace(self.old, self.new)
        # A function that is compiled outside of its class has no __class__ cell.
        source = source.replace("super()", f"super({self.owner.__name__}, self)")
        names: dict[str, Any] = {}
        exec(compile(source, f"<{self.function} without: {self.rule}>", "exec"),
             function.__globals__, names)  # fmt: skip
        made = names[self.function]
        assert isinstance(made, FunctionType)
        return made

    def places(self) -> list[Any]:
        """Where the function has to be replaced."""
        return [self.owner, scheduler] if self.owner is lockstep else [self.owner]


Case = Callable[[Path], None] | None


def _step(rule: str, function: str, old: str, new: str, case: Case = None) -> Mutation:
    return Mutation(rule, Step, function, old, new, case)


def _lockstep(rule: str, function: str, old: str, new: str, case: Case = None) -> Mutation:
    return Mutation(rule, lockstep, function, old, new, case)


def _sched(rule: str, function: str, old: str, new: str, case: Case = None) -> Mutation:
    owner = next(c for c in PairScheduling.__mro__ if function in vars(c))
    return Mutation(rule, owner, function, old, new, case)


MUTATIONS = [
    # Who samples.
    _step(
        "a pair samples only if the expert gets to its last token",
        "clip_expert",
        "num_new_tokens == expert_left",
        "True",
    ),
    _step(
        "a pair samples only if the budget holds the amateur's tokens",
        "clip_expert",
        "and amateur_left <= self.budget - num_new_tokens",
        "",
    ),
    _step(
        "a pair samples only if the amateur's tokens are one chunk",
        "clip_expert",
        "and (room.chunk == 0 or amateur_left <= room.chunk)",
        "",
    ),
    _step(
        "a pair samples only if its amateur runs or has room",
        "clip_expert",
        "(room.admissible and not self.preempted)",
        "not self.preempted",
    ),
    _step(
        "a pair samples only if its amateur runs or this pass may admit it",
        "clip_expert",
        "(room.admissible and not self.preempted)",
        "room.admissible",
        cases.preempted_beside_a_cached_amateur,
    ),
    _step(
        "an expert that cannot sample stops one token short",
        "clip_expert",
        "granted = min(num_new_tokens, expert_left - 1)",
        "granted = num_new_tokens",
    ),
    _step(
        "an amateur that cannot sample stops one token short",
        "clip_amateur",
        "min(num_new_tokens, left - 1)",
        "min(num_new_tokens, left)",
    ),
    _lockstep(
        "tokens in flight count",
        "tokens_left",
        "request.num_tokens + request.num_output_placeholders - computed",
        "request.num_tokens - computed",
    ),
    # Who is admitted.
    _step(
        "an expert is admitted only with room for its amateur",
        "clip_expert",
        "or (waiting and not room.admissible)",
        "",
    ),
    _step(
        "an expert is admitted with a token left for its amateur",
        "clip_expert",
        "granted = min(granted, self.budget - 1)",
        "pass",
    ),
    _step(
        "one expert at most waits for its amateur",
        "clip_expert",
        "elif waiting and room.lonely:",
        "elif False:",
        cases.two_cached_amateurs,
    ),
    _step(
        "nobody is admitted in front of an expert that waits for its amateur",
        "may_admit",
        "self.wanting is None or",
        "True or",
        cases.many_small_ones,
    ),
    _step(
        "an amateur is queued only with room",
        "admits_amateur",
        "room.running or not room.admissible",
        "room.running",
        cases.no_slot_for_the_amateur,
    ),
    _step(
        "an amateur is queued only if it has a token to compute",
        "admits_amateur",
        "and tokens_left(pair.amateur, room.num_cached) > 1",
        "",
    ),
    _sched(
        "an expert without its amateur runs last",
        "_order_running",
        "self.running += lonely",
        "self.running = lonely + self.running",
    ),
    _sched(
        "an expert without its amateur does not run on while admission is paused",
        "_order_running",
        "self.pause_state == PauseState.PAUSED_NEW",
        "False",
        cases.pause_beside_a_cached_amateur,
    ),
    _sched(
        "an expert gives up its cache hit if it cannot be admitted with it",
        "_cap",
        "self._unblock(pair, num_cached, room)",
        "pass",
    ),
    _sched(
        "what decoding requests take of a step counts",
        "_unblock",
        "self._budget - 1 - len(self.running)",
        "self._budget - 1",
        cases.cached_expert_beside_decodes,
    ),
    _sched(
        "a pair waits while its amateur's prompt is held back",
        "_room",
        "and not throttled",
        "",
        cases.throttled,
    ),
    _sched(
        "amateurs that were not admitted leave the queue",
        "_settle",
        "queue.remove_requests((pair.amateur,))",
        "pass",
    ),
    _sched(
        "an amateur has its expert's priority",
        "_settle",
        "pair.amateur.priority = pair.expert.priority",
        "pass",
    ),
    # What room is.
    _sched(
        "an amateur needs a seat",
        "_room",
        "seats <= max_active",
        "True",
    ),
    _sched(
        "an amateur waits until its tokens in flight have come back",
        "_room",
        "and not late",
        "",
    ),
    _sched(
        "an amateur needs a slot for its adapter",
        "_room",
        "and self._loras_fit(pair.expert, pair.amateur)",
        "",
    ),
    _sched(
        "a pair needs blocks for both prompts",
        "_room",
        "and self._blocks_fit(pair)",
        "",
    ),
    _sched(
        "plain requests leave the adapter slots alone that pairs need again",
        "_cap",
        "not self._loras_fit(request)",
        "False",
    ),
    # What a preemption takes along.
    _step(
        "a pair that lost a stream gets nothing more",
        "preempt",
        "self.lost.add(pair.expert.request_id)",
        "pass",
    ),
    _step(
        "an amateur gets nothing if its expert was passed over",
        "clip_amateur",
        "if verdict is None or pair.expert.request_id in self.lost:",
        "if False:",
    ),
    _step(
        "a pass that preempted admits nobody",
        "preempt",
        "self.preempted = True",
        "pass",
        cases.preempted_beside_a_cached_amateur,
    ),
    _step(
        "an amateur that lost its cached blocks is not admitted",
        "clip_amateur",
        "num_new_tokens if num_new_tokens == left else 0",
        "num_new_tokens",
        cases.evicted_amateur,
    ),
    _sched(
        "a pair that cannot ever run ends with an error",
        "_settle",
        "pair.failed_alone >= _MAX_FAILED_ALONE",
        "False",
        cases.too_large,
    ),
    _lockstep(
        "a pair of which one stream samples is torn",
        "torn",
        "expert != amateur or",
        "",
    ),
    _lockstep(
        "a pair is torn if one of its streams was preempted",
        "torn",
        "or pair.expert.request_id in step.lost",
        "",
    ),
    _sched(
        "blocks that a preempted request did not write are not in the prefix cache",
        "_preempt_request",
        "self._uncache_unwritten(request)",
        "pass",
    ),
    _sched(
        "a preempted amateur waits outside of the queue",
        "_preempt_request",
        "self.waiting.remove_request(request)",
        "pass",
    ),
    _sched(
        "a stream that the workers have not heard of is sent as new",
        "_tear",
        "if never_sent:",
        "if False:",
    ),
    _sched(
        "a stream that was taken out of the step was not scheduled",
        "_strip",
        "self.prev_step_scheduled_req_ids.discard(request_id)",
        "pass",
    ),
    _sched(
        "a pair that waits for room in vain is preempted",
        "_settle",
        "not output.num_scheduled_tokens and not self._step.preempted and self._stalled()",
        "False",
        cases.too_large,
    ),
    # What an end takes along, and what clients see.
    _sched(
        "an abort takes both streams",
        "finish_requests",
        "ids |= {pair.expert.request_id, pair.amateur.request_id}",
        "pass",
    ),
    _sched(
        "the end of the expert is the end of its amateur",
        "_after_output",
        "over.append(pair)",
        "pass",
    ),
    _sched(
        "aborted amateurs are not reported",
        "finish_requests",
        "not in amateurs",
        "not in ()",
    ),
    _sched(
        "amateurs have no output",
        "_after_output",
        "hidden.add(request_id)",
        "pass",
    ),
    _sched(
        "a CoLD request is counted once",
        "get_request_counts",
        "running -= sum(",
        "sum(",
    ),
]
