# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that the scoring op takes. Needs no vLLM."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from vllm_cold.group.stream import Stream
from vllm_cold.ops.interface import Groups


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The complete groups of a batch, in no particular order.

    Attributes:
        ids: The groups' ids.
        groups: Their rows (or positions) and settings.
        experts: [A] int64, the expert's row of each amateur.
        amateurs: [A] int64, the amateurs' rows.
    """

    ids: tuple[str, ...]
    groups: Groups
    experts: Tensor
    amateurs: Tensor

    def statistics(self) -> Tensor:
        """[G, 3] int64 for ``ops.contrastive_scores`` to write to."""
        return torch.empty(len(self.ids), 3, dtype=torch.int64, device=self.amateurs.device)

    def tell_amateurs(self, sampled: Tensor) -> None:
        """The tokens that were drawn from the experts' rows become the amateurs' too.

        On the device, before anything reads them: with async scheduling the next step's input
        comes from there.

        Args:
            sampled: [rows, 1] tokens, by row (or position); changed in place.
        """
        sampled[self.amateurs] = sampled[self.experts]

    @classmethod
    def of(cls, streams: Iterable[tuple[int, Stream]], device: torch.device) -> Self | None:
        """Match the streams by group; None if no group is complete.

        A stream without the others in the batch is prefilling: its sample is discarded by the
        scheduler, so its row needs no scores.
        """
        rows_of: dict[str, list[int]] = {}
        complete: list[tuple[list[int], Stream]] = []
        for row, stream in streams:
            rows = rows_of.setdefault(stream.group, [-1] * (1 + len(stream.amateurs)))
            assert stream.index is not None
            rows[stream.index] = row
            if min(rows) >= 0:
                complete.append((rows, stream))
        if not complete:
            return None

        def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        most = max(len(rows) for rows, _ in complete)
        knobs = [s.settings for _, s in complete]
        caps = [s.expert_top_k or 0 for s in knobs]

        def padded(values: list[Any], missing: Any) -> list[Any]:
            return values + [missing] * (most - 1 - len(values))

        weights = [padded([a.weight for a in s.amateurs], 0.0) for _, s in complete]
        adaptive = [padded([a.adaptive for a in s.amateurs], False) for _, s in complete]
        pairs = [(rows[0], row) for rows, _ in complete for row in rows[1:]]
        return cls(
            tuple(s.group for _, s in complete),
            Groups(
                tensor([[rows[0], *padded(rows[1:], -1)] for rows, _ in complete], torch.int64),
                tensor(weights, torch.float32),
                tensor([math.log(s.alpha) if s.alpha else -math.inf for s in knobs], torch.float32),
                tensor(caps, torch.int64) if any(caps) else None,
                max(caps),
                tensor(adaptive, torch.bool) if any(map(any, adaptive)) else None,
            ),
            *(tensor(list(column), torch.int64) for column in zip(*pairs, strict=True)),
        )
