# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: the logits processor interface of the V2 model runner (GPU).

Why: it is where a row's logits can be changed between the forward pass and sampling. V2 applies
it after the grammar, ``allowed_token_ids``, ``min_tokens``, ``logit_bias``, penalties and
``bad_words`` and before the thinking budget, temperature, min_p and top-k / top-p. (V1 applies
penalties later, to the scores.) Public interface
(``vllm.v1.worker.gpu.sample.logits_processor``). Since: 0.31. Can go: never. V2 is the default on
GPUs since 0.32.

The class is also loaded in the front end, to look for ``validate_params``: torch and the op are
imported where they are used.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from vllm_cold.group.stream import Stream, from_extra_args

if TYPE_CHECKING:
    import numpy as np
    import torch
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsContext,
        LogitsProcRequestState,
    )

    from vllm_cold.group.rows import GroupRows


class ColdLogitsProcessorV2(LogitsProcessor):  # type: ignore[misc]
    """Scores the experts' rows of complete groups; leaves every other row alone."""

    def __init__(self, vllm_config: "VllmConfig", req_states: "LogitsProcRequestState") -> None:
        from vllm_cold.ops import registry
        from vllm_cold.vllm import patching
        from vllm_cold.vllm.worker import amateur_tokens, block_zeroer, outputs

        patching.install((*outputs.PLACES, *amateur_tokens.V2))
        self._device: torch.device = req_states.device
        patching.cure((block_zeroer.PLACE,))
        registry.choose(self._device)  # says which; a missing one fails now, not at a request
        self._max_num_reqs: int = req_states.max_num_reqs
        speculative: Any = getattr(vllm_config, "speculative_config", None)
        self._max_rows = 1 + (speculative.num_speculative_tokens if speculative else 0)
        self._streams: dict[int, Stream] = {}  # by slot
        # The groups of the last step, good while the batch and its slots stay the same.
        self._batch: np.ndarray | None = None
        self._groups: GroupRows | None = None

    def add_request(self, req_idx: int, sampling_params: "SamplingParams") -> bool:
        """Whether the request in slot ``req_idx`` is an expert; forgets the slot's last one.

        True makes the sampler copy the batch's logits, so that ``apply`` may write and raw
        logprobs stay the expert's.
        """
        self._batch = None
        stream = from_extra_args(sampling_params.extra_args)
        if stream is None:
            self._streams.pop(req_idx, None)
            return False
        self._streams[req_idx] = stream
        return stream.index == 0

    def apply(self, logits: "torch.Tensor", ctx: "LogitsContext") -> "torch.Tensor":
        """Score in place; ``logits`` is [rows, V] float32. No host sync."""
        if not self._streams:
            return logits
        found = self._groups_of(ctx.idx_mapping_np)
        if found is None:
            return logits
        if len(logits) == len(ctx.idx_mapping_np):
            # One row per request, in the order of the batch.
            from vllm_cold.group.tally import Tally
            from vllm_cold.ops import contrastive_scores
            from vllm_cold.vllm.worker.outputs import hand_over

            statistics = found.statistics()
            contrastive_scores(
                logits, found.groups, inplace=True, statistics=statistics, check=False
            )
            hand_over(Tally(found.ids, statistics))
            return logits
        return self._apply_to_drafts(logits, ctx, found)

    def _groups_of(self, slots: "np.ndarray") -> "GroupRows | None":
        """The batch's complete groups, by position in the batch.

        Args:
            slots: [requests] slot of each request.
        """
        last = self._batch
        if last is None or last.shape != slots.shape or not (last == slots).all():
            from vllm_cold.group.rows import GroupRows

            # Slots of finished requests are not in the batch: what they still hold is not seen.
            present = [
                (position, stream)
                for position, slot in enumerate(slots.tolist())
                if (stream := self._streams.get(slot)) is not None
            ]
            self._groups = GroupRows.of(present, self._device)
            self._batch = slots.copy()
        return self._groups

    def _apply_to_drafts(
        self, logits: "torch.Tensor", ctx: "LogitsContext", found: "GroupRows"
    ) -> "torch.Tensor":
        """Score a batch in which a request owns one row per draft token and one more.

        How many rows a request owns is known on the device only. So that shapes do not depend on
        it, each group gets as many places as a request can have rows, and a place that the group
        does not fill repeats the group's first rows: they are scored twice, with the same result.
        """
        import torch

        from vllm_cold.group.tally import Tally
        from vllm_cold.ops import contrastive_scores
        from vllm_cold.ops.interface import replace_nonfinite
        from vllm_cold.vllm.worker.outputs import hand_over

        num_rows, num_reqs = len(logits), len(ctx.idx_mapping_np)
        # Each request owns one row at least.
        places = min(self._max_rows, num_rows - num_reqs + 1)
        if places < 2:
            raise RuntimeError(
                f"CoLD: {num_rows} rows of logits for {num_reqs} requests without speculative "
                "decoding; it is not known which row is whose."
            )
        # [slot, place] -> row, -1 for none. The row more takes what vLLM marks with slot -1.
        row_of = torch.full((self._max_num_reqs + 1, places), -1, device=logits.device)
        rows = torch.arange(num_rows, device=logits.device)
        row_of[ctx.expanded_idx_mapping.long(), ctx.expanded_local_pos.long()] = rows
        positions = found.groups.rows  # [G, S], -1 for no stream
        of_streams = row_of[ctx.idx_mapping[positions.clamp(min=0)].long()]  # [G, S, places]
        of_streams = torch.where(positions.unsqueeze(-1) < 0, -1, of_streams)
        absent = (of_streams < 0) & (positions.unsqueeze(-1) >= 0)
        absent = absent.any(1, keepdim=True)
        of_streams = torch.where(absent, of_streams[:, :, :1], of_streams)
        of_places = found.groups.repeated(
            places, of_streams.transpose(1, 2).flatten(0, 1).contiguous()
        )

        # Not in place: a repetition would see the first's scores.
        statistics = torch.empty(len(of_places), 3, dtype=torch.int64, device=logits.device)
        scores = contrastive_scores(logits, of_places, statistics=statistics, check=False)
        each = statistics.view(len(found.ids), places, 3)
        of_groups = each[:, 0].clone()
        of_groups[:, 2] = each[:, :, 2].amax(1)
        hand_over(Tally(found.ids, of_groups))
        logits[of_places.rows[:, 0]] = scores
        replace_nonfinite(logits, of_places)
        return logits

    def tell_amateurs(self, sampled: "torch.Tensor", slots: "np.ndarray") -> None:
        """Copy each expert's token over its amateurs'.

        Args:
            sampled: [requests, 1] tokens that the sampler chose; changed in place.
            slots: [requests] slot of each request.
        """
        if self._streams and (found := self._groups_of(slots)) is not None:
            found.tell_amateurs(sampled)
