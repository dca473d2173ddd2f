# SPDX-License-Identifier: Apache-2.0
"""Media (images, videos, audios): how much of a prompt the encoder lets a stream compute in a step.

A step encodes so many embeddings, and the encoder's cache holds so many. What this relies on,
besides what the table says:

- ``_try_schedule_encoder_inputs(request, num_computed_tokens, num_new_tokens, budget, shift)`` says
  which media are to be encoded, and how many of the tokens are left. What it finds in the cache is
  the request's from then on; to make room it pushes out what is nobody's. Asked twice, it says the
  same. What it says is planned (``EncoderCacheManager.allocate``) once the request is scheduled.
- ``EncoderCacheManager``: ``cached`` (whose an identifier is), ``freeable``, the counts of slots.
  ``free(request)`` keeps what was planned in the cache, as if it had been encoded.
- A prompt's media that the prefix cache covers are sent to workers without their data. Those of the
  V1 runner are not sent them again when the request is preempted and computes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

from vllm_cold.compat.runner import Runner, runner_of
from vllm_cold.scheduler import releases
from vllm_cold.scheduler.lockstep import Group, Request
from vllm_cold.settings import encoder_room
from vllm_cold.settings.encoder_room import EncoderRoom, room_of


class EncoderInputs:
    """What the encoder of one engine is asked for.

    Args:
        scheduler: The engine's.

    Raises:
        ValueError: the engine encodes in a way that vllm-cold does not follow.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._planned: set[str] = set()  # identifiers, in this pass
        self._budget = 0  # embeddings that it can still encode
        # Workers of the V1 runner are sent the data of media that others encode, too.
        self._shares_data = runner_of(scheduler.vllm_config) is Runner.V1
        if scheduler.ec_connector is not None:
            raise ValueError(
                "vllm-cold does not support encoder-cache connectors (ec_transfer_config)."
            )
        if type(self._manager) is not EncoderCacheManager:
            raise ValueError(
                "vllm-cold does not support other managers of the encoder's cache than vLLM's own: "
                "leave ec_manager_config out."
            )

    @property
    def _manager(self) -> Any:
        return self._scheduler.encoder_cache_manager

    @property
    def room(self) -> EncoderRoom:
        """What the engine can encode."""
        scheduler = self._scheduler
        cache, budget = self._manager.cache_size, scheduler.max_num_encoder_input_tokens
        return room_of(scheduler.vllm_config, cache, budget)

    # ---- a group's arrival ---------------------------------------------------------------------

    def why_never(self, group: Group) -> str | None:
        """Tell why the group's media keep it from ever being scheduled; None if they do not.
        Admission refuses such a request before.
        """
        if not any(stream.mm_features for stream in group.streams):
            return None
        streams = [(stream.num_tokens, stream.mm_features) for stream in group.streams]
        return encoder_room.why_never(streams, self.room)

    # ---- a pass --------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """Begin without plans."""
        self._planned.clear()
        self._budget = self._scheduler.max_num_encoder_input_tokens

    def note(self, request: Request, inputs: Iterable[int] | None, budget: int) -> None:
        """Note which ``inputs`` of a request are to be encoded if it is scheduled, and the
        ``budget`` that is left then.
        """
        self._planned.update(request.mm_features[index].identifier for index in inputs or ())
        self._budget = budget

    @property
    def left(self) -> int:
        """Embeddings that this step can still encode and keep."""
        return int(min(self._budget, self._manager.num_freeable_slots))

    def needed(self, group: Group, left: Sequence[int]) -> int:
        """Return the embeddings that streams need for so many last tokens and nobody keeps yet."""
        needed: list[Any] = []
        for stream, tokens in zip(group.streams, left, strict=True):
            if stream.mm_features:
                end = stream.num_tokens + stream.num_output_placeholders
                needed += encoder_room.overlapping(stream.mm_features, end - tokens, end)
        kept = self._manager.cached
        return encoder_room.num_embeds(f for f in needed if not kept.get(f.identifier))

    def unsplit(self, request: Request, start: int, num_tokens: int) -> int:
        """Return how many of the tokens a step may take if no medium may be split: they end in
        front of one that would be. vLLM splits some at which, or inside which, a step begins.
        """
        if not self.room.is_whole:
            return num_tokens
        for feature in encoder_room.overlapping(request.mm_features, start, start + num_tokens):
            place = feature.mm_position
            if start + num_tokens < place.offset + place.length:
                if start <= place.offset:
                    return int(place.offset - start)
                if releases.keeps_rests_whole():
                    return 0
        return num_tokens

    def end_pass(self, output: Any, groups: Mapping[str, Group]) -> None:
        """Mend the plans after requests were taken out of the step. vLLM takes their media for
        encoded, and others may count on them: then one of these encodes them. Media that nobody in
        the step needs leave the cache, as nobody encodes them.
        """
        scheduled = output.num_scheduled_tokens
        inputs, requests = output.scheduled_encoder_inputs, self._scheduler.requests
        encoded = {
            requests[i].mm_features[index].identifier for i, of in inputs.items() for index in of
        }
        for identifier in self._planned - encoded:
            owners = self._manager.cached.get(identifier)
            if owners is None:
                continue  # others pushed it out
            heirs = [i for i in owners if i in scheduled]
            if heirs:
                # Workers of the V1 runner have all data of a group's streams.
                heir = requests[min(heirs, key=lambda i: (i not in groups, i))]
                inputs.setdefault(heir.request_id, []).append(self._last_index(heir, identifier))
                continue
            for request_id in tuple(owners):
                request = requests[request_id]
                for index in tuple(self._manager.get_cached_input_ids(request)):
                    if request.mm_features[index].identifier == identifier:
                        self._manager.free_encoder_input(request, index)
            self._drop(identifier)
        output.free_encoder_mm_hashes += self._manager.get_freed_mm_hashes()
        if self._shares_data:
            for new in output.scheduled_new_reqs:
                if new.req_id in groups:
                    new.mm_features = requests[new.req_id].mm_features

    def _last_index(self, request: Request, identifier: str) -> int:
        """Return the index, among a request's media, of the last one with this identifier that it
        counts on: a worker may have dropped the data of those that the prefix cache covers.
        """
        held: set[int] = self._manager.get_cached_input_ids(request)
        return max(i for i in held if request.mm_features[i].identifier == identifier)

    def _drop(self, identifier: str) -> None:
        """Drop what is nobody's from the cache; a worker may have it from before this pass."""
        manager = self._manager
        size = manager.freeable.pop(identifier)
        del manager.cached[identifier]
        releases.forget_embeds(manager, identifier)
        manager.num_free_slots += size
        manager.freed.append(identifier)
