# SPDX-License-Identifier: Apache-2.0
"""The rules of a group, each with the change that takes it out of the code.

Those of one pass that ``tests/unit/test_lockstep.py`` has figures for are not here.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from tests.scheduler import cases, connector_cases, media_cases, state_cases
from tests.scheduler.storm import random_states, storm, storms, with_connector
from vllm_cold.group import lockstep, results
from vllm_cold.group.explained import Told
from vllm_cold.group.lockstep import Group, Step
from vllm_cold.group.slots import Slots
from vllm_cold.vllm.scheduler import scheduler, states
from vllm_cold.vllm.scheduler.connectors import Loads
from vllm_cold.vllm.scheduler.encoder import EncoderInputs
from vllm_cold.vllm.scheduler.kv_blocks import KVBlocks
from vllm_cold.vllm.scheduler.queues import WaitingQueues
from vllm_cold.vllm.scheduler.scheduler import GroupScheduler
from vllm_cold.vllm.scheduler.states import StateSplit

OWNERS = {
    owner.__name__.rpartition(".")[2]: owner
    for owner in (
        *(Step, Group, GroupScheduler, WaitingQueues, KVBlocks, StateSplit, EncoderInputs, Loads),
        *(Slots, Told, lockstep, results, states, scheduler),
    )
}


@dataclass(frozen=True)
class Mutation:
    """A rule and how to remove it.

    Attributes:
        rule: What the code sees to.
        where: The class or module, and its function.
        instead: What takes the function's place; or what to change in its source: a text that is
            in it exactly once, and what stands there without the rule.
        case: What fails then; None for storms.
    """

    rule: str
    where: str
    instead: Callable[..., Any] | tuple[str, str]
    case: Callable[[Path], None] | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Remove the rule, for one test.

        Raises:
            LookupError: the text is not in its source exactly once: the table is out of date.
        """
        owner, _, name = self.where.partition(".")
        mutant = self._make(OWNERS[owner], name)
        monkeypatch.setattr(OWNERS[owner], name, mutant)
        if OWNERS[owner] is lockstep and hasattr(scheduler, name):
            monkeypatch.setattr(scheduler, name, mutant)

    def _make(self, owner: Any, name: str) -> Callable[..., Any]:
        """The function without the rule."""
        function = getattr(owner, name)
        if not isinstance(self.instead, tuple):
            return self.instead
        old, new = self.instead
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(old) != 1:
            raise LookupError(f"{self.rule}: {old!r} is not in {name} once")
        source = source.replace(old, new)
        # A function that is compiled outside of its class has no __class__ cell.
        source = source.replace("super()", f"super({owner.__name__}, self)")
        names: dict[str, Any] = {}
        exec(compile(source, f"<{name} without: {self.rule}>", "exec"),
             function.__globals__, names)  # fmt: skip
        made = names[name]
        assert isinstance(made, FunctionType)
        return made


def _build_early(self: Any, connector: Any, output: Any) -> Any:
    built = Scheduler._build_kv_connector_meta(self, connector, output)
    if self._groups:
        self._after_pass(output)
    return built


def _yes(*args: Any) -> bool:
    return True


def _no(*args: Any) -> bool:
    return False


def _nothing(*args: Any) -> None:
    return None


def _none(*args: Any) -> int:
    return 0


def _all_of_them(this: Any, request: Any, num_tokens: int, cached: Any) -> int:
    return num_tokens


def _not_cut(this: Any, request: Any, start: int, num_tokens: int) -> int:
    return num_tokens


def _storms_of_states(model: Path) -> None:
    list(storms(model, range(20), partial(random_states, mode="align")))


def _storms_of_loads(model: Path) -> None:
    list(storms(model, range(60), with_connector))


def _storm_of_states(seed: int) -> Callable[[Path], None]:
    return lambda model: [*storms(model, [seed], partial(random_states, mode="align"))]


# fmt: off
MUTATIONS = [
    # Who samples.
    Mutation("a group samples only if the leader gets to its last token", "Step.clip_leader",
             ("num_new_tokens >= left", "True"), cases.chunks_of_a_leader),
    Mutation("a group samples only if its followers run or this pass may admit them",
             "Step.clip_leader",
             ("(capacity.admissible and not self.preempted)", "capacity.admissible"),
             cases.preempted_beside_a_cached_amateur),
    Mutation("tokens in flight count", "lockstep.tokens_left",
             ("request.num_tokens + request.num_output_placeholders - computed",
              "request.num_tokens - computed")),
    # Who goes first.
    Mutation("the stream with the longest prompt leads", "Group._choose_leader",
             ("max(self.streams, key=lambda stream: stream.num_tokens)", "self.streams[0]"),
             cases.longer_amateur),
    Mutation("an expert whose grammar was compiled makes way for its leader", "WaitingQueues.lead",
             ("prepend_request(group.leader)", "prepend_request(group.expert)"),
             cases.longer_amateur_and_a_grammar),
    Mutation("a leader waits in its expert's place", "GroupScheduler.add_request",
             ("self.waiting.add_request(group.leader)", "self.waiting.add_request(request)"),
             cases.longer_amateur),
    Mutation("nobody who came at the same time gets between the streams of a group",
             "WaitingQueues.put_followers",
             ("if self._by_priority and behind_head and", "if False and"),
             cases.came_at_the_same_time),
    # Who is admitted.
    Mutation("a follower is admitted with a token left for each that comes after it",
             "Step.clip_follower",
             ("kept = self.reserved * (1 + self.extra) + self.extra", "kept = self.extra"),
             cases.budget_of_four),
    Mutation("one leader at most waits for followers that are cached", "Step.clip_leader",
             ("if starting < len(others) and capacity.other_incomplete:", "if False:"),
             cases.two_cached_amateurs),
    Mutation("nobody is admitted in front of a leader that waits for its followers",
             "Step.may_admit",
             _yes, cases.many_small_ones),
    Mutation("a leader whose followers are amid their prompts keeps nobody waiting",
             "GroupScheduler._is_blocked",
             _yes, cases.cached_beside_a_long_amateur),
    Mutation("followers are queued only with room", "Step.admits",
             ("verdict is None or not capacity.admissible", "verdict is None"),
             cases.no_slot_for_the_amateur),
    Mutation("a group without one of its followers runs last", "GroupScheduler._order_running",
             ("self.running = ordered + last", "self.running = last + ordered")),
    Mutation("a group without one of its followers does not run on while admission is paused",
             "GroupScheduler._order_running",
             ("self.pause_state != PauseState.PAUSED_NEW", "True"),
             cases.pause_beside_a_cached_amateur),
    Mutation("a leader gives up its cache hit if it cannot be admitted with it",
             "GroupScheduler._give_up_cache_hit",
             _nothing),
    Mutation("what decoding requests take of a step counts", "GroupScheduler._give_up_cache_hit",
             ("self._budget - 1 - (1 + drafts + slots) * len(self.running)", "self._budget - 1"),
             cases.cached_expert_beside_decodes),
    Mutation("a group waits while a follower's prompt is held back", "GroupScheduler._may_begin",
             ("and not (self._throttled and tokens_left(request, num_cached) > 1)", ""),
             cases.throttled),
    Mutation("followers that were not admitted leave the queue", "WaitingQueues.take_back",
             ("self.remove(*waiting)", "pass")),
    Mutation("between passes streams have the priority that was asked for",
             "WaitingQueues.take_back",
             ("stream.priority = priority", "pass")),
    # What room is.
    Mutation("followers need seats", "GroupScheduler._capacity",
             ("seats <= self._max_active", "True")),
    Mutation("each follower needs a seat", "GroupScheduler._capacity",
             ("+ sum(missing) + waiting", "+ any(missing) + waiting")),
    Mutation("a stream waits until its tokens in flight have come back",
             "GroupScheduler._may_begin",
             ("not late and ", ""), cases.follower_in_flight),
    Mutation("streams need slots for their adapters, and plain requests leave these alone",
             "GroupScheduler._loras_fit",
             _yes),
    Mutation("a group without slots does not stop the queue",
             "GroupScheduler._handle_blocked_waiting_request",
             ("if group.passed_over <= _MAX_PASSED_OVER:", "if False:"),
             cases.no_slots_for_a_group),
    Mutation("a group without slots gets them in the end",
             "GroupScheduler._handle_blocked_waiting_request",
             ("if group.passed_over <= _MAX_PASSED_OVER:", "if True:"), cases.no_slots_for_a_group),
    Mutation("a group needs blocks for all prompts", "KVBlocks.fit",
             _yes),
    Mutation("what other leaders take in a pass is no room for followers",
             "GroupScheduler._promised",
             _none, cases.two_leaders),
    # Layers with states.
    Mutation("a prompt is split where vLLM splits it", "StateSplit.split",
             _all_of_them, _storms_of_states),
    Mutation("a group's stream goes on within a block", "StateSplit.part",
             ("or num_tokens", ""), state_cases.block_as_wide_as_a_step),
    Mutation("a group samples only if no follower's prompt has to be split", "Step.clip_leader",
             ("and capacity.can_finish", ""), state_cases.cached_expert_beside_a_split_amateur),
    Mutation("a leader gives up its cache hit beside a prompt that has to be split",
             "GroupScheduler._give_up_cache_hit",
             ("or not capacity.can_finish", ""), state_cases.cached_expert_beside_a_split_amateur),
    Mutation("nobody is admitted who finds a state of the same step", "StateSplit.can_finish",
             ("if any(self._leaves(*each, follower, one.num_tokens) for each in earlier):",
              "if False:"), state_cases.amateur_that_finds_anothers_state),
    Mutation("a state that a stream begins with is one of the same step", "StateSplit._leaves",
             ("-(-start // unit)", "start // unit + 1"),
             state_cases.amateurs_that_find_the_same_state),
    Mutation("one in front of it is not", "StateSplit._leaves",
             ("-(-start // unit)", "start // unit"), state_cases.amateur_that_keeps_its_hit),
    Mutation("it is until the steps are over that are under way", "states._begins",
             ('request.num_computed_tokens - getattr(request, "num_in_flight_tokens", 0)',
              "request.num_computed_tokens"), state_cases.amateurs_that_find_the_same_state),
    Mutation("a follower gives up its cache hit if it cannot be admitted with it",
             "StateSplit.give_up_hits",
             _nothing, state_cases.amateur_that_needs_anothers_state),
    Mutation("vLLM splits a prompt where more of attention is cached than of states",
             "StateSplit.can_finish",
             ("follower.shared_prefix_boundary = one.junction", "pass"), state_cases.junction),
    Mutation("a stream needs the state of the step before, too", "KVBlocks._states_to_come",
             _none, state_cases.room_for_two_states),
    Mutation("a group that has begun goes on with the room that vLLM asks for", "KVBlocks._to_come",
             ("if starts else counted", ""), _storm_of_states(79)),
    Mutation("of two groups whose followers wait, the second goes on where the first cannot",
             "GroupScheduler._capacity",
             ("waiting or not self._queues.has_followers", "waiting or incomplete[0] is group"),
             _storm_of_states(126)),
    # Media.
    Mutation("a group samples only if the media of all its streams can be encoded",
             "Step.clip_leader",
             ("and capacity.encodable", ""), media_cases.more_than_a_step_encodes),
    Mutation("what is found in the encoder's cache makes no room", "EncoderInputs.can_finish",
             (" - sum(found.values())", ""), media_cases.storms_of_images('dense')),
    Mutation("what a group counts on stays in the encoder's cache", "EncoderInputs.promise",
             ("self._manager.check_and_update_cache(each, index)", "pass"),
             media_cases.cached_images),
    Mutation("a stream whose prompt ends with a medium computes all of it",
             "EncoderInputs.begin_anew",
             _nothing, media_cases.cached_to_their_ends),
    Mutation("one group at a time keeps media while it waits", "EncoderInputs.may_begin",
             _yes, media_cases.two_that_end_with_images),
    Mutation("a group whose media never fit ends with an error", "EncoderInputs.why_never",
             _nothing, media_cases.never),
    Mutation("a leader gives up its cache hit beside more media than a step encodes",
             "GroupScheduler._give_up_cache_hit",
             ("or not self._encoder.could_finish(group, num_cached, capacity)", ""),
             media_cases.cached_expert_beside_images),
    Mutation("a group whose media were forgotten begins anew", "GroupScheduler._has_lost_media",
             _no, media_cases.forgotten_images),
    Mutation("a leader that waits for room for a medium keeps nobody waiting",
             "GroupScheduler._is_blocked",
             ("if tokens_left(group.leader) > 1 and", "if False and"),
             media_cases.image_that_waits),
    Mutation("a group's streams split no medium that must not be", "EncoderInputs._unsplit",
             _not_cut, media_cases.storms_of_images('whole')),
    Mutation("tokens that vLLM takes off for a medium are others'", "Step.take_back",
             _nothing, media_cases.tokens_taken_off),
    Mutation("a stream that does not run keeps no media", "EncoderInputs.end_pass",
             ("self._manager.free(each)", "pass"), media_cases.storms_of_images('dense', 229)),
    Mutation("what a request of the step counts on is encoded for it", "EncoderInputs.end_pass",
             ("if heirs:", "if False:"), media_cases.image_of_two),
    Mutation("that is one of its media whose data workers have", "EncoderInputs._needed",
             ("max(i for i in held if", "min(i for i in range(len(request.mm_features)) if"),
             media_cases.image_of_two_twice),
    Mutation("what was planned for a group that is taken out of the step is not in the cache",
             "EncoderInputs.end_pass",
             ("self._drop(identifier)", "pass"), media_cases.storms_of_images('dense')),
    Mutation("workers have the media of a group's streams, cached or not", "EncoderInputs.end_pass",
             ("new.mm_features = requests[new.req_id].mm_features", "pass"),
             media_cases.cached_before_it_was_preempted),
    Mutation("a request that is taken out of the step has nothing encoded", "scheduler.strip",
             ("output.scheduled_encoder_inputs.pop(request_id, None)", "pass"),
             media_cases.storms_of_images('dense')),
    # What a preemption takes along.
    Mutation("a pass that preempted admits nobody", "Step.preempt",
             ("self.preempted = True", "pass"), cases.preempted_beside_a_cached_amateur),
    Mutation("a follower that lost its cached blocks is not admitted", "Step.clip_follower",
             ("left if num_new_tokens >= left else 0", "min(num_new_tokens, left)"),
             cases.evicted_amateur),
    Mutation("a group that cannot ever run ends with an error", "GroupScheduler._after_pass",
             ("group.failed_alone >= _MAX_FAILED_ALONE", "False"), cases.too_large),
    Mutation("streams that push each other out of the prefix cache begin anew",
             "GroupScheduler._after_pass",
             ("each.skip_reading_prefix_cache = True", "pass"), cases.mutual_eviction),
    Mutation("blocks that a preempted request did not write are not in the prefix cache",
             "KVBlocks.uncache_unwritten",
             _nothing),
    Mutation("a preempted follower waits outside of the queue", "GroupScheduler._preempt_request",
             ("nullcontext() if leads else self._queues.aside()", "nullcontext()")),
    Mutation("a stream that the workers have not heard of is sent as new",
             "GroupScheduler._withdraw",
             ("if never_sent:", "if False:")),
    Mutation("a stream that was taken out of the step was not scheduled",
             "GroupScheduler._withdraw",
             ("self.prev_step_scheduled_req_ids.discard(request.request_id)", "pass")),
    Mutation("a group that waits for room in vain is preempted", "GroupScheduler._stalled",
             _no, cases.too_large),
    # Drafts.
    Mutation("a group that does not fit the cache with its drafts goes on without",
             "GroupScheduler._after_pass",
             ("group.drafting.possible = False", "pass"), cases.drafts_that_do_not_fit),
    Mutation("drafts of a stream that was taken out of the step are not verified",
             "scheduler.strip",
             ("output.scheduled_spec_decode_tokens.pop(request_id, None)", "pass")),
    Mutation("an amateur with more tokens than its expert is out of step", "results.out_of_step",
             ("not same_length or", ""), cases.longer_than_its_expert),
    Mutation("an amateur may be told tokens behind its expert's end", "results.out_of_step",
             ("amateur.num_output_tokens >= known", "amateur.num_output_tokens == known"),
             cases.stops_amid_drafts),
    Mutation("each row of drafts must have been scored", "results.problem",
             ("len(figures) != 1 + num_drafts", "not figures"), cases.unscored_draft),
    Mutation("no token is given that was drawn from NaN, be it a draft", "results.problem",
             ("figures[:num_tokens]", "figures[:1]"), cases.nan_in_an_accepted_draft),
    Mutation("what was found behind the tokens that are given does not matter", "results.problem",
             ("figures[:num_tokens]", "figures"), cases.nan_behind_the_accepted_drafts),
    Mutation("drafts of a group are counted once", "GroupScheduler.make_spec_decoding_stats",
             ("if request_id in self._groups and", "if False and"), cases.counted_once),
    # What an end takes along, and what clients see.
    Mutation("an abort takes all streams", "GroupScheduler.finish_requests",
             ("ids |= groups.keys() | amateurs", "pass")),
    Mutation("the end of the expert is the end of its amateurs", "GroupScheduler._after_output",
             ("over.append(group)", "pass")),
    Mutation("aborted amateurs are not reported", "GroupScheduler.finish_requests",
             ("not in amateurs", "not in ()")),
    # Amateurs that end before their expert.
    Mutation("they end when their rule says so", "GroupScheduler._retire",
             _nothing, cases.amateur_that_has_ended),
    Mutation("of the streams that are left the longest leads", "Group.retire",
             ("self._choose_leader()", "self.followers = self.streams[1:]"),
             cases.leader_that_has_ended),
    Mutation("what is left stands behind its new leader", "GroupScheduler._retire",
             ("self._scattered = True", "pass"), cases.leader_that_has_ended),
    Mutation("an expert that is alone is a plain request", "GroupScheduler._cap",
             ("group is not None and not group.followers", "False"), cases.amateur_that_has_ended),
    Mutation("of a group that was preempted meanwhile nobody ends", "GroupScheduler._retire",
             ("not new or any(s.status != RequestStatus.RUNNING for s in group.streams)", "False"),
             cases.ended_amateur_of_a_preempted_group),
    Mutation("they end by what it says of tokens that are given", "GroupScheduler._retire",
             ("figures[new - 1].done", "figures[-1].done"), cases.wrong_drafts_end_nobody),
    Mutation("of an amateur that has ended no weight is told", "Told.give",
             ("self._done |= each.done", "pass"), cases.amateur_that_has_ended),
    Mutation("weights are told of tokens that are given, and of no drafts that were wrong",
             "GroupScheduler._after_output",
             ("given.told.give(figures[:new])", "given.told.give(figures)")),
    Mutation("each group has a slot of its own", "Slots.take",
             ("lowest = ~self._taken & (self._taken + 1)", "lowest = 1"),
             cases.states_of_those_who_run),
    Mutation("what is in use are all slots of groups that have run and not ended", "Slots.take",
             ("self._taken.bit_length()", "lowest.bit_length()"), cases.states_of_those_who_run),
    Mutation("all streams that were scheduled were scored", "results.problem",
             ("each.present != amateurs", "False"), cases.lost_amateur),
    Mutation("amateurs have no output", "GroupScheduler._after_output",
             ("hidden.add(request_id)", "pass")),
    Mutation("a CoLD request is counted once", "GroupScheduler.get_request_counts",
             ("len(of_groups)", "len(found) - found.count(None)")),
    # KV connectors.
    Mutation("amateurs are made known", "GroupScheduler.add_request",
             ("self.connector.on_new_request(amateur)", "0"), _storms_of_loads),
    Mutation("a connector hears of a step when groups that were split are out of it",
             "GroupScheduler._build_kv_connector_meta",
             _build_early, _storms_of_loads),
    Mutation("what a connector has counts as cached", "GroupScheduler._cap",
             ("self._blocks.restored(sum(cached))", "self._blocks.restored(cached[0])"),
             connector_cases.loaded_in_time),
    Mutation("whether KV comes between steps is known before a group begins", "Loads.start",
             ("not self.possible", "True"), _storms_of_loads),
    Mutation("followers whose KV is under way stay where vLLM looks for them",
             "WaitingQueues.take_back",
             ("RequestStatus.RUNNING, RequestStatus.WAITING_FOR_REMOTE_KVS",
              "RequestStatus.RUNNING,"), _storms_of_loads),
    Mutation("followers whose KV has come wait for their leader outside of the queues",
             "Loads.begin_pass",
             ("self._queues.remove(follower)", "pass"), _storms_of_loads),
    Mutation("an expert that was loaded in its leader's place would lead nobody", "Loads.is_led",
             _yes, _storms_of_loads),
    Mutation("streams that wait with blocks are not counted as waiting",
             "Loads.num_queued_followers",
             lambda self: 0, _storms_of_loads),
    Mutation("KV that was to be loaded in a step that was given up is not there",
             "Loads.num_written",
             lambda self, request: request.num_computed_tokens, _storms_of_loads),
    Mutation("streams that wait with blocks give them up when nothing goes on", "Loads.release_all",
             _no, _storms_of_loads),
    Mutation("a step that was emptied frees no blocks, and is not waited for",
             "GroupScheduler._update_after_schedule",
             ("self._emptied and self.defer_block_free", "False"), connector_cases.emptied_step),
    Mutation("tokens in flight are dropped of all streams or of none",
             "GroupScheduler._preempt_request",
             ('getattr(self, "requires_kv_delivery", False)', "False"),
             lambda model: storm(model, 362, 200)),
    Mutation("blocks are not kept free for a request whose load has failed, from itself",
             "Loads._forget_promise",
             _nothing, connector_cases.lost_load),
    Mutation("a load that failed takes the whole group back",
             "GroupScheduler._handle_invalid_blocks",
             lambda self, *args: Scheduler._handle_invalid_blocks(self, *args), _storms_of_loads),
    Mutation("workers are sent the tokens of a group that begins anew between two steps",
             "GroupScheduler._handle_invalid_blocks",
             ("self.prev_step_scheduled_req_ids.discard(request.request_id)", "pass"),
             connector_cases.lost_in_time),
    Mutation("a group waits while a connector does not know yet", "GroupScheduler._stalled",
             ("and not self._loads.asked_in_vain", ""), connector_cases.not_known_yet),
    Mutation("what was computed from KV that did not come is not found", "Loads.uncache",
             _nothing, _storms_of_loads),
    Mutation("loads under way that share KV that did not come do not wait for each other",
             "Loads.cut",
             _nothing, connector_cases.shared_and_lost),
    Mutation("loads under way do not keep blocks of a group that was taken out of the step",
             "GroupScheduler._preempt_request",
             ("self._loads.cut(unwritten)", "pass"), connector_cases.late_behind_its_leader),
    Mutation("nobody finds blocks of a group that is taken out of the step", "Loads.is_barred",
             _no, connector_cases.late_behind_its_leader),
    Mutation("KV that an aborted request's step may not load is not found", "Loads.abort",
             _nothing, connector_cases.aborted_amid_a_lost_load),
    Mutation("who waits behind a leader that lacks its followers is not looked at",
             "Loads._stop_admission",
             _nothing, connector_cases.blocked_queue),
    Mutation("a group is not loaded into blocks that others still need", "Loads._fit",
             ("self._blocks.fit(group, found, promised)", "self._blocks.fit(group, found)"),
             connector_cases.two_that_load),
    Mutation("nobody is loaded in front of a leader that waits for its followers",
             "Loads.may_start",
             ("step.may_admit(self._queues.priority(request))", "True"),
             connector_cases.blocked_queue),
    Mutation("while admission is paused, followers hold no blocks for a leader that may not begin",
             "Loads.release_unled",
             _nothing, connector_cases.held_for_a_leader),
    Mutation("streams that wait with blocks keep no prefix cache from being reset",
             "GroupScheduler.reset_prefix_cache",
             ("self._loads.release(self.requests[request_id])", "pass"),
             connector_cases.held_for_a_leader),
    Mutation("followers in no queue have not ended", "GroupScheduler.has_finished_requests",
             Scheduler.has_finished_requests, connector_cases.held_for_a_leader),
    Mutation("a group keeps what it has while a connector may free blocks", "Loads.frees_blocks",
             _no, connector_cases.freed_later),
    Mutation("with nothing running, blocks may be others'", "KVBlocks._others_hold_blocks",
             _no, lambda model: [*storms(model, [32], with_connector)]),
    Mutation("of KV that did not come no figure counts", "GroupScheduler._scored",
             ("if lost or is_dropped(group.expert):", "if False:"), _storms_of_loads),
]
# fmt: on
