# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that the scoring op takes. Needs no vLLM."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vllm_cold.group.stream import Stream
from vllm_cold.ops.scoring import PairArguments


@dataclass(frozen=True, slots=True)
class PairRows:
    """The complete pairs of a batch, in no particular order.

    Attributes:
        ids: The pairs' ids.
        expert: [P] int64, row (or slot) of each expert.
        amateur: [P] int64, row (or slot) of each amateur.
        log_alpha: [P] float32, ln(alpha).
        beta: [P] float32; of an adaptive pair, the most that it reaches.
        expert_top_k: [P] int64, 0 for no cap; None if no pair has a cap.
        max_expert_top_k: The largest cap, 0 if there is none.
        adaptive: [P] bool, whether beta is chosen at each step; None if no pair's is.
    """

    ids: tuple[str, ...]
    expert: Tensor
    amateur: Tensor
    log_alpha: Tensor
    beta: Tensor
    expert_top_k: Tensor | None
    max_expert_top_k: int
    adaptive: Tensor | None

    @property
    def num_pairs(self) -> int:
        """P."""
        return len(self.ids)

    def statistics(self) -> Tensor:
        """[P, 3] int64 for ``ops.contrastive_scores`` to write to."""
        return torch.empty(self.num_pairs, 3, dtype=torch.int64, device=self.beta.device)

    @property
    def arguments(self) -> PairArguments:
        """What ``ops.contrastive_scores`` takes behind the logits."""
        return (
            self.expert,
            self.amateur,
            self.log_alpha,
            self.beta,
            self.expert_top_k,
            self.max_expert_top_k,
            self.adaptive,
        )

    @classmethod
    def of(cls, streams: Iterable[tuple[int, Stream]], device: torch.device) -> Self | None:
        """Match experts and amateurs by pair; None if no pair is complete.

        A stream whose partner is not in the batch is prefilling: its sample is discarded by the
        scheduler, so its row needs no scores.
        """
        halves: dict[str, tuple[int, Stream]] = {}
        pairs: list[tuple[int, int, Stream]] = []
        for row, stream in streams:
            other = halves.pop(stream.pair, None)
            if other is None:
                halves[stream.pair] = row, stream
            elif stream.role == "expert":
                pairs.append((row, other[0], stream))
            else:
                pairs.append((other[0], row, stream))
        if not pairs:
            return None

        def tensor(values: list[int] | list[float] | list[bool], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        caps = [s.expert_top_k for _, _, s in pairs]
        adaptive = [s.adaptive for _, _, s in pairs]
        return cls(
            ids=tuple(s.pair for _, _, s in pairs),
            expert=tensor([e for e, _, _ in pairs], torch.int64),
            amateur=tensor([a for _, a, _ in pairs], torch.int64),
            log_alpha=tensor([math.log(s.alpha) for _, _, s in pairs], torch.float32),
            beta=tensor([s.beta for _, _, s in pairs], torch.float32),
            expert_top_k=tensor(caps, torch.int64) if any(caps) else None,
            max_expert_top_k=max(caps),
            adaptive=tensor(adaptive, torch.bool) if any(adaptive) else None,
        )
