# SPDX-License-Identifier: Apache-2.0
"""The self-test's requests on the model of ``tiny``, and the tokens that are right.

``tests/naive.py`` computes them, through transformers and peft in float32 and without vLLM, and a
test compares. No choice is so close that rounding decides it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """One request of the self-test, decoded greedily."""

    name: str  # what it shows
    prompt: Sequence[int]  # token ids
    right: Sequence[int]  # the token ids that it must give
    adapter: str | None = None  # the request's adapter, None for the base model
    cold: Mapping[str, Any] | None = None  # the settings of a contrastive request
    amateur: str | None = None  # adapter to contrast with, None for the base model


CASES = (
    Case(
        "base model", range(20, 37),
        (19, 74, 441, 64, 236, 460, 376, 70, 60, 281, 117, 330,
         493, 256, 164, 139, 36, 300, 315, 461, 499, 159, 281, 496),
    ),
    Case(
        "adapter, greedy", range(20, 37),
        (204, 448, 349, 89, 459, 207, 506, 353, 46, 430, 140, 498,
         125, 384, 84, 354, 293, 368, 211, 46, 13, 320, 320, 68),
        "one",
    ),
    Case(
        "contrastive decoding", range(20, 37),
        (26, 340, 103, 314, 354, 36, 140, 174, 258, 306, 198, 306,
         496, 262, 119, 257, 71, 65, 140, 480, 380, 358, 475, 205),
        "one", {"alpha": 0.1, "beta": 0.5},
    ),
    Case(
        "contrastive decoding, strong contrast and a cap", range(60, 95),
        (285, 36, 284, 194, 330, 241, 216, 416, 368, 316, 404, 201,
         327, 504, 148, 282, 113, 189, 111, 428, 119, 452, 285, 373),
        "one", {"alpha": 0.01, "beta": 2.0, "expert_top_k": 8},
    ),
    Case(
        "contrastive decoding against another adapter", range(120, 131),
        (303, 15, 295, 187, 456, 177, 176, 179, 59, 304, 37, 35,
         165, 74, 352, 295, 233, 466, 452, 417, 71, 292, 354, 174),
        "one", {"alpha": 0.05, "beta": 1.0}, "two",
    ),
    Case(
        "contrastive decoding, weights by a rule", range(120, 137),
        (398, 475, 417, 434, 375, 268, 423, 433, 420, 399, 480, 210,
         117, 319, 449, 83, 409, 224, 433, 485, 89, 391, 168, 495),
        "one", {"alpha": 0.02, "rule": "acd"},
    ),
)  # fmt: skip
