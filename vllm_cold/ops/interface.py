# SPDX-License-Identifier: Apache-2.0
"""What the op is given beside the logits, and what a backend offers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NOT_FINITE = (
    "CoLD: the logits of an expert or amateur row hold NaN or +inf; no token can be chosen. "
    "Look at the model, the adapter and the dtype (float16 overflows easily)."
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a batch. All tensors are contiguous and on the device of the logits.

    Attributes:
        expert_rows: [P] int64 row numbers.
        amateur_rows: [P] int64 row numbers.
        log_alpha: [P] float32, ln(alpha) <= 0.
        beta: [P] float32, >= 0.
        expert_top_k: [P] int64 caps on the candidates, 0 for none; None if no pair has one. Ties
            with the last one admitted stay.
        max_expert_top_k: The largest cap, known on the host (no sync); 0 if there is none.
        adaptive: [P] bool: whether the pair's beta adapts itself at every step, with ``beta`` as
            its most; None if no pair's does.
    """

    expert_rows: Tensor
    amateur_rows: Tensor
    log_alpha: Tensor
    beta: Tensor
    expert_top_k: Tensor | None = None
    max_expert_top_k: int = 0
    adaptive: Tensor | None = None

    def __len__(self) -> int:
        """P."""
        return len(self.expert_rows) if self.expert_rows.dim() else 0

    def repeated(self, times: int, expert_rows: Tensor, amateur_rows: Tensor) -> "Pairs":
        """Each pair's settings ``times`` in a row, for other rows."""
        caps, adaptive = self.expert_top_k, self.adaptive
        return Pairs(
            expert_rows,
            amateur_rows,
            self.log_alpha.repeat_interleave(times),
            self.beta.repeat_interleave(times),
            None if caps is None else caps.repeat_interleave(times),
            self.max_expert_top_k,
            None if adaptive is None else adaptive.repeat_interleave(times),
        )

    def check(self, logits: Tensor) -> None:
        """Raise ValueError unless ``logits`` and all of this fit together; reads no element."""
        if (
            logits.dim() != 2
            or logits.dtype not in LOGITS_DTYPES
            or not 1 <= logits.shape[1] < 2**31
        ):
            raise ValueError(
                f"contrastive scoring: logits is {describe(logits)}; it must be [R, V] with "
                "1 <= V < 2**31, float32, bfloat16 or float16"
            )
        vectors = [
            ("expert_rows", self.expert_rows, torch.int64),
            ("amateur_rows", self.amateur_rows, torch.int64),
            ("log_alpha", self.log_alpha, torch.float32),
            ("beta", self.beta, torch.float32),
        ]
        if self.expert_top_k is not None:
            vectors.append(("expert_top_k", self.expert_top_k, torch.int64))
        if self.adaptive is not None:
            vectors.append(("adaptive", self.adaptive, torch.bool))
        for name, vector, dtype in vectors:
            if (
                vector.shape != (len(self),)
                or vector.dtype != dtype
                or vector.device != logits.device
                or not vector.is_contiguous()
            ):
                raise ValueError(
                    f"contrastive scoring: {name} is {describe(vector)}; it must be [{len(self)}] "
                    f"{dtype} on {logits.device}, contiguous, as one entry per pair"
                )
        if (self.expert_top_k is None) != (self.max_expert_top_k <= 0):
            raise ValueError(
                f"contrastive scoring: max_expert_top_k is {self.max_expert_top_k}; it must be the "
                "largest of expert_top_k, and expert_top_k None if no pair has a cap"
            )


@dataclass(frozen=True, slots=True)
class Backend:
    """What a backend's file offers, as ``BACKEND``.

    ``vllm_cold.ops.scoring`` has checked the arguments, P >= 1, and made the last dimension of
    ``logits`` [R, V] contiguous. Nothing may be assumed of what the outputs hold before. Row
    numbers are checked where that needs no host sync. NaN or +inf in a row of a pair raises
    nothing: what is then written, ``vllm_cold.ops.scoring`` says, and the other pairs' results are
    the same bits as without.

    Attributes:
        missing: Takes a device; why it cannot run there, in a sentence with the remedy; None if it
            can.
        scores: Takes ``logits``; ``pairs``; ``out`` [P, V] float32, contiguous, or None: the scores
            are then written over the experts' rows in ``logits``, which is float32, and no row is
            in two pairs; ``statistics`` [P, 3] int64, contiguous, or None. Without a host sync on
            accelerators.
        topk: Takes ``logits``; ``pairs``; ``out_scores`` [P, k] float32 and ``out_ids`` [P, k]
            int64, contiguous, 1 <= k <= 64: the best k of each pair.
    """

    missing: Callable[[torch.device], str | None]
    scores: Callable[[Tensor, Pairs, Tensor | None, Tensor | None], None]
    topk: Callable[[Tensor, Pairs, Tensor, Tensor], None]


def make_samplable(logits: Tensor, rows: Tensor) -> None:
    """For backends that leave this to torch: NaN and +inf in ``rows`` become 0."""
    found = logits[rows]
    logits[rows] = torch.where(found < torch.inf, found, 0.0)


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device, for an error."""
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
