# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that the scoring op takes. Needs no vLLM."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_cold.group.step_stats import OTHER_DRAFTS, StepStats
from vllm_cold.group.stream import Stream
from vllm_cold.ops import contrastive_scores
from vllm_cold.ops.interface import Groups


class _Host(NamedTuple):
    """The complete groups of a batch, of up to S streams, on the host.

    Attributes:
        members: [G, S] int64 positions in the batch, the expert's first; -1 for none.
        weights: [G, S - 1] float32, of the amateurs; 0 for none.
        adaptive: [G, S - 1] bool, whether a weight adapts itself.
        log_alpha: [G] float32.
        caps: [G] int64 caps on the candidates, 0 for none.
    """

    members: NDArray[Any]
    weights: NDArray[Any]
    adaptive: NDArray[Any]
    log_alpha: NDArray[Any]
    caps: NDArray[Any]

    def on(self, device: torch.device) -> Groups | None:
        """As the op takes them, with ``members`` for row numbers; None if there is no group."""
        if not len(self.members):
            return None

        def tensor(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        most = int(self.caps.max())
        return Groups(
            tensor(self.members),
            tensor(self.weights),
            tensor(self.log_alpha),
            tensor(self.caps) if most else None,
            most,
            tensor(self.adaptive) if self.adaptive.any() else None,
        )


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The complete groups of a batch, in no particular order.

    Attributes:
        ids: Of each row that is written, the group's id; a group's rows in the order of its tokens.
        groups: The rows and settings; None if no group has one.
        members: Of each group, the positions of its streams in the batch, the expert's first.
        experts: [A] int64, of each amateur the expert's position.
        amateurs: [A] int64, the amateurs' positions.
        host: What they are made of.
    """

    ids: tuple[str, ...]
    groups: Groups | None
    members: tuple[Sequence[int], ...]
    experts: Tensor
    amateurs: Tensor
    host: _Host

    def score(self, logits: Tensor, drafts: Tensor | None = None) -> StepStats | None:
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
        return StepStats(self.ids, statistics)

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

    def spread(self, num_rows: Sequence[int] | NDArray[Any]) -> Self:
        """The same where requests have several rows of logits, or none.

        Args:
            num_rows: Of each position, how many rows it has, which follow those of the position
                before. A group whose streams do not have the same number gets none.
        """
        host = self.host
        counts = np.asarray(num_rows, dtype=np.int64)
        first = np.cumsum(counts) - counts
        positions = np.where(host.members < 0, host.members[:, :1], host.members)
        of_each = counts[positions]
        repeats = np.where((of_each == of_each[:, :1]).all(1), of_each[:, 0], 0)
        group = np.repeat(np.arange(len(repeats)), repeats)
        nth = np.arange(len(group)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        rows = first[positions[group]] + nth[:, None]
        rows[host.members[group] < 0] = -1
        spread = _Host(rows, *(column[group] for column in host[1:]))
        ids = tuple(self.ids[g] for g in group.tolist())
        return replace(self, ids=ids, groups=spread.on(self.experts.device))

    @classmethod
    def of(cls, streams: Iterable[tuple[int, Stream]], device: torch.device) -> Self | None:
        """Match the streams by group, with a row of logits each; None if no group is complete.

        A stream without the others in the batch is prefilling: its sample is discarded by the
        scheduler, so its row needs no scores.

        Args:
            streams: With their positions in the batch.
            device: Of the logits.
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
        num, most = len(complete), max(len(of_group) for of_group, _ in complete)
        host = _Host(
            np.full((num, most), -1, dtype=np.int64),
            np.zeros((num, most - 1), dtype=np.float32),
            np.zeros((num, most - 1), dtype=np.bool_),
            np.empty(num, dtype=np.float32),
            np.empty(num, dtype=np.int64),
        )
        for g, (of_group, stream) in enumerate(complete):
            knobs, amateurs = stream.settings, stream.amateurs
            host.members[g, : len(of_group)] = of_group
            host.weights[g, : len(amateurs)] = [a.weight for a in amateurs]
            host.adaptive[g, : len(amateurs)] = [a.adaptive for a in amateurs]
            host.log_alpha[g] = math.log(knobs.alpha) if knobs.alpha else -math.inf
            host.caps[g] = knobs.expert_top_k or 0
        members = tuple(of_group for of_group, _ in complete)
        pairs = [(of_group[0], each) for of_group in members for each in of_group[1:]]
        experts, amateurs_at = torch.tensor(pairs, dtype=torch.int64).t().contiguous()
        return cls(
            tuple(s.group for _, s in complete),
            host.on(device),
            members,
            experts.to(device, non_blocking=True),
            amateurs_at.to(device, non_blocking=True),
            host,
        )
