# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that the scoring op takes. Needs no vLLM."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vllm_cold.group.stream import Stream
from vllm_cold.ops.interface import Pairs


@dataclass(frozen=True, slots=True)
class PairRows:
    """The complete pairs of a batch, in no particular order.

    Attributes:
        ids: The pairs' ids.
        pairs: Their rows (or slots) and settings.
    """

    ids: tuple[str, ...]
    pairs: Pairs

    def statistics(self) -> Tensor:
        """[P, 3] int64 for ``ops.contrastive_scores`` to write to."""
        return torch.empty(len(self.ids), 3, dtype=torch.int64, device=self.pairs.beta.device)

    def tell_followers(self, sampled: Tensor) -> None:
        """The tokens that were drawn from the experts' rows become the amateurs' too.

        On the device, before anything reads them: with async scheduling the next step's input
        comes from there.

        Args:
            sampled: [rows, 1] tokens, by row (or position); changed in place.
        """
        sampled[self.pairs.amateur_rows] = sampled[self.pairs.expert_rows]

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

        knobs = [s.settings for _, _, s in pairs]
        caps = [s.expert_top_k or 0 for s in knobs]
        adaptive = [s.adaptive for s in knobs]
        return cls(
            tuple(s.pair for _, _, s in pairs),
            Pairs(
                tensor([e for e, _, _ in pairs], torch.int64),
                tensor([a for _, a, _ in pairs], torch.int64),
                tensor([math.log(s.alpha) for s in knobs], torch.float32),
                tensor([s.strength for s in knobs], torch.float32),
                tensor(caps, torch.int64) if any(caps) else None,
                max(caps),
                tensor(adaptive, torch.bool) if any(adaptive) else None,
            ),
        )
