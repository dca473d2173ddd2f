# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that the scoring op takes. Needs no vLLM."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from vllm_cold.group.stream import Stream
from vllm_cold.group.tally import OTHER_DRAFTS, Tally
from vllm_cold.ops import contrastive_scores
from vllm_cold.ops.interface import Groups


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The complete groups of a batch, in no particular order.

    Attributes:
        ids: Of each row that is written, the group's id; a group's rows in the order of its tokens.
        groups: The rows and settings; None if no group has one.
        members: Of each group, the positions of its streams in the batch, the expert's first.
        experts: [A] int64, of each amateur the expert's position.
        amateurs: [A] int64, the amateurs' positions.
    """

    ids: tuple[str, ...]
    groups: Groups | None
    members: tuple[Sequence[int], ...]
    experts: Tensor
    amateurs: Tensor

    def score(self, logits: Tensor, drafts: Tensor | None = None) -> Tally | None:
        """Write the scores over the experts' rows, without a host sync on accelerators.

        Args:
            logits: [rows, V] float32; changed in place.
            drafts: [rows] the draft that belongs to each row, -1 for none; None if there is none.
                All rows of a group must have the same, or its scores are of different texts.

        Returns:
            What was found there; None if no group has a row.
        """
        if self.groups is None:
            return None
        statistics = torch.empty(len(self.ids), 3, dtype=torch.int64, device=logits.device)
        contrastive_scores(logits, self.groups, inplace=True, statistics=statistics, check=False)
        if drafts is not None:
            rows = self.groups.rows
            found = drafts[torch.where(rows < 0, rows[:, :1], rows)]
            statistics[:, 2].masked_fill_((found != found[:, :1]).any(1), OTHER_DRAFTS)
        return Tally(self.ids, statistics)

    def tell_amateurs(self, found: Tensor | list[Any]) -> None:
        """What the experts were given becomes the amateurs' too: tokens, drafts, counts of them.

        On the device, before anything reads them: with async scheduling the next step's input
        comes from there.

        Args:
            found: [requests, ...] by position; changed in place.
        """
        if isinstance(found, Tensor):
            found[self.amateurs] = found[self.experts]
            return
        for expert, *amateurs in self.members:
            for amateur in amateurs:
                found[amateur] = list(found[expert])

    @classmethod
    def of(
        cls,
        streams: Iterable[tuple[int, Stream]],
        device: torch.device,
        num_rows: Sequence[int] | None = None,
    ) -> Self | None:
        """Match the streams by group; None if no group is complete.

        A stream without the others in the batch is prefilling: its sample is discarded by the
        scheduler, so its row needs no scores.

        Args:
            streams: With their positions in the batch.
            device: Of the logits.
            num_rows: Of each position, how many rows of logits it has, which follow those of the
                position before; default: one. A group whose streams do not have the same number
                gets none.
        """
        positions: dict[str, list[int]] = {}
        complete: list[tuple[list[int], Stream]] = []
        for position, stream in streams:
            of_group = positions.setdefault(stream.group, [-1] * (1 + len(stream.amateurs)))
            assert stream.index is not None
            of_group[stream.index] = position
            if min(of_group) >= 0:
                complete.append((of_group, stream))
        if not complete:
            return None

        def tensor(values: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        pairs = [(of_group[0], each) for of_group, _ in complete for each in of_group[1:]]
        told = [tensor(list(column)) for column in zip(*pairs, strict=True)]
        members = tuple(of_group for of_group, _ in complete)
        rows = complete if num_rows is None else _spread(complete, num_rows)
        if not rows:
            return cls((), None, members, *told)
        most = max(len(of_group) for of_group, _ in rows)
        knobs = [s.settings for _, s in rows]
        caps = [s.expert_top_k or 0 for s in knobs]

        def padded(values: list[Any], missing: Any) -> list[Any]:
            return values + [missing] * (most - 1 - len(values))

        weights = [padded([a.weight for a in s.amateurs], 0.0) for _, s in rows]
        adaptive = [padded([a.adaptive for a in s.amateurs], False) for _, s in rows]
        log_alpha = [math.log(s.alpha) if s.alpha else -math.inf for s in knobs]
        return cls(
            tuple(s.group for _, s in rows),
            Groups(
                tensor([[of_group[0], *padded(of_group[1:], -1)] for of_group, _ in rows]),
                tensor(weights, torch.float32),
                tensor(log_alpha, torch.float32),
                tensor(caps) if any(caps) else None,
                max(caps),
                tensor(adaptive, torch.bool) if any(map(any, adaptive)) else None,
            ),
            members,
            *told,
        )


def _spread(
    groups: Iterable[tuple[list[int], Stream]], num_rows: Sequence[int]
) -> list[tuple[list[int], Stream]]:
    """For each row of an expert, the rows of its group; see ``GroupRows.of``."""
    first = [0, *accumulate(num_rows)]
    return [
        ([first[position] + i for position in positions], stream)
        for positions, stream in groups
        if len({num_rows[position] for position in positions}) == 1
        for i in range(num_rows[positions[0]])
    ]
