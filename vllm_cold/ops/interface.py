# SPDX-License-Identifier: Apache-2.0
"""What the op is given besides the logits, and what a backend offers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_STREAMS = 33  # of a group: an expert and its amateurs
OUT_OF_RANGE = 3  # among statistics: a row number of the group is; where it does not raise
NOT_FINITE = (
    "vllm-cold: the logits of an expert or amateur row hold NaN or +inf; no token can be chosen. "
    "Look at the model, the adapter and the dtype (float16 overflows easily)."
)


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of a batch: G of them, of up to S streams. All tensors are contiguous and on the
    device of the logits.

    Attributes:
        rows: [G, S] int64 row numbers, S >= 2: the expert's, then its amateurs'; -1 after the last
            amateur of a group that has fewer. A group to be masked alone has the expert's again as
            its only amateur's, of weight 0.
        weights: [G, S - 1] float32, the amateurs'; finite, and 0 where there is no amateur.
        log_alpha: [G] float32, ln(alpha) <= 0; -inf for no mask.
        expert_top_k: [G] int64 caps on the candidates, 0 for none; None if no group has one. Ties
            with the last one admitted stay.
        max_expert_top_k: The largest cap, known on the host (no sync); 0 if there is none.
    """

    rows: Tensor
    weights: Tensor
    log_alpha: Tensor
    expert_top_k: Tensor | None = None
    max_expert_top_k: int = 0

    def __len__(self) -> int:
        """Return G."""
        return len(self.rows) if self.rows.dim() else 0

    @property
    def num_streams(self) -> int:
        """S."""
        return self.rows.shape[1]

    def at(self, which: Tensor | slice) -> "Groups":
        """Return some of them, by their indices [n] int64, or a slice, which copies nothing."""
        caps = self.expert_top_k
        return Groups(
            self.rows[which],
            self.weights[which],
            self.log_alpha[which],
            None if caps is None else caps[which],
            self.max_expert_top_k,
        )

    def check(self, logits: Tensor, statistics: Tensor | None = None) -> None:
        """Raise ValueError unless ``logits``, all of this and ``statistics`` [G, 3] fit together;
        reads no element.
        """
        if (
            logits.dim() != 2
            or logits.dtype not in LOGITS_DTYPES
            or not 1 <= logits.shape[1] < 2**31
        ):
            raise ValueError(
                f"contrastive scoring: logits is {describe(logits)}; it must be [R, V] with "
                "1 <= V < 2**31, float32, bfloat16 or float16"
            )
        num, streams = len(self), self.rows.shape[1] if self.rows.dim() == 2 else 2
        streams = min(max(streams, 2), MAX_STREAMS)
        tensors = [
            ("rows", self.rows, (num, streams), torch.int64),
            ("weights", self.weights, (num, streams - 1), torch.float32),
            ("log_alpha", self.log_alpha, (num,), torch.float32),
        ]
        if self.expert_top_k is not None:
            tensors.append(("expert_top_k", self.expert_top_k, (num,), torch.int64))
        if statistics is not None:
            tensors.append(("statistics", statistics, (num, 3), torch.int64))
        for name, tensor, shape, dtype in tensors:
            if (
                tensor.shape != shape
                or tensor.dtype != dtype
                or tensor.device != logits.device
                or not tensor.is_contiguous()
            ):
                raise ValueError(
                    f"contrastive scoring: {name} is {describe(tensor)}; it must be {list(shape)} "
                    f"{dtype} on {logits.device}, contiguous: an entry per group, of 2 to "
                    f"{MAX_STREAMS} streams"
                )
        if (self.expert_top_k is None) != (self.max_expert_top_k <= 0):
            raise ValueError(
                f"contrastive scoring: max_expert_top_k is {self.max_expert_top_k}; it must be the "
                "largest of expert_top_k, and expert_top_k None if no group has a cap"
            )


@dataclass(frozen=True, slots=True)
class Backend:
    """What a backend's file offers, as ``BACKEND``.

    ``vllm_cold.ops.scoring`` has checked the arguments, G >= 1, and made the last dimension of
    ``logits`` [R, V] contiguous. Outputs may hold anything before. A row number out of range raises
    IndexError where that needs no host sync; elsewhere a backend may report it: no token of the
    group is valid then, and the third of its statistics is ``OUT_OF_RANGE``. NaN or +inf in a row
    of a group raises nothing: ``vllm_cold.ops.scoring`` says what is written then, and the other
    groups' results are the same bits as without.

    Attributes:
        missing: Takes a device; why it cannot run there, in a sentence with the remedy; None if it
            can.
        scores: Takes ``logits``; ``groups``; ``out`` [G, V] float32, contiguous, or None: the
            scores are then written over the experts' rows in ``logits``, which is float32, and no
            row is in two places, but the expert's of a group whose only amateur it is, of weight 0;
            ``statistics`` [G, 3] int64, contiguous, or None. Without a host sync on accelerators.
    """

    missing: Callable[[torch.device], str | None]
    scores: Callable[[Tensor, Groups, Tensor | None, Tensor | None], None]


def row_outside(logits: Tensor, groups: Groups) -> IndexError:
    """Return the error for a row number out of range."""
    return IndexError(
        f"contrastive scoring: rows {groups.rows.tolist()} must be from 0 to {len(logits) - 1}, "
        "the rows of logits, or -1 in place of an amateur's"
    )


def describe(tensor: Tensor) -> str:
    """Describe shape, dtype and device, for an error."""
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
